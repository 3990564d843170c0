"""Whether the agent itself takes more than it may: CPU, memory, and packets that it could not follow.

    samples of a whole window ──► first half over the limit and second half over the limit ──► a reason

Both halves must be over, each for itself, so that one odd sample or one short burst decides nothing.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

SAMPLES_LIMIT = 200  # in a window; closer ones are left out
LEAST_SEGMENTS = 50  # in a half window: of fewer a percentage says nothing
MIB = 1 << 20


class _Sample(NamedTuple):
    at_s: float
    cpu_s: float
    memory_bytes: int
    copied: int
    lost: int


class Budget:
    """Limits of 0 are none. `cpu_percent` is of one CPU, so 200 is two of them; `loss_percent` is of the segments that
    were copied or should have been."""

    __slots__ = ("_samples", "cpu_percent", "loss_percent", "memory_bytes", "window_s")

    def __init__(self, cpu_percent: float, memory_bytes: int, loss_percent: float, window_s: float = 10) -> None:
        self.cpu_percent = cpu_percent
        self.memory_bytes = memory_bytes
        self.loss_percent = loss_percent
        self.window_s = window_s
        self._samples: deque[_Sample] = deque()

    def clear(self) -> None:
        """Begin a new window, as after the agent was found over its limits."""
        self._samples.clear()

    def add(self, now_s: float, cpu_s: float, memory_bytes: int, copied: int, lost: int) -> str:
        """What limit the agent was over for a whole window, in a sentence, or "".

        At a monotonic time: CPU seconds, segments copied and segments lost since the start of all processes, and the
        memory that they have now. Where a sum has fallen, a process began anew, and so does the window.
        """
        sample = _Sample(now_s, cpu_s, memory_bytes, copied, lost)
        if self._samples and not self._follows(self._samples[-1], sample):
            self._samples.clear()
        if self._samples and now_s - self._samples[-1].at_s < self.window_s / SAMPLES_LIMIT:
            return ""
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].at_s <= now_s - self.window_s:
            self._samples.popleft()
        return self._over() if now_s - self._samples[0].at_s >= self.window_s else ""

    def _follows(self, before: _Sample, after: _Sample) -> bool:
        if not 0 <= after.at_s - before.at_s < self.window_s / 2:  # of what lies in a longer gap nothing is known
            return False
        return after.cpu_s >= before.cpu_s and after.copied >= before.copied and after.lost >= before.lost

    def _over(self) -> str:
        first, last = self._samples[0], self._samples[-1]
        middle = min(self._samples, key=lambda each: abs(each.at_s - (first.at_s + last.at_s) / 2))
        halves = ((first, middle), (middle, last))
        within = f"over the last {last.at_s - first.at_s:.0f} s"
        if self.cpu_percent and all(_cpu_percent(*half) > self.cpu_percent for half in halves):
            return (
                f"the agent took {_cpu_percent(first, last):.0f} % of a CPU {within}; its limit is "
                f"{self.cpu_percent:g} %"
            )
        least = min(each.memory_bytes for each in self._samples)
        if self.memory_bytes and least > self.memory_bytes:
            return (
                f"the agent had at least {least / MIB:.0f} MiB of memory {within}; its limit is "
                f"{self.memory_bytes / MIB:.0f} MiB"
            )
        if self.loss_percent and all(_loss_percent(*half) > self.loss_percent for half in halves):
            return (
                f"the agent lost {last.lost - first.lost} segments {within}, {_loss_percent(first, last):.1f} % of "
                f"them; its limit is {self.loss_percent:g} %"
            )
        return ""


def _cpu_percent(before: _Sample, after: _Sample) -> float:
    return 100 * (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)


def _loss_percent(before: _Sample, after: _Sample) -> float:
    lost = after.lost - before.lost
    segments = lost + after.copied - before.copied
    return 100 * lost / segments if segments >= LEAST_SEGMENTS else 0.0
