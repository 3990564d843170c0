"""Do no harm: production's own latency with mirroring on and off, in short blocks whose order is tossed for.

    resting ─(every_s)─► settling ─► first block ─► settling ─► second block ─► resting
                           └ mirroring goes off here, or before the second block: a fair coin decides

Latency is measured in the kernel in the same way in both blocks (agent/capture/latency.py). The first moments after a
switch belong to neither: what was under way then was asked for in the other state.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from agent.watch_config import Harm

ON, OFF = 0, 1  # the kernel's phases
SETTLE_S = 0.5
LEAST_FOR_LEVEL, LEAST_FOR_TAIL = 30, 200  # requests in each block


class Histogram(Protocol):
    """What a block came to."""

    @property
    def count(self) -> int: ...

    def quantile(self, q: float) -> float | None: ...


class Latency(Protocol):
    """What is needed of `agent.capture.latency.ProductionLatency`."""

    def start(self, phase: int) -> None: ...

    def pause(self) -> None: ...

    def read(self, phase: int) -> Histogram: ...


class _Stage(Enum):
    RESTING = 0
    SETTLING_FIRST = 1
    FIRST = 2
    SETTLING_SECOND = 3
    SECOND = 4


class HarmCheck:
    """Drives the check from the service's loop. Times are seconds of a monotonic clock."""

    def __init__(
        self,
        settings: Harm,
        latency: Latency,
        pause: Callable[[bool], None],
        now_s: float,
        toss: Callable[[], bool] = lambda: bool(secrets.randbits(1)),
    ) -> None:
        """`pause` switches mirroring off and on; `toss` says whether the block with mirroring on comes first."""
        self._settings = settings
        self._latency = latency
        self._pause = pause
        self._toss = toss
        self._stage = _Stage.RESTING
        self._due_s = now_s + settings.every_s
        self._on_first = True
        self.hurry = False  # there is some evidence: do not rest
        self.pairs = 0  # of blocks, that were compared
        self.too_few = 0  # and that had too few requests

    def look(self, now_s: float, mirroring: bool) -> dict[str, float] | None:
        """Go on; the numbers of a pair of blocks when one is over. `mirroring`: there is anything to switch off."""
        if not mirroring:
            self.abandon(now_s)
            return None
        if now_s < self._due_s and not (self._stage is _Stage.RESTING and self.hurry):
            return None
        return self._next(now_s)

    def abandon(self, now_s: float) -> None:
        """Mirroring has changed: the pair that was under way says nothing."""
        if self._stage is not _Stage.RESTING:
            self._rest(now_s)

    def _next(self, now_s: float) -> dict[str, float] | None:
        if self._stage is _Stage.RESTING:
            self._on_first = self._toss()
            self._settle(_Stage.SETTLING_FIRST, self._on_first, now_s)
        elif self._stage is _Stage.SETTLING_FIRST:
            self._measure(_Stage.FIRST, self._on_first, now_s)
        elif self._stage is _Stage.FIRST:
            self._settle(_Stage.SETTLING_SECOND, not self._on_first, now_s)
        elif self._stage is _Stage.SETTLING_SECOND:
            self._measure(_Stage.SECOND, not self._on_first, now_s)
        else:
            self._rest(now_s)
            return self._compare()
        return None

    def _settle(self, stage: _Stage, on: bool, now_s: float) -> None:
        self._latency.pause()
        self._pause(not on)
        self._stage, self._due_s = stage, now_s + SETTLE_S

    def _measure(self, stage: _Stage, on: bool, now_s: float) -> None:
        self._latency.start(ON if on else OFF)
        self._stage, self._due_s = stage, now_s + self._settings.block_s

    def _rest(self, now_s: float) -> None:
        self._latency.pause()
        self._pause(False)
        self._stage, self._due_s = _Stage.RESTING, now_s + self._settings.every_s

    def _compare(self) -> dict[str, float] | None:
        on, off = self._latency.read(ON), self._latency.read(OFF)
        count = min(on.count, off.count)
        wanted = [("harm_level", 0.5, LEAST_FOR_LEVEL), ("harm_tail", 0.99, LEAST_FOR_TAIL)]
        found = {}
        for name, share, least in wanted:
            with_it, without = on.quantile(share), off.quantile(share)
            if count >= least and with_it and without:
                found[name] = math.log(with_it / without)
        if not found:
            self.too_few += 1
            return None
        self.pairs += 1
        return found
