"""Counting runs: shares with an upper bound, delays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.99
NEVER = -1


@dataclass(frozen=True, slots=True)
class Share:
    """So many of the runs; the true share is at most `most`, and at least `least`, each with 99 % confidence (Clopper
    and Pearson)."""

    count: int
    runs: int
    least: float
    most: float

    @property
    def value(self) -> float:
        return self.count / self.runs


@dataclass(frozen=True, slots=True)
class Delay:
    """Pairs from the onset until it was found, over the runs that found it after the onset."""

    found: float  # share of the runs
    early: float  # share of the runs that cried before the onset
    median: float | None  # of all runs; None when fewer than half found it
    p90: float | None


def share(events: NDArray[np.bool_]) -> Share:
    count, runs = int(events.sum()), len(events)
    return Share(count, runs, 1 - upper_bound(runs - count, runs), upper_bound(count, runs))


def upper_bound(count: int, runs: int, confidence: float = CONFIDENCE) -> float:
    """The largest p for which so few events have a probability of at least 1 - confidence."""
    if count >= runs:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(count, runs, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(count: int, runs: int, p: float) -> float:
    """Probability of at most `count` events."""
    if p <= 0.0 or p >= 1.0:
        return float(p <= 0.0)
    if count > runs // 2:
        return 1 - _at_most(runs - count - 1, runs, 1 - p)
    k = np.arange(count + 1)
    ways = np.cumsum(np.log(np.concatenate([[1.0], (runs - k[:-1]) / k[1:]])))
    return float(np.exp(ways + k * math.log(p) + (runs - k) * math.log1p(-p)).sum())


def delay(first: NDArray[np.int64], onset: int, pairs: int) -> Delay:
    """`first` is the block, from 0, after which it was found, or NEVER."""
    early = (first != NEVER) & (first < onset)
    found = (first != NEVER) & ~early
    waited = np.sort(np.where(found, (first - onset + 1) * float(pairs), np.inf))
    numbers = [float(waited[math.ceil(q * len(waited)) - 1]) for q in (0.5, 0.9)]
    median, p90 = (number if math.isfinite(number) else None for number in numbers)
    return Delay(float(found.mean()), float(early.mean()), median, p90)
