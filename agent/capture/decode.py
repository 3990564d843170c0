"""From packets to segments. Plain Ethernet with IPv4 or IPv6 takes one look at fixed offsets; all else the long way."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields

from agent.capture import linklayer
from agent.capture.fragments import Fragments
from agent.capture.segment import FIN, RST, SYN, Segment

Record = tuple[int, int, int, int]  # t_ns, offsets of the packet's first byte and behind its last, length on the wire

_ETHERNET = 1
_CONTROL = SYN | FIN | RST
_MAX_LAYERS = 8  # IP headers, extension headers and tunnels in one packet
_TCP, _UDP, _IPV4, _IPV6, _GRE, _FRAGMENT, _AUTH = 6, 17, 4, 41, 47, 44, 51
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})  # RFC 7045 section 4: those built as next header, length, data
_VXLAN_PORT, _GRE_PORT, _TEREDO_PORT = 4789, 4754, 3544

# From the Ethernet type on: type, version and header length, total length, fragment, protocol, key, seq, ack, ...
_frame_v4 = struct.Struct(">HBxH2xHxB2x12sIIBB").unpack_from
_frame_v6 = struct.Struct(">HB3xHBx36sIIBB").unpack_from
_tcp = struct.Struct(">4sIIBB").unpack_from
_V4_BYTES, _V6_BYTES = 14 + 20 + 20, 14 + 40 + 20


@dataclass(slots=True)
class PacketCounters:
    """What became of the packets of a capture file."""

    packets: int = 0
    segments: int = 0  # handed on
    pure_acks: int = 0  # TCP without payload, SYN, FIN or RST: left out, as the live source does
    not_ip: int = 0
    not_tcp: int = 0
    fragments: int = 0  # packets that are a part of an IP packet
    fragments_dropped: int = 0  # IP packets given up because too many were unfinished
    cut: int = 0  # segments of which the file holds only a part
    malformed: int = 0  # headers that contradict themselves or are cut
    undecodable: int = 0  # packets of link types that are not known
    problems: int = 0  # times the file itself was broken

    def as_dict(self) -> dict[str, int]:
        """Name to count."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Decoder:
    """Turns the packets of one file into segments."""

    __slots__ = ("_fragments", "counters")

    def __init__(self, counters: PacketCounters) -> None:
        self.counters = counters
        self._fragments = Fragments()

    def decode(self, buffer: bytes, records: Sequence[Record], link_type: int, out: list[Segment]) -> None:
        """Append the segments of the packets that `records` delimits in `buffer`."""
        self.counters.packets += len(records)
        before = len(out)
        if link_type == _ETHERNET:
            self._ethernet(buffer, records, out)
        elif linklayer.knows(link_type):
            for t_ns, at, end, wire in records:
                self._frame(t_ns, buffer[at:end], wire, link_type, out)
        else:
            self.counters.undecodable += len(records)
        self.counters.segments += len(out) - before
        self.counters.fragments_dropped = self._fragments.dropped

    def _ethernet(self, buffer: bytes, records: Sequence[Record], out: list[Segment]) -> None:
        emit, new, pure_acks = out.append, tuple.__new__, 0
        for record in records:
            t_ns, at, end, wire = record
            if end - at >= _V4_BYTES:
                kind, version, total, fragment, protocol, key, seq, ack, offset, flags = _frame_v4(buffer, at + 12)
                if kind == 0x0800 and version == 0x45 and protocol == _TCP and not fragment & 0x3FFF:
                    header = offset >> 4 << 2
                    length = total - 20 - header
                    start = at + 34 + header
                    if length == 0 and not flags & _CONTROL and header >= 20:
                        pure_acks += 1
                        continue
                    if length >= 0 and header >= 20 and start + length <= end:
                        payload = buffer[start : start + length]
                        emit(new(Segment, (t_ns, key, seq, ack, flags, payload, length)))
                        continue
                elif kind == 0x86DD and end - at >= _V6_BYTES and self._frame_v6(buffer, record, out):
                    continue
            self._frame(t_ns, buffer[at:end], wire, _ETHERNET, out)
        self.counters.pure_acks += pure_acks

    def _frame_v6(self, buffer: bytes, record: Record, out: list[Segment]) -> bool:
        """Take a plain TCP segment in IPv6; False if it is not that plain."""
        t_ns, at, end, _ = record
        _, version, size, protocol, key, seq, ack, offset, flags = _frame_v6(buffer, at + 12)
        header = offset >> 4 << 2
        length = size - header
        start = at + 54 + header
        if version >> 4 != 6 or protocol != _TCP or header < 20 or length < 0 or start + length > end:
            return False
        if length or flags & _CONTROL:
            out.append(Segment(t_ns, key, seq, ack, flags, buffer[start : start + length], length))
        else:
            self.counters.pure_acks += 1
        return True

    def _frame(self, t_ns: int, packet: bytes, wire: int, link_type: int, out: list[Segment]) -> None:
        """Any packet: find IP, then go from header to header."""
        place = linklayer.locate(link_type, packet)
        if place is None:
            self.counters.not_ip += 1
            return
        missing = max(wire - len(packet), 0)  # bytes behind the captured ones
        for _ in range(_MAX_LAYERS):
            at, tags = place
            if packet[at : at + 1] < b"\x50":
                step = self._ipv4(packet, at, tags, missing)
            else:
                step = self._ipv6(packet, at, tags, missing)
            if step is None:
                return
            packet, at, protocol, addresses, size = step
            if size > len(packet) - at:
                missing = size - (len(packet) - at)
            else:
                packet, missing = packet[: at + size], 0  # padding is not payload
            if protocol == _TCP:
                self._segment(t_ns, packet, at, addresses, tags, size, out)
                return
            inner = _inside(packet, at, protocol, tags)
            if inner is None:
                self.counters.not_tcp += 1
                return
            place = inner
        self.counters.malformed += 1

    def _segment(
        self, t_ns: int, packet: bytes, at: int, addresses: bytes, tags: bytes, size: int, out: list[Segment]
    ) -> None:
        """A TCP header at `at`; header and payload were `size` bytes on the wire."""
        header = packet[at + 12] >> 4 << 2 if len(packet) >= at + 20 else 0
        if header < 20 or header > size:
            self.counters.malformed += 1
            return
        ports, seq, ack, _, flags = _tcp(packet, at)
        length = size - header
        if not length and not flags & _CONTROL:
            self.counters.pure_acks += 1
            return
        payload = packet[at + header :]
        self.counters.cut += len(payload) < length
        out.append(Segment(t_ns, addresses + ports + tags, seq, ack, flags, payload, length))

    def _ipv4(self, packet: bytes, at: int, tags: bytes, missing: int) -> _Step | None:
        header = (packet[at] & 15) * 4 if len(packet) > at else 0
        if header < 20 or len(packet) < at + header or packet[at] >> 4 != 4:
            self.counters.malformed += 1
            return None
        total, identity, fragment = struct.unpack_from(">HHH", packet, at + 2)
        protocol, addresses = packet[at + 9], packet[at + 12 : at + 20]
        if not total:  # segmentation offload left it to the card
            total = len(packet) - at + missing
        if total < header:
            self.counters.malformed += 1
            return None
        if not fragment & 0x3FFF:
            return packet, at + header, protocol, addresses, total - header
        key = (addresses, bytes((protocol,)), identity.to_bytes(2, "big"), tags)
        piece = packet[at + header : at + total]
        return self._fragment(key, (fragment & 0x1FFF) * 8, bool(fragment & 0x2000), piece, protocol, addresses)

    def _ipv6(self, packet: bytes, at: int, tags: bytes, missing: int) -> _Step | None:
        if len(packet) < at + 40 or packet[at] >> 4 != 6:
            self.counters.malformed += 1
            return None
        size = int.from_bytes(packet[at + 4 : at + 6], "big")
        protocol, addresses = packet[at + 6], packet[at + 8 : at + 40]
        end = at + 40 + size if size else len(packet) + missing
        at += 40
        for _ in range(_MAX_LAYERS):
            if protocol not in _EXTENSIONS and protocol not in (_FRAGMENT, _AUTH):
                return packet, at, protocol, addresses, end - at
            if len(packet) < at + 8:
                break
            following = packet[at]
            if protocol == _FRAGMENT:
                word = int.from_bytes(packet[at + 2 : at + 4], "big")
                if word & 0xFFF9:
                    key = (addresses, packet[at + 4 : at + 8], tags)
                    piece = packet[at + 8 : end]
                    return self._fragment(key, word & 0xFFF8, bool(word & 1), piece, following, addresses)
                at += 8
            else:
                at += (packet[at + 1] + 2) * 4 if protocol == _AUTH else (packet[at + 1] + 1) * 8
            protocol = following
        self.counters.malformed += 1
        return None

    def _fragment(
        self, key: tuple[bytes, ...], offset: int, more: bool, data: bytes, protocol: int, addresses: bytes
    ) -> _Step | None:
        self.counters.fragments += 1
        whole = self._fragments.add(key, offset, more, data)
        return None if whole is None else (whole, 0, protocol, addresses, len(whole))


_Step = tuple[bytes, int, int, bytes, int]  # packet, offset behind the header, protocol, addresses, bytes on the wire


def _inside(packet: bytes, at: int, protocol: int, tags: bytes) -> linklayer.Place | None:
    """The IP packet that a tunnel carries, if it is one that is known."""
    if protocol in (_IPV4, _IPV6):
        return at, tags
    if protocol == _GRE:
        return linklayer.gre(packet, at, tags)
    if protocol == _UDP and len(packet) >= at + 8:
        by, to = struct.unpack_from(">HH", packet, at)
        if to == _VXLAN_PORT:
            return linklayer.vxlan(packet, at + 8, tags)
        if to == _GRE_PORT:
            return linklayer.gre(packet, at + 8, tags)
        if _TEREDO_PORT in (by, to) or linklayer.looks_like_teredo(packet, at + 8):
            return linklayer.teredo(packet, at + 8, tags)
    return None
