"""Limits of how many requests a server has at once, measured by the server itself: it answers 429 to one too many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from replay.balancer.settings import BalancerSettings
from replay.exchange import Dropped, Outcome
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, NGINX, Member, Setup
from tests.replay.balancer.conformance.shadows import SLOW_S, Shadow

MEMBERS = (Member(0), Member(1))
UNLIMITED = Setup(MEMBERS)
LIMITED = Setup(MEMBERS, server="maxconn 1", peer="max_conns=1")
FULL = replace(LIMITED, embedded=BalancerSettings(max_requests=1), backend="balance roundrobin\ntimeout queue 50ms")
AT_ONCE = 8
NS = 1_000_000_000


def test_without_a_limit_they_come_at_once(run: Run, bench: MakeBench) -> None:
    """The servers do measure it."""

    async def main() -> None:
        async with bench(UNLIMITED) as it:
            outcomes = await it.all_at_once(AT_ONCE, "/alone")
        assert 429 in {outcome.status for outcome in outcomes}

    run(main())


def test_one_at_a_time_and_the_rest_waits(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    """The embedded engine's limit is of connections (`max_connections`), each of which bears one request at a time.

    nginx's `max_conns` has no queue (that is in the commercial one): what is too much is answered 502, by nginx.
    """
    settings = {"max_connections": 1} if kind == EMBEDDED else {}

    async def main() -> None:
        async with bench(LIMITED, **settings) as it:
            outcomes = await it.all_at_once(AT_ONCE, "/alone")
            served = [outcome for outcome in outcomes if outcome.status == 200]
            assert {outcome.upstream for outcome in served} == {shadow.address for shadow in shadows[:2]}
            if kind == NGINX:
                refused = [(outcome.status, outcome.upstream) for outcome in outcomes if outcome not in served]
                assert refused == [(502, it.balancer.upstreams[0].name)] * len(refused) != []
            else:
                assert len(served) == AT_ONCE
                assert max(waited_ns(kind, outcome) for outcome in outcomes) >= 2 * SLOW_S * NS
            await it.place("/alone")

    run(main())
    assert all(each.status == 200 for shadow in shadows for each in shadow.requests)


def test_what_finds_no_room_is_refused(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    """The embedded engine drops it, nothing is sent (`max_requests` counts those that wait, too). HAProxy answers 503
    when it has waited too long (`timeout queue`), nginx 502 at once."""

    async def main() -> None:
        async with bench(FULL) as it:
            ends = await asyncio.gather(*(it.end("/alone") for _ in range(AT_ONCE)))
            front = it.balancer.upstreams[0].name
        served = [end for end in ends if isinstance(end, Outcome) and end.status == 200]
        refused = [end for end in ends if end not in served]
        assert len(served) >= len(MEMBERS) and refused != []
        if kind == EMBEDDED:
            assert set(refused) == {Dropped.LIMIT}
        else:
            said = {(end.status, end.upstream) for end in refused if isinstance(end, Outcome)}
            assert said == {(503 if kind == HAPROXY else 502, front)}

    run(main())
    assert all(each.status == 200 for shadow in shadows for each in shadow.requests)


def waited_ns(kind: str, outcome: Outcome) -> int:
    """In the queue: HAProxy says so itself, in milliseconds."""
    if kind == HAPROXY:
        assert outcome.queue_ns >= 0 and outcome.connect_ns >= 0
        return outcome.queue_ns
    assert outcome.queue_ns == -1
    return outcome.t_sent_ns - outcome.t_queued_ns
