"""An interval for the effect on a metric that holds at every look: all effects that the blocks have not refuted.

For each assumed effect c there is an e-process against "at most c" and one against "at least c"; c is in the interval
while neither has reached 2 / alpha. Both are monotone in c, so the ends are found by bisection over the stored blocks.
For rates, the effect is the mean of a block's rate counted as at most `most_of(pairs)` either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from replay.judge import eprocess
from replay.judge.eprocess import Floats
from replay.judge.plan import Kind

KEPT_LIMIT = 1024  # blocks; when it is reached, the older half is forgotten, and the interval starts anew from the rest
KEPT_OF_ROUTE = 128  # blocks of a single route
STEPS = 40  # of bisection
_INSIDE = 1 - 1e-6  # a rate that is assumed must lie within what rates count as at most
ALPHA = 0.05


class Interval(NamedTuple):
    """None where there is no bound yet."""

    low: float | None
    high: float | None


class History:
    """The last blocks of one metric: each value, and what it was judged by (a scale, or for rates the most)."""

    __slots__ = ("_by", "_kept", "_kind", "_values")

    def __init__(self, kind: Kind, kept: int = KEPT_LIMIT) -> None:
        self._kind = kind
        self._kept = kept
        self._values: list[float] = []
        self._by: list[float] = []

    def add(self, value: float, by: float) -> None:
        """Keep a block."""
        if len(self._values) >= self._kept:
            del self._values[: self._kept // 2]
            del self._by[: self._kept // 2]
        self._values.append(value)
        self._by.append(by)

    @property
    def effect(self) -> float | None:
        """The median of the blocks, for rates the mean."""
        if not self._values:
            return None
        return float(np.mean(self._values) if self._kind is Kind.RATE else np.median(self._values))

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Covers a constant effect at all times with probability 1 - alpha (until the older half is forgotten)."""
        if not self._values:
            return Interval(None, None)
        values, by = np.array(self._values), np.array(self._by)
        if self._kind is not Kind.RATE:
            lowest, highest = float(values.min()), float(values.max())
            return Interval(
                _refuted(lambda c: _symmetric(values, c, by), lowest, highest, alpha),
                _refuted(lambda c: _symmetric(-values, -c, by), highest, lowest, alpha),
            )
        most = float(by.max())
        values = np.clip(values, -most, most)
        return Interval(
            _refuted(lambda c: _mean(-values, -c, most), -most * _INSIDE, most * _INSIDE, alpha),
            _refuted(lambda c: _mean(values, c, most), most * _INSIDE, -most * _INSIDE, alpha),
        )

    def as_json(self) -> dict[str, Any]:
        """The state."""
        return {"values": self._values.copy(), "by": self._by.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError when it is none."""
        values, by = [float(each) for each in state["values"]], [float(each) for each in state["by"]]
        if len(values) != len(by) or len(values) > self._kept:
            raise ValueError("not the blocks of a metric")
        self._values, self._by = values, by


def _symmetric(values: Floats, floor: float, scale: Floats) -> float:
    """Log evidence against an effect of at most the floor."""
    factors = eprocess.symmetric_factors(eprocess.standardise(values, floor, scale))
    return float(eprocess.log_sum(factors.sum(axis=0) + np.log(eprocess.SYMMETRIC_WEIGHTS)))


def _mean(values: Floats, floor: float, most: float) -> float:
    """Log evidence against a mean of at least the floor."""
    factors = eprocess.mean_factors(values, floor, most)
    return float(eprocess.log_sum(factors.sum(axis=0) + np.log(eprocess.MEAN_WEIGHTS)))


def _refuted(log_e: Callable[[float], float], out: float, inside: float, alpha: float) -> float | None:
    """The end between `out`, which is refuted, and `inside`, which is not; None when not even `out` is refuted."""
    needed = math.log(2 / alpha)
    if log_e(out) < needed:
        return None
    for _ in range(STEPS):
        middle = (out + inside) / 2
        if log_e(middle) < needed:
            inside = middle
        else:
            out = middle
    return inside
