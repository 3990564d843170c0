"""Counting runs, against published values and definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.judge_sim.figures import NEVER, delay, share, upper_bound


@pytest.mark.parametrize(
    ("count", "runs", "expected"),
    [(0, 100, 1 - 0.01 ** (1 / 100)), (0, 2000, 1 - 0.01 ** (1 / 2000)), (100, 100, 1.0), (99, 100, 0.99 ** (1 / 100))],
)
def test_bounds_that_have_a_closed_form(count: int, runs: int, expected: float) -> None:
    assert upper_bound(count, runs) == pytest.approx(expected, abs=1e-9)


def test_bounds_of_a_table() -> None:
    """Two-sided 95 % for 10 of 100 (each side 97.5 %): 4.90 % to 17.62 %."""
    assert upper_bound(10, 100, 0.975) == pytest.approx(0.1762, abs=5e-5)
    assert 1 - upper_bound(90, 100, 0.975) == pytest.approx(0.0490, abs=5e-5)


def test_the_bounds_cover() -> None:
    drawn = np.random.default_rng(1).binomial(500, 0.05, 2000)
    of = {count: share(np.arange(500) < count) for count in set(drawn.tolist())}
    assert np.mean([of[count].most < 0.05 for count in drawn.tolist()]) <= 0.015
    assert np.mean([of[count].least > 0.05 for count in drawn.tolist()]) <= 0.015


def test_delays() -> None:
    first = np.array([NEVER, 9, 10, 11, 12])
    got = delay(first, 10, 250)
    assert (got.found, got.early) == (0.6, 0.2)
    assert (got.median, got.p90) == (750.0, None)
    assert delay(first[:2], 10, 250).median is None
