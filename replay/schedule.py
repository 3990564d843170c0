"""When each request of a recorded stream is due: the original spacing, a multiple of it, or as fast as possible.

Pure: capture times (ns since the epoch) and the caller's monotonic clock (s) come in, requests come out. The driver:

    schedule = Schedule(speed)
    for time, request in requests:          # roughly in order of time
        while schedule.full:
            sleep until schedule.wait_s(now) has passed
            submit schedule.take(now)
        schedule.add(time, request, size)
    then the same loop while len(schedule)

Requests come up when they are whole, which is not quite the order they began in, so the look-ahead is also what puts
them in order. One that comes up after its turn is due at once and counts as late.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_AHEAD = 1024  # requests held
LATE_NS = 10_000_000  # a request later than this counts as late
LOOK_AHEAD_BYTES = 64 * 1024 * 1024  # and their size, as the caller states it
LONGEST_PAUSE_S = 300.0  # a longer one is cut to this: one broken time in a capture must not stop the replay


@dataclass(slots=True)
class Lateness:
    """How well the spacing was kept. At full speed there is no spacing to keep, and nothing is late."""

    requests: int = 0
    late: int = 0  # later than LATE_NS
    worst_ns: int = 0
    sum_ns: int = 0
    pauses_cut: int = 0

    @property
    def mean_ns(self) -> int:
        """Over all requests."""
        return self.sum_ns // self.requests if self.requests else 0

    @property
    def late_ratio(self) -> float:
        """Share of requests that were late."""
        return self.late / self.requests if self.requests else 0.0

    def line(self) -> str:
        """For a report: whether the spacing was kept."""
        kept = "spacing kept" if not self.late else f"spacing NOT kept for {self.late_ratio:.1%} of the requests"
        return f"{kept} (late by {self.mean_ns / 1e6:.1f} ms in the mean, {self.worst_ns / 1e6:.1f} ms at worst)"


class Schedule(Generic[T]):
    """See the module. `speed` 2.0 halves the spacing; None is as fast as possible (then the order is kept as added).

    The first `take` starts the clock: the earliest request then held is due at that moment.
    """

    def __init__(
        self, speed: float | None = 1.0, look_ahead: int = LOOK_AHEAD, longest_pause_s: float = LONGEST_PAUSE_S
    ) -> None:
        if speed is not None and not 0 < speed < float("inf"):
            raise ValueError(f"speed {speed} is not a positive number")
        self.lateness = Lateness()
        self._speed = speed
        self._look_ahead = look_ahead
        self._longest_pause_s = longest_pause_s
        self._held: list[tuple[int, int, T, int]] = []  # heap: capture time, order of coming, item, size
        self._held_bytes = 0
        self._added = 0
        self._base_ns = 0  # the capture time that corresponds to _base_s
        self._base_s: float | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """The look-ahead is used up: take before you add."""
        return len(self._held) >= self._look_ahead or self._held_bytes >= LOOK_AHEAD_BYTES

    def add(self, t_ns: int, item: T, size_bytes: int = 0) -> None:
        """Hold one request that was captured at `t_ns`."""
        heapq.heappush(self._held, (t_ns if self._speed is not None else 0, self._added, item, size_bytes))
        self._held_bytes += size_bytes
        self._added += 1

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until the next request is due (0 when it is, or before the start); None when none is held."""
        if not self._held:
            return None
        if self._speed is None or self._base_s is None:
            return 0.0
        return min(self._longest_pause_s, max(0.0, self._due_s(self._held[0][0]) - now_s))

    def take(self, now_s: float) -> list[T]:
        """The requests due at `now_s`, in order; they count as sent then."""
        held = self._held
        if not held:
            return []
        if self._speed is None:
            items = [entry[2] for entry in sorted(held)]
            held.clear()
            self._held_bytes = 0
            self.lateness.requests += len(items)
            return items
        if self._base_s is None:
            self._set_base(held[0][0], now_s)
        self._cut_pause(held[0][0], now_s)
        items = []
        while held and (due_s := self._due_s(held[0][0])) <= now_s:
            _, _, item, size_bytes = heapq.heappop(held)
            self._held_bytes -= size_bytes
            items.append(item)
            self._count(round((now_s - due_s) * 1e9))
        return items

    def _due_s(self, t_ns: int) -> float:
        """Valid after the start, and with a speed."""
        return (self._base_s or 0.0) + (t_ns - self._base_ns) / 1e9 / (self._speed or 1.0)

    def _set_base(self, t_ns: int, now_s: float) -> None:
        self._base_ns = t_ns
        self._base_s = now_s

    def _cut_pause(self, t_ns: int, now_s: float) -> None:
        if self._due_s(t_ns) - now_s > self._longest_pause_s:
            self._set_base(t_ns, now_s + self._longest_pause_s)
            self.lateness.pauses_cut += 1

    def _count(self, late_ns: int) -> None:
        lateness = self.lateness
        lateness.requests += 1
        lateness.sum_ns += late_ns
        lateness.worst_ns = max(lateness.worst_ns, late_ns)
        if late_ns > LATE_NS:
            lateness.late += 1
