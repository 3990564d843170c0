"""A request on its way, and who takes part in its journey: the hub that all share, the owner of a connection."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Protocol

from replay.balancer.upstream import Upstream
from replay.exchange import Origin, Outcome, Request
from replay.settings import ReplayCounters, ReplaySettings

if TYPE_CHECKING:
    from replay.connection import Connection


# What stands before an IPv4 address in a socket's; one that is mapped (RFC 4291 section 2.5.5.2) sends IPv4 packets.
_MAPPED = {socket.AF_INET: b"", socket.AF_INET6: bytes(10) + b"\xff\xff"}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110 section 9.2.1: may be sent twice


class Job:
    """A request on its way, with what its caller wants back."""

    __slots__ = ("origin", "request", "resent", "retried", "since_s", "size_bytes", "t_queued_ns", "token")

    def __init__(self, request: Request, token: object, since_s: float, origin: Origin | None = None) -> None:
        self.request = request
        self.token = token
        self.origin = origin
        self.t_queued_ns = time.time_ns()
        self.since_s = since_s
        self.size_bytes = 0  # while it waits in the queue
        self.resent = False
        self.retried = 0


class SentTimes(Protocol):
    """The kernel's word on when requests left."""

    def sent_ns(self, key: bytes, not_before_ns: int) -> int:
        """When the bytes given to the connection's socket at `not_before_ns` began to leave (CLOCK_REALTIME), 0 if that
        is not known. `key` names the connection, see `key_of`."""


class Hub(Protocol):
    """What connections share."""

    loop: asyncio.AbstractEventLoop
    settings: ReplaySettings
    counters: ReplayCounters
    mark: bytes
    now_s: float  # coarse monotonic clock, behind by at most one sweep
    sent_times: SentTimes | None  # None: this process' clock has to do


def key_of(sock: socket.socket) -> bytes:
    """A connection as its packets name it, all in network order: both addresses (our own first), then both ports.
    Empty for what has none."""
    if sock.family not in _MAPPED:
        return b""
    try:
        ends = sock.getsockname(), sock.getpeername()
    except OSError:  # it was reset already
        return b""
    addresses = [socket.inet_pton(sock.family, end[0].partition("%")[0]) for end in ends]
    addresses = [address.removeprefix(_MAPPED[sock.family]) for address in addresses]
    return b"".join([*addresses, *(end[1].to_bytes(2, "big") for end in ends)])


def left_ns(hub: Hub, key: bytes, t_sent_ns: int, t_first_ns: int) -> int:
    """When the request left that was given to the kernel at `t_sent_ns`, by the best clock there is. What was sent
    after the answer began (`t_first_ns`, 0 without one) was not the request's beginning."""
    if hub.sent_times is None or not key or not t_sent_ns:
        return t_sent_ns
    t_ns = hub.sent_times.sent_ns(key, t_sent_ns)
    if not t_ns or 0 < t_first_ns < t_ns:
        return t_sent_ns
    hub.counters.kernel_sent += 1
    return t_ns


class Owner(Protocol):
    """Who hears what becomes of a connection and its job. A closed connection is closed before the call."""

    upstream: Upstream

    def connected(self) -> None:
        """A connection was made (TLS comes after that)."""

    def connect_failed(self, connection: Connection, job: Job, outcome: Outcome | None) -> None:
        """No connection; the outcome is None when our own host is to blame."""

    def ended(self, connection: Connection, job: Job, outcome: Outcome) -> None:
        """The job has its outcome; the connection is IDLE or CLOSED."""

    def resend(self, connection: Connection, job: Job) -> None:
        """The upstream had closed the reused connection before it answered anything."""

    def went_away(self, connection: Connection) -> None:
        """An idle connection was closed."""
