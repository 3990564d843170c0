"""The interval holds the effect at every look, and is where it should be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from replay.judge.interval import KEPT_LIMIT, History, Interval
from replay.judge.metric import most_of
from replay.judge.plan import Kind


def history(values: list[float], kind: Kind = Kind.RATIO, by: float = 0.05) -> History:
    found = History(kind)
    for value in values:
        found.add(value, by)
    return found


def covered(interval: Interval, effect: float) -> bool:
    low, high = interval
    return (low is None or low <= effect) and (high is None or effect <= high)


def test_nothing_is_known_at_first() -> None:
    assert history([]).interval() == (None, None)
    assert history([]).effect is None
    assert history([0.1] * 5).interval() == (None, None)


def test_it_holds_the_effect_at_all_looks() -> None:
    """In at most 5 % of the runs is the effect ever outside; 150 runs with heavy tails, a look every 10 blocks."""
    random = np.random.default_rng(1)
    missed = 0
    for _ in range(150):
        found, ever = History(Kind.RATIO), False
        for block in range(1, 61):
            found.add(0.1 + 0.05 * float(random.standard_t(2)), 0.05)
            ever |= block % 10 == 0 and not covered(found.interval(), 0.1)
        missed += ever
    assert missed <= 150 * 0.05


def test_it_becomes_narrow() -> None:
    values = np.random.default_rng(2).normal(0.1, 0.05, 200)
    low, high = history(values.tolist()).interval()
    assert low is not None and high is not None
    assert 0.07 < low < 0.1 < high < 0.13


def test_swapping_the_sides_turns_it() -> None:
    values = np.random.default_rng(3).normal(0.1, 0.05, 50).tolist()
    low, high = history(values).interval()
    back_low, back_high = history([-value for value in values]).interval()
    assert low is not None and high is not None
    assert back_low == pytest.approx(-high, abs=1e-9)
    assert back_high == pytest.approx(-low, abs=1e-9)


def test_rates() -> None:
    random = np.random.default_rng(4)
    values = (random.poisson(1.25, 400) - random.poisson(0.25, 400)) / 250
    found = history(values.tolist(), Kind.RATE, most_of(250))
    low, high = found.interval()
    assert found.effect == pytest.approx(0.004, abs=0.0007)
    assert low is not None and high is not None
    assert 0.002 < low < 0.004 < high < 0.006


def test_it_is_bounded_and_goes_on_from_the_newer_half() -> None:
    found = history([1.0] * KEPT_LIMIT + [0.0])
    assert len(found.as_json()["values"]) == KEPT_LIMIT // 2 + 1


def test_a_kept_state_goes_on() -> None:
    found, resumed = history([0.1, 0.2, 0.3] * 20), History(Kind.RATIO)
    resumed.restore(json.loads(json.dumps(found.as_json())))
    assert resumed.interval() == found.interval()
    with pytest.raises(ValueError, match="blocks"):
        resumed.restore({"values": [1.0], "by": []})
