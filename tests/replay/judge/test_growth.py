"""Growth against what it is for: swings are not growth, leaks are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.judge import growth
from replay.judge.growth import Growth, Swings

MIB = 1 << 20
Memory = Callable[[float], float]  # bytes at a time


def flat(at_s: float) -> float:
    return 100 * MIB


def saw(period_s: float, height: float = 0.3, leak_per_hour: float = 0.0) -> Memory:
    return lambda at_s: 100 * MIB * (1 + height * (at_s / period_s % 1) + leak_per_hour * at_s / 3600)


def grown(production: Memory, shadow: Memory, hours: float = 2.0) -> tuple[list[float], Growth]:
    made, numbers = Growth(30.0), []
    for at in range(int(hours * 720)):
        numbers += made.add(at * 5.0, production(at * 5.0), shadow(at * 5.0))
    return numbers, made


def test_nothing_happens() -> None:
    numbers, made = grown(flat, flat)
    assert set(numbers) == {0.0}
    assert len(numbers) > 230
    assert made.length_s == 30


@pytest.mark.parametrize("period_s", [20, 60, 300, 900])
def test_a_saw_tooth_is_no_growth_and_makes_steps_longer(period_s: float) -> None:
    numbers, made = grown(flat, saw(period_s), hours=6)
    assert made.length_s >= min(period_s, 30)
    assert made.length_s >= 1.1 * period_s or period_s < 30
    assert len(numbers) >= 10
    assert sum(numbers) / len(numbers) == pytest.approx(0, abs=0.002)
    assert sum(number > 0.001 for number in numbers) <= len(numbers) / 2


def test_a_leak_in_a_saw_tooth_is_what_its_numbers_say() -> None:
    numbers, _ = grown(saw(60), saw(60, leak_per_hour=0.6), hours=3)
    assert sum(numbers) / len(numbers) == pytest.approx(0.6 / 120, rel=0.1)


def test_a_climb_waits_until_it_is_high() -> None:
    hours = growth.LIMIT / 1.2
    numbers, made = grown(flat, saw(1e9, leak_per_hour=1.2), hours * 0.98)
    assert numbers == []
    assert made.waiting > 40
    numbers, made = grown(flat, saw(1e9, leak_per_hour=1.2), hours * 1.05)
    assert len(numbers) > 40
    assert numbers == pytest.approx([0.01] * len(numbers))


def test_a_cache_that_fills_is_dropped() -> None:
    def cache(at_s: float) -> float:
        return flat(at_s) * (1 + 0.3 * min(at_s / 1200, 1))

    numbers, _ = grown(flat, cache)
    assert len(numbers) > 90
    assert max(map(abs, numbers)) < 1e-9


def test_swapping_the_sides_turns_the_numbers() -> None:
    one, _ = grown(saw(70), saw(45, leak_per_hour=0.1))
    other, _ = grown(saw(45, leak_per_hour=0.1), saw(70))
    assert one == pytest.approx([-number for number in other])


def test_a_gap_is_passed_over() -> None:
    made, numbers = Growth(30.0), []
    for at in [*range(40), *range(400, 440)]:
        numbers += made.add(at * 5.0, 100.0, 100.0 + at % 2)
    assert max(map(abs, numbers)) < 1e-9


def test_a_pool_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="no memory"):
        Growth(30.0).add(0.0, 0.0, 1.0)


def test_swings_are_told_apart_by_going_back_half() -> None:
    swings = Swings(0.0, 1.0)
    assert [swings.add(at, level) for at, level in ((1, 1.2), (2, 1.4), (3, 1.25))] == [None, None, None]
    assert swings.add(4, 1.15) == 2  # that up, from 0 to 2
    assert (swings.climbed, swings.began_s) == (pytest.approx(-0.25), 2)
    assert swings.add(5, 1.3) == 2  # down, from 2 to 4
    assert swings.longest == 2


@given(
    st.lists(
        st.tuples(st.floats(1, 1e12), st.floats(1, 1e12), st.floats(0.001, 1e6)),
        min_size=1,
        max_size=80,
    )
)
def test_any_readings_give_finite_numbers_and_bounded_state(readings: list[tuple[float, float, float]]) -> None:
    made, at_s, count = Growth(30.0), 0.0, 0
    for production, shadow, later in readings:
        at_s += later
        numbers = made.add(at_s, production, shadow)
        assert all(math.isfinite(number) for number in numbers)
        count += len(numbers)
    assert count + made.waiting <= len(readings)
    assert made.length_s >= 30
