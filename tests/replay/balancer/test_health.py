"""Health without I/O: how many checks in a row matter, what an answer must be, and when checks come."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.health import Health, State, evaluate, pause_s, request_bytes
from replay.balancer.settings import HealthCheck


def observed(results: str, rise: int = 2, fall: int = 3) -> tuple[Health, str]:
    """A Health after these checks ("+" good, "-" bad), and what it was after each ("U" up or "D" down)."""
    health = Health(rise, fall)
    seen = ""
    for result in results:
        health.observe(result == "+")
        seen += "U" if health.healthy else "D"
    return health, seen


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("+", "U"),
        ("+--", "UUU"),
        ("+---", "UUUD"),
        ("+--+--", "UUUUUU"),
        ("+---+", "UUUDD"),
        ("+---++", "UUUDDU"),
        ("+---+-++", "UUUDDDDU"),
        ("+---++--", "UUUDDUUU"),
        ("+---++---", "UUUDDUUUD"),
    ],
)
def test_rows_change_the_opinion(results: str, expected: str) -> None:
    assert observed(results)[1] == expected


def test_an_upstream_that_was_never_checked_is_used() -> None:
    health = Health(2, 3)
    assert health.healthy
    assert health.state is State.UNTRIED


def test_one_bad_check_at_the_very_start_is_enough() -> None:
    assert observed("-")[1] == "D"
    assert observed("-+")[1] == "DD", "it returns after `rise`, as ever"
    assert observed("-++--")[1] == "DDUUU", "and has then earned `fall`"


def test_observe_tells_changes_alone() -> None:
    health = Health(1, 2)
    assert [health.observe(ok) for ok in (True, False, False, False, True, True)] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


def test_checks_are_counted_and_the_last_reason_kept() -> None:
    health = Health(1, 2)
    health.observe(False, "status 503")
    health.observe(False, "connection refused")
    health.observe(True)
    assert (health.good, health.bad, health.last_reason) == (1, 2, "connection refused")


def reference(results: list[bool], rise: int, fall: int) -> bool:
    """The same, told by rows: a row of bad ones that is long enough, or the very first, takes it down."""
    healthy = True
    for number, (ok, row) in enumerate(groupby(results)):
        length = len(list(row))
        if ok and length >= rise:
            healthy = True
        elif not ok and (length >= fall or number == 0):
            healthy = False
    return healthy


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_like_the_reference(results: list[bool], rise: int, fall: int) -> None:
    health = Health(rise, fall)
    before = True
    for n, ok in enumerate(results, 1):
        changed = health.observe(ok)
        assert health.healthy is reference(results[:n], rise, fall)
        assert changed is (health.healthy is not before)
        before = health.healthy
    assert health.good == sum(results)
    assert health.bad == len(results) - health.good


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"", ""),
        (399, b"", ""),
        (400, b"", "status 400"),
        (199, b"", "status 199"),
        (503, b"ok", "status 503"),
    ],
)
def test_statuses(status: int, body: bytes, reason: str) -> None:
    assert evaluate(HealthCheck(), status, body) == reason


def test_several_ranges() -> None:
    check = HealthCheck(statuses=((200, 200), (401, 403)))
    assert [evaluate(check, status, b"") for status in (200, 201, 401, 403)] == ["", "status 201", "", ""]


@pytest.mark.parametrize(
    ("pattern", "body", "well"),
    [
        ("ok", b"all is ok\n", True),
        ("^ok$", b"not ok", False),
        ("ok", b"", False),
        ("(?i)READY", b"ready", True),
        ("gr\u00fcn", "gr\u00fcn".encode(), True),
        ("^.$", b"\xff", True),
        ('"up": *true', b'{"up":  true}', True),
    ],
)
def test_bodies(pattern: str, body: bytes, well: bool) -> None:
    reason = evaluate(HealthCheck(body=pattern), 200, body)
    assert reason == ("" if well else f"status 200, but the body does not hold {pattern!r}")


def test_a_long_pattern_is_cut_and_stays_on_its_line() -> None:
    reason = evaluate(HealthCheck(body="\n" * 500), 200, b"")
    assert "\n" not in reason
    assert len(reason) < 200


@given(st.integers(0, 999), st.binary(max_size=100))
def test_any_answer_has_one_line(status: int, body: bytes) -> None:
    assert len(evaluate(HealthCheck(body="[a-f]+$"), status, body).splitlines()) <= 1


def test_the_request() -> None:
    assert request_bytes("/live?a=b", "shop:80", b"X-Shadowtap: 1") == (
        b"GET /live?a=b HTTP/1.1\r\nHost: shop:80\r\nUser-Agent: shadowtap\r\nAccept: */*\r\n"
        b"Connection: close\r\nX-Shadowtap: 1\r\n\r\n"
    )
    assert request_bytes("/", "shop", b"").endswith(b"\r\nConnection: close\r\n\r\n")


def upstreams(count: int) -> list[tuple[str, int]]:
    return [("192.0.2.1", 1000 + n) for n in range(count)]


def test_pauses_stay_inside_the_jitter_and_fill_it() -> None:
    check = HealthCheck(interval_s=2.0, jitter_ratio=0.1)
    pauses = [pause_s(check, 1, at, n) for at in upstreams(20) for n in range(1, 100)]
    assert 1.8 <= min(pauses) < 1.81
    assert 2.19 < max(pauses) <= 2.2
    assert sum(pauses) / len(pauses) == pytest.approx(2.0, abs=0.01)


def test_first_checks_come_soon_but_not_together() -> None:
    check = HealthCheck(interval_s=2.0, jitter_ratio=0.1)
    first = sorted(pause_s(check, 1, at, 0) for at in upstreams(100))
    assert first[0] >= 0
    assert first[-1] <= 0.2
    assert max(b - a for a, b in pairwise(first)) < 0.02


def test_pauses_follow_from_the_seed() -> None:
    check = HealthCheck()
    assert pause_s(check, 1, "/run/s", 5) == pause_s(check, 1, "/run/s", 5)
    assert len({pause_s(check, seed, at, n) for seed in (1, 2) for at in upstreams(3) for n in (1, 2)}) == 12


def test_without_jitter_the_interval_is_exact() -> None:
    check = HealthCheck(interval_s=2.0, jitter_ratio=0.0)
    assert [pause_s(check, 1, "/run/s", n) for n in range(3)] == [0.0, 2.0, 2.0]
