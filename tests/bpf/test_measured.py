"""Both measurements in the lab, on real packets: when replayed requests leave, and how fast production answers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from agent.capture.egress import egress_interfaces
from agent.capture.layout import PPM
from agent.capture.sent import SentTimes
from agent.capture.tap import Tap, order_for
from replay.balancer.engine import Embedded
from replay.balancer.upstream import make_pool
from replay.client import Replayer, ReplaySettings
from replay.exchange import Dropped, Outcome
from tests.bpf.selections import arm, select, wanted
from tests.replay.harness import make_request
from vagrant.lab import Lab

pytestmark = pytest.mark.root
MARK = 0x5AD1
SO_MARK = 36
MS = 1_000_000


@pytest.fixture(scope="module")
def tap(lab: Lab) -> Iterator[Tap]:
    """On the balancer, as the service attaches it: capturing towards the clients, replaying towards the servers."""
    with lab.inside("lb"):
        through = egress_interfaces([lab.address("shadow"), "127.0.0.1"], MARK)
        tap = Tap.load(order_for("front", 1, 1 << 20, "auto", [*through, 1 << 20]))
    if tap.attached != "tcx":
        tap.close()
        pytest.skip("no TCX")
    tap.watch([80])
    select(tap, wanted(ppm=0))
    yield tap
    tap.close()


def replay(lab: Lab, tap: Tap, mark: int, requests: int = 20) -> tuple[list[Outcome], list[int], int]:
    """Outcomes from the shadow, when this process' clock said that they were sent, and how many the kernel knew."""
    times, outcomes, told = SentTimes(tap.sent_slots), [], []

    class Listening:
        """Notes what it is asked about."""

        def sent_ns(self, key: bytes, not_before_ns: int) -> int:
            told.append(not_before_ns)
            return times.sent_ns(key, not_before_ns)

    def marked(family: socket.AddressFamily) -> socket.socket:
        with lab.inside("lb"):
            made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        return made

    async def main() -> int:
        came = asyncio.Event()

        def done(token: object, result: Outcome | Dropped) -> None:
            assert isinstance(result, Outcome), result
            outcomes.append(result)
            came.set()

        engine = Embedded(make_pool([lab.shadow_upstream]))
        loop = asyncio.get_running_loop()
        replayer = Replayer(loop, engine, ReplaySettings(), done, marked, sent_times=Listening())
        for number in range(requests):
            came.clear()
            body = b"x" * 100_000 if number % 5 == 4 else b""
            assert (
                replayer.submit(make_request(f"/api/items/{number}", "POST" if body else "GET", body=body), 0) is None
            )
            await came.wait()
        await replayer.drain(1.0)
        return replayer.counters.kernel_sent

    known = asyncio.run(main())
    times.close()
    return outcomes, told, known


def test_replayed_requests_leave_just_after_they_are_sent(lab: Lab, tap: Tap) -> None:
    assert [line.partition(":")[0] for line in tap.sent_unattached] == []
    arm(tap, 1, own_mark=MARK)
    outcomes, told, known = replay(lab, tap, MARK)
    assert len(outcomes) == 20 and known >= 18  # on a busy host a slot may be read while it is written
    late_ns = sorted(outcome.t_sent_ns - t_ns for outcome, t_ns in zip(outcomes, told, strict=True))
    assert late_ns[0] >= 0
    assert 0 < late_ns[len(late_ns) // 2] < MS, late_ns
    assert all(outcome.t_sent_ns < outcome.t_first_ns for outcome in outcomes)


def test_without_our_mark_the_process_clock_counts(lab: Lab, tap: Tap) -> None:
    arm(tap, 1, own_mark=MARK)
    outcomes, told, known = replay(lab, tap, MARK + 1, requests=3)
    assert known == 0
    assert [outcome.t_sent_ns for outcome in outcomes] == told


def test_an_interface_that_is_gone_is_told_and_not_fatal(lab: Lab) -> None:
    with lab.inside("lb"):
        lab.run_in("lb", ["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])
        order = order_for("front", 1, 1 << 16, "auto", [socket.if_nametoindex("gone0"), socket.if_nametoindex("back")])
        lab.run_in("lb", ["ip", "link", "del", "gone0"])
        tap = Tap.load(order)
    assert tap.sent_unattached == [f"interface {order.sent_through[0]}: No such device"] * (tap.attached == "tcx")
    tap.close()


def test_production_is_measured_although_nothing_is_copied(lab: Lab, tap: Tap) -> None:
    arm(tap, 1, harm_ppm=PPM, own_mark=MARK)
    before, latency = tap.counters(), tap.latency
    latency.start(0)
    started = time.monotonic_ns()
    for number in range(20):
        lab.get(f"/api/items/{number}")
    mean_ns = (time.monotonic_ns() - started) // 20
    latency.start(1)
    load = lab.rate(300, 1)
    latency.pause()
    assert tap.counters().copied == before.copied
    one, many = latency.read(0), latency.read(1)
    assert (one.count, one.errors) == (20, 0)
    assert (many.count, many.errors, load.failed) == (300, 0, 0)
    median_ns = one.quantile(0.5)
    assert median_ns is not None
    assert 10_000 < median_ns < mean_ns, "curl, or whatever asks, needs more than the server"
    for _ in range(3):
        assert lab.get("/").status
    assert (latency.read(0), latency.read(1)) == (one, many)
