"""Quantiles and the paired ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from replay.compare import statistics
from replay.compare.statistics import paired_ratio, quantiles, student_quantile

Floats = statistics.Floats


def test_quantiles_of_a_hundred_numbers() -> None:
    """1 to 500: position 0.5 * 499 = 249.5, the higher neighbour is the 251st number; and so on."""
    assert quantiles(np.arange(1, 501.0)) == (500, 251.0, 451.0, 496.0)


@pytest.mark.parametrize(("count", "known"), [(0, 0), (9, 0), (10, 1), (49, 1), (50, 2), (499, 2), (500, 3)])
def test_quantiles_that_few_values_cannot_give(count: int, known: int) -> None:
    got = quantiles(np.ones(count))
    assert [value is not None for value in got[1:]] == [True] * known + [False] * (3 - known)


def test_timeouts_are_values_and_unknowns_are_not() -> None:
    values = np.array([1.0] * 60 + [np.inf] * 40 + [np.nan] * 50)
    assert quantiles(values) == (100, 1.0, math.inf, None)


def pairs(n: int, rng: np.random.Generator, factor: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Lognormal latencies that are correlated within a pair, at 100 a second."""
    shared = rng.normal(0, 0.5, n)
    production = 10 * np.exp(shared + rng.normal(0, 0.3, n))
    return production, factor * 10 * np.exp(shared + rng.normal(0, 0.3, n)), np.arange(n) / 100


def test_a_constant_ratio_is_found_exactly() -> None:
    production, _, at = pairs(2000, np.random.default_rng(1))
    got = paired_ratio(production, 1.3 * production, at)
    assert (got.pairs, got.blocks, got.block_s) == (2000, 20, 1.0)
    assert got.value is not None and got.low is not None and got.high is not None
    assert got.value == pytest.approx(1.3)
    assert got.low == pytest.approx(1.3) and got.high == pytest.approx(1.3)


def test_swapping_the_sides_inverts_the_interval() -> None:
    production, shadow, at = pairs(4001, np.random.default_rng(2), 1.2)
    there, back = paired_ratio(production, shadow, at), paired_ratio(shadow, production, at)
    assert there.value and there.low and there.high and back.value and back.low and back.high
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high, rel=0.002)
    assert there.high == pytest.approx(1 / back.low, rel=0.002)


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_rows() -> None:
    production, shadow, at = pairs(3000, np.random.default_rng(3))
    shuffled = np.random.default_rng(4).permutation(3000)
    one = paired_ratio(production, shadow, at, seed=7)
    assert one == paired_ratio(production[shuffled], shadow[shuffled], at[shuffled], seed=7)
    assert one != paired_ratio(production, shadow, at, seed=8)


def test_too_few_pairs_and_too_short() -> None:
    production, shadow, at = pairs(99, np.random.default_rng(5))
    assert paired_ratio(production, shadow, at) == (99, 0, 0.0, None, None, None, "too few pairs (99 of 100)")
    production, shadow, at = pairs(900, np.random.default_rng(5))
    short = paired_ratio(production, shadow, at)
    assert (short.value, short.blocks, short.why) == (None, 9, "too short: 9 of 10 blocks of 1.0 s")
    empty = np.array([])
    assert paired_ratio(empty, empty, empty).value is None
    assert paired_ratio(production, shadow, np.zeros(900)).value is None


def test_impossible_latencies_are_left_out() -> None:
    production, shadow, at = pairs(2000, np.random.default_rng(6))
    production[:100], shadow[100:200], production[200:300] = 0.0, -1.0, np.nan
    assert paired_ratio(production, shadow, at).pairs == 1700


def test_timeouts_count_as_slow() -> None:
    production, shadow, at = pairs(4000, np.random.default_rng(7))
    plain = paired_ratio(production, shadow, at)
    shadow[::4] = np.inf
    some = paired_ratio(production, shadow, at)
    assert plain.high is not None and some.low is not None and some.high is not None
    assert plain.high < some.low < some.high < math.inf
    shadow[::2] = np.inf
    shadow[1] = np.inf
    assert paired_ratio(production, shadow, at).why == "most requests timed out at the shadow"


def test_a_replay_at_speed_gets_longer_blocks() -> None:
    """Sent ten times faster, a stall of the shadow covers ten times as much of production's time."""
    production, shadow, at = pairs(20_000, np.random.default_rng(8))
    assert paired_ratio(production, shadow, at, speed=10.0).block_s == 10.0


def test_a_coarse_clock_does_not_bias() -> None:
    rng = np.random.default_rng(9)
    production, shadow, at = pairs(5000, rng)
    got = paired_ratio(np.ceil(production / 5) * 5, np.ceil(shadow / 5) * 5, at)
    assert got.value == 1.0
    assert got.low is not None and got.high is not None
    assert got.low <= 1.0 <= got.high <= 1.1


def test_blocks_with_few_pairs_are_joined() -> None:
    """Twelve busy seconds, then an hour with a request a minute, then one more busy second."""
    production, shadow, _ = pairs(1360, np.random.default_rng(14))
    at = np.concatenate([np.arange(1200) / 100, 60.0 * np.arange(1, 61), 3700 + np.arange(100) / 100])
    length = statistics._number(at, 1.0)
    assert np.bincount(length).min() >= statistics.FEW_PAIRS
    assert np.bincount(length)[:12].tolist() == [100] * 12
    assert len(np.bincount(length)) == 16  # twelve, three of the quiet hour, the last


def test_long_recordings_keep_their_number_of_blocks() -> None:
    production, shadow, _ = pairs(20_000, np.random.default_rng(10))
    got = paired_ratio(production, shadow, np.arange(20_000) * 10.0)
    assert statistics.MAX_BLOCKS / 2 <= got.blocks <= statistics.MAX_BLOCKS + 1


def test_slow_waves_make_longer_blocks() -> None:
    production, shadow, at = pairs(20_000, np.random.default_rng(11))
    calm = paired_ratio(production, shadow, at)
    waves = paired_ratio(production, shadow * np.exp(0.5 * np.sin(at / 3)), at)
    assert calm.low and calm.high and waves.low and waves.high
    assert waves.block_s > 2 * calm.block_s
    assert math.log(waves.high / waves.low) > 5 * math.log(calm.high / calm.low)


def misses(runs: int, stall: int, seed: int) -> int:
    """How often the interval leaves out the true ratio when both sides are alike but stall in bursts."""
    rng = np.random.default_rng(seed)
    missed = 0
    for n in range(runs):
        production, shadow, at = pairs(6000, rng)
        for side in (production, shadow):
            for start in rng.integers(0, 6000, rng.poisson(3)):
                side[start : start + stall] += 100
        got = paired_ratio(production, shadow, at, seed=n)
        missed += got.low is None or got.high is None or not got.low <= 1 <= got.high
    return missed


def test_the_interval_holds_what_it_says_also_under_bursts() -> None:
    """5 % of 60 are 3; 9 or more misses come once in 350 times."""
    assert misses(60, 0, 12) < 9
    assert misses(60, 100, 13) < 9


@pytest.mark.parametrize(("degrees", "expected"), [(9, 2.2622), (19, 2.0930), (60, 2.0003), (599, 1.9639)])
def test_students_quantile(degrees: int, expected: float) -> None:
    """Against the printed tables."""
    assert student_quantile(degrees) == pytest.approx(expected, abs=0.002)
