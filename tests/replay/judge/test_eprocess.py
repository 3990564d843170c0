"""The bets are fair or losing under the hypothesis: by enumeration, on grids, by closed forms, and by simulation."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.judge import eprocess
from replay.judge.eprocess import (
    CLIP,
    MEAN_WEIGHTS,
    NODES,
    SYMMETRIC_WEIGHTS,
    Floats,
    Process,
    capital_left,
    log_sum,
    mean_factors,
    share_of_start,
    standardise,
    symmetric_factors,
)

NO_CEILING = math.inf
GRID = np.linspace(-CLIP, CLIP, 241)
numbers = st.floats(-1e300, 1e300)
moderate = st.floats(-50, 50, allow_subnormal=False)


def evidence(x: Floats, ceiling: float = NO_CEILING) -> Floats:
    """Log evidence after the blocks along the last axis."""
    process = Process(SYMMETRIC_WEIGHTS, ceiling, x.shape[:-1])
    for block in range(x.shape[-1]):
        process.add(symmetric_factors(x[..., block]))
    return process.log_e


def test_weights_and_shares_add_up_to_one() -> None:
    assert SYMMETRIC_WEIGHTS.sum() == pytest.approx(1, abs=1e-14) and SYMMETRIC_WEIGHTS.min() > 0
    assert MEAN_WEIGHTS.sum() == pytest.approx(1, abs=1e-14)
    spent = eprocess.FIRST_SHARE + sum(share_of_start(start) for start in range(1, 1001))
    assert spent + capital_left(1000) == pytest.approx(1, abs=1e-12)
    assert all(share_of_start(start) > 0 for start in (1, 10, 10**6, 10**9))


def test_the_mean_over_all_signs_is_exactly_one() -> None:
    """A martingale under symmetry, whatever the sizes, across restarts: 2^13 sequences of signs."""
    size = np.array([3.0, 0.1, 1.0, 0.0, 2.2, 0.7, 0.7, 1.9, 0.01, 3.0, 3.0, 0.4, 1.1])
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(size))))
    assert np.exp(evidence(signs * size)).mean() == pytest.approx(1, abs=1e-12)


def test_no_bet_wins_on_average_below_the_floor() -> None:
    """Y symmetric, D = m + Y, a = c - m >= 0: for every y, a and bet, the factors at y and -y average 1 or less."""
    y, a = np.meshgrid(np.linspace(0, 8, 161), np.linspace(0, 8, 161))
    up, down = (np.exp(symmetric_factors(np.clip(side - a, -CLIP, CLIP))) for side in (y, -y))
    assert ((up + down) / 2).max() <= 1 + 1e-12


def test_bets_are_odd_and_rise_with_x() -> None:
    gains = np.exp(symmetric_factors(GRID)) - 1
    assert np.allclose(gains, -gains[::-1], atol=1e-12)
    assert (np.diff(gains, axis=0) >= -1e-12).all()
    assert np.abs(gains).max() < 1


@pytest.mark.parametrize("n", [1, 5, 12, 2 * NODES - 1])
def test_sign_bets_are_the_beta_mixture(n: int) -> None:
    """B(K+1, n-K+1) Pr[Beta > 1/2] 2^(n+1), where the probability is that of at most K heads in n + 1 throws."""
    for wins in range(n + 1):
        factors = symmetric_factors(np.array([1.0, -1.0]))[:, :NODES]
        logs = wins * factors[0] + (n - wins) * factors[1]
        weights = SYMMETRIC_WEIGHTS[:NODES] / SYMMETRIC_WEIGHTS[:NODES].sum()
        heads = sum(math.comb(n + 1, k) for k in range(wins + 1)) / 2 ** (n + 1)
        beta = math.lgamma(wins + 1) + math.lgamma(n - wins + 1) - math.lgamma(n + 2)
        expected = beta + math.log(heads) + (n + 1) * math.log(2)
        assert float(log_sum(logs + np.log(weights))) == pytest.approx(expected, abs=1e-9)


def test_size_bets_never_give_less_than_the_self_normalised_process() -> None:
    sizes = np.array(eprocess.SIZES)
    factors = symmetric_factors(GRID)[:, NODES:]
    assert (factors >= sizes * GRID[:, None] - (sizes * GRID[:, None]) ** 2 / 2 - 1e-12).all()


def test_bets_on_a_mean_are_fair_at_the_floor_and_losing_above() -> None:
    """Values of two points, all pairs of them whose mean can be the floor: the mean factor is 1; above, less."""
    floor, most = 0.005, 0.05
    for low, high in itertools.product(np.linspace(-most, floor, 12)[:-1], np.linspace(floor, most, 12)[1:]):
        share = (floor - low) / (high - low)
        fair = (1 - share) * np.exp(mean_factors(np.array(low), floor, most))
        fair = fair + share * np.exp(mean_factors(np.array(high), floor, most))
        assert fair == pytest.approx(np.ones(len(MEAN_WEIGHTS)), abs=1e-12)
        more = min(share + 0.1, 1)
        losing = (1 - more) * np.exp(mean_factors(np.array(low), floor, most))
        assert (losing + more * np.exp(mean_factors(np.array(high), floor, most)) < 1).all()
    assert np.isfinite(mean_factors(np.array([-1.0, 1.0]), floor, most)).all()
    assert np.array_equal(mean_factors(np.array([1.0]), floor, most), mean_factors(np.array([most]), floor, most))


@pytest.mark.parametrize("shape", ["cauchy", "rare", "spread changes"])
def test_false_alarms_by_simulation(shape: str) -> None:
    """Symmetric blocks of any kind: 20 to 1 is ever reached in at most 5 % of the runs (here 800 of 150 blocks)."""
    random = np.random.default_rng(7)
    values = random.standard_cauchy((800, 150))
    if shape == "rare":
        values = np.sign(values) * (random.random(values.shape) < 0.1)
    elif shape == "spread changes":
        values *= np.exp(np.cumsum(random.normal(0, 0.3, 150)))
    process, most = Process(SYMMETRIC_WEIGHTS, NO_CEILING, (800,)), np.zeros(800)
    for block in range(150):
        past = np.abs(values[:, :block])
        scale = np.median(past, axis=1) if block else np.zeros(800)
        process.add(symmetric_factors(standardise(values[:, block], 0.0, scale)))
        most = np.maximum(most, process.log_e)
    assert 0 < (most >= math.log(20)).mean() <= 0.05


def test_a_late_start_is_found_nearly_as_soon_and_long_loss_is_forgotten() -> None:
    def needed(good: int) -> int:
        x = np.concatenate([np.full(good, -1.0), np.full(60, 1.0)])
        process = Process(SYMMETRIC_WEIGHTS, NO_CEILING)
        for block, value in enumerate(x):
            process.add(symmetric_factors(np.asarray(value)))
            if float(process.log_e) >= math.log(20):
                return block + 1 - good
        raise AssertionError

    assert needed(0) <= 8
    assert needed(100) <= needed(0) + 9
    assert needed(5000) <= needed(0) + 17


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, st.floats(0, 1e300)), min_size=1, max_size=40), numbers)
def test_evidence_is_always_a_number(blocks: list[tuple[float, float]], floor: float) -> None:
    process = Process(SYMMETRIC_WEIGHTS, 30.0)
    for value, scale in blocks:
        x = standardise(np.asarray(value), floor, np.asarray(scale))
        assert -CLIP <= x <= CLIP
        process.add(symmetric_factors(x))
        assert math.isfinite(float(process.log_e))


@given(st.lists(moderate, min_size=1, max_size=30), moderate, st.floats(0, 50))
def test_a_higher_floor_is_never_more_evidence(values: list[float], floor: float, higher: float) -> None:
    scale = np.full(len(values), 1.7)
    low, high = (float(evidence(standardise(np.array(values), c, scale))) for c in (floor, floor + higher))
    assert high <= low + 1e-9


@given(st.lists(moderate, min_size=1, max_size=20), moderate, st.floats(0.01, 10), st.floats(0.01, 1000))
def test_scale_does_not_matter_and_swapping_turns_the_sign(
    values: list[float], floor: float, scale: float, factor: float
) -> None:
    array, scales = np.array(values), np.full(len(values), scale)
    x = standardise(array, floor, scales)
    assert np.allclose(x, standardise(array * factor, floor * factor, scales * factor), atol=1e-6)
    assert np.array_equal(x, -standardise(-array, -floor, scales))


def test_without_a_scale_the_sign_counts() -> None:
    got = standardise(np.array([0.3, 0.1, 0.2]), 0.2, np.zeros(3))
    assert got.tolist() == [CLIP, -CLIP, 0.0]


def test_many_runs_side_by_side_are_as_each_alone() -> None:
    x = np.clip(np.random.default_rng(3).normal(0.3, 1, (5, 37)), -CLIP, CLIP)
    assert evidence(x) == pytest.approx(np.array([float(evidence(row)) for row in x]), abs=1e-12)


def test_a_ceiling_only_lowers_and_lets_evidence_go_soon() -> None:
    good, bad = np.full(200, 1.0), np.full(12, -1.0)
    assert float(evidence(good, 5.0)) <= float(evidence(good))
    assert 4.9 < float(evidence(good, 5.0)) < 5.1
    turned = np.concatenate([good, bad])
    assert float(evidence(turned, 5.0)) < math.log(20) < 50 < float(evidence(turned))


@given(st.lists(st.floats(-CLIP, CLIP), max_size=40), st.lists(st.floats(-CLIP, CLIP), max_size=20))
def test_a_kept_state_goes_on_as_if_nothing_had_been(before: list[float], after: list[float]) -> None:
    straight, stopped = Process(SYMMETRIC_WEIGHTS, 30.0), Process(SYMMETRIC_WEIGHTS, 30.0)
    for x in before:
        straight.add(symmetric_factors(np.asarray(x)))
        stopped.add(symmetric_factors(np.asarray(x)))
    resumed = Process(SYMMETRIC_WEIGHTS, 30.0)
    resumed.restore(json.loads(json.dumps(stopped.as_json(), allow_nan=False)))
    for x in after:
        straight.add(symmetric_factors(np.asarray(x)))
        resumed.add(symmetric_factors(np.asarray(x)))
    assert resumed.as_json() == straight.as_json()
    assert float(resumed.log_e) == float(straight.log_e)


@pytest.mark.parametrize(
    "state",
    [{"blocks": 1, "capital": [0.0]}, {"blocks": -1, "capital": [0.0] * 20}, {"blocks": 1, "capital": [math.nan] * 20}],
)
def test_what_is_no_state_is_refused(state: dict[str, object]) -> None:
    assert len(SYMMETRIC_WEIGHTS) == 20
    with pytest.raises(ValueError, match="state"):
        Process(SYMMETRIC_WEIGHTS, 30.0).restore(state)
