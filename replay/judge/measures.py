"""What a block of pairs is reduced to: one number a metric, which changes its sign when the two sides are swapped.

Latencies come as arrays whose last axis is the pairs of one block; the result has the axes before it, so a block of one
shadow and the same block of many simulated runs go the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAST_NS = 1_000.0  # below a microsecond a latency says nothing
LOG_LIMIT = 50.0  # a log ratio beyond any that can be measured
TAIL, TAIL_SMALL = 0.99, 0.95
TAIL_PAIRS = 250  # from so many pairs on the block's tail is its 99th percentile
BURST_SPREADS = 3.0  # median absolute deviations from which a pair lies far out
BURST_PAIRS = 5  # in a row that make a burst


def logs(latency_ns: Floats) -> Floats:
    """Log of latencies; infinity counts as slower than any, what is below a microsecond as a microsecond."""
    found: Floats = np.minimum(np.log(np.maximum(latency_ns, LEAST_NS)), 2 * LOG_LIMIT)
    return found


def level(production: Floats, shadow: Floats) -> Floats:
    """Median of the log ratio of pairs; arguments are logs."""
    found: Floats = np.clip(np.median(shadow - production, axis=-1), -LOG_LIMIT, LOG_LIMIT)
    return found


def tail_share(pairs: int) -> float:
    """Which quantile stands for the tail of a block of so many pairs."""
    return TAIL if pairs >= TAIL_PAIRS else TAIL_SMALL


def tail(production: Floats, shadow: Floats) -> Floats:
    """Log ratio of the tails of both sides; arguments are logs."""
    at = _place(production.shape[-1])
    highest = [np.partition(side, at, axis=-1)[..., at] for side in (shadow, production)]
    found: Floats = np.clip(highest[0] - highest[1], -LOG_LIMIT, LOG_LIMIT)
    return found


def _place(pairs: int) -> int:
    return int(np.ceil(tail_share(pairs) * (pairs - 1)))


def excess(production: Bools, shadow: Bools) -> Floats:
    """Share of the pairs in which only the shadow has it (e.g. an error), less those in which only production has.

    What both have, because the request asked for it, cancels out.
    """
    found: Floats = np.mean(shadow.astype(np.float64) - production, axis=-1)
    return found


def slow_share(latency: Floats, lost: Bools) -> Floats:
    """Whether slow requests are lost more often: lost ones among production's slower half, less those among its
    faster half, over all. Requests at the median are in neither. Symmetric around 0 when loss does not look at latency.
    """
    middle = np.median(latency, axis=-1, keepdims=True)
    found: Floats = np.mean(lost * np.sign(latency - middle), axis=-1)
    return found


def typical_pair(production: Floats, shadow: Floats) -> int:
    """Index of the pair whose ratio is the block's median (the upper one); for one block."""
    ratio = shadow - production
    return int(np.argpartition(ratio, len(ratio) // 2)[len(ratio) // 2])


def tail_pair(production: Floats, shadow: Floats) -> int:
    """Index of the pair with the highest ratio among the shadow's slowest; for one block."""
    at = _place(len(shadow))
    slowest = np.argpartition(shadow, at)[at:]
    return int(slowest[np.argmax((shadow - production)[slowest])])


def longest_burst(at_ns: Floats, production: Floats, shadow: Floats) -> float:
    """Nanoseconds of the longest run of pairs that all lie far out on the same side, in the order of arrival; 0 for
    runs below BURST_PAIRS. A stall of one pool shows as such a run. For one block."""
    ratio = shadow - production
    centred = ratio - np.median(ratio)
    spread = np.median(np.abs(centred))
    side = np.where(np.abs(centred) > BURST_SPREADS * spread, np.sign(centred), 0.0)
    starts = np.flatnonzero(np.diff(side, prepend=np.nan) != 0)
    ends = np.append(starts[1:], len(side)) - 1
    counts = (side[starts] != 0) & (ends - starts + 1 >= BURST_PAIRS)
    return float(np.max(at_ns[ends] - at_ns[starts], where=counts, initial=0.0))
