"""How long the next block is to be, from past blocks only: a length chosen by what it will hold would spoil the test.

A block must be longer than a burst (a stall of one pool), or neighbouring blocks hang together and evidence comes for
nothing. Two things are watched:

* the longest runs of pairs far out on one side, as long as bursts fit into blocks: 2.5 times the second longest of late
  (not the longest: one step of level inside a block looks like one);
* whether neighbouring blocks are alike, for what lasts longer: then the length is doubled, and halved again only
  after many blocks that were not.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from replay.judge.plan import Settings

BURST_FACTOR = 2.5
BURSTS_KEPT = 64  # blocks
BLOCK_PAIRS = 50  # a block lasts as long as this many pairs take
CHECK_BLOCKS = 32  # between two looks at neighbouring blocks
ALIKE = 0.5  # correlation of neighbours from which the length is doubled: 2.8 standard errors of 32 blocks
CALM_CHECKS = 8  # looks in a row that found nothing, before it is halved
CLIP_SPREADS = 3.0


class Length:
    """Length of the blocks of one route."""

    __slots__ = ("_bursts", "_calm", "_levels", "_pair_ns", "_settings", "_tails", "factor")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bursts: deque[float] = deque(maxlen=BURSTS_KEPT)
        self._levels: list[float] = []
        self._tails: list[float] = []
        self._pair_ns = 0.0
        self._calm = 0
        self.factor = 1

    @property
    def next_ns(self) -> int:
        """Nanoseconds."""
        settings = self._settings
        burst = sorted(self._bursts)[-2] if len(self._bursts) > 1 else 0.0
        least = max(settings.block_ns, BURST_FACTOR * burst, BLOCK_PAIRS * self._pair_ns)
        return int(min(least * self.factor, max(settings.longest_block_ns, BLOCK_PAIRS * self._pair_ns)))

    def learn(self, length_ns: int, pairs: int, burst_ns: float, level: float, tail: float) -> None:
        """Take a block that is over."""
        self._pair_ns = length_ns / max(pairs, 1)
        self._bursts.append(burst_ns)
        self._levels.append(level)
        self._tails.append(tail)
        if len(self._levels) >= CHECK_BLOCKS:
            self._check()

    def _check(self) -> None:
        alike = max(_neighbours(self._levels), _neighbours(self._tails))
        self._levels.clear()
        self._tails.clear()
        if alike > ALIKE:
            self._calm = 0
            if self._settings.block_ns * self.factor < self._settings.longest_block_ns:
                self.factor *= 2
        else:
            self._calm += 1
            if self._calm >= CALM_CHECKS and self.factor > 1:
                self.factor //= 2
                self._calm = 0

    def as_json(self) -> dict[str, Any]:
        """The state."""
        return {
            "bursts": list(self._bursts),
            "levels": self._levels.copy(),
            "tails": self._tails.copy(),
            "pair_ns": self._pair_ns,
            "calm": self._calm,
            "factor": self.factor,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._bursts = deque((float(each) for each in state["bursts"]), maxlen=BURSTS_KEPT)
        self._levels = [float(each) for each in state["levels"]]
        self._tails = [float(each) for each in state["tails"]]
        self._pair_ns, self._calm = float(state["pair_ns"]), int(state["calm"])
        self.factor = max(int(state["factor"]), 1)


def _neighbours(values: list[float]) -> float:
    """Correlation of each value with the next; 0 when they are all the same."""
    centred = np.array(values) - np.median(values)
    spread = float(np.median(np.abs(centred))) or float(np.mean(np.abs(centred)))
    if spread == 0.0:
        return 0.0
    clipped = np.clip(centred / spread, -CLIP_SPREADS, CLIP_SPREADS)
    clipped -= clipped.mean()
    power = float(clipped @ clipped)
    return float(clipped[1:] @ clipped[:-1]) / power if power > 0 else 0.0
