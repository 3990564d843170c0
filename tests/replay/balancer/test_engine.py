"""The embedded engine: who is a candidate, who is picked, what sticks, what a change of the pool does; and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.engine import Balancer, Embedded, Program, client_of
from replay.balancer.settings import BalancerSettings, HashBy, OutlierSettings, UpstreamSpec
from replay.balancer.upstream import BACKOFF_MIN_S, FAILURES_BEFORE_BACKOFF, Upstream, make_pool
from replay.exchange import Answer, Dropped, Outcome
from tests.replay.harness import make_request

POOL = ["192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"]
REQUEST = make_request()


@dataclass
class From:
    """Whose request it is."""

    client: str = "198.51.100.1:5555"
    server: str = "203.0.113.1:80"
    forwarded: IPv4Address | IPv6Address | None = None


class Bench:
    """An engine with a clock of its own."""

    def __init__(self, pool: Sequence[UpstreamSpec | str] = POOL, **settings: Any) -> None:
        self.now_s = 1000.0
        self.pool = make_pool(pool)
        self.engine = Embedded(self.pool, BalancerSettings(**settings), clock=lambda: self.now_s)

    def places(self, count: int, headers: bytes = b"Host: shop\r\n", client: str = "198.51.100.1:5555") -> list[int]:
        """Where so many requests go; each ends at once, well."""
        return [self.place(headers, client) for _ in range(count)]

    def place(self, headers: bytes = b"Host: shop\r\n", client: str = "198.51.100.1:5555") -> int:
        upstream = self.engine.assign(make_request(headers=headers), From(client))
        assert isinstance(upstream, Upstream)
        self.engine.release(upstream, outcome())
        return upstream.index

    def place_name(self) -> str:
        upstream = self.engine.assign(REQUEST, From())
        assert isinstance(upstream, Upstream)
        self.engine.release(upstream, outcome())
        return upstream.name

    def fail(self, index: int, times: int, **fields: Any) -> None:
        """Requests of that upstream end badly."""
        for _ in range(times):
            self.pool[index].in_flight += 1
            self.engine.release(self.pool[index], outcome(**fields))


def outcome(answer: Answer = Answer.OK, status: int = 200) -> Outcome:
    return Outcome(answer, "192.0.2.1:80", status, b"", b"", 0, 1, 2, 3, 4)


def test_assignments_are_counted_until_released() -> None:
    pool = make_pool(POOL)
    engine: Balancer = Embedded(pool)
    picked = [engine.assign(REQUEST) for _ in range(4)]
    assert [u.index for u in picked if isinstance(u, Upstream)] == [0, 1, 2, 0]
    assert [u.in_flight for u in engine.upstreams] == [2, 1, 1]
    for upstream in picked:
        assert isinstance(upstream, Upstream)
        engine.release(upstream, Dropped.SHUTDOWN)
    assert [u.in_flight for u in pool] == [0, 0, 0]


def test_upstreams_in_a_backoff_are_passed_over() -> None:
    bench = Bench()
    for _ in range(FAILURES_BEFORE_BACKOFF):
        bench.pool[1].connect_failed(bench.now_s)
    bench.fail(1, 1, answer=Answer.CONNECT)
    assert set(bench.places(10)) == {0, 2}
    assert bench.engine.states() == {POOL[0]: "well", POOL[1]: "backoff", POOL[2]: "well"}
    bench.now_s += BACKOFF_MIN_S
    assert set(bench.places(10)) == {0, 1, 2}


def test_when_none_is_usable_one_is_assigned_all_the_same() -> None:
    bench = Bench(POOL[:1])
    for _ in range(FAILURES_BEFORE_BACKOFF):
        bench.pool[0].connect_failed(bench.now_s)
    assert bench.place() == 0
    assert bench.engine.panics == 1


def test_an_empty_pool_has_none_to_give() -> None:
    assert Embedded(()).assign(REQUEST) is Dropped.NO_UPSTREAM


def test_health_checks_take_an_upstream_out_and_bring_it_back() -> None:
    bench = Bench()
    bench.engine.health_changed(bench.pool[0], False)
    assert set(bench.places(6)) == {1, 2}
    assert bench.engine.states()[POOL[0]] == "unhealthy"
    bench.engine.health_changed(bench.pool[0], True)
    assert set(bench.places(6)) == {0, 1, 2}


def test_too_few_that_are_well_make_a_panic() -> None:
    bench = Bench(panic_ratio=0.5)
    bench.engine.health_changed(bench.pool[0], False)
    bench.engine.health_changed(bench.pool[1], False)
    assert set(bench.places(9)) == {0, 1, 2}
    assert bench.engine.panics == 9
    never = Bench(panic_ratio=0.0)
    for upstream in never.pool[:2]:
        never.engine.health_changed(upstream, False)
    assert set(never.places(9)) == {2}
    assert never.engine.panics == 0


@pytest.mark.parametrize("fields", [{"status": 503}, {"answer": Answer.RESET}, {"answer": Answer.TLS}])
def test_errors_in_a_row_eject_for_a_while(fields: dict[str, Any]) -> None:
    bench = Bench(outlier=OutlierSettings(consecutive_errors=3, ejection_s=10))
    bench.fail(1, 3, **fields)
    assert set(bench.places(9)) == {0, 2}
    assert bench.engine.states()[POOL[1]] == "ejected"
    bench.now_s += 10
    assert set(bench.places(9)) == {0, 1, 2}


def test_a_good_answer_begins_the_row_anew() -> None:
    bench = Bench(outlier=OutlierSettings(consecutive_errors=3))
    for _ in range(5):
        bench.fail(1, 2, status=500)
        bench.fail(1, 1)
    assert set(bench.places(9)) == {0, 1, 2}


def test_errors_of_nobodys_fault_eject_nobody() -> None:
    bench = Bench(outlier=None)
    bench.fail(1, 50, status=500)
    bench.fail(1, 50, status=404)
    assert set(bench.places(9)) == {0, 1, 2}
    bench = Bench()
    for _ in range(50):
        bench.pool[0].in_flight += 1
        bench.engine.release(bench.pool[0], Dropped.QUEUE_TIMEOUT)
    assert set(bench.places(9)) == {0, 1, 2}


def test_a_request_limit_sends_elsewhere_then_drops() -> None:
    bench = Bench(max_requests=2)
    taken = [bench.engine.assign(REQUEST) for _ in range(6)]
    assert Counter(u.index for u in taken if isinstance(u, Upstream)) == {0: 2, 1: 2, 2: 2}
    assert bench.engine.assign(REQUEST) is Dropped.LIMIT
    bench.engine.release(bench.pool[1], outcome())
    found = bench.engine.assign(REQUEST)
    assert found is bench.pool[1]


def test_the_one_to_avoid_is_taken_only_when_alone() -> None:
    bench = Bench()
    for _ in range(6):
        assert bench.engine.assign(REQUEST, None, bench.pool[0]) is not bench.pool[0]
    alone = Bench(POOL[:1])
    assert alone.engine.assign(REQUEST, None, alone.pool[0]) is alone.pool[0]


def test_a_cookie_keeps_its_upstream() -> None:
    bench = Bench(sticky_cookie="sid")
    homes = {name: bench.place(b"Cookie: a=b; sid=%s\r\n" % name) for name in (b"x", b"y", b"z")}
    assert sorted(homes.values()) == [0, 1, 2]
    for name, home in homes.items():
        assert set(bench.places(5, b"Cookie: sid=%s\r\n" % name)) == {home}
    assert set(bench.places(3, b"Cookie: other=1\r\n")) == {0, 1, 2}


def test_a_cookie_may_name_its_upstream() -> None:
    bench = Bench([UpstreamSpec(POOL[0], cookie="web1"), UpstreamSpec(POOL[1], cookie="web2")], sticky_cookie="SRV")
    assert set(bench.places(5, b"Cookie: SRV=web2\r\n")) == {1}
    assert set(bench.places(5, b"Cookie: SRV=web1\r\n")) == {0}


def test_a_cookie_moves_when_its_upstream_is_unwell_and_stays_there() -> None:
    bench = Bench(sticky_cookie="sid", panic_ratio=0.0)
    home = bench.place(b"Cookie: sid=x\r\n")
    bench.engine.health_changed(bench.pool[home], False)
    other = bench.place(b"Cookie: sid=x\r\n")
    assert other != home
    bench.engine.health_changed(bench.pool[home], True)
    assert set(bench.places(5, b"Cookie: sid=x\r\n")) == {other}


def test_the_table_of_cookies_is_bounded() -> None:
    bench = Bench(sticky_cookie="sid", sticky_entries=10)
    for number in range(100):
        bench.place(b"Cookie: sid=%d\r\n" % number)
    assert len(bench.engine._stuck) == 10


def test_clients_are_hashed_without_their_ports() -> None:
    bench = Bench(policy="maglev", hash_by=HashBy("client"))
    for client in ("198.51.100.1", "198.51.100.2", "[2001:db8::1]"):
        assert len({bench.place(client=f"{client}:{port}") for port in range(1000, 1020)}) == 1
    assert len({bench.place(client=f"198.51.100.{n}:1") for n in range(50)}) == 3


def test_the_client_is_whom_a_proxy_header_names() -> None:
    assert client_of(None) == ""
    assert client_of(From("[2001:db8::1]:80")) == "2001:db8::1"
    assert client_of(From(forwarded=IPv4Address("192.0.2.77"))) == "192.0.2.77"


def test_weights_count() -> None:
    bench = Bench([UpstreamSpec(POOL[0], 3), UpstreamSpec(POOL[1], 1)], policy="weighted")
    assert Counter(bench.places(400)) == {0: 300, 1: 100}


def test_weight_nothing_takes_nothing_new() -> None:
    bench = Bench([UpstreamSpec(POOL[0], 0), UpstreamSpec(POOL[1])])
    assert set(bench.places(5)) == {1}
    assert bench.engine.states()[POOL[0]] == "draining"


def test_a_change_keeps_those_that_stay_and_drains_those_that_go() -> None:
    bench = Bench()
    busy = bench.engine.assign(REQUEST)
    assert busy is bench.pool[0]
    bench.engine.change(make_pool([UpstreamSpec(POOL[1], 2), "192.0.2.9:80"]))
    names = [upstream.name for upstream in bench.engine.upstreams]
    assert names == [POOL[1], "192.0.2.9:80"]
    assert bench.engine.upstreams[0] is bench.pool[1] and bench.pool[1].weight == 2
    assert bench.pool[0].draining and bench.pool[0].in_flight == 1
    bench.engine.release(bench.pool[0], outcome(status=500))
    assert {bench.engine.assign(REQUEST) for _ in range(4)} == set(bench.engine.upstreams)


def test_who_has_left_is_remembered_nowhere() -> None:
    bench = Bench(sticky_cookie="sid", slow_start_s=30, outlier=OutlierSettings(consecutive_errors=2))
    homes = {n: bench.place(b"Cookie: sid=%d\r\n" % n) for n in range(9)}
    bench.fail(0, 2, status=500)
    bench.engine.change(make_pool(POOL[1:]))
    assert set(bench.places(20)) == {1, 2}
    for number in homes:
        assert bench.place(b"Cookie: sid=%d\r\n" % number) in (1, 2)
    bench.engine.change(make_pool(POOL))
    assert bench.engine.states()[POOL[0]] == "well"


def test_a_new_upstream_starts_slowly() -> None:
    bench = Bench(POOL[:1], policy="weighted", slow_start_s=10.0)
    bench.engine.change(make_pool(POOL[:2]))
    shares = []
    for _ in range(11):
        shares.append(Counter(bench.place_name() for _ in range(1000))[POOL[1]])
        bench.now_s += 1.0
    assert shares[0] == pytest.approx(1000 * 0.1 / 1.1, abs=20)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(500, abs=5)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["ask", "end", "bad", "down", "up", "later", "pool"]))))
def test_whatever_happens_a_candidate_is_well_or_there_is_a_panic(steps: list[tuple[int, str]]) -> None:
    names = [f"192.0.2.{n}:80" for n in range(5)]
    bench = Bench(names, panic_ratio=0.3, outlier=OutlierSettings(consecutive_errors=2, ejection_s=5))
    engine, open_requests = bench.engine, []
    for number, what in steps:
        pool = engine.upstreams
        if what == "ask":
            panics, states = engine.panics, engine.states()
            found = engine.assign(REQUEST, From())
            if isinstance(found, Upstream):
                assert states[found.name] == "well" or engine.panics > panics
                open_requests.append(found)
        elif what in ("end", "bad") and open_requests:
            engine.release(
                open_requests.pop(number % len(open_requests)), outcome(status=200 if what == "end" else 500)
            )
        elif what in ("down", "up") and pool:
            engine.health_changed(pool[number % len(pool)], what == "up")
        elif what == "later":
            bench.now_s += number
        elif what == "pool":
            engine.change(make_pool(names[number:] or names[:1]))
    for upstream in open_requests:
        engine.release(upstream, outcome())
    assert all(upstream.in_flight == 0 for upstream in engine.upstreams)


def test_a_program_is_asked_where_production_was() -> None:
    plain, secure, fresh = make_pool(["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"])
    inner, *_ = make_pool(["127.0.0.1:1004"])
    program = Program({"*:80": plain, "*:443": secure, "203.0.113.2:80": inner}, plain)
    assert program.assign(REQUEST, From(server="203.0.113.2:80")) is inner
    assert program.assign(REQUEST, From(server="203.0.113.1:443")) is secure
    assert program.assign(REQUEST, From(server="[2001:db8::1]:80")) is plain
    assert program.assign(REQUEST, From(server="203.0.113.1:9")) is plain
    assert program.assign(REQUEST) is plain
    assert [u.in_flight for u in program.upstreams] == [3, 1, 1]
    program.change({"*:80": make_pool(["127.0.0.1:1001"])[0]}, fresh)
    assert program.upstreams == (fresh, plain)
    program.release(plain, outcome())
    assert plain.in_flight == 2
