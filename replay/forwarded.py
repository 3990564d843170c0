"""Names the real client to an upstream in X-Forwarded-For, as the balancer in front of production does.

The line stands behind the request's own fields. Proxies append; a list over several lines is one list, in their order
(RFC 9110 section 5.3), so a request that came with an X-Forwarded-For keeps it and gets one line more.
"""

from __future__ import annotations

import socket
from functools import lru_cache

from replay.http1 import header_values
from replay.proxy_header import parse_peer

CACHE_ENTRIES = 4096  # clients; a line is 50 bytes

_NAME = b"X-Forwarded-For: "
_LOWER = b"x-forwarded-for"
_NEEDLE = b"\n" + _LOWER


def forwarded_line(head: bytes, client: str) -> bytes | None:
    """The header line to add, without its line end, or None: the head's last entry is this client already, or `client`
    ("192.0.2.1:5555", "[2001:db8::1]:5555", or an address alone) is none."""
    line = _line(client)
    if line is None or head.lower().find(_NEEDLE) < 0:
        return line
    return None if _last_address(head) == line[len(_NAME) :] else line


@lru_cache(CACHE_ENTRIES)
def _line(client: str) -> bytes | None:
    address = _address(client)
    return _NAME + address if address else None


def _last_address(head: bytes) -> bytes:
    """The last entry of the field, as an address; empty entries do not count (RFC 9110 section 5.6.1.2)."""
    entries = b",".join(header_values(head, _LOWER)).rstrip(b", \t")
    return _address(entries.rpartition(b",")[2].strip(b" \t").decode("latin-1"))


def _address(text: str) -> bytes:
    """The address in its one usual spelling, without port and brackets; b"" if it is none."""
    peer = parse_peer(text)
    if peer is None:
        return b""
    family = socket.AF_INET if len(peer.address) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, peer.address).encode("ascii")
