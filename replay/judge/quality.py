"""Whether what was seen can stand for the whole: how much was lost, and whether slow requests were lost more often.

Lost are requests of which no pair came through no fault of the shadow: incomplete in the capture, dropped by the
agent, or told too late for their block. While there is a problem, blocks are not tested and nothing is concluded.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from replay.judge import eprocess
from replay.judge.blocks import Block
from replay.judge.eprocess import Process
from replay.judge.plan import Settings

WINDOW_BLOCKS = 60
BIAS_CEILING_ROOM = 2.0


class Quality:
    """Of the last blocks of all requests. `blocks_left_out` were closed while there was a problem."""

    __slots__ = ("_bias", "_counts", "_settings", "blocks_left_out")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counts: deque[tuple[int, int]] = deque(maxlen=WINDOW_BLOCKS)  # pairs, lost
        ceiling = math.log(2 / settings.bias_alpha) + BIAS_CEILING_ROOM
        self._bias = tuple(Process(eprocess.SYMMETRIC_WEIGHTS, ceiling) for _ in range(2))  # slow lost, fast lost
        self.blocks_left_out = 0

    def add(self, block: Block) -> None:
        """Take a block of all requests."""
        self._counts.append((block.pairs, sum(block.lost.values())))
        for process, side in zip(self._bias, (block.lost_slow, -block.lost_slow), strict=True):
            process.add(eprocess.symmetric_factors(eprocess.standardise(np.asarray(side), 0.0, np.zeros(()))))
        if self.problem:
            self.blocks_left_out += 1

    @property
    def lost_share(self) -> float:
        """Of the requests of the last blocks."""
        pairs, lost = (sum(each) for each in zip(*self._counts, strict=True)) if self._counts else (0, 0)
        return lost / max(pairs + lost, 1)

    @property
    def problem(self) -> str:
        """One line, or "" when there is none."""
        lost = self.lost_share
        if lost > self._settings.loss_share:
            return f"{lost:.1%} of the requests were lost, more than {self._settings.loss_share:.1%}"
        needed = math.log(2 / self._settings.bias_alpha)
        if lost > self._settings.bias_share:
            for process, word in zip(self._bias, ("slow", "fast"), strict=True):
                if process.log_e >= needed:
                    return f"{word} requests were lost more often than others ({lost:.1%} in all)"
        return ""

    def as_json(self) -> dict[str, Any]:
        """The state."""
        return {
            "counts": [list(each) for each in self._counts],
            "bias": [process.as_json() for process in self._bias],
            "blocks_left_out": self.blocks_left_out,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._counts = deque(((int(pairs), int(lost)) for pairs, lost in state["counts"]), maxlen=WINDOW_BLOCKS)
        for process, kept in zip(self._bias, state["bias"], strict=True):
            process.restore(kept)
        self.blocks_left_out = int(state["blocks_left_out"])
