"""The way to one upstream: its connections, the idle ones among them, and the requests that wait for one.

Decisions are made on this state first; the socket work is the connection's. A request takes an idle connection, else a
new one up to the limit, else it waits; whenever a connection comes free, the longest waiting request gets it.

Not every connection is good for every request: one that begins with a PROXY header serves that client alone, and TLS is
for one server name. `_key` says what a request needs; at the limit an unused connection of another key makes room.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from replay.balancer.settings import HOST
from replay.balancer.upstream import Upstream
from replay.connection import Connection, State
from replay.exchange import Dropped, Outcome
from replay.job import Hub, Job
from replay.sockets import reason_of
from replay.wire import parties, server_name, wire_size

SocketFactory = Callable[[socket.AddressFamily], socket.socket]


class Front(Hub, Protocol):
    """What a lane needs of the replayer besides what its connections need."""

    socket_factory: SocketFactory

    def end(self, upstream: Upstream, job: Job, result: Outcome | Dropped) -> None:
        """The job ended here."""

    def has_room(self, size_bytes: int) -> bool:
        """Whether the queue over all lanes takes one more entry of that size."""

    def left_queue(self) -> None:
        """An entry left the queue."""


class Lane:
    """See the module; it is the owner of its connections."""

    __slots__ = (
        "_by_client",
        "_by_name",
        "_connections",
        "_front",
        "_idle",
        "_keyed",
        "_pumping",
        "_queue",
        "upstream",
    )

    def __init__(self, front: Front, upstream: Upstream) -> None:
        self._front = front
        self._connections: set[Connection] = set()
        self._idle: dict[object, list[Connection]] = {}  # by key; the last used is taken first, the surplus grows old
        transport = upstream.transport
        self._by_client = transport.proxy_protocol
        self._by_name = transport.tls is not None and transport.server_name == HOST
        self._keyed = self._by_client or self._by_name
        self._queue: deque[Job] = deque()
        self._pumping = False
        self.upstream = upstream

    @property
    def busy(self) -> bool:
        """Anything that the sweep has to look after."""
        return bool(self._connections or self._queue)

    def take(self, job: Job) -> bool:
        """Send the job, or let it wait; False when the queue is full."""
        key = self._key(job) if self._keyed else None
        idle = self._idle.get(key)
        if idle:
            connection = idle.pop()
            if not idle and key is not None:
                del self._idle[key]  # or every client that ever came would leave one
            connection.send(job)
        elif len(self._connections) < self._front.settings.max_connections or self._evict():
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

    def discard(self) -> None:
        """The shadow is off: nothing that waits is sent, and no unused connection kept."""
        while self._queue:
            self._front.end(self.upstream, self._dequeue(), Dropped.SWITCHED_OFF)
        self.retire()

    def retire(self) -> None:
        """Keep no unused connection, as when the upstream has left the pool."""
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            connection.close()
            self.went_away(connection)

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
        self._front.end(self.upstream, job, outcome or Dropped.SHORTAGE)

    def ended(self, connection: Connection, job: Job, outcome: Outcome) -> None:
        if connection.state is State.CLOSED:
            self._forget(connection)
            self._pump()
        elif not self._queue:
            self._rest(connection)
        elif not self._keyed or self._key(self._queue[0]) == connection.key:
            connection.send(self._dequeue())
        else:
            self._rest(connection)
            self._pump()
        self._front.end(self.upstream, job, outcome)

    def resend(self, connection: Connection, job: Job) -> None:
        self._forget(connection)
        self._open(job)

    def went_away(self, connection: Connection) -> None:
        self._forget(connection)
        self._unrest(connection)

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
            front.end(upstream, job, Dropped.SHORTAGE)
            return
        front.counters.connects += 1
        front.counters.open_connections += 1
        upstream.connecting()
        connection = Connection(front, self, sock, self._key(job) if self._keyed else None)
        self._connections.add(connection)
        connection.open(job)

    def _key(self, job: Job) -> object:
        client = parties(job.origin) if self._by_client else None
        name = server_name(self.upstream.transport.server_name, job.request) if self._by_name else None
        return (client, name)

    def _rest(self, connection: Connection) -> None:
        self._idle.setdefault(connection.key, []).append(connection)

    def _unrest(self, connection: Connection) -> None:
        idle = self._idle[connection.key]
        idle.remove(connection)
        if not idle and connection.key is not None:
            del self._idle[connection.key]

    def _evict(self) -> bool:
        """Close the connection that has been unused for longest, for one with another key; False if all are in use."""
        if not self._keyed:
            return False
        oldest = min((idle[0] for idle in self._idle.values() if idle), key=lambda each: each.since_s, default=None)
        if oldest is None:
            return False
        oldest.close()
        self.went_away(oldest)
        self._front.counters.evictions += 1
        return True

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
            while self._queue and (len(self._connections) < limit or self._evict()):
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
