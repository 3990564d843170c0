"""Sends requests to the shadow: never waits for it, never raises, and ends every accepted request exactly once.

    submit ──► balancer ──► lane of the upstream ──► connection ──► done(token, Outcome)
       │                       └── queue: full, too late, shutdown ─► done(token, Dropped)
       └──► Dropped, at once

Everything runs in the event loop's thread, without a task or a timer per request: sockets call back, and one sweep
every SWEEP_S enforces all time limits. The sweep's clock counts a stall of this process as two sweeps at most, so that
answers which wait in the kernel meanwhile are read before they are given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from replay.balancer.engine import Balancer
from replay.balancer.upstream import Upstream
from replay.exchange import Answer, Dropped, Origin, Outcome, Request
from replay.job import SAFE_METHODS, Job, SentTimes
from replay.lane import Lane, SocketFactory
from replay.settings import ReplayCounters, ReplaySettings
from replay.sockets import new_socket
from replay.tls import NO_NAME

__all__ = ["SWEEP_S", "Done", "ReplayCounters", "ReplaySettings", "Replayer"]

SWEEP_S = 0.05

RETRIED = frozenset({Answer.CONNECT, Answer.CONNECT_TIMEOUT, Answer.TLS, Answer.RESET})  # nothing was answered

Done = Callable[[object, Outcome | Dropped], None]
"""Called with the token that was given to `submit`, and how its request ended; never from within `submit`."""


class Replayer:
    """The replay client of one worker. Not thread-safe. `loop` may be uvloop's or asyncio's own.

    `socket_factory` makes the sockets (from a process that may mark them, for example); OSError from it is counted.
    `sent_times` knows better than this process' clock when requests left.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        balancer: Balancer,
        settings: ReplaySettings,
        done: Done,
        socket_factory: SocketFactory | None = None,
        *,
        sent_times: SentTimes | None = None,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.counters = ReplayCounters()
        self.mark = settings.mark
        self.socket_factory = socket_factory or new_socket
        self.sent_times = sent_times
        self.now_s = time.monotonic()  # coarse: set by the sweep
        self._balancer = balancer
        self._assign = balancer.assign
        self._release = balancer.release
        self._done = done
        self._lanes: dict[Upstream, Lane] = {}  # made when first needed, given up when the pool and all work have left
        self._submitting = False
        self._deferred: deque[tuple[object, Outcome | Dropped]] = deque()
        self._room_waiters: list[asyncio.Future[None]] = []
        self._quiet: asyncio.Future[None] | None = None  # resolved when nothing is open any more
        self._closing = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._swept_s = self.now_s

    def submit(self, request: Request, token: object, origin: Origin | None = None) -> Dropped | None:
        """Take a request that is `whole`. None: `done` will be called with `token`; else why it was dropped. `origin`
        names the client, for whatever of the way to the shadow depends on it.

        When the queue is full it is this newest request that is dropped: those that wait are older, and keeping the
        order keeps what is replayed a prefix of what was seen.
        """
        counters = self.counters
        counters.submitted += 1
        if self._closing:
            counters.refused += 1
            return Dropped.SHUTDOWN
        upstream = self._assign(request, origin)
        if isinstance(upstream, Dropped):
            counters.refused += 1
            return upstream
        if self._sweeper is None:
            self._start_sweeping()
        lane = self._lanes.get(upstream) or self._open_lane(upstream)
        self._submitting = True
        try:
            taken = lane.take(Job(request, token, self.now_s, origin))
        finally:
            self._submitting = False
        if taken:
            return None
        counters.refused += 1
        self._release(upstream, Dropped.QUEUE_FULL)
        return Dropped.QUEUE_FULL

    def has_room(self, size_bytes: int) -> bool:
        """Whether the queue takes one more request of that size."""
        counters, settings = self.counters, self.settings
        return (
            counters.queue_entries < settings.queue_entries
            and counters.queue_bytes + size_bytes <= settings.queue_bytes
        )

    async def room(self, size_bytes: int = 0) -> None:
        """Wait until the queue takes a request of that size, for a caller that can wait (a replay from a file).

        Once it had to wait, it goes on when the queue has drained to half. Returns at once when a request of that
        size can never wait (`submit` says what becomes of it) and at shutdown.
        """
        while not self.has_room(size_bytes) and self.counters.queue_entries and not self._closing:
            waiter = self.loop.create_future()
            self._room_waiters.append(waiter)
            await waiter

    async def drain(self, limit_s: float) -> None:
        """Take no more, let what is open end for at most `limit_s` seconds, then `close`."""
        self._closing = True
        self._wake_room_waiters()
        if self.counters.open_requests and limit_s > 0:
            self._quiet = self._quiet or self.loop.create_future()
            await asyncio.wait({self._quiet}, timeout=limit_s)
        self.close()

    def discard(self) -> None:
        """Send nothing of what waits, and keep no unused connection; what is under way ends as always."""
        for lane in tuple(self._lanes.values()):
            lane.discard()

    def close(self) -> None:
        """End everything now: what is not answered is Dropped.SHUTDOWN. May be called again."""
        self._closing = True
        self._wake_room_waiters()
        for lane in tuple(self._lanes.values()):
            lane.abort()
        self._deliver_deferred()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    # What lanes tell

    def end(self, upstream: Upstream, job: Job, result: Outcome | Dropped) -> None:
        """The job ended there; it may go to another upstream yet. Told to the caller, but not while it is inside
        `submit`."""
        self._release(upstream, result)
        if self.settings.retries and self._try_another(upstream, job, result):
            return
        if self._submitting:
            if not self._deferred:
                self.loop.call_soon(self._deliver_deferred)
            self._deferred.append((job.token, result))
        else:
            self._deliver(job.token, result)

    def _try_another(self, failed: Upstream, job: Job, result: Outcome | Dropped) -> bool:
        """Whether the job is on its way to another upstream."""
        if job.retried >= self.settings.retries or self._closing or not _may_retry(job.request, result):
            return False
        upstream = self._assign(job.request, job.origin, failed)
        if isinstance(upstream, Dropped):
            return False
        if upstream is failed:  # there is no other
            self._release(upstream, Dropped.NO_UPSTREAM)
            return False
        job.retried += 1
        job.resent = False
        job.since_s = self.now_s
        lane = self._lanes.get(upstream) or self._open_lane(upstream)
        if not lane.take(job):
            self._release(upstream, Dropped.QUEUE_FULL)
            return False
        self.counters.retries += 1
        return True

    def _open_lane(self, upstream: Upstream) -> Lane:
        lane = self._lanes[upstream] = Lane(self, upstream)
        return lane

    def left_queue(self) -> None:
        """An entry left the queue: whoever waits for room goes on once it is half empty."""
        counters, settings = self.counters, self.settings
        if (
            self._room_waiters
            and counters.queue_entries * 2 <= settings.queue_entries
            and counters.queue_bytes * 2 <= settings.queue_bytes
        ):
            self._wake_room_waiters()

    def _deliver_deferred(self) -> None:
        while self._deferred:
            self._deliver(*self._deferred.popleft())

    def _deliver(self, token: object, result: Outcome | Dropped) -> None:
        """The one place where `done` is called; last of all, for it may submit again."""
        counters = self.counters
        counters.done += 1
        if self._quiet is not None and not counters.open_requests and not self._quiet.done():
            self._quiet.set_result(None)
        self._done(token, result)

    def _wake_room_waiters(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # The sweep

    def _start_sweeping(self) -> None:
        self._swept_s = time.monotonic()
        self.now_s = max(self.now_s, self._swept_s)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        self.now_s += min(now_s - self._swept_s, 2 * SWEEP_S)
        self._swept_s = now_s
        lanes = tuple(self._lanes.values())
        busy = any(lane.busy for lane in lanes)
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep) if busy else None
        for lane in lanes:
            lane.expire(self.now_s - SWEEP_S)
        if len(lanes) > len(self._balancer.upstreams):
            pool = self._balancer.upstreams
            for lane in lanes:
                if lane.upstream not in pool:
                    lane.retire()
                    if not lane.busy:
                        del self._lanes[lane.upstream]


def _may_retry(request: Request, result: Outcome | Dropped) -> bool:
    """Whether nothing was answered, and asking again cannot do a thing twice."""
    if isinstance(result, Dropped):
        return result is Dropped.BACKOFF
    if result.answer not in RETRIED or result.t_first_ns or NO_NAME in result.detail:
        return False
    return not result.t_sent_ns or request.method in SAFE_METHODS
