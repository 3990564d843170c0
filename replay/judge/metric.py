"""The tests of one metric: is the shadow worse than the floor (two levels), and is it surely better than the margin.

Works on a number a block, or on arrays of numbers, one for each of many runs.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from replay.judge import eprocess
from replay.judge.eprocess import Floats, Process
from replay.judge.plan import RATE_MOST, Kind, MetricPlan

SCALE_BLOCKS = 64  # from which the scale is learnt
BURST_OF_FEW = 5  # a rate counts at most as RATE_MOST, but never less than this many of a small block's pairs
CEILING = 30.0  # log; more evidence than that for a FAIL is not carried on
PASS_ROOM = 2.0  # log; above what a PASS needs, so that a PASS ends soon when things turn


class MetricTest:
    """Three e-processes over the same blocks. Shape: that of the runs, () for one."""

    __slots__ = ("_magnitudes", "_shape", "blocks", "passing", "plan", "rollback", "skip", "warn")

    def __init__(self, plan: MetricPlan, warm_up: int, pass_evidence: float, shape: tuple[int, ...] = ()) -> None:
        self.plan = plan
        self._shape = shape
        self._magnitudes: deque[Floats] = deque(maxlen=SCALE_BLOCKS)
        self.skip = warm_up  # blocks still to come of which only the scale is learnt
        self.blocks = 0  # that were tested
        self.warn = Process(eprocess.SYMMETRIC_WEIGHTS, CEILING, shape)
        self.rollback = Process(eprocess.SYMMETRIC_WEIGHTS, CEILING, shape)
        weights = eprocess.MEAN_WEIGHTS if plan.kind is Kind.RATE else eprocess.SYMMETRIC_WEIGHTS
        self.passing = Process(weights, pass_evidence + PASS_ROOM, shape)

    def add(self, value: Floats | float, pairs: int = 0) -> tuple[Floats, bool]:
        """Take a block's number (`pairs` is needed for rates). Gives the scale it was judged by, and whether it was."""
        value = np.asarray(value, dtype=np.float64)
        scale = middle_magnitude(self._magnitudes, self._shape)
        self._magnitudes.append(np.abs(value))
        if self.skip > 0:
            self.skip -= 1
            return scale, False
        plan = self.plan
        self.blocks += 1
        warn = eprocess.symmetric_factors(eprocess.standardise(value, plan.warn, scale))
        self.warn.add(warn)
        same = plan.rollback == plan.warn
        at_rollback = warn if same else eprocess.symmetric_factors(eprocess.standardise(value, plan.rollback, scale))
        self.rollback.add(at_rollback)
        if plan.kind is Kind.RATE:
            self.passing.add(eprocess.mean_factors(value, plan.margin, most_of(pairs)))
        else:
            self.passing.add(eprocess.symmetric_factors(eprocess.standardise(-value, -plan.margin, scale)))
        return scale, True

    def as_json(self) -> dict[str, Any]:
        """The state of a single run."""
        return {
            "magnitudes": [float(each) for each in self._magnitudes],
            "skip": self.skip,
            "blocks": self.blocks,
            "warn": self.warn.as_json(),
            "rollback": self.rollback.as_json(),
            "passing": self.passing.as_json(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._magnitudes = deque((np.asarray(float(each)) for each in state["magnitudes"]), maxlen=SCALE_BLOCKS)
        self.skip, self.blocks = int(state["skip"]), int(state["blocks"])
        self.warn.restore(state["warn"])
        self.rollback.restore(state["rollback"])
        self.passing.restore(state["passing"])


def most_of(pairs: int) -> float:
    """What a rate in a block of so many pairs counts as at most."""
    return max(RATE_MOST, BURST_OF_FEW / max(pairs, BURST_OF_FEW))


def middle_magnitude(magnitudes: deque[Floats], shape: tuple[int, ...]) -> Floats:
    """Median (the lower one) of the magnitudes above 0, for each run; 0 where there is none.

    Zeros are left out since counts of rare events are mostly 0: their scale is that of the blocks that have some.
    """
    if not magnitudes:
        return np.zeros(shape)
    values = np.stack(magnitudes, axis=-1)
    values = np.sort(np.where(values > 0, values, np.inf), axis=-1)
    count = np.isfinite(values).sum(axis=-1)
    middle = np.take_along_axis(values, np.maximum((count - 1) // 2, 0)[..., None], axis=-1)[..., 0]
    return np.where(count > 0, middle, 0.0)
