"""What an outcome tells of times: each engine as far as it can."""

from __future__ import annotations

from replay.exchange import Outcome
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, Setup
from tests.replay.balancer.conformance.shadows import SLOW_S

NS = 1_000_000_000
CLOCK_NS = 5_000_000  # the server's timers are in milliseconds


def test_the_times_of_an_answer(run: Run, bench: MakeBench, kind: str) -> None:
    """In the program's queue and to its server: HAProxy tells both, nginx only the second, and the embedded engine has
    no need to: what it sends is sent at `t_sent_ns`, over a connection that is there."""

    async def main() -> None:
        async with bench(Setup()) as it:
            for outcome in (await it.ask("/slow"), await it.ask("/slow")):
                assert 0 < outcome.t_queued_ns <= outcome.t_sent_ns < outcome.t_first_ns <= outcome.t_last_ns
                assert outcome.t_last_ns - outcome.t_sent_ns >= SLOW_S * NS - CLOCK_NS
                assert told(outcome) == (kind == HAPROXY, kind != EMBEDDED)

    run(main())


def told(outcome: Outcome) -> tuple[bool, bool]:
    """Whether there is a time in the queue, and one of connecting."""
    return outcome.queue_ns >= 0, outcome.connect_ns >= 0
