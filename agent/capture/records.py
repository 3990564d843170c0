"""Walks the records of pcap and the blocks of pcapng files, over big buffers, without an object for each packet.

dpkt knows the headers; only the two that come once per packet are taken apart here. A walker gets a buffer that begins
with a record, delimits all whole records in it, and says how far it came; what is left comes again with more behind it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dpkt import pcap, pcapng

from agent.capture.decode import Record

MAX_RECORD_BYTES = 16 << 20  # a larger one is no packet: the file is broken there
SECOND_NS = 1_000_000_000
_NANO = (pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO)
_MODIFIED = (pcap.MODPCAP_MAGIC, pcap.PACPDOM_MAGIC)
_LITTLE = (pcap.PMUDPCT_MAGIC, pcap.PMUDPCT_MAGIC_NANO, pcap.PACPDOM_MAGIC)
_OPTION_RESOLUTION, _OPTION_OFFSET = 9, 14

Group = tuple[int, list[Record]]  # link type, packets of that type one after the other


class BrokenFile(Exception):
    """The file cannot be followed further; the text says what is wrong."""


class PcapWalker:
    """The classic format: one header, then records of 16 bytes (24 in a modified form) and the packet."""

    header_bytes = 24

    def __init__(self, header: bytes) -> None:
        magic = pcap.FileHdr(header).magic
        little = magic in _LITTLE
        self._record = struct.Struct("<IIII" if little else ">IIII").unpack_from
        self._header_bytes = 24 if magic in _MODIFIED else 16
        self._fraction_ns = 1 if magic in _NANO else 1000
        parsed = (pcap.LEFileHdr if little else pcap.FileHdr)(header)
        self._link_type: int = parsed.linktype & 0xFFFF

    def walk(self, buffer: bytes) -> tuple[int, list[Group]]:
        """How far it came, and the packets; BrokenFile if the first record is none."""
        record, ahead, fraction_ns = self._record, self._header_bytes, self._fraction_ns
        records: list[Record] = []
        at, last = 0, len(buffer) - ahead
        while at <= last:
            seconds, fraction, size, wire = record(buffer, at)
            start = at + ahead
            end = start + size
            if end > len(buffer):
                if size > MAX_RECORD_BYTES and not records:
                    raise BrokenFile(f"a record claims {size} bytes")
                break
            records.append((seconds * SECOND_NS + fraction * fraction_ns, start, end, wire))
            at = end
        return at, [(self._link_type, records)]


class Interface(NamedTuple):
    """What an interface description block says of the packets that refer to it."""

    link_type: int
    snap_bytes: int
    units_per_second: int
    offset_ns: int

    def time_ns(self, high: int, low: int) -> int:
        """Nanoseconds since the epoch of a time in the interface's units."""
        return (high << 32 | low) * SECOND_NS // self.units_per_second + self.offset_ns


class PcapngWalker:
    """Blocks; each section has its own byte order and interfaces. Unknown blocks are passed over."""

    header_bytes = 0

    def __init__(self) -> None:
        self._order = "<"
        self._interfaces: list[Interface] = []
        self._last_ns = 0  # for simple packet blocks, which carry no time
        self._groups: list[Group] = []

    def walk(self, buffer: bytes) -> tuple[int, list[Group]]:
        """How far it came, and the packets; BrokenFile if the first block is none."""
        self._groups = []
        at = 0
        while at + 12 <= len(buffer):
            known = buffer[at : at + 4] != b"\x0a\x0d\x0d\x0a" or self._section(buffer, at)
            kind, size = struct.unpack_from(self._order + "II", buffer, at)
            if not known or size < 12 or size & 3 or size > MAX_RECORD_BYTES:
                if at:
                    break
                raise BrokenFile(f"a block claims {size} bytes" if known else "a section header without byte order")
            if at + size > len(buffer):
                break
            self._block(kind, buffer, at, at + size)
            at += size
        return at, self._groups

    def _section(self, buffer: bytes, at: int) -> bool:
        """Take over the byte order of a section; False if it has none."""
        magic = int.from_bytes(buffer[at + 8 : at + 12], "little")
        if magic not in (pcapng.BYTE_ORDER_MAGIC, pcapng.BYTE_ORDER_MAGIC_LE):
            return False
        self._order = "<" if magic == pcapng.BYTE_ORDER_MAGIC else ">"
        self._interfaces = []
        return True

    def _block(self, kind: int, buffer: bytes, at: int, end: int) -> None:
        if kind == pcapng.PCAPNG_BT_EPB and end - at >= 32:
            number, high, low, size, wire = struct.unpack_from(self._order + "5I", buffer, at + 8)
            self._packet(number, high, low, at + 28, min(size, end - at - 32), wire)
        elif kind == pcapng.PCAPNG_BT_IDB and end - at >= 20:
            self._interfaces.append(_interface(buffer[at:end], self._order))
        elif kind == pcapng.PCAPNG_BT_PB and end - at >= 32:
            number, _, high, low, size, wire = struct.unpack_from(self._order + "HH4I", buffer, at + 8)
            self._packet(number, high, low, at + 28, min(size, end - at - 32), wire)
        elif kind == pcapng.PCAPNG_BT_SPB and end - at >= 16 and self._interfaces:
            (wire,) = struct.unpack_from(self._order + "I", buffer, at + 8)
            size = min(wire, end - at - 16, self._interfaces[0].snap_bytes or wire)
            self._append(self._interfaces[0].link_type, (self._last_ns, at + 12, at + 12 + size, wire))

    def _packet(self, number: int, high: int, low: int, start: int, size: int, wire: int) -> None:
        if number < len(self._interfaces):
            interface = self._interfaces[number]
            self._last_ns = interface.time_ns(high, low)
            self._append(interface.link_type, (self._last_ns, start, start + size, wire))

    def _append(self, link_type: int, record: Record) -> None:
        groups = self._groups
        if not groups or groups[-1][0] != link_type:
            groups.append((link_type, []))
        groups[-1][1].append(record)


def _interface(block: bytes, order: str) -> Interface:
    parsed = (pcapng.InterfaceDescriptionBlockLE if order == "<" else pcapng.InterfaceDescriptionBlock)()
    parsed.unpack_hdr(block)
    units, offset_ns = 1_000_000, 0
    for code, value in _options(block[16:-4], order):
        if code == _OPTION_RESOLUTION and len(value) == 1:
            exponent = value[0] & 0x7F
            units = 1 << exponent if value[0] & 0x80 else 10**exponent
        elif code == _OPTION_OFFSET and len(value) == 8:
            offset_ns = struct.unpack(order + "q", value)[0] * SECOND_NS
    return Interface(parsed.linktype, parsed.snaplen, units, offset_ns)


def _options(data: bytes, order: str) -> list[tuple[int, bytes]]:
    """Code and value of each option of a block, as far as they are whole."""
    out: list[tuple[int, bytes]] = []
    at = 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from(order + "HH", data, at)
        if not code:
            break
        out.append((code, data[at + 4 : at + 4 + size]))
        at += 4 + (size + 3 & ~3)
    return out
