"""Ejection on a clock of numbers: who is ejected, for how long, how many at once; and the panic threshold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.ejection import Ejection, choose_candidates, is_error
from replay.balancer.settings import OutlierSettings
from replay.exchange import Answer, Dropped, Outcome

FOREVER = 1e9


def ejection(**changes: Any) -> Ejection:
    return Ejection(OutlierSettings(**{"consecutive_errors": 3, "ejection_s": 10.0, "ejection_max_s": 35.0, **changes}))


def fail(one: Ejection, key: str, now_s: float, pool_size: int = 4, errors: int = 3) -> bool:
    """A row of errors; whether it ejected."""
    return [one.observe(key, True, now_s, pool_size) for _ in range(errors)][-1]


def ends(one: Ejection, key: str, now_s: float) -> float:
    """How long it is still ejected, to a quarter of a second."""
    return next(n / 4 for n in range(10_000) if not one.ejected(key, now_s + n / 4))


def test_errors_in_a_row_eject() -> None:
    one = ejection()
    assert [one.observe("a", True, 1.0, 4) for _ in range(3)] == [False, False, True]
    assert one.ejected("a", 1.0)
    assert not one.ejected("b", 1.0)
    assert one.counts.ejections == 1


def test_an_answer_ends_the_row() -> None:
    one = ejection()
    for error in (True, True, False, True, True, False, True, True):
        assert not one.observe("a", error, 1.0, 4)
    assert one.observe("a", True, 1.0, 4)


def test_rows_are_each_upstream_s_own() -> None:
    one = ejection()
    assert not any(one.observe(key, True, 1.0, 4) for key in "abab")
    assert one.observe("b", True, 1.0, 4)
    assert not one.ejected("a", 1.0)


def test_zero_ejects_never() -> None:
    one = ejection(consecutive_errors=0)
    assert not fail(one, "a", 1.0, errors=100)
    assert not one.any(1.0)


def test_it_returns_by_time_alone_and_counts_from_zero() -> None:
    one = ejection()
    fail(one, "a", 1.0)
    assert one.ejected("a", 10.99)
    assert not one.ejected("a", 11.0)
    assert not one.observe("a", True, 11.0, 4)
    assert not one.observe("a", True, 11.0, 4)
    assert one.observe("a", True, 11.0, 4)


def test_what_comes_while_it_is_ejected_says_nothing_new() -> None:
    one = ejection()
    fail(one, "a", 1.0)
    assert not fail(one, "a", 5.0, errors=100)
    assert ends(one, "a", 1.0) == 10.0
    assert not fail(one, "a", 11.0, errors=2)


def test_each_further_ejection_is_longer_up_to_the_bound() -> None:
    one = ejection()
    now_s, lengths = 1.0, []
    for _ in range(7):
        assert fail(one, "a", now_s)
        lengths.append(ends(one, "a", now_s))
        now_s += lengths[-1]
    assert lengths == [10.0, 20.0, 30.0, 35.0, 35.0, 35.0, 35.0]


def test_quiet_periods_make_it_shorter_again() -> None:
    one = ejection()
    now_s = 1.0
    for _ in range(3):
        fail(one, "a", now_s)
        now_s += ends(one, "a", now_s)
    assert fail(one, "a", now_s + 20.0), "two periods without one: the fourth lasts like a second"
    assert ends(one, "a", now_s + 20.0) == 20.0
    assert fail(one, "a", now_s + 1000.0)
    assert ends(one, "a", now_s + 1000.0) == 10.0


def test_after_the_bound_was_reached_it_takes_no_longer_to_be_forgotten() -> None:
    one = ejection()
    now_s = 1.0
    for _ in range(50):
        fail(one, "a", now_s)
        now_s += ends(one, "a", now_s)
    assert fail(one, "a", now_s + 40.0)
    assert ends(one, "a", now_s + 40.0) == 10.0


@pytest.mark.parametrize(
    ("pool_size", "ratio", "expected"),
    [
        (1, 0.5, 0),
        (1, 1.0, 0),
        (2, 0.5, 1),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (10, 0.3, 3),
        (10, 0.0, 1),
        (4, 1.0, 4),
        (2, 0.1, 1),
    ],
)
def test_only_a_part_of_the_pool_at_once(pool_size: int, ratio: float, expected: int) -> None:
    one = ejection(ejected_max_ratio=ratio)
    keys = [str(n) for n in range(pool_size)]
    assert sum(fail(one, key, 1.0, pool_size) for key in keys) == expected
    assert one.counts.ejections == expected
    assert one.counts.spared == pool_size - expected


def test_a_spared_one_needs_another_row() -> None:
    one = ejection()
    fail(one, "a", 1.0, pool_size=2)
    assert not fail(one, "b", 2.0, pool_size=2)
    assert not fail(one, "b", 12.0, pool_size=2, errors=2)
    assert one.observe("b", True, 12.0, 2)


def test_forgotten_is_forgotten() -> None:
    one = ejection()
    fail(one, "a", 1.0, pool_size=2)
    one.forget("a")
    one.forget("never known")
    assert not one.ejected("a", 1.0)
    assert not one.any(1.0)
    assert not fail(one, "a", 2.0, pool_size=2, errors=2)
    assert fail(one, "b", 2.0, pool_size=2), "it takes up no room"


def test_any_outlasts_the_first_that_returns() -> None:
    one = ejection()
    fail(one, "a", 1.0)
    fail(one, "b", 5.0)
    assert one.any(14.99)
    one.forget("b")
    assert one.any(10.99)
    assert not one.any(11.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sampled_from(["error", "error", "error", "fine", "forget"]),
        st.sampled_from([0.0, 0.0, 0.0, 1.0, 9.0, 200.0]),
    ),
    max_size=150,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 8), st.floats(0, 1), st.integers(1, 3))
def test_what_always_holds(steps: Any, pool_size: int, ratio: float, errors: int) -> None:
    one = ejection(ejected_max_ratio=ratio, consecutive_errors=errors)
    keys = "abcdefgh"[:pool_size]
    now_s, rows = 0.0, dict.fromkeys(keys, 0)
    for key, what, wait_s in steps:
        now_s += wait_s
        if key not in keys:
            continue
        before = {k for k in keys if one.ejected(k, now_s)}
        just_now = False
        if what == "forget":
            one.forget(key)
            rows[key] = 0
        else:
            just_now = one.observe(key, what == "error", now_s, pool_size)
            rows[key] = 0 if what == "fine" or key in before else rows[key] + 1
        after = {k for k in keys if one.ejected(k, now_s)}
        assert after == (before | {key} if just_now else before - {key} if what == "forget" else before)
        assert one.any(now_s) is bool(after)
        assert len(after) <= max(min(1, pool_size - 1), ratio * pool_size + 1e-6)
        if just_now:
            assert rows[key] >= errors
            rows[key] = 0
        assert not any(one.ejected(k, now_s + 35.0) for k in keys), "it always returns"
    assert not one.any(now_s + 35.0)


def outcome(answer: Answer, status: int = 0) -> Outcome:
    return Outcome(answer, "192.0.2.1:80", status, b"", b"", 0, 1, 2, 3, 4)


@pytest.mark.parametrize("answer", [answer for answer in Answer if answer is not Answer.OK])
def test_no_answer_is_an_error(answer: Answer) -> None:
    assert is_error(OutlierSettings(), outcome(answer)) is True


@pytest.mark.parametrize(("status", "error"), [(200, False), (404, False), (499, False), (500, True), (599, True)])
def test_statuses(status: int, error: bool) -> None:
    assert is_error(OutlierSettings(), outcome(Answer.OK, status)) is error


def test_other_statuses() -> None:
    only = OutlierSettings(statuses=((429, 429), (502, 504)))
    assert [s for s in (200, 429, 500, 502, 504, 505) if is_error(only, outcome(Answer.OK, s))] == [429, 502, 504]


@pytest.mark.parametrize("dropped", Dropped)
def test_what_was_never_sent_says_nothing(dropped: Dropped) -> None:
    assert is_error(OutlierSettings(), dropped) is None


@pytest.mark.parametrize(
    ("pool", "well", "ratio", "expected", "panicked"),
    [
        ("abcd", "abcd", 0.5, "abcd", False),
        ("abcd", "abc", 0.5, "abc", False),
        ("abcd", "ab", 0.5, "ab", False),
        ("abcd", "a", 0.5, "abcd", True),
        ("abcd", "", 0.5, "abcd", True),
        ("abcd", "", 0.0, "", False),
        ("abcd", "a", 0.0, "a", False),
        ("abcd", "abc", 1.0, "abcd", True),
        ("ab", "b", 0.5, "b", False),
        ("abc", "b", 0.5, "abc", True),
        ("a", "", 0.5, "a", True),
        ("", "", 0.5, "", False),
        ("x" * 100, "x" * 7, 0.07, "x" * 7, False),
        ("x" * 100, "x" * 28, 0.29, "x" * 100, True),
        ("x" * 100, "x" * 29, 0.29, "x" * 29, False),
    ],
)
def test_the_panic_threshold(pool: str, well: str, ratio: float, expected: str, panicked: bool) -> None:
    assert choose_candidates(pool, well, ratio) == (expected, panicked)


@given(st.lists(st.booleans(), max_size=20), st.floats(0, 1))
def test_someone_is_always_there_unless_panic_is_off(flags: list[bool], ratio: float) -> None:
    pool = list(range(len(flags)))
    well = [n for n in pool if flags[n]]
    chosen, panicked = choose_candidates(pool, well, ratio)
    assert list(chosen) == (pool if panicked else well)
    assert chosen or not pool or (not well and ratio * len(pool) < 1e-6)
