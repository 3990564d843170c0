"""The bytes of a replayed request: what was captured, with the mark put in front of the blank line."""

from __future__ import annotations

import re

from replay.balancer.settings import HOST
from replay.exchange import Origin, Request
from replay.forwarded import forwarded_line
from replay.http1 import header_values

_CONNECTION = re.compile(rb"\nconnection[ \t]*:", re.IGNORECASE)


def wire_bytes(request: Request, mark: bytes) -> bytes:
    """The request as it goes out. Its head ends with a blank line; `mark`: header lines without the last end."""
    head = request.head
    body = request.body if request.wire_body is None else request.wire_body
    if not mark:
        return head + body
    if head.endswith(b"\r\n"):
        return b"%b%b\r\n\r\n%b" % (head[:-2], mark, body)
    return b"%b%b\n\n%b" % (head[:-1], mark, body)


def added_lines(head: bytes, mark: bytes, origin: Origin) -> bytes:
    """The mark, and the line that names the client where the head does not; without the last line end."""
    line = forwarded_line(head, parties(origin)[0])
    if line is None:
        return mark
    return mark + b"\r\n" + line if mark else line


def parties(origin: Origin | None) -> tuple[str, str]:
    """The client and production's server, "" when not known."""
    if origin is None:
        return "", ""
    if origin.forwarded is None:
        return origin.client, origin.server
    address = origin.forwarded
    return (f"{address}:0" if address.version == 4 else f"[{address}]:0"), origin.server


def server_name(wanted: str, request: Request) -> str:
    """The name to ask TLS for: the request's host without its port, when that is what is wanted."""
    if wanted != HOST:
        return wanted
    values = header_values(request.head, b"host")
    host = values[0].strip().decode("latin-1") if values else ""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def wire_size(request: Request) -> int:
    """Bytes that the request holds while it waits."""
    return len(request.head) + len(request.body if request.wire_body is None else request.wire_body)


def asks_to_close(request: Request) -> bool:
    """Whether the request itself ends the connection (RFC 9112 section 9.3)."""
    head = request.head
    if request.version == 11 and _CONNECTION.search(head) is None:
        return False
    tokens = b",".join(header_values(head, b"connection")).lower()
    if request.version == 11:
        return b"close" in tokens
    return b"keep-alive" not in tokens
