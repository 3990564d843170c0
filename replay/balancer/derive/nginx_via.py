"""Which upstream answered: a response header that nginx is told to add, and what it says.

    X-Shadowtap-Upstream: 192.0.2.1:80, 192.0.2.2:80;0.001, 0.002;app;

The values of $upstream_addr, $upstream_connect_time, $proxy_host, and of this header where the upstream sent one: then
nginx asked itself, and the inner answer names the server. nginx lists its tries with commas, and those of before and
after an internal redirect with colons (ngx_http_upstream_module, "Embedded Variables"); the last one answered. Nothing
in front of the first semicolon: nginx itself answered.
"""

from __future__ import annotations

import re

from replay.balancer.address import UNIX, parse_host_port
from replay.balancer.derive.nginx_edits import Edits, Reason
from replay.balancer.derive.nginx_tree import Statement, walk
from replay.errors import UpstreamError
from replay.via import Via

VALUE = "$upstream_addr;$upstream_connect_time;$proxy_host"
VALUE_LIMIT_BYTES = 4096
HOPS_LIMIT = 4  # of nginx through itself
UNKNOWN_NS = -1

_TRIES = re.compile(r", | : ")
_SECONDS = re.compile(r"(\d{1,9})\.(\d{3})")


def edit_headers(http: Statement, header: str, edits: Edits) -> None:
    """Have the header added to every response: at the http block, and in each block with an add_header of its own,
    where what is said further out does not hold any more."""
    value = f"{VALUE};$upstream_http_{header.lower().replace('-', '_')}"
    for statement in (http, *(each for each, _ in walk(http) if each.children("add_header"))):
        edits.add(statement, "add_header", header, value, "always", reason=Reason.VIA)


def parse_nginx_via(value: bytes) -> Via | None:
    """What the header says; None for what nginx would not write. Never raises."""
    if len(value) > VALUE_LIMIT_BYTES:
        return None
    found = None
    rest = value.decode("latin-1")
    for _ in range(HOPS_LIMIT):
        fields = [field.strip() for field in rest.split(";", 3)]
        if len(fields) < 3:
            break
        via = _one(*fields[:3])
        if found is not None and not via.address:
            break
        found = via
        if not via.address or len(fields) < 4:
            break
        rest = fields[3]
    return found


def _one(addresses: str, times: str, backend: str) -> Via:
    address = _TRIES.split(addresses)[-1]
    if address in ("", "-"):
        return Via(backend, "", "", UNKNOWN_NS, UNKNOWN_NS)
    if not _is_address(address):  # the name of an upstream none of whose servers is well
        return Via(address, "", "", UNKNOWN_NS, UNKNOWN_NS)
    return Via(backend, address, address, UNKNOWN_NS, _nanoseconds(_TRIES.split(times)[-1]))


def _is_address(text: str) -> bool:
    if text.startswith(f"{UNIX}/"):
        return True
    try:
        return bool(parse_host_port(text))
    except UpstreamError:
        return False


def _nanoseconds(text: str) -> int:
    """nginx writes milliseconds, as seconds with three decimals."""
    match = _SECONDS.fullmatch(text)
    if match is None:
        return UNKNOWN_NS
    return (int(match[1]) * 1000 + int(match[2])) * 1_000_000
