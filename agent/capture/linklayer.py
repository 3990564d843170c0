"""Finds the IP packet inside a captured frame: link types, VLAN tags, MPLS, PPPoE, and what tunnels put around it.

Everything works on offsets into one bytes object. A *place* is (offset of the IP header, tags): the tags tell apart
networks with equal addresses and become the end of a segment's key; the same for both directions of a connection
(VLAN ids, VXLAN network identifiers; not MPLS labels, which differ by direction).
"""

from __future__ import annotations

from collections.abc import Callable

Place = tuple[int, bytes]

MAX_TAGS = 8  # VLAN tags or MPLS labels in a row
_VLAN = frozenset({0x8100, 0x88A8, 0x9100})
_MPLS = frozenset({0x8847, 0x8848})
_IP = frozenset({0x0800, 0x86DD})
_PPPOE_SESSION = 0x8864
_TRANSPARENT_ETHERNET = 0x6558
_TEREDO_PREFIX = bytes.fromhex("20010000")
_PPP_IP = frozenset({0x0021, 0x0057})


def locate(link_type: int, packet: bytes) -> Place | None:
    """Where IP begins in a frame; None if it carries none or is cut before it. `knows` says whether it can be told."""
    finder = _LINK_TYPES.get(link_type)
    return finder(packet) if finder is not None else None


def knows(link_type: int) -> bool:
    """The link type can be decoded."""
    return link_type in _LINK_TYPES


def ethernet(packet: bytes, at: int = 0, tags: bytes = b"") -> Place | None:
    """An Ethernet frame that begins at `at`."""
    return by_ethertype(packet, at + 14, _u16(packet, at + 12), tags)


def by_ethertype(packet: bytes, at: int, ethertype: int, tags: bytes = b"") -> Place | None:
    """What an Ethernet type announces, beginning at `at`."""
    for _ in range(MAX_TAGS):
        if ethertype not in _VLAN:
            break
        tags += (_u16(packet, at) & 0x0FFF).to_bytes(2, "big")
        ethertype = _u16(packet, at + 2)
        at += 4
    if ethertype in _IP:
        return at, tags
    if ethertype in _MPLS:
        return _mpls(packet, at, tags)
    if ethertype == _PPPOE_SESSION:
        return _ppp(packet, at + 6, tags)
    if ethertype == _TRANSPARENT_ETHERNET:
        return ethernet(packet, at, tags)
    return None


def vxlan(packet: bytes, at: int, tags: bytes) -> Place | None:
    """RFC 7348 section 5; `at` is behind the UDP header."""
    if packet[at : at + 1] != b"\x08":
        return None
    return ethernet(packet, at + 8, tags + packet[at + 4 : at + 7])


def gre(packet: bytes, at: int, tags: bytes) -> Place | None:
    """RFC 2784 and 2890, version 0."""
    flags = _u16(packet, at)
    if flags & 0x4007:  # routing (deprecated), or PPTP's version 1
        return None
    optional = 4 * sum(1 for bit in (0x8000, 0x2000, 0x1000) if flags & bit)
    return by_ethertype(packet, at + 4 + optional, _u16(packet, at + 2), tags)


def teredo(packet: bytes, at: int, tags: bytes) -> Place | None:
    """RFC 4380 section 5.1.1: IPv6 behind an optional authentication and an optional origin."""
    if packet[at : at + 2] == b"\x00\x01":
        at += 13 + packet[at + 2] + packet[at + 3] if len(packet) > at + 3 else 0
    if packet[at : at + 2] == b"\x00\x00":
        at += 8
    return (at, tags) if _version(packet, at) == 6 else None


def looks_like_teredo(packet: bytes, at: int) -> bool:
    """IPv6 with a Teredo address, as between two peers, who use any port."""
    return packet[at : at + 1] == b"\x60" and _TEREDO_PREFIX in (packet[at + 8 : at + 12], packet[at + 24 : at + 28])


def _u16(packet: bytes, at: int) -> int:
    """Zero where the packet is too short: no protocol has that number."""
    return int.from_bytes(packet[at : at + 2], "big") if len(packet) >= at + 2 else 0


def _version(packet: bytes, at: int) -> int:
    return packet[at] >> 4 if len(packet) > at else 0


def _mpls(packet: bytes, at: int, tags: bytes) -> Place | None:
    for _ in range(MAX_TAGS):
        if len(packet) < at + 4:
            return None
        at += 4
        if packet[at - 2] & 1:  # bottom of the stack (RFC 3032 section 2.1)
            break
    version = _version(packet, at)
    if version in (4, 6):
        return at, tags
    return ethernet(packet, at + 4, tags) if packet[at : at + 1] == b"\x00" else None  # control word (RFC 4448)


def _ppp(packet: bytes, at: int = 0, tags: bytes = b"") -> Place | None:
    if packet[at : at + 2] == b"\xff\x03":
        at += 2
    if packet[at : at + 1] in (b"\x21", b"\x57"):  # protocol field compressed to one byte (RFC 1661 section 6.5)
        return at + 1, tags
    return (at + 2, tags) if _u16(packet, at) in _PPP_IP else None


def _raw(packet: bytes) -> Place | None:
    return (0, b"") if _version(packet, 0) in (4, 6) else None


def _loopback(packet: bytes) -> Place | None:
    """Four bytes of address family, in an unknown byte order and with other numbers on every system: look behind."""
    return (4, b"") if _version(packet, 4) in (4, 6) else None


def _cooked(packet: bytes) -> Place | None:
    return by_ethertype(packet, 16, _u16(packet, 14))


def _cooked_v2(packet: bytes) -> Place | None:
    return by_ethertype(packet, 20, _u16(packet, 0))


def _hdlc(packet: bytes) -> Place | None:
    return by_ethertype(packet, 4, _u16(packet, 2))


def _nflog(packet: bytes) -> Place | None:
    """Type-length-value attributes in the capturing host's byte order (little-endian taken); 9 is the packet."""
    at = 4
    while len(packet) >= at + 4:
        length = int.from_bytes(packet[at : at + 2], "little")
        if int.from_bytes(packet[at + 2 : at + 4], "little") == 9:
            return (at + 4, b"") if _version(packet, at + 4) in (4, 6) else None
        if length < 4:
            return None
        at += length + 3 & ~3
    return None


def _radiotap(packet: bytes) -> Place | None:
    return _wlan(packet, int.from_bytes(packet[2:4], "little")) if len(packet) >= 4 else None


def _wlan(packet: bytes, at: int = 0) -> Place | None:
    """IEEE 802.11 data frames that are not encrypted."""
    if len(packet) < at + 2:
        return None
    control, flags = packet[at], packet[at + 1]
    if control & 0x0C != 0x08 or control & 0x40 or flags & 0x40:  # not data, no data, protected
        return None
    at += 24 + 6 * (flags & 3 == 3)  # a fourth address between access points
    if control & 0x80:
        at += 2 + 4 * (flags >> 7)  # QoS control, HT control
    if packet[at : at + 3] != b"\xaa\xaa\x03":
        return None
    return by_ethertype(packet, at + 8, _u16(packet, at + 6))


_LINK_TYPES: dict[int, Callable[[bytes], Place | None]] = {
    0: _loopback,
    1: ethernet,
    9: _ppp,
    12: _raw,
    14: _raw,
    50: _ppp,
    51: lambda packet: _ppp(packet, 6),
    101: _raw,
    104: _hdlc,
    105: _wlan,
    108: _loopback,
    113: _cooked,
    127: _radiotap,
    228: _raw,
    229: _raw,
    239: _nflog,
    276: _cooked_v2,
}
