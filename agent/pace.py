"""How long a worker sleeps between two reads of its ring.

Waking up costs far more than a segment: in a virtual machine 50 to 160 us of CPU time, for a process whose code has
left the cache, against 5 us a segment. So a worker sleeps, within two bounds, until so many wait as are worth a wake.
"""

from __future__ import annotations

from typing import NamedTuple


class Aim(NamedTuple):
    """What the sleep is to bring, and how long it may be at most."""

    segments: int
    longest_s: float


# About 16 requests: more at a time would come to the shadow as a burst that production never had.
REPLAY = Aim(32, 0.02)
# Nobody waits for what is only captured. From a standing start a ring of 4 MiB takes 40 MB/s for so long.
CAPTURE = Aim(1024, 0.1)


class Pace:
    """`after(n)` is the next sleep, after a read that brought n segments."""

    __slots__ = ("_longest_s", "_pause_s", "_shortest_s", "_worth")

    def __init__(self, shortest_s: float, aim: Aim) -> None:
        self._shortest_s = shortest_s
        self._longest_s = max(shortest_s, aim.longest_s)
        self._worth = aim.segments
        self._pause_s = shortest_s

    @property
    def longest_ns(self) -> int:
        """What has just been captured is read within this time."""
        return round(self._longest_s * 1e9)

    def after(self, segments: int) -> float:
        """Longer by at most twice; shorter at once, and as much as the load has grown."""
        pause_s = self._pause_s * min(2.0, self._worth / (segments or 1))
        self._pause_s = min(self._longest_s, max(self._shortest_s, pause_s))
        return self._pause_s
