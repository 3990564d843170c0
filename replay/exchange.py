"""What one HTTP exchange is: the request, the response, their bytes and their times, and what the shadow answered.

All times are integer nanoseconds since the Unix epoch (kernel or capture time for production, the agent's own clock
for what it sent itself). Bytes are kept as they were on the wire, so that a replay is faithful.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, Protocol


class Fate(StrEnum):
    """What became of a request that was seen; every one has exactly one fate."""

    REPLAYED = "replayed"
    INCOMPLETE = "incomplete"
    SKIPPED = "skipped"
    DROPPED = "dropped"


class Incomplete(StrEnum):
    """Why a request that was seen could not be taken as a whole."""

    GAP = "gap"  # bytes of the request are missing from the capture
    CUT = "cut"  # the connection ended, by FIN or RST, inside the request
    TIMEOUT = "timeout"  # the flow fell silent inside the request
    EVICTED = "evicted"  # the flow was given up because a table or buffer limit was hit
    END = "end"  # the capture ended inside the request
    REQUEST_LOST = "request_lost"  # a response came whose request was never captured
    UNASKED = "unasked"  # the server answered without a request: a time-out or a refusal
    TOO_LARGE = "too_large"  # the head is larger than the limit
    BODY_LIMIT = "body_limit"  # the body is larger than what is kept, so the request cannot be sent again
    MALFORMED = "malformed"  # not HTTP/1.x where a request should be


class Skipped(StrEnum):
    """Why a whole request was not meant for the shadow."""

    DISABLED = "disabled"  # the shadow is off
    CRITERIA = "criteria"  # the shadow's criteria do not want it
    UNSAMPLED = "unsampled"  # outside the shadow's percentage
    METHOD = "method"  # not one of the methods that are replayed (by default only safe ones are)
    SHADOW_TRAFFIC = "shadow_traffic"  # carries our own mark
    TUNNEL = "tunnel"  # CONNECT or Upgrade: what follows is not HTTP
    DRY_RUN = "dry_run"  # nothing is to be replayed


NOT_RECORDED = frozenset({Skipped.DISABLED, Skipped.CRITERIA, Skipped.UNSAMPLED})
"""Requests that were never meant for the shadow: counted, but no row is written for them."""


class Dropped(StrEnum):
    """Why a request meant for the shadow was not sent."""

    QUEUE_FULL = "queue_full"  # the queue in front of the shadow was full; the newest request is dropped
    QUEUE_TIMEOUT = "queue_timeout"  # it waited longer than the limit
    LIMIT = "limit"  # every usable upstream had as many requests in flight as it may
    NO_UPSTREAM = "no_upstream"  # the balancer had none to give
    SHORTAGE = "shortage"  # this host had no socket, or no local port
    SWITCHED_OFF = "switched_off"  # the shadow was switched off before it was sent
    BACKOFF = "backoff"  # its upstream had just failed several times and was not tried
    SHUTDOWN = "shutdown"  # the agent ended before it was sent or answered


class Answer(StrEnum):
    """How the shadow's answer ended."""

    OK = "ok"  # a whole response, whatever its status
    CONNECT = "connect"  # refused or unreachable
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls"  # no TLS connection: its certificate or its handshake was refused, by either side
    RESET = "reset"  # closed or reset before the response was whole
    TIMEOUT = "timeout"  # no whole response in time
    GARBAGE = "garbage"  # not HTTP/1.x, or framing that cannot be followed


class Origin(Protocol):
    """Whose request it was: an Exchange, or what stands for one. "192.0.2.1:5555", "[2001:db8::1]:5555"."""

    client: str
    server: str
    forwarded: IPv4Address | IPv6Address | None


