"""The real kernel program, run on made packets with BPF_PROG_TEST_RUN: what it copies, counts, and lets go on."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from agent.capture import kernel
from agent.capture.ring import Ring
from agent.capture.segment import Segment, source
from agent.capture.tap import Tap, TapOrder, order_for
from agent.select import sampling
from tests.bpf.selections import SEED, arm, select, wanted

pytestmark = pytest.mark.root
PASS = -1
RING_BYTES = 1 << 18
WORKERS = 3
INGRESS, EGRESS = 0, 1


def ether(**fields: object) -> Packet:
    """With both addresses given: scapy would else ask the network for one."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


class Bench:
    """A loaded tap that is attached to nothing."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.rings = [Ring(fd, RING_BYTES) for fd in tap.rings]

    def run(self, packet: Packet, hook: int = INGRESS, repeat: int = 1) -> list[Segment]:
        """Pass the packet; what came out of the rings."""
        retval, _ = kernel.test_run(self.tap.programs[hook], bytes(packet), repeat)
        assert retval == PASS
        return [segment for ring in self.rings for segment in ring.read()]

    def counted(self, packet: Packet, hook: int = INGRESS, repeat: int = 1) -> dict[str, int]:
        """What changed in the counters."""
        before = self.tap.counters()
        self.run(packet, hook, repeat)
        after = self.tap.counters()
        return {n: b - a for n, a, b in zip(before._fields, before, after, strict=True) if b != a}


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    order = order_for("lo", WORKERS, RING_BYTES, "clsact")
    # As on a card, not as on loopback: each hook looks at its own direction.
    order = TapOrder(order.sources, order.ifindex, False, 14, WORKERS, RING_BYTES, "none")
    tap = Tap.load(order)
    yield Bench(tap)
    tap.close()


@pytest.fixture
def bench(loaded: Bench) -> Bench:
    loaded.tap.watch([80, 8080])
    select(loaded.tap)
    arm(loaded.tap, WORKERS)
    for ring in loaded.rings:
        ring.read(1 << 20)
    return loaded


def tcp4(payload: bytes = b"", flags: str = "PA", sport: int = 40000, dport: int = 80, **ip: object) -> Packet:
    return (
        IP(src="10.1.2.3", dst="10.9.8.7", **ip)
        / TCP(sport=sport, dport=dport, seq=77, ack=88, flags=flags)
        / Raw(payload)
    )


def test_a_request_is_copied_whole(bench: Bench) -> None:
    (segment,) = bench.run(ether() / tcp4(b"GET / HTTP/1.1\r\n\r\n"))
    assert segment.payload == b"GET / HTTP/1.1\r\n\r\n"
    assert (segment.seq, segment.ack, segment.flags, segment.length) == (77, 88, 0x18, 18)
    assert source(segment.key) == "10.1.2.3:40000"


def test_a_response_is_copied_at_egress_only(bench: Bench) -> None:
    packet = ether() / tcp4(b"HTTP/1.1 200 OK\r\n\r\n", sport=8080, dport=40000)
    assert len(bench.run(packet, EGRESS)) == 1
    assert bench.run(packet, INGRESS) == []


def test_what_the_balancer_asks_its_own_servers_is_not_copied(bench: Bench) -> None:
    assert bench.run(ether() / tcp4(b"GET / HTTP/1.1\r\n\r\n"), EGRESS) == []


@pytest.mark.parametrize(
    "packet",
    [
        ether() / tcp4(b"x", dport=81, sport=82),
        ether() / IP(src="10.1.2.3", dst="10.9.8.7") / UDP(sport=80, dport=80) / Raw(b"x"),
        ether() / IPv6() / UDP(sport=80, dport=80) / Raw(b"x"),
        ether(type=0x0806) / Raw(b"x" * 28),
        ether() / Raw(b""),
        ether(type=0x86DD) / Raw(b"\x60\0\0\0\0\x08\x06" + b"\0" * 33),
    ],
)
def test_other_traffic_is_left_alone(bench: Bench, packet: Packet) -> None:
    assert bench.run(packet) == []
    assert bench.counted(packet) == {}


def test_tags_and_extension_headers_are_passed(bench: Bench) -> None:
    v6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
    tcp = TCP(sport=40000, dport=80) / Raw(b"hello")
    for packet in (
        ether() / Dot1Q(vlan=5) / tcp4(b"hello"),
        ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / tcp4(b"hello"),
        ether() / v6 / tcp,
        ether() / v6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / tcp,
        ether() / tcp4(b"hello", options=b"\x01\x01\x01\x01"),
    ):
        (segment,) = bench.run(packet)
        assert segment.payload == b"hello"


def test_fragments_are_counted_and_left(bench: Bench) -> None:
    assert bench.counted(ether() / tcp4(b"x" * 64, flags="PA", frag=3)) == {"fragments": 1}
    v6 = ether() / IPv6() / IPv6ExtHdrFragment(nh=6) / TCP(dport=80) / Raw(b"x")
    assert bench.counted(v6) == {"fragments": 1}


def test_pure_acks_stay_in_the_kernel_and_signs_of_life_do_not(bench: Bench) -> None:
    assert bench.counted(ether() / tcp4(flags="A")) == {"pure_acks": 1}
    for flags in ("S", "F", "R", "FA", "RA"):
        assert len(bench.run(ether() / tcp4(flags=flags))) == 1


def test_ethernet_padding_is_not_payload(bench: Bench) -> None:
    packet = bytes(ether() / tcp4(b"hi")) + b"\0" * 20
    (segment,) = bench.run(Raw(packet))
    assert (segment.payload, segment.length) == (b"hi", 2)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1000, 60_000])
def test_the_copy_limit_cuts_and_says_so(bench: Bench, size: int) -> None:
    arm(bench.tap, WORKERS, request_limit=size)
    (segment,) = bench.run(ether() / tcp4(b"y" * 1200))
    assert segment.length == 1200
    assert segment.payload == b"y" * min(size, 1200)


def test_lengths_that_lie_are_counted(bench: Bench) -> None:
    assert bench.counted(ether() / tcp4(b"", len=30)) == {"unreadable": 1}


def test_headers_that_a_stack_discards_are_not_copied(bench: Bench) -> None:
    short_tcp = ether() / IP(src="10.1.2.3", dst="10.9.8.7") / TCP(dport=80, dataofs=4, flags="PA") / Raw(b"GET /")
    assert bench.counted(short_tcp) == {"unreadable": 1}
    assert bench.counted(ether() / tcp4(b"x" * 40, ihl=4)) == {}
    assert bench.counted(ether() / tcp4(b"x" * 40, version=6)) == {}


def test_nothing_is_copied_without_a_lease(bench: Bench) -> None:
    packet = ether() / tcp4(b"x")
    bench.tap.stop()
    assert bench.counted(packet) == {"lease_over": 1}
    arm(bench.tap, WORKERS, lease_ns=0)
    assert bench.counted(packet) == {"lease_over": 1}


def test_a_full_ring_is_counted_and_the_packet_goes_on(bench: Bench) -> None:
    packet = ether() / tcp4(b"z" * 1400)
    before = bench.tap.counters()
    for _ in range(4):
        kernel.test_run(bench.tap.programs[0], bytes(packet), 100)
    copied = sum(len(ring.read(1 << 20)) for ring in bench.rings)
    after = bench.tap.counters()
    lost = after.ring_full - before.ring_full
    assert copied + lost == 400
    assert lost > 0
    assert after.lost_bytes - before.lost_bytes == lost * 1400
    assert after.lost_to_server - before.lost_to_server == lost


def test_the_budget_limits_copies_a_second(bench: Bench) -> None:
    arm(bench.tap, WORKERS, budget_packets=10)
    seen = bench.counted(ether() / tcp4(b"x"), repeat=100)
    assert seen["copied"] in (10, 20)  # 20 when a second began in between
    assert seen["copied"] + seen["over_budget"] == 100


def random_packet(rng: random.Random) -> tuple[Packet, int]:
    """A packet of a random connection and the hook that sees it."""
    port, client = 80, rng.randrange(1024, 65536)
    to_server = rng.random() < 0.5
    ports = {"sport": client, "dport": port} if to_server else {"sport": port, "dport": client}
    a, b = rng.randbytes(4), rng.randbytes(4)
    if rng.random() < 0.5:
        ip: Packet = IP(src=".".join(map(str, a)), dst=".".join(map(str, b)))
    else:
        ip = IPv6(src="2001:db8::" + a.hex()[:4], dst="2001:db8:1::" + b.hex()[:4])
    return ether() / ip / TCP(flags="PA", **ports) / Raw(b"d"), INGRESS if to_server else EGRESS


def test_python_computes_the_kernels_hash(bench: Bench) -> None:
    """Sampled or not, and the ring: as agent.select.sampling says, for both directions and both families."""
    rng = random.Random(1)
    for _ in range(300):
        packet, hook = random_packet(rng)
        ppm = rng.choice((500_000, 100_000, 3_000))
        select(bench.tap)
        everything = by_ring(bench, packet, hook)
        ((worker, segment),) = everything
        select(bench.tap, wanted(ppm=ppm))
        sampled = by_ring(bench, packet, hook)
        expected = sampling.flow_hash(segment.key, SEED)
        assert worker == sampling.worker_of(expected, WORKERS)
        assert bool(sampled) == sampling.sampled(expected, ppm)


def by_ring(bench: Bench, packet: Packet, hook: int) -> list[tuple[int, Segment]]:
    assert kernel.test_run(bench.tap.programs[hook], bytes(packet))[0] == PASS
    return [(number, segment) for number, ring in enumerate(bench.rings) for segment in ring.read()]


def test_clients_are_sampled_as_a_whole(bench: Bench) -> None:
    select(bench.tap, wanted(ppm=500_000, by_client=True))
    rng = random.Random(2)
    for client in range(40):
        address = f"10.3.{rng.randrange(256)}.{client}"
        expected = sampling.sampled(sampling.client_hash(address, SEED), 500_000)
        for _ in range(3):
            request = ether() / IP(src=address, dst="10.9.8.7") / TCP(sport=rng.randrange(1024, 65536), dport=80)
            response = ether() / IP(src="10.9.8.7", dst=address) / TCP(sport=80, dport=rng.randrange(1024, 65536))
            assert bool(bench.run(request, INGRESS)) == expected
            assert bool(bench.run(response, EGRESS)) == expected
