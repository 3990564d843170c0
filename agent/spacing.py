"""Gives live requests their original spacing back. A read of the ring brings several at once; sent at once, they would
queue up in the shadow, and it would look slower than production, which got them one by one.

Each request goes out a constant time after its last byte was captured. Those due within one *step* go together, because
every wake of a process costs more than a request does.

`Spacing` is pure: times in the clock of the segments come in, requests come out. `SpacedSender` drives it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

from replay.client import Replayer
from replay.exchange import Dropped, Origin, Outcome, Request
from replay.wire import wire_size

T = TypeVar("T")

STEP_NS = 1_000_000  # requests due within so much go together
SLACK_NS = 5_000_000  # what a wake may be late without a request missing its time
HELD_MAX = 16_384  # requests


class Spacing(Generic[T]):
    """Holds items for `delay_ns` from their own time; at most HELD_MAX of them, and `limit_bytes` in all."""

    __slots__ = ("_added", "_delay_ns", "_held", "_limit_bytes", "held_bytes", "late")

    def __init__(self, delay_ns: int, limit_bytes: int) -> None:
        self._delay_ns = delay_ns
        self._limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: list[tuple[int, int, T, int]] = []  # heap: due, order of coming, item, size
        self._added = 0
        self.late = 0  # requests that came up after their time was over

    def __len__(self) -> int:
        return len(self._held)

    def add(self, t_ns: int, now_ns: int, item: T, size_bytes: int = 0) -> bool:
        """Hold an item whose time was `t_ns`; False when too much is held already.

        A time that is not of the last `delay_ns` (the clock was set, or the worker was held up) is due at once.
        """
        if len(self._held) >= HELD_MAX or self.held_bytes + size_bytes > self._limit_bytes:
            return False
        due_ns = t_ns + self._delay_ns
        if not now_ns <= due_ns <= now_ns + self._delay_ns:
            self.late += due_ns < now_ns
            due_ns = now_ns
        heapq.heappush(self._held, (due_ns, self._added, item, size_bytes))
        self._added += 1
        self.held_bytes += size_bytes
        return True

    def take(self, now_ns: int) -> list[T]:
        """What is due within half a step, in the order of its times."""
        held, until_ns, out = self._held, now_ns + STEP_NS // 2, []
        while held and held[0][0] <= until_ns:
            _, _, item, size_bytes = heapq.heappop(held)
            self.held_bytes -= size_bytes
            out.append(item)
        return out

    def take_all(self) -> list[T]:
        """Everything, in the order of its times: the end has come."""
        held, self._held, self.held_bytes = sorted(self._held), [], 0
        return [item for _, _, item, _ in held]

    def wait_s(self, now_ns: int) -> float | None:
        """Seconds until the next step is due; None when nothing is held."""
        if not self._held:
            return None
        return max(self._held[0][0] + STEP_NS // 2 - now_ns, 0) / 1e9


class SpacedSender:
    """The mirror's sender: holds requests until their time, then gives them to the replay client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replayer: Replayer,
        answered: Callable[[object, Outcome | Dropped], None],
        now_ns: Callable[[], int],
        delay_ns: int,
    ) -> None:
        """`now_ns` is in the clock of the segments; `answered` is told what the replay client does not take."""
        self._loop = loop
        self._replayer = replayer
        self._answered = answered
        self._now_ns = now_ns
        self._timer: asyncio.TimerHandle | None = None
        self.spacing: Spacing[tuple[Request, object, Origin | None]] = Spacing(delay_ns, replayer.settings.queue_bytes)

    def submit(self, request: Request, token: object, origin: Origin | None = None) -> Dropped | None:
        """See `agent.mirror.Sender`."""
        now_ns = self._now_ns()
        if not self.spacing.add(request.t_last_ns, now_ns, (request, token, origin), wire_size(request)):
            return Dropped.QUEUE_FULL
        if self._timer is None:
            self._sleep(now_ns)
        return None

    def finish(self) -> None:
        """Send everything now: nothing more comes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._send(self.spacing.take_all())

    def discard(self) -> None:
        """The shadow is off: nothing that is held or waits is sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _, token, _ in self.spacing.take_all():
            self._answered(token, Dropped.SWITCHED_OFF)
        self._replayer.discard()

    def _sleep(self, now_ns: int) -> None:
        wait_s = self.spacing.wait_s(now_ns)
        self._timer = None if wait_s is None else self._loop.call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._send(self.spacing.take(self._now_ns()))
        self._sleep(self._now_ns())

    def _send(self, due: list[tuple[Request, object, Origin | None]]) -> None:
        for request, token, origin in due:
            if (dropped := self._replayer.submit(request, token, origin)) is not None:
                self._answered(token, dropped)
