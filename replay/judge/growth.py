"""Growth of memory, of the shadow against production: readings of both become numbers for the judge.

Memory swings: it climbs until garbage is collected. While it climbs, every step of time has grown, though nothing
leaks, and no two pools swing alike: a shadow of one server that has the traffic of two climbs at twice the pace. So

- a step's level is the lowest reading in it, and
- a step counts only if it is longer than the swings it stands in. A number waits until the swing at its end is over; if
  that has lasted longer than the step, all is dropped, and steps are SWINGS times as long as it from then on.

A leak looks like a swing that never ends. It counts when the shadow has grown by LIMIT without one, and not before. A
climb that ends by itself (a cache is full) is dropped. Slow leaks hide in small swings and show in the numbers.

Pure: times are seconds of a clock that never goes back, all readings of one life of the processes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

SWINGS = 1.2  # a step is at least so many times as long as the longest swing
KEPT_SWINGS = 32  # of each pool, from which the longest is taken
REVERSAL = 0.5  # of a swing's height; going back so far ends it
REST = 1.0  # times its duration without going further ends a swing, too
SMALL = 0.001  # of the memory at the beginning; less is no swing
LIMIT = 0.5  # of the memory at the beginning; a climb this high is a leak
LATE = 1.5  # lengths; a step that ends later has had a gap, and is dropped
WAITING_LIMIT = 2_000  # numbers that wait for a swing to end


class Swings:
    """The swings of one pool, up and down. Readings are shares of the memory at the beginning."""

    __slots__ = ("_from", "_to", "began_s", "durations")

    def __init__(self, at_s: float, level: float) -> None:
        self._from = (at_s, level)
        self._to = (at_s, level)  # the furthest
        self.durations: deque[float] = deque(maxlen=KEPT_SWINGS)
        self.began_s = at_s  # of the one that goes on

    @property
    def climbed(self) -> float:
        """How far the swing that goes on has gone up; below 0 when it goes down."""
        return self._to[1] - self._from[1]

    def add(self, at_s: float, level: float) -> float | None:
        """Take a reading; the duration of the swing that it ends, or None."""
        height, gone = self.climbed, level - self._from[1]
        if max(abs(height), abs(gone)) < SMALL:
            self._from, self._to, self.began_s = (at_s, self._from[1]), (at_s, level), at_s
            return None
        if height == 0 or (gone - height) * height > 0:
            self._to = (at_s, level)
            return None
        lasted = self._to[0] - self._from[0]
        if (height - gone) / height >= REVERSAL:
            self.durations.append(lasted)
            self._begin(self._to, (at_s, level))
            return lasted
        if at_s - self._to[0] > max(REST * lasted, self.longest):
            self._begin((at_s, level), (at_s, level))
            return lasted
        return None

    def _begin(self, start: tuple[float, float], now: tuple[float, float]) -> None:
        self._from, self._to, self.began_s = start, now, start[0]

    @property
    def longest(self) -> float:
        """Seconds, of the last swings that went back."""
        return max(self.durations, default=0.0)


@dataclass(frozen=True, slots=True)
class _Number:
    """What the judge is fed with when no longer swing comes to light."""

    ended_s: float
    value: float


@dataclass(slots=True)
class _Step:
    """The open step, and the level of the one before."""

    began_s: float
    before: float | None = None
    lowest: list[float] = field(default_factory=list)  # production's, the shadow's


class Growth:
    """Numbers are growth in `unit_s` seconds as a share of the memory at the beginning, the shadow's less production's.

    The beginning is the mean of both, so pools of different size are to be given as memory of one host. ValueError when
    a first reading is not above 0.
    """

    __slots__ = ("_base", "_length_s", "_step", "_swings", "_unit_s", "_waiting")

    def __init__(self, unit_s: float) -> None:
        self._unit_s = unit_s
        self._length_s = unit_s
        self._base: float | None = None
        self._swings: tuple[Swings, Swings] | None = None
        self._step = _Step(0.0)
        self._waiting: deque[_Number] = deque(maxlen=WAITING_LIMIT)

    @property
    def length_s(self) -> float:
        """Of a step."""
        return self._length_s

    @property
    def waiting(self) -> int:
        """Numbers that wait for a swing to end."""
        return len(self._waiting)

    def add(self, at_s: float, production: float, shadow: float) -> list[float]:
        """Take a reading of both; gives the numbers that count now, mostly none."""
        if self._base is None or self._swings is None:
            if min(production, shadow) <= 0:
                raise ValueError("a pool uses no memory")
            self._base = (production + shadow) / 2
            self._swings = (Swings(at_s, production / self._base), Swings(at_s, shadow / self._base))
            self._step = _Step(at_s)
        levels = [production / self._base, shadow / self._base]
        if at_s >= self._step.began_s + self._length_s:
            self._close(at_s)
        self._step.lowest = [min(pair) for pair in zip(levels, self._step.lowest or levels, strict=True)]
        for swings, level in zip(self._swings, levels, strict=True):
            lasted = swings.add(at_s, level)
            if lasted is not None and lasted > self._length_s:
                self._waiting.clear()
                self._step = _Step(at_s)
        self._length_s = max(self._unit_s, *(SWINGS * swings.longest for swings in self._swings))
        return self._released()

    def _close(self, at_s: float) -> None:
        step, lowest = self._step, self._step.lowest
        if not lowest or at_s > step.began_s + LATE * self._length_s:
            self._step = _Step(at_s)
            return
        level = lowest[1] - lowest[0]
        if step.before is not None:
            units = (at_s - step.began_s) / self._unit_s
            self._waiting.append(_Number(at_s, (level - step.before) / units))
        self._step = _Step(at_s, level)

    def _released(self) -> list[float]:
        """Numbers in whose steps no swing goes on, or all when the shadow has climbed too far."""
        assert self._swings is not None
        production, shadow = self._swings
        until = float("inf") if shadow.climbed >= LIMIT else min(production.began_s, shadow.began_s)
        released = []
        while self._waiting and self._waiting[0].ended_s <= until:
            released.append(self._waiting.popleft().value)
        return released
