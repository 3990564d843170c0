"""What a block is reduced to, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.judge import measures

MS = 1e6
latencies = st.lists(st.tuples(st.floats(1e3, 1e12), st.floats(1e3, 1e12)), min_size=20, max_size=300)


def test_level_is_the_median_of_the_log_ratio() -> None:
    production, shadow = measures.logs(np.array([1, 2, 3]) * MS), measures.logs(np.array([2, 2, 30]) * MS)
    assert float(measures.level(production, shadow)) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("pairs", "place"), [(20, 19), (100, 95), (249, 236), (250, 247), (1000, 990)])
def test_tail_is_the_95th_percentile_of_few_and_the_99th_of_many(pairs: int, place: int) -> None:
    """Place 0 is the smallest; ceil(share * (n - 1)), as numpy's "higher"."""
    production: measures.Floats = np.arange(pairs, dtype=np.float64) * 0.01 + 12
    share = 0.99 if pairs >= 250 else 0.95
    assert np.quantile(production, share, method="higher") == production[place]
    shadow = np.random.default_rng(1).permutation(production)
    shadow[np.argsort(shadow)[place:]] += 1.0
    assert float(measures.tail(production, shadow)) == pytest.approx(1.0)


def test_excess_counts_only_what_one_side_has() -> None:
    production, shadow = np.array([1, 1, 0, 0, 0], dtype=bool), np.array([1, 0, 1, 1, 0], dtype=bool)
    assert float(measures.excess(production, shadow)) == pytest.approx((2 - 1) / 5)


def test_slow_share() -> None:
    latency = np.array([1.0, 2, 3, 4, 5])
    assert float(measures.slow_share(latency, np.array([0, 0, 0, 1, 1], dtype=bool))) == pytest.approx(0.4)
    assert float(measures.slow_share(latency, np.array([1, 0, 1, 0, 1], dtype=bool))) == 0.0


def test_impossible_latencies_are_numbers_too() -> None:
    production = measures.logs(np.array([0.0, -5.0, 1e7, np.inf]))
    shadow = measures.logs(np.array([np.inf, np.inf, np.inf, np.inf]))
    assert np.isfinite(production).all()
    assert float(measures.level(production, shadow)) == measures.LOG_LIMIT
    assert float(measures.level(shadow, shadow)) == 0.0


@given(latencies, st.floats(0.001, 1000))
def test_swapping_turns_the_sign_and_units_do_not_matter(values: list[tuple[float, float]], factor: float) -> None:
    production, shadow = (np.log(np.array(side)) for side in zip(*values, strict=True))
    for measure in (measures.level, measures.tail):
        there, back = float(measure(production, shadow)), float(measure(shadow, production))
        assert there == pytest.approx(-back, abs=1e-9)
        moved = float(measure(production + math.log(factor), shadow + math.log(factor)))
        assert moved == pytest.approx(there, abs=1e-9)


def test_many_runs_side_by_side_are_as_each_alone() -> None:
    random = np.random.default_rng(2)
    production, shadow = random.normal(size=(2, 4, 260))
    for measure in (measures.level, measures.tail):
        together = measure(production, shadow)
        assert together.tolist() == [float(measure(production[run], shadow[run])) for run in range(4)]


def test_pairs_that_show_it() -> None:
    production = np.zeros(100)
    shadow = np.linspace(0, 1, 100)
    assert measures.typical_pair(production, shadow) == 50
    production[97] = -3.0
    assert measures.tail_pair(production, shadow) == 97


def test_a_stall_is_as_long_as_its_run() -> None:
    random = np.random.default_rng(4)
    at: measures.Floats = np.arange(250, dtype=np.float64) * 4 * MS
    production, shadow = random.normal(0, 0.1, (2, 250))
    assert measures.longest_burst(at, production, shadow) == 0.0
    shadow[100:150] += 3.0
    assert measures.longest_burst(at, production, shadow) == pytest.approx(49 * 4 * MS)
    assert measures.longest_burst(at, shadow, production) == pytest.approx(49 * 4 * MS)
    assert measures.longest_burst(at, np.zeros(250), np.zeros(250)) == 0.0
