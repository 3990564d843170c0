"""The way to one upstream: its connections, the idle ones among them, and the requests that wait for one.

Decisions are made on this state first; the socket work is the connection's. A request takes an idle connection, else a
new one up to the limit, else it waits; whenever a connection comes free, the longest waiting request gets it.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from replay.balancer.upstream import Upstream
from replay.connection import Connection, State
from replay.exchange import Dropped, Outcome
from replay.job import Hub, Job
from replay.sockets import reason_of
from replay.wire import wire_size

SocketFactory = Callable[[socket.AddressFamily], socket.socket]


class Front(Hub, Protocol):
    """What a lane needs of the replayer besides what its connections need."""

    socket_factory: SocketFactory

    def end(self, upstream: Upstream, job: Job, result: Outcome | Dropped) -> None:
        """The job ended."""

    def has_room(self, size_bytes: int) -> bool:
        """Whether the queue over all lanes takes one more entry of that size."""

    def left_queue(self) -> None:
        """An entry left the queue."""


class Lane:
    """See the module; it is the owner of its connections."""

    __slots__ = ("_connections", "_front", "_idle", "_pumping", "_queue", "upstream")

    def __init__(self, front: Front, upstream: Upstream) -> None:
        self._front = front
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []  # the last used is taken first, so that the surplus grows old
        self._queue: deque[Job] = deque()
        self._pumping = False
        self.upstream = upstream

    @property
    def busy(self) -> bool:
        """Anything that the sweep has to look after."""
        return bool(self._connections or self._queue)

    def take(self, job: Job) -> bool:
        """Send the job, or let it wait; False when the queue is full."""
        if self._idle:
            self._idle.pop().send(job)
        elif len(self._connections) < self._front.settings.max_connections:
            self._open(job)
        else:
            return self._enqueue(job)
        return True

    def expire(self, now_s: float) -> None:
        """Enforce the time limits; `now_s` is the coarse clock, less one sweep."""
        limit_s = now_s - self._front.settings.queue_timeout_s
        while self._queue and self._queue[0].since_s <= limit_s:
            self._front.end(self.upstream, self._dequeue(), Dropped.QUEUE_TIMEOUT)
        for connection in tuple(self._connections):
            connection.expire(now_s)

    def abort(self) -> None:
        """Close everything; what is not answered ends as Dropped.SHUTDOWN."""
        connections, self._connections = self._connections, set()
        self._front.counters.open_connections -= len(connections)
        self._idle.clear()
        self.upstream.abandoned()
        jobs = [connection.job for connection in connections if connection.job is not None]
        for connection in connections:
            connection.close()
        while self._queue:
            jobs.append(self._dequeue())
        for job in jobs:
            self._front.end(self.upstream, job, Dropped.SHUTDOWN)

    # What connections tell

    def connected(self) -> None:
        self.upstream.connected()

    def connect_failed(self, connection: Connection, job: Job, outcome: Outcome | None) -> None:
        self._forget(connection)
        counters = self._front.counters
        if outcome is None:
            counters.local_failures += 1
            self.upstream.abandoned()
        else:
            counters.connect_failures += 1
            self.upstream.connect_failed(time.monotonic())
        self._pump()
        self._front.end(self.upstream, job, outcome or Dropped.NO_UPSTREAM)

    def ended(self, connection: Connection, job: Job, outcome: Outcome) -> None:
        if connection.state is State.CLOSED:
            self._forget(connection)
            self._pump()
        elif self._queue:
            connection.send(self._dequeue())
        else:
            self._idle.append(connection)
        self._front.end(self.upstream, job, outcome)

    def resend(self, connection: Connection, job: Job) -> None:
        self._forget(connection)
        self._open(job)

    def went_away(self, connection: Connection) -> None:
        self._forget(connection)
        self._idle.remove(connection)

    # Connections and queue

    def _open(self, job: Job) -> None:
        front, upstream = self._front, self.upstream
        if upstream.failures and not upstream.usable(time.monotonic()):
            front.counters.fast_failures += 1
            front.end(upstream, job, Dropped.BACKOFF)
            return
        try:
            sock = front.socket_factory(upstream.family)
        except OSError as error:
            front.counters.local_failures += 1
            front.counters.local_failure = reason_of(error)
            front.end(upstream, job, Dropped.NO_UPSTREAM)
            return
        front.counters.connects += 1
        front.counters.open_connections += 1
        upstream.connecting()
        connection = Connection(front, self, sock)
        self._connections.add(connection)
        connection.open(job)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._front.counters.open_connections -= 1

    def _pump(self) -> None:
        """Give waiting requests what there is. Not from within itself: a failure at once would nest without end."""
        if self._pumping:
            return
        self._pumping = True
        limit = self._front.settings.max_connections
        try:
            while self._queue and len(self._connections) < limit:
                self._open(self._dequeue())
        finally:
            self._pumping = False

    def _enqueue(self, job: Job) -> bool:
        job.size_bytes = wire_size(job.request)
        if not self._front.has_room(job.size_bytes):
            return False
        self._queue.append(job)
        counters = self._front.counters
        counters.queue_entries += 1
        counters.queue_bytes += job.size_bytes
        counters.queue_peak_entries = max(counters.queue_peak_entries, counters.queue_entries)
        return True

    def _dequeue(self) -> Job:
        job = self._queue.popleft()
        counters = self._front.counters
        counters.queue_entries -= 1
        counters.queue_bytes -= job.size_bytes
        self._front.left_queue()
        return job