class Request(NamedTuple):
    """One request. `body` is the content without transfer coding, at most the configured limit of it."""

    method: str
    target: str  # as on the request line, decoded as latin-1
    version: int  # 10 or 11
    head: bytes  # request line, headers and the blank line, as they were
    body: bytes
    body_bytes: int  # length of the whole content, kept or not
    wire_body: bytes | None  # the body with its transfer coding where that differs from `body`
    t_first_ns: int
    t_last_ns: int
    complete: bool = True
    body_sha1: str | None = None  # set when the parser hashed a body larger than the limit

    @property
    def whole(self) -> bool:
        """Every byte is at hand, so it can be sent again."""
        return self.complete and self.body_bytes == len(self.body)


class Response(NamedTuple):
    """One final response; the fields are those of Request."""

    status: int
    version: int
    head: bytes
    body: bytes
    body_bytes: int
    t_first_ns: int
    t_last_ns: int
    complete: bool = True
    body_sha1: str | None = None


def body_sha1(message: Request | Response) -> str | None:
    """SHA-1 of the whole content in hex, or None when the message is incomplete or not all of it was kept or hashed."""
    if not message.complete:
        return None
    if message.body_sha1 is not None or message.body_bytes != len(message.body):
        return message.body_sha1
    return hashlib.sha1(message.body, usedforsecurity=False).hexdigest()


@dataclass(slots=True, eq=False)
class Exchange:
    """A request with its response. It comes up twice: when the request is whole (`ready`), and when nothing more will
    be added (`finished`). A response whose request was never seen has no request.

    `ended_by` is set when it is finished. It is "" when the response is whole, and when nobody is known to have ended
    the exchange: bytes of the response may be missing from the capture, nobody closed the connection, or the server
    closed it while it was idle, and the request crossed that.
    """

    client: str  # "192.0.2.1:5555", "[2001:db8::1]:5555"
    server: str
    connection: int  # number of the flow, unique within one source
    index: int  # position within the connection, from 0
    request: Request | None
    response: Response | None = None
    interim: tuple[int, ...] = ()  # statuses of 1xx responses
    upgraded: bool = False  # CONNECT or 101: a tunnel follows
    incomplete: Incomplete | None = None  # why the *request* is not whole; None when it is
    forwarded: IPv4Address | IPv6Address | None = None  # the client, named by a PROXY header at the connection's start
    ended_by: str = ""  # whose FIN or RST left it without a whole response: "client", "server", or "" (see below)
    trials: list[Trial | None] = field(default_factory=list)  # one for each shadow it was offered to, None once over

    @property
    def ttfb_ns(self) -> int | None:
        """Last byte of the request to first byte of the response; None without both."""
        if self.request is None or self.response is None:
            return None
        return self.response.t_first_ns - self.request.t_last_ns


@dataclass(slots=True, eq=False)
class Trial:
    """One request's way to one shadow. It is over when both sides are final."""

    exchange: Exchange
    fate: Fate | None = None  # what became of the request; None while that is open
    reason: str = ""  # why, for the fates that have reasons
    outcome: Outcome | None = None  # for Fate.REPLAYED
    finished: bool = False  # production's side is final


class Outcome(NamedTuple):
    """What the shadow answered to one request. Times are 0 where the thing did not happen."""

    answer: Answer
    upstream: str  # address:port it went to, "" when none was picked; what the balancer chose where that is a program
    status: int  # 0 without a response head
    head: bytes
    body: bytes  # content without transfer coding, at most the limit
    body_bytes: int
    t_queued_ns: int  # when it was submitted
    t_sent_ns: int  # just before the first byte was handed to the kernel
    t_first_ns: int  # first byte of the response (kernel receive time where the system gives it)
    t_last_ns: int  # last byte of the response
    detail: str = ""  # one line for a person, e.g. "connection refused"
    queue_ns: int = -1  # in the shadow balancer's queue, where that is a program and says so
    connect_ns: int = -1  # what its connection to the upstream took; both in steps of 1 ms
    tls: str = ""  # protocol and cipher, e.g. "TLSv1.3 TLS_AES_256_GCM_SHA384"
    tls_not_after_s: int = 0  # when the certificate that was presented ends, Unix time
