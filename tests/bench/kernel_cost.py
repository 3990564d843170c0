"""(a) What the kernel program costs a packet: BPF_PROG_TEST_RUN on the loaded tap, attached to nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from agent.capture import kernel
from agent.capture.layout import PPM
from agent.capture.ring import Ring
from agent.capture.tap import Tap, TapOrder, order_for
from tests.bench.figures import Figure, Plan, progress
from tests.bpf.selections import arm, select, wanted

RING_BYTES = 4 << 20  # the default
LEASE_NS = 600_000_000_000
RUNS = 100_000
RUNS_COPIED = 2000  # as many as fit the ring
ONE_PERCENT = PPM // 100
PUSH_ACK, ACK, SYN = 0x18, 0x10, 0x02
MARK = 0x5AD0


class Case(NamedTuple):
    """One kind of packet."""

    name: str
    packet: bytes
    share_ppm: int
    runs: int
    copied: bool
    harm_ppm: int = 0
    mark: int = 0
    leaving: bool = False  # through the program that notes when our own requests leave


def packet(payload: bytes, port: int = 80, flags: int = PUSH_ACK) -> bytes:
    """An IPv4 TCP packet to the port; the program looks at no checksum."""
    tcp = struct.pack(">HHIIBBHHH", 40_000, port, 77, 88, 0x50, flags, 65_535, 0, 0)
    source, target = bytes((10, 1, 2, 3)), bytes((10, 9, 8, 7))
    length = 20 + len(tcp) + len(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, 0, 0x4000, 64, 6, 0, source, target)
    return bytes.fromhex("020000000002020000000001") + b"\x08\x00" + ip + tcp + payload


def cases() -> list[Case]:
    """The packets; the flow is known not to be among the 1 %."""
    ack = packet(b"", flags=ACK)
    arp = bytes.fromhex("020000000002020000000001") + b"\x08\x06" + bytes(46)
    return [
        Case("not IP: what the harness itself costs", arp, PPM, RUNS, False),
        Case("another port", packet(b"x" * 100, port=81), PPM, RUNS, False),
        Case("an unsampled flow (1 % sampled)", packet(b"x" * 100), ONE_PERCENT, RUNS, False),
        Case("a pure ACK of a sampled flow", ack, PPM, RUNS, False),
        Case("copied, 100 bytes", packet(b"x" * 100), PPM, RUNS_COPIED, True),
        Case("copied, 1200 bytes", packet(b"x" * 1200), PPM, RUNS_COPIED, True),
        Case("measured, not copied, 100 bytes", packet(b"x" * 100), ONE_PERCENT, RUNS, False, harm_ppm=PPM),
        Case("measured, a pure ACK", ack, ONE_PERCENT, RUNS, False, harm_ppm=PPM),
        Case("measured and copied, 1200 bytes", packet(b"x" * 1200), PPM, RUNS_COPIED, True, harm_ppm=PPM),
        Case("leaving, not ours", packet(b"x" * 100), PPM, RUNS, False, leaving=True),
        Case("leaving, a request of ours", packet(b"x" * 100), PPM, RUNS, False, mark=MARK, leaving=True),
    ]


@contextmanager
def loaded_tap() -> Iterator[tuple[Tap, Ring]]:
    """The tap as for a card, not attached."""
    order = order_for("lo", 1, RING_BYTES, "clsact")
    tap = Tap.load(TapOrder(order.sources, order.ifindex, False, 14, 1, RING_BYTES, "none"))
    try:
        tap.watch([80])
        yield tap, Ring(tap.rings[0], RING_BYTES)
    finally:
        tap.close()


def measure(plan: Plan) -> list[Figure]:
    """Nanoseconds a packet of each kind; the kinds take turns."""
    progress("(a) kernel cost per packet")
    times: dict[str, list[float]] = {case.name: [] for case in cases()}
    with loaded_tap() as (tap, ring):
        for _ in range(max(plan.repeats, 3) * (1 if plan.quick else 5)):  # cheap, so more often than the rest
            for case in cases():
                times[case.name].append(cost_ns(tap, ring, case))
    extra = {"note": "BPF_PROG_TEST_RUN, nothing subtracted; a copied packet's record is read before the next run"}
    return [Figure(f"(a) {name}", "ns/packet", values, extra=extra) for name, values in times.items()]


def cost_ns(tap: Tap, ring: Ring, case: Case) -> float:
    """Mean of one series; the ring is empty before it."""
    select(tap, wanted(ppm=case.share_ppm))
    arm(tap, workers=1, lease_ns=LEASE_NS, harm_ppm=case.harm_ppm, own_mark=MARK)
    program = tap.sent_program if case.leaving else tap.programs[0]
    kernel.test_run(program, packet(b"", flags=SYN), mark=case.mark)  # the connection is known
    while ring.read():
        pass
    before = tap.counters()
    _, mean_ns = kernel.test_run(program, case.packet, case.runs, case.mark)
    copied = tap.counters().copied - before.copied
    if copied != (case.runs if case.copied else 0):
        raise RuntimeError(f"{case.name}: {copied} of {case.runs} packets were copied")
    return mean_ns
