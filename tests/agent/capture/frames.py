"""Packets and capture files for the tests, made with scapy and struct."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from agent.capture.pcap import PcapSource
from agent.capture.segment import Segment

PAYLOAD = b"GET / HTTP/1.1\r\n\r\n"
KEY_V4 = bytes((10, 0, 0, 1, 192, 0, 2, 80, 0x9C, 0x40, 0, 80))
KEY_V6 = bytes.fromhex("20010db800000000000000000000000120010db80000000000000000000000029c400050")
SECONDS, NANOS = 1_700_000_000, 123_456_789
T_NS = SECONDS * 1_000_000_000 + NANOS


def ether(**fields: Any) -> Packet:
    """An Ethernet header. Addresses are given, as scapy would otherwise ask the network for them."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


def tcp(payload: bytes = PAYLOAD, **fields: Any) -> Packet:
    """A TCP segment to put behind an IP header."""
    fields = {"sport": 40_000, "dport": 80, "seq": 1000, "ack": 2000, "flags": "PA", **fields}
    return TCP(**fields) / payload


def ip4(inner: Packet | None = None, **fields: Any) -> Packet:
    """IPv4 around a segment."""
    return IP(src="10.0.0.1", dst="192.0.2.80", **fields) / (tcp() if inner is None else inner)


def ip6(inner: Packet | None = None, **fields: Any) -> Packet:
    """IPv6 around a segment."""
    return IPv6(src="2001:db8::1", dst="2001:db8::2", **fields) / (tcp() if inner is None else inner)


def pcap(
    packets: Sequence[bytes | Packet], link_type: int = 1, order: str = "<", nano: bool = True, wire: int | None = None
) -> bytes:
    """A pcap file; `wire` is the length on the wire of each packet, when it is not that of what is there."""
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link_type)]
    for packet in packets:
        data = bytes(packet)
        fraction = NANOS if nano else NANOS // 1000
        out.append(struct.pack(order + "IIII", SECONDS, fraction, len(data), wire or len(data)) + data)
    return b"".join(out)


def read(tmp_path: Path, data: bytes, **options: Any) -> tuple[list[Segment], PcapSource]:
    """All segments of a capture file with this content, and the source with its counters."""
    path = tmp_path / "capture"
    path.write_bytes(data)
    with PcapSource(path, **options) as source:
        return [segment for batch in source.batches() for segment in batch], source
