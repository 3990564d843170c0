"""Upstreams: the pool's checks, and the backoff as a state machine on a clock of numbers."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from replay.balancer.address import Production
from replay.balancer.upstream import BACKOFF_MAX_S, BACKOFF_MIN_S, FAILURES_BEFORE_BACKOFF, Upstream, make_pool
from replay.errors import UpstreamError


def one() -> Upstream:
    return make_pool(["192.0.2.1:80"])[0]


def down(upstream: Upstream, now_s: float) -> None:
    for _ in range(FAILURES_BEFORE_BACKOFF):
        upstream.connecting()
        upstream.connect_failed(now_s)


def test_a_few_failures_do_not_matter() -> None:
    upstream = one()
    for _ in range(FAILURES_BEFORE_BACKOFF - 1):
        upstream.connect_failed(1.0)
    assert upstream.usable(1.0)
    upstream.connected()
    assert upstream.failures == 0


def test_the_pause_and_its_probe() -> None:
    upstream = one()
    down(upstream, 1.0)
    assert not upstream.usable(1.0 + BACKOFF_MIN_S * 0.9)
    assert upstream.usable(1.0 + BACKOFF_MIN_S)
    upstream.connecting()
    assert not upstream.usable(9.0), "one probe at a time"
    upstream.connected()
    assert upstream.usable(9.0)


def test_the_pause_doubles_up_to_its_bound() -> None:
    upstream = one()
    now_s = 1.0
    down(upstream, now_s)
    pauses = []
    for _ in range(10):
        pause_s = BACKOFF_MIN_S
        while not upstream.usable(now_s + pause_s):
            pause_s *= 1.01
        pauses.append(pause_s)
        now_s += pause_s
        upstream.connecting()
        upstream.connect_failed(now_s)
    assert pauses[:3] == pytest.approx([BACKOFF_MIN_S, BACKOFF_MIN_S * 2, BACKOFF_MIN_S * 4], rel=0.02)
    assert max(pauses) == pytest.approx(BACKOFF_MAX_S, rel=0.02)


def test_connections_that_fail_together_count_as_one_round() -> None:
    upstream = one()
    for _ in range(100):
        upstream.connect_failed(1.0)
    assert upstream.usable(1.0 + BACKOFF_MIN_S)


def test_a_probe_given_up_by_us_lets_another_try() -> None:
    upstream = one()
    down(upstream, 1.0)
    upstream.connecting()
    upstream.abandoned()
    assert upstream.usable(2.0)


def test_a_pool() -> None:
    pool = make_pool(["192.0.2.1:80", "[2001:db8::1]:80"])
    assert [(u.name, u.index) for u in pool] == [("192.0.2.1:80", 0), ("[2001:db8::1]:80", 1)]
    assert [u.family for u in pool] == [socket.AF_INET, socket.AF_INET6]
    assert "192.0.2.1:80" in repr(pool[0])


@pytest.mark.parametrize(
    ("addresses", "production", "message"),
    [
        ([], [], "no upstream"),
        (["192.0.2.1:80", "192.0.2.1:80"], [], "listed twice"),
        (["192.0.2.1:80"], ["192.0.2.1:80"], "is the production address 192.0.2.1:80"),
        (["[2001:db8::1]:80"], ["[2001:db8::1]:80"], r"is the production address \[2001:db8::1\]:80"),
        (["127.0.0.1:80"], ["*:80"], "is the production address 127.0.0.1:80"),
    ],
)
def test_pools_that_are_refused(addresses: list[str], production: list[str], message: str) -> None:
    with pytest.raises(UpstreamError, match=message):
        make_pool(addresses, Production(production))


def test_a_name_is_refused_for_any_of_its_addresses() -> None:
    def resolver(host: str, port: int, **hints: Any) -> list[Any]:
        return [(socket.AF_INET, 1, 6, "", (a, port)) for a in ("192.0.2.9", "192.0.2.1")]

    assert make_pool(["shadow:80"], resolver=resolver)[0].name == "192.0.2.9:80"
    with pytest.raises(UpstreamError, match=r"'shadow:80' is the production address 192\.0\.2\.1:80"):
        make_pool(["shadow:80"], Production(["192.0.2.1:80"]), resolver)
