"""One captured TCP segment, the same whether it came from the kernel or from a file."""

from __future__ import annotations

import ipaddress
import socket
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

KEY_V4_BYTES = 12
KEY_V6_BYTES = 36


class Segment(NamedTuple):
    """One segment that carries payload, SYN, FIN or RST (pure ACKs may be left out by a source)."""

    t_ns: int  # nanoseconds since the epoch
    key: bytes  # source address, destination address, source port, destination port: 12 bytes (IPv4) or 36 (IPv6), in
    # network order, optionally followed by bytes that tell apart networks with equal addresses (VLAN ids)
    seq: int
    ack: int  # meaningless unless flags has ACK
    flags: int  # TCP flags, FIN SYN RST PSH ACK ...
    payload: bytes  # what was captured of it, from the segment's start
    length: int  # payload bytes on the wire; more than len(payload) when the copy was cut


def reverse(key: bytes) -> bytes:
    """The key of the other direction."""
    if len(key) < KEY_V6_BYTES:
        return key[4:8] + key[:4] + key[10:12] + key[8:10] + key[12:]
    return key[16:32] + key[:16] + key[34:36] + key[32:34] + key[36:]


def source(key: bytes) -> str:
    """Source address and port of a key: "192.0.2.1:80", "[2001:db8::1]:80"."""
    if len(key) < KEY_V6_BYTES:
        return f"{key[0]}.{key[1]}.{key[2]}.{key[3]}:{key[8] << 8 | key[9]}"
    return f"[{socket.inet_ntop(socket.AF_INET6, key[:16])}]:{key[32] << 8 | key[33]}"


def source_address(key: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Source address of a key."""
    return ipaddress.ip_address(key[:4] if len(key) < KEY_V6_BYTES else key[:16])


def source_port(key: bytes) -> int:
    """Source port of a key."""
    at = 8 if len(key) < KEY_V6_BYTES else 32
    return key[at] << 8 | key[at + 1]
