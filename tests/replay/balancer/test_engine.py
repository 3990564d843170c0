"""The embedded engine: whose turn it is, what is counted, and which upstreams are passed over."""

from __future__ import annotations

from replay.balancer.engine import Balancer, Embedded
from replay.balancer.policy import POLICIES, round_robin
from replay.balancer.upstream import BACKOFF_MIN_S, FAILURES_BEFORE_BACKOFF, make_pool
from replay.exchange import Dropped
from tests.replay.harness import make_request

POOL = ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"]
REQUEST = make_request()


def test_round_robin_is_a_function_of_the_turn() -> None:
    pool = make_pool(POOL)
    assert [round_robin(pool, REQUEST, n).index for n in (0, 1, 2, 3, 3, 0)] == [0, 1, 2, 0, 0, 0]
    assert POLICIES["round_robin"] is round_robin


def test_assignments_are_counted_until_released() -> None:
    pool = make_pool(POOL)
    engine: Balancer = Embedded(pool)
    picked = [engine.assign(REQUEST) for _ in range(4)]
    assert [u.index for u in picked if u] == [0, 1, 2, 0]
    assert [u.in_flight for u in engine.upstreams] == [2, 1, 1]
    for upstream in picked:
        assert upstream is not None
        engine.release(upstream, Dropped.SHUTDOWN)
    assert [u.in_flight for u in pool] == [0, 0, 0]


def test_upstreams_in_a_backoff_are_passed_over() -> None:
    now_s = 5.0
    pool = make_pool(POOL)
    engine = Embedded(pool, clock=lambda: now_s)
    for _ in range(FAILURES_BEFORE_BACKOFF):
        pool[1].connect_failed(now_s)
    assert {u.index for u in (engine.assign(REQUEST) for _ in range(10)) if u} == {0, 2}
    now_s += BACKOFF_MIN_S
    assert {u.index for u in (engine.assign(REQUEST) for _ in range(10)) if u} == {0, 1, 2}


def test_when_none_is_usable_one_is_assigned_all_the_same() -> None:
    pool = make_pool(POOL[:1])
    engine = Embedded(pool, clock=lambda: 5.0)
    for _ in range(FAILURES_BEFORE_BACKOFF):
        pool[0].connect_failed(5.0)
    assert engine.assign(REQUEST) is pool[0]


def test_an_empty_pool_has_none_to_give() -> None:
    assert Embedded(()).assign(REQUEST) is None


def test_the_policy_sees_candidates_request_and_turn() -> None:
    seen = []

    def last(candidates, request, turn):
        seen.append((len(candidates), request, turn))
        return candidates[-1]

    engine = Embedded(make_pool(POOL), last)
    assert [u.index for u in (engine.assign(REQUEST), engine.assign(REQUEST)) if u] == [2, 2]
    assert seen == [(3, REQUEST, 0), (3, REQUEST, 1)]
