"""Makes the PROXY protocol header, version 2, that tells an upstream who the real client is.

It is the first thing on a connection, before TLS. https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt section
2.2: signature, version and command, family and protocol, length of the rest; then both addresses, then both ports.
"""

from __future__ import annotations

import re
import socket
import struct
from functools import lru_cache
from typing import NamedTuple

CACHE_ENTRIES = 1024
MAX_PORT = 65535

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD = struct.Struct("!12sBBH").pack  # 16 bytes
_PORTS = struct.Struct("!HH").pack
_LOCAL = 0x20
_PROXY = 0x21
_TCP4 = 0x11
_TCP6 = 0x21
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, IPv4 written as IPv6
_PORT = r"(?::([0-9]{1,5}))?"
_PEER = re.compile(rf"\[([0-9A-Fa-f:.]{{2,45}})\]{_PORT}|([0-9.]{{7,15}}){_PORT}|([0-9A-Fa-f:.]{{2,45}})")

LOCAL = _HEAD(_SIGNATURE, _LOCAL, 0, 0)
"""The header that names nobody: the connection's own peer is the client."""


class Peer(NamedTuple):
    """One end of a connection. IPv4 that was written as IPv6 is IPv4."""

    address: bytes  # 4 or 16, in network order
    port: int  # 0 without one


def parse_peer(text: str) -> Peer | None:
    """Take "192.0.2.1:5555", "[2001:db8::1]:5555" or an address alone apart; None on anything else."""
    match = _PEER.fullmatch(text)
    if match is None:
        return None
    bracketed, port6, plain, port4, bare = match.groups()
    host = bracketed or plain or bare
    port = int(port6 or port4 or 0)
    try:
        address = socket.inet_pton(socket.AF_INET if plain else socket.AF_INET6, host)
    except OSError:
        return None
    if address.startswith(_MAPPED) and len(address) == 16:
        address = address[12:]
    return Peer(address, port) if port <= MAX_PORT else None


@lru_cache(CACHE_ENTRIES)
def proxy_v2(client: str, server: str) -> bytes:
    """The header for a TCP connection of `client` to `server`, each as an Exchange has it; a port that is not known
    is 0. Ends of different families are both given as IPv6. LOCAL if one of them is not an address."""
    source, destination = parse_peer(client), parse_peer(server)
    if source is None or destination is None:
        return LOCAL
    family, addresses = _TCP4, source.address + destination.address
    if len(addresses) > 8:
        family, addresses = _TCP6, _as_ipv6(source.address) + _as_ipv6(destination.address)
    rest = addresses + _PORTS(source.port, destination.port)
    return _HEAD(_SIGNATURE, _PROXY, family, len(rest)) + rest


def _as_ipv6(address: bytes) -> bytes:
    return address if len(address) == 16 else _MAPPED + address
