"""A request on its way, and who takes part in its journey: the hub that all share, the owner of a connection."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from replay.balancer.upstream import Upstream
from replay.exchange import Origin, Outcome, Request
from replay.settings import ReplayCounters, ReplaySettings

if TYPE_CHECKING:
    from replay.connection import Connection


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


class Hub(Protocol):
    """What connections share."""

    loop: asyncio.AbstractEventLoop
    settings: ReplaySettings
    counters: ReplayCounters
    mark: bytes
    now_s: float  # coarse monotonic clock, behind by at most one sweep


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
