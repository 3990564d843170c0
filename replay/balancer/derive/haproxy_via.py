"""Which upstream answered: the line that has HAProxy say it in a header, and the reading of that header.

HAProxy counts in whole milliseconds. The last of the three times is only there to tell an answer of a server's from one
of HAProxy's own (a redirect, an error, the cache, the statistics page): -1 where no server's answer was read.
"""

from __future__ import annotations

import re

from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_source import Section, Source, Statement
from replay.errors import UpstreamError
from replay.via import Via

FORMAT = "%b/%s %si:%sp %Tw %Tc %Tr"  # backend/server address:port queue connect response
LONGEST = 1024
NS_PER_MS = 1_000_000
_TOKEN = re.compile(r"[A-Za-z0-9!&*+.^_`|~-]+")  # a header's name, but for what HAProxy would want quoted
_VALUE = re.compile(rb"([!-.0-~]+)/([!-~]+) ([!-~]*):(\d{0,5}) (-?\d{1,9}) (-?\d{1,9}) (-?\d{1,9})")


def add_header(draft: Draft, header: str, loops: bool) -> None:
    """Have every HTTP frontend name the upstream. In TCP mode there is no place to say it.

    `loops`: servers of this file lead back into it, so that a response may pass a second frontend, which would name the
    first one. There, what is said already stays.
    """
    if not _TOKEN.fullmatch(header):
        raise UpstreamError(f"response header {header!r}: write a header's name, as in X-Shadowtap-Upstream")
    rule = f'http-after-response set-header {header} "{FORMAT}"'
    if loops:
        rule += f" unless {{ res.hdr({header}) -m found }}"
    source = draft.source
    for section in source.sections:
        if section.kind not in ("frontend", "listen"):
            continue
        places = list(_places(source, section))
        for at in places:
            draft.follow(at, f"{source.indent(section)}{rule}", Reason.VIA)
        if not places:
            draft.note(f"{section.kind} {section.name} is in TCP mode: which server answers there is not told")


def parse_via(value: bytes) -> Via | None:
    """The header's value; None for anything that HAProxy would not have written."""
    found = _VALUE.fullmatch(value.strip()) if len(value) <= LONGEST else None
    if found is None:
        return None
    backend, server, host, port = (part.decode("ascii") for part in found.groups()[:4])
    queue_ms, connect_ms, response_ms = (int(part) for part in found.groups()[4:])
    times = (_ns(queue_ms), _ns(connect_ms))
    if response_ms < 0 or not host:
        return Via(backend, "", "", *times)
    if host == "unix":
        return Via(backend, server, "", *times)  # HAProxy does not say which; the server's name tells
    return Via(backend, server, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", *times)


def _places(source: Source, section: Section) -> list[Statement]:
    """Behind which lines: HAProxy knows the format's variables only once it knows that the proxy is in HTTP mode."""
    own = source.of(section)
    modes = [each for each in own if each.says("mode")]
    if not modes:
        return own[:1] if source.mode(section) == "http" else []
    return [each for each in modes if each.says("mode", "http")]


def _ns(milliseconds: int) -> int:
    return milliseconds * NS_PER_MS if milliseconds >= 0 else -1
