"""The bytes of a replayed request: what was captured, with the mark put in front of the blank line."""

from __future__ import annotations

import re

from replay.exchange import Request
from replay.http1 import header_values

_CONNECTION = re.compile(rb"\nconnection[ \t]*:", re.IGNORECASE)


def wire_bytes(request: Request, mark: bytes) -> bytes:
    """The request as it goes out. `request.head` ends with its blank line; `mark` is a header line without line end."""
    head = request.head
    body = request.body if request.wire_body is None else request.wire_body
    if not mark:
        return head + body
    if head.endswith(b"\r\n"):
        return b"%b%b\r\n\r\n%b" % (head[:-2], mark, body)
    return b"%b%b\n\n%b" % (head[:-1], mark, body)


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
