"""Link types, tunnels, IP options and extensions, fragments, cut and offloaded packets."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.dot11 import Dot11, Dot11QoS, RadioTap
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.l2 import ARP, GRE, LLC, SNAP, CookedLinux, CookedLinuxV2, Dot1Q
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from agent.capture.segment import KEY_V6_BYTES
from tests.agent.capture.frames import KEY_V4, KEY_V6, PAYLOAD, ether, ip4, ip6, pcap, read, tcp

INNER = [(ip4, KEY_V4, 0x0800), (ip6, KEY_V6, 0x86DD)]
VLAN_5, VLAN_7 = b"\x00\x05", b"\x00\x07"


def nflog(packet: bytes) -> bytes:
    """A packet-with-payload message: a prefix attribute, then the payload attribute."""
    return (
        b"\x02\x00\x00\x00" + struct.pack("<HH", 5, 10) + b"x\0\0\0" + struct.pack("<HH", len(packet) + 4, 9) + packet
    )


def radio(inner: Packet, ethertype: int, qos: bool) -> bytes:
    """802.11 data."""
    frame = RadioTap() / Dot11(type=2, subtype=8 if qos else 0, FCfield=1)
    return bytes(
        frame / Dot11QoS() / LLC() / SNAP(code=ethertype) / inner
        if qos
        else frame / LLC() / SNAP(code=ethertype) / inner
    )


def eth(packet: Packet) -> bytes:
    """Ethernet around a packet."""
    return bytes(ether() / packet)


FRAMES = {
    "ethernet": (1, lambda p, e: eth(p), b""),
    "vlan": (1, lambda p, e: eth(Dot1Q(vlan=5) / p), VLAN_5),
    "priority": (1, lambda p, e: eth(Dot1Q(vlan=5, prio=6) / p), VLAN_5),
    "qinq": (1, lambda p, e: bytes(ether(type=0x88A8) / Dot1Q(vlan=5) / Dot1Q(vlan=7) / p), VLAN_5 + VLAN_7),
    "cooked": (113, lambda p, e: bytes(CookedLinux(proto=e) / p), b""),
    "cooked2": (276, lambda p, e: bytes(CookedLinuxV2(proto=e) / p), b""),
    "cooked-vlan": (113, lambda p, e: bytes(CookedLinux(proto=0x8100) / Dot1Q(vlan=5) / p), VLAN_5),
    "raw12": (12, lambda p, e: bytes(p), b""),
    "raw101": (101, lambda p, e: bytes(p), b""),
    "raw-ip": (228, lambda p, e: bytes(p), b""),
    "null-le": (0, lambda p, e: struct.pack("<I", 2 if e == 0x0800 else 30) + bytes(p), b""),
    "null-be": (0, lambda p, e: struct.pack(">I", 2 if e == 0x0800 else 24) + bytes(p), b""),
    "loop": (108, lambda p, e: struct.pack(">I", 2 if e == 0x0800 else 30) + bytes(p), b""),
    "mpls": (1, lambda p, e: bytes(ether(type=0x8847) / MPLS(label=9, s=0) / MPLS(label=3, s=1) / p), b""),
    "mpls-ethernet": (1, lambda p, e: bytes(ether(type=0x8847) / MPLS(label=3, s=1) / (b"\0\0\0\0" + eth(p))), b""),
    "pppoe": (1, lambda p, e: bytes(ether(type=0x8864) / PPPoE() / PPP(proto=0x21 if e == 0x0800 else 0x57) / p), b""),
    "ppp": (9, lambda p, e: b"\xff\x03" + (b"\x00\x21" if e == 0x0800 else b"\x00\x57") + bytes(p), b""),
    "ppp-short": (9, lambda p, e: (b"\x21" if e == 0x0800 else b"\x57") + bytes(p), b""),
    "hdlc": (104, lambda p, e: b"\x0f\x00" + e.to_bytes(2, "big") + bytes(p), b""),
    "nflog": (239, lambda p, e: nflog(bytes(p)), b""),
    "wlan": (127, lambda p, e: radio(p, e, qos=False), b""),
    "wlan-qos": (127, lambda p, e: radio(p, e, qos=True), b""),
    "gre": (1, lambda p, e: eth(IP() / GRE(proto=e) / p), b""),
    "gre-options": (1, lambda p, e: eth(IP() / GRE(proto=e, chksum_present=1, key_present=1) / p), b""),
    "gre-ethernet": (1, lambda p, e: eth(IP() / GRE(proto=0x6558) / ether() / p), b""),
    "gre-udp": (1, lambda p, e: eth(IP() / UDP(dport=4754) / Raw(b"\0\0" + e.to_bytes(2, "big") + bytes(p))), b""),
    "vxlan": (1, lambda p, e: eth(IP() / UDP(dport=4789) / VXLAN(vni=258, flags=8) / ether() / p), b"\x00\x01\x02"),
    "ip-in-ip4": (1, lambda p, e: eth(IP(proto=4 if e == 0x0800 else 41) / p), b""),
    "ip-in-ip6": (1, lambda p, e: eth(IPv6(nh=4 if e == 0x0800 else 41) / p), b""),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize(("make", "key", "ethertype"), INNER)
def test_link_types(tmp_path: Path, name: str, make, key: bytes, ethertype: int) -> None:  # type: ignore[no-untyped-def]
    link_type, wrap, tags = FRAMES[name]
    (segment,), source = read(tmp_path, pcap([wrap(make(), ethertype) + b"\0padding"], link_type))
    assert segment[1:] == (key + tags, 1000, 2000, 0x18, PAYLOAD, len(PAYLOAD))
    assert source.counters.packets == source.counters.segments == 1


@pytest.mark.parametrize(
    "extra", [b"", bytes.fromhex("0001000011223344556677880000"[:26]), bytes.fromhex("0000aaaabbbbbbbb")]
)
def test_teredo(tmp_path: Path, extra: bytes) -> None:
    packet = eth(IP() / UDP(sport=5, dport=3544) / Raw(extra + bytes(ip6())))
    (segment,), _ = read(tmp_path, pcap([packet]))
    assert segment.key == KEY_V6


def test_teredo_between_peers(tmp_path: Path) -> None:
    inner = IPv6(src="2001:0:1::1", dst="2001:db8::2") / tcp()
    (segment,), _ = read(tmp_path, pcap([eth(IP() / UDP(sport=5, dport=6) / inner)]))
    assert segment.payload == PAYLOAD


def test_unknown_and_foreign(tmp_path: Path) -> None:
    others = [eth(ARP()), eth(IP() / UDP() / b"x"), eth(ip6(UDP() / b"x")), b"short", eth(IP(proto=47) / b"x")]
    _, source = read(tmp_path, pcap(others))
    assert (source.counters.not_ip, source.counters.not_tcp, source.counters.segments) == (2, 3, 0)
    _, source = read(tmp_path, pcap([b"x" * 50] * 3, link_type=147))
    assert source.counters.undecodable == 3


def test_pure_acks_are_left_out_and_counted(tmp_path: Path) -> None:
    kept = [tcp(b"", flags=flags) for flags in ("S", "SA", "F", "R")]
    frames = [eth(make(segment)) for make in (ip4, ip6) for segment in [tcp(b"", flags="A"), *kept]]
    frames.append(eth(Dot1Q() / ip4(tcp(b"", flags="A"))))
    segments, source = read(tmp_path, pcap(frames))
    assert len(segments) == 8 and source.counters.pure_acks == 3


@pytest.mark.parametrize(("make", "key", "ethertype"), INNER)
def test_padding_is_not_payload(tmp_path: Path, make, key: bytes, ethertype: int) -> None:  # type: ignore[no-untyped-def]
    (segment,), _ = read(tmp_path, pcap([eth(make(tcp(b"hi"))) + bytes(6)]))
    assert segment.payload == b"hi" and segment.length == 2


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("make", [ip4, ip6])
def test_snap_length_cuts_payload(tmp_path: Path, tagged: bool, make) -> None:  # type: ignore[no-untyped-def]
    whole = eth(Dot1Q() / make() if tagged else make())
    for keep in range(1, len(PAYLOAD) + 1):
        (segment,), source = read(tmp_path, pcap([whole[:-keep]], wire=len(whole)))
        assert (segment.payload, segment.length) == (PAYLOAD[:-keep], len(PAYLOAD)) and source.counters.cut == 1
    segments, source = read(tmp_path, pcap([whole[: -len(PAYLOAD) - 3]], wire=len(whole)))
    assert segments == [] and source.counters.malformed == 1


def test_total_length_zero_of_offloaded_segments(tmp_path: Path) -> None:
    whole = eth(ip4(tcp(b"x" * 3000), len=0))
    (segment,), _ = read(tmp_path, pcap([whole]))
    assert segment.payload == b"x" * 3000
    (segment,), _ = read(tmp_path, pcap([whole[:1000]], wire=len(whole)))
    assert segment.length == 3000 and len(segment.payload) == 1000 - 54
    (segment,), _ = read(tmp_path, pcap([eth(ip6(tcp(b"x" * 3000), plen=0))]))
    assert segment.payload == b"x" * 3000


def test_options_and_extension_headers(tmp_path: Path) -> None:
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    frames = [
        eth(ip4(TCP(sport=40_000, dport=80, seq=1000, ack=2000, flags="PA", options=options) / PAYLOAD)),
        bytes(ether() / IP(src="10.0.0.1", dst="192.0.2.80", options=b"\x94\x04\x00\x00") / tcp()),
        eth(ip6(IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt() / tcp())),
        eth(ip6(IPv6ExtHdrFragment(m=0, offset=0) / tcp())),
        eth(ip6(Raw(bytes((6, 2)) + bytes(14) + bytes(tcp())), nh=51)),  # authentication header
    ]
    segments, _ = read(tmp_path, pcap(frames))
    assert [s.payload for s in segments] == [PAYLOAD] * 5
    assert {s.key for s in segments} == {KEY_V4, KEY_V6}


@pytest.mark.parametrize("seed", range(4))
def test_fragments_come_together_in_any_order(tmp_path: Path, seed: int) -> None:
    body = bytes(range(256)) * 10
    parts = fragment(ip4(tcp(body), id=7), fragsize=500)
    parts6 = fragment6(ip6(IPv6ExtHdrFragment(id=9) / tcp(body)), 600)
    frames = [eth(p) for p in [*parts, *parts6]]
    Random(seed).shuffle(frames)
    segments, source = read(tmp_path, pcap(frames))
    assert [s.payload for s in segments] == [body, body] and source.counters.fragments == len(frames)
    assert {s.key for s in segments} == {KEY_V4, KEY_V6}


def test_unfinished_fragments_are_limited(tmp_path: Path) -> None:
    frames = [eth(fragment(ip4(tcp(b"x" * 100), id=n), fragsize=64)[0]) for n in range(600)]
    segments, source = read(tmp_path, pcap(frames))
    assert segments == [] and source.counters.fragments == 600 and source.counters.fragments_dropped == 600 - 256


def test_malformed_headers_are_counted(tmp_path: Path) -> None:
    good = bytearray(eth(ip4()))
    bad = []
    for at, value in [(14, 0x41), (14, 0x35), (16, 0x00), (46, 0x10), (46, 0xF0)]:
        frame = bytearray(good)
        frame[at] = value
        if at == 16:
            frame[17] = 19
        bad.append(bytes(frame))
    segments, source = read(tmp_path, pcap(bad))
    assert segments == [] and source.counters.malformed == 5


def test_nesting_is_limited(tmp_path: Path) -> None:
    packet: Packet = ip4()
    for _ in range(20):
        packet = IP(proto=4) / packet
    segments, source = read(tmp_path, pcap([eth(packet)]))
    assert segments == [] and source.counters.malformed == 1


@pytest.mark.parametrize("name", FRAMES)
def test_any_cut_or_damage_is_data(tmp_path: Path, name: str) -> None:
    link_type, wrap, _ = FRAMES[name]
    random = Random(name)
    frames = []
    for make, _, ethertype in INNER:
        whole = wrap(make(), ethertype)
        frames += [whole[:n] for n in range(len(whole))]
        for _ in range(200):
            damaged = bytearray(whole)
            damaged[random.randrange(len(damaged))] = random.getrandbits(8)
            frames.append(bytes(damaged))
    segments, source = read(tmp_path, pcap(frames, link_type))
    assert source.counters.packets == len(frames)
    assert all(len(s.payload) <= s.length and len(s.key) >= 12 for s in segments)
    assert all(len(s.key) % 2 == 0 or len(s.key) > KEY_V6_BYTES or name == "vxlan" for s in segments)
