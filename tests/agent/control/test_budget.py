"""The agent's own limits: what lasts is told, and what is one odd sample is not."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.budget import MIB, Budget

Sample = tuple[float, float, int, int, int]  # time, CPU seconds, memory, copied, lost


def told(budget: Budget, samples: Iterable[Sample]) -> tuple[float, str] | None:
    for sample in samples:
        if reason := budget.add(*sample):
            return sample[0], reason
    return None


def steady(cpu_percent: float = 10, mib: int = 100, loss: int = 0, seconds: int = 60) -> list[Sample]:
    return [(s, s * cpu_percent / 100, mib * MIB, s * 1000, s * loss) for s in range(seconds)]


@pytest.mark.parametrize(
    ("budget", "samples", "reason"),
    [
        (
            Budget(50, 0, 0),
            steady(cpu_percent=60),
            "the agent took 60 % of a CPU over the last 10 s; its limit is 50 %",
        ),
        (
            Budget(0, 99 * MIB, 0),
            steady(mib=100),
            "the agent had at least 100 MiB of memory over the last 10 s; its limit is 99 MiB",
        ),
        (
            Budget(0, 0, 1),
            steady(loss=100),
            "the agent lost 1000 segments over the last 10 s, 9.1 % of them; its limit is 1 %",
        ),
    ],
)
def test_each_limit_is_told_when_the_window_is_full(budget: Budget, samples: list[Sample], reason: str) -> None:
    assert told(budget, samples) == (10, reason)


@pytest.mark.parametrize("budget", [Budget(50, 100 * MIB, 10), Budget(0, 0, 0)])
def test_what_is_within_the_limits_is_not_told(budget: Budget) -> None:
    assert told(budget, steady(cpu_percent=50, mib=100, loss=100)) is None


def test_no_limits_means_none() -> None:
    assert told(Budget(0, 0, 0), steady(cpu_percent=800, mib=10**6, loss=10**6)) is None


def test_a_burst_in_one_half_of_the_window_decides_nothing() -> None:
    samples = [(s, 0.1 * s + (9.0 if s >= 20 else 0.0), MIB, s * 1000, 5000 if s >= 20 else 0) for s in range(60)]
    assert told(Budget(50, 0, 1), samples) is None


def test_memory_that_fell_once_is_not_sustained() -> None:
    samples = [(s, 0.0, (90 if s % 8 == 0 else 200) * MIB, 0, 0) for s in range(60)]
    assert told(Budget(0, 100 * MIB, 0), samples) is None


def test_few_segments_say_nothing_about_loss() -> None:
    assert told(Budget(0, 0, 1), [(s, 0.0, 0, s, s) for s in range(60)]) is None


def test_a_process_that_began_anew_begins_the_window_anew() -> None:
    before = steady(cpu_percent=90, seconds=9)
    after = [(9 + s, s * 0.9, MIB, 0, 0) for s in range(20)]
    assert (told(Budget(50, 0, 0), before + after) or (0, ""))[0] == 19


def test_of_a_gap_nothing_is_known() -> None:
    samples = [*steady(cpu_percent=90, seconds=5), (30, 25.0, MIB, 30_000, 0), (31, 26.0, MIB, 31_000, 0)]
    assert told(Budget(50, 0, 0), samples) is None


def test_it_begins_anew_when_cleared() -> None:
    budget = Budget(50, 0, 0)
    assert told(budget, steady(cpu_percent=90, seconds=11)) is not None
    budget.clear()
    assert budget.add(11, 9.9, 0, 11_000, 0) == ""


def test_samples_are_bounded() -> None:
    budget = Budget(50, 0, 0)
    for i in range(100_000):
        budget.add(i / 1000, 0, 0, 0, 0)
    assert len(budget._samples) <= 202


@given(st.lists(st.tuples(st.floats(0.2, 2), st.floats(0, 0.5)), min_size=5, max_size=60), st.data())
def test_no_single_sample_decides(steps: list[tuple[float, float]], data: st.DataObject) -> None:
    odd = data.draw(st.integers(0, len(steps) - 1))
    budget, now_s, cpu_s = Budget(50, 100 * MIB, 0), 0.0, 0.0
    for place, (wait_s, share) in enumerate(steps):
        now_s += wait_s
        cpu_s += 1000 if place == odd else wait_s * share
        assert budget.add(now_s, cpu_s, (10**6 if place == odd else 50) * MIB, 0, 0) == ""
