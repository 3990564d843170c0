"""Quantiles, and the paired ratio of latencies with an interval that withstands bursts.

Latencies come in bursts: a stall of 100 ms hits every request in it, so requests are not independent, and an interval
that takes them to be is far too narrow. Here whole blocks of time are drawn again (block bootstrap): within a block the
pairs stay together. Everything is seeded, so the same recording gives the same numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BEYOND = 5  # observations that must lie beyond a quantile before it is told
MIN_PAIRS = 100
MIN_BLOCKS = 10
MAX_BLOCKS = 300  # longer recordings get longer blocks
MIN_BLOCK_S = 1.0
BLOCK_PAIRS = 50  # a block lasts at least as long as this many pairs take
FEW_PAIRS = 20  # a block with fewer is joined to another
BURST_FACTOR = 2.5  # a block lasts this many times as long as a burst
MAX_LAG = 50  # blocks over which a burst is looked for
DRAWS = 2000
CELLS = 256  # cells of equal frequency in which draws are counted
CONFIDENCE = 0.95
TIMED_OUT_LOG = 50.0  # a log ratio beyond any that can be measured
ALIKE = 1e-6  # medians of blocks that differ by less are the same


class Quantiles(NamedTuple):
    """In milliseconds; None when there are too few values, infinity when the quantile lies among the timeouts."""

    n: int
    p50: float | None
    p90: float | None
    p99: float | None


class Ratio(NamedTuple):
    """exp of the median of log(shadow / production) over pairs; `why` says why there are no numbers."""

    pairs: int
    blocks: int
    block_s: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


def plain(value: float | str | None) -> float | str | None:
    """For JSON, which has no infinity."""
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None


def quantiles(values_ms: Floats) -> Quantiles:
    """Quantiles of the values; infinity is a value, not-a-number is left out."""
    values = values_ms[~np.isnan(values_ms)]
    found: list[float | None] = []
    for share in (0.5, 0.9, 0.99):
        enough = len(values) * (1 - share) >= BEYOND - 1e-9
        found.append(float(np.quantile(values, share, method="higher")) if enough else None)
    return Quantiles(len(values), *found)


def paired_ratio(production: Floats, shadow: Floats, at_s: Floats, *, speed: float = 1.0, seed: int = 1) -> Ratio:
    """The ratio and its interval. `at_s` is when each request came; `speed` how much faster it was sent again.

    An infinite latency of the shadow counts as slower than any. Pairs without two positive latencies are left out.
    """
    good = (production > 0) & (shadow > 0) & np.isfinite(production)
    logs = np.log(shadow[good] / production[good])
    at = at_s[good]
    if len(logs) < MIN_PAIRS:
        return Ratio(len(logs), 0, 0.0, why=f"too few pairs ({len(logs)} of {MIN_PAIRS})")
    order = np.argsort(at, kind="stable")
    logs, at = logs[order], at[order]
    block, block_s = _blocks(logs, at, MIN_BLOCK_S * max(speed, 1.0))
    count = int(block[-1]) + 1
    if count < MIN_BLOCKS:
        short = f"too short: {count} of {MIN_BLOCKS} blocks of {block_s:.1f} s"
        return Ratio(len(logs), count, block_s, why=short)
    middle = float(np.median(logs))
    if not math.isfinite(middle):
        return Ratio(len(logs), count, block_s, why="most requests timed out at the shadow")
    low, high = _interval(logs, block, middle, seed)
    return Ratio(len(logs), count, block_s, math.exp(middle), math.exp(low), math.exp(high))


def _blocks(logs: Floats, at: Floats, shortest_s: float) -> tuple[Ints, float]:
    """Number of each pair's block, without gaps, and the length of a block; pairs are in the order of time."""
    span = max(float(at[-1] - at[0]), 1e-9)
    length = max(shortest_s, span * BLOCK_PAIRS / len(at), span / MAX_BLOCKS)
    number = _number(at, length)
    burst = length * _burst_blocks(logs, number)
    if BURST_FACTOR * burst > length:
        length = BURST_FACTOR * burst
        number = _number(at, length)
    return number, length


def _number(at: Floats, length: float) -> Ints:
    """Number the blocks; one with few pairs is joined to the next, the last to the one before."""
    window = ((at - at[0]) / length).astype(np.int64)
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    kept: list[int] = [0]
    for start in starts[1:].tolist():
        if start - kept[-1] >= FEW_PAIRS:
            kept.append(start)
    if len(kept) > 1 and len(at) - kept[-1] < FEW_PAIRS:
        kept.pop()
    return np.repeat(np.arange(len(kept)), np.diff([*kept, len(at)]))


def _burst_blocks(logs: Floats, number: Ints) -> int:
    """Over how many blocks the medians of blocks stay alike: the first lag without autocorrelation, less one."""
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    medians = np.array([np.median(part) for part in np.split(np.minimum(logs, TIMED_OUT_LOG), starts[1:])])
    clipped = np.clip(medians, *np.quantile(medians, [0.02, 0.98]))
    centred = clipped - clipped.mean()
    power = float(centred @ centred)
    if len(centred) < 2 * MIN_BLOCKS or power < len(centred) * ALIKE**2:
        return 0
    for lag in range(1, min(MAX_LAG, len(centred) // 4)):
        if float(centred[lag:] @ centred[:-lag]) / power < 2 / math.sqrt(len(centred)):
            return lag - 1 if lag > 1 else 0
    return MAX_LAG


def _interval(logs: Floats, block: Ints, middle: float, seed: int) -> tuple[float, float]:
    """Percentile interval of the median over draws of whole blocks, widened for their small number.

    The values are counted in cells of equal frequency, so that a draw is a sum of the counts of its blocks and not a
    sort; within a cell the median is interpolated. The widening is Student's quantile over the normal one, times
    sqrt(B / (B - 1)): a draw of B blocks varies that much less than B fresh blocks would.
    """
    blocks = int(block[-1]) + 1
    finite = np.minimum(logs, float(np.max(logs[np.isfinite(logs)])))
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, min(CELLS, len(finite)) + 1)))
    cells = max(len(edges) - 1, 1)
    cell = np.clip(np.searchsorted(edges, finite, side="right") - 1, 0, cells - 1)
    counts = np.bincount(block * cells + cell, minlength=blocks * cells).reshape(blocks, cells).astype(np.float64)
    random = np.random.default_rng(seed)
    weights = random.multinomial(blocks, np.full(blocks, 1 / blocks), size=DRAWS).astype(np.float64)
    sums = np.cumsum(weights @ counts, axis=1)
    half = sums[:, -1] / 2
    where = np.argmax(sums >= half[:, None], axis=1)
    drawn = np.arange(DRAWS)
    before = np.where(where > 0, sums[drawn, where - 1], 0.0)
    inside = (half - before) / np.maximum(sums[drawn, where] - before, 1e-12)
    # Up to the largest value in the cell, not to the next edge: a clock of 1 ms makes many values the same.
    top = np.sort(finite)[np.cumsum(counts.sum(axis=0)).astype(np.int64) - 1]
    medians = edges[where] + inside * np.maximum(top[where] - edges[where], 0.0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    wider = student_quantile(blocks - 1) / _NORMAL_975 * math.sqrt(blocks / (blocks - 1))
    return middle + min(low - middle, 0.0) * wider, middle + max(high - middle, 0.0) * wider


_NORMAL_975 = 1.959963984540054


def student_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, by Cornish and Fisher's series (error below 0.002 from 8 degrees on)."""
    z, n = _NORMAL_975, float(degrees)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
