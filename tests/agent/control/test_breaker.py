"""The rules without statistics, outcome by outcome, and at their limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.breaker import FAILING, UNREACHABLE, Breaker, Rules

Pulse = tuple[float, int, int, int, int]  # time, answers, failed, production failed, unreachable


def first_break(pulses: list[Pulse], rules: Rules | None = None) -> tuple[float, str] | None:
    breaker = Breaker(rules)
    for pulse in pulses:
        if (broken := breaker.add(*pulse)) is not None:
            return pulse[0], broken.cause
    return None


FAILING_CASES: dict[str, tuple[list[Pulse], float | None]] = {
    "half of 50 fail": ([(0, 25, 0, 0, 0), (1, 25, 25, 0, 0)], 1),
    "one less than half of 50 fails": ([(0, 25, 0, 0, 0), (1, 25, 24, 0, 0)], None),
    "49 answers are too few": ([(0, 49, 49, 0, 0)], None),
    "the 50th decides": ([(0, 49, 49, 0, 0), (0.5, 1, 0, 0, 0)], 0.5),
    "at once and not at the end of a window": ([(10 + i / 100, 1, 1, 0, 0) for i in range(60)], 10.49),
    "older than the window does not count": ([(0, 40, 40, 0, 0), (5, 40, 40, 0, 0)], None),
    "just inside the window counts": ([(0, 40, 40, 0, 0), (4.8, 40, 40, 0, 0)], 4.8),
    "production fails at its limit": ([(0, 100, 60, 5, 0)], None),
    "production fails below its limit": ([(0, 100, 60, 4, 0)], 0),
    "nothing fails": ([(i / 10, 100, 0, 0, 0) for i in range(100)], None),
    "no answers": ([(0, 0, 0, 0, 0)], None),
}


@pytest.mark.parametrize("case", FAILING_CASES)
def test_a_shadow_that_fails_alone_is_given_up_at_the_deciding_answer(case: str) -> None:
    pulses, at_s = FAILING_CASES[case]
    assert first_break(pulses) == (None if at_s is None else (at_s, FAILING))


def refused(start_s: float, end_s: float, each_s: float = 0.1) -> list[Pulse]:
    """One refused connection each `each_s`, both ends included."""
    return [(start_s + i * each_s, 1, 1, 0, 1) for i in range(round((end_s - start_s) / each_s) + 1)]


RARE = Rules(failing_requests=10**6)  # so that only the other rule decides
UNREACHABLE_CASES: dict[str, tuple[list[Pulse], float | None]] = {
    "refused for the whole window": (refused(100, 110), 103),
    "not quite the whole window": (refused(100, 102.9), None),
    "the good answers before it do not delay it": (
        [(i / 10, 50, 0, 0, 0) for i in range(1000)] + refused(100, 110),
        103,
    ),
    "one good answer among the first begins it anew": (
        [*refused(100, 100.4), (100.45, 1, 0, 0, 0), *refused(100.5, 110)],
        103.5,
    ),
    "one good answer among many does not": ([*refused(100, 101.9), (101.95, 1, 0, 0, 0), *refused(102, 110)], 103),
    "a tenth of good answers does": (
        [(100 + i / 10, 10, 9, 0, 9) for i in range(100)],
        None,
    ),
    "good answers again": (refused(100, 102.9) + [(103 + i / 10, 5, 0, 0, 0) for i in range(50)], None),
    "four are too few": ([(100 + i, 1, 1, 0, 1) for i in range(4)], None),
    "the fifth decides": ([(100 + i, 1, 1, 0, 1) for i in range(5)], 104),
    "a burst is not a window": ([(100, 1000, 1000, 0, 1000)], None),
    "a streak is forgotten in silence": ([*refused(100, 100.5), (200, 1, 1, 0, 1), *refused(200.1, 202.9)], None),
}


@pytest.mark.parametrize("case", UNREACHABLE_CASES)
def test_a_shadow_that_is_not_there_is_given_up_when_the_window_is_full(case: str) -> None:
    pulses, at_s = UNREACHABLE_CASES[case]
    found = first_break(pulses, RARE)
    assert found == (None if at_s is None else (pytest.approx(at_s), UNREACHABLE))


def test_the_reason_has_the_numbers() -> None:
    broken = Breaker().add(0, 60, 45, 1, 0)
    assert broken is not None
    assert broken.reason == (
        "45 of the shadow's 60 answers within 5 s failed (75 %, the limit is 50 %) and 1 of production's"
    )


def test_nothing_is_remembered_after_it_was_cleared() -> None:
    breaker = Breaker()
    breaker.add(0, 49, 49, 0, 49)
    breaker.clear()
    assert breaker.add(4, 49, 49, 0, 49) is None
    assert breaker.add(0, 1, 1, 0, 1) is not None  # the clock of before does not matter either


def test_counts_that_do_not_add_up_are_cut() -> None:
    assert Breaker().add(0, 10, 10**9, -5, 10**9) is None
    assert Breaker().add(0, -10, 100, 0, 0) is None


def test_a_clock_that_goes_back_is_held() -> None:
    breaker = Breaker()
    breaker.add(100, 30, 30, 0, 0)
    assert breaker.add(1, 30, 30, 0, 0) is not None


pulses = st.lists(st.tuples(st.floats(0, 2), st.integers(0, 200), st.floats(0, 1)), max_size=60)


@given(pulses)
def test_production_failing_alike_never_trips(steps: list[tuple[float, int, float]]) -> None:
    breaker, now_s = Breaker(), 0.0
    for wait_s, answers, share in steps:
        now_s += wait_s
        failed = int(answers * share)
        assert breaker.add(now_s, answers, failed, failed, 0) is None


@given(pulses)
def test_the_window_is_what_a_slow_count_says(steps: list[tuple[float, int, float]]) -> None:
    breaker, now_s, seen = Breaker(Rules(failing_requests=20)), 0.0, []
    for wait_s, answers, share in steps:
        now_s += wait_s
        seen.append((int(now_s * 10), answers, int(answers * share)))
        near = [(a, f) for tick, a, f in seen if tick > int(now_s * 10) - 50]
        total, failed = sum(a for a, _ in near), sum(f for _, f in near)
        expected = answers > 0 and total >= 20 and failed > 0 and 2 * failed >= total
        assert (breaker.add(now_s, answers, seen[-1][2], 0, 0) is not None) is expected


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50), st.integers(0, 50)), max_size=80))
def test_unreachable_is_only_said_of_nearly_all_answers_of_the_window(steps: list[tuple[float, int, int]]) -> None:
    breaker, now_s, seen = Breaker(RARE), 0.0, []
    for wait_s, answers, unreachable in steps:
        now_s += wait_s
        unreachable = min(unreachable, answers)
        seen.append((int(now_s * 10), answers, unreachable))
        if breaker.add(now_s, answers, unreachable, 0, unreachable) is not None:
            near = [(a, u) for tick, a, u in seen if tick > int(now_s * 10) - 30]
            assert sum(u for _, u in near) > 0.9 * sum(a for a, _ in near)
            assert now_s >= 3
