"""Tests as others use them, looked at after every block. They are here to fail: a harness that finds no false alarm in
them would find none in ours either.

Both are the Mann-Whitney test of all latencies so far, taken as independent; from histograms of log latency with cells
of 2 %, in which ties get their mean rank.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CELL = 0.02  # of log latency
CELLS = 800
LOWEST = np.log(1e4)  # nanoseconds
PEEKING_Z = 1.959963984540054  # two-sided, 5 %
KAYENTA_Z = 2.326347874040841 / 0.75  # 98 % interval of the shift beyond 0.25 times its estimate


class MannWhitney:
    """The test statistic of each run so far."""

    def __init__(self, runs: int) -> None:
        self._counts = np.zeros((2, runs, CELLS))

    def add(self, production: Floats, shadow: Floats) -> Floats:
        """Take a block of latencies, runs by pairs; gives z, above 0 where the shadow is slower."""
        runs = len(production)
        row = np.arange(runs)[:, None] * CELLS
        for counts, side in zip(self._counts, (production, shadow), strict=True):
            cell = ((np.log(np.maximum(side, 1.0)) - LOWEST) / CELL).astype(np.int64)
            found = np.bincount((np.clip(cell, 0, CELLS - 1) + row).ravel(), minlength=runs * CELLS)
            counts += found.reshape(runs, CELLS)
        ours, theirs = self._counts
        n, m = ours.sum(axis=1), theirs.sum(axis=1)
        below = np.cumsum(ours, axis=1) - ours
        u = (theirs * (below + ours / 2)).sum(axis=1)
        tied = ours + theirs
        both = n + m
        variance = n * m / 12 * (both + 1 - (tied**3 - tied).sum(axis=1) / (both * (both - 1)))
        z: Floats = (u - n * m / 2) / np.sqrt(np.maximum(variance, 1e-9))
        return z
