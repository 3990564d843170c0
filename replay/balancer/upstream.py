"""One upstream of a pool, and what is known of it from the traffic alone.

Connect failures open a *backoff*: after FAILURES_BEFORE_BACKOFF in a row no connection is tried for a while; then one
probe may try, and its failure makes the next pause twice as long, up to a bound. The first success ends it.

    well ──3 failures──► pausing ──time──► probing ──success──► well
                            ▲                 │
                            └────failure──────┘ (pause doubled)

What health checks, the answers' statuses and people say of it, the engine keeps here as flags.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from replay.balancer.address import Endpoint, Production, Resolver, resolve, show
from replay.balancer.settings import HOST, UpstreamSpec
from replay.errors import UpstreamError
from replay.via import Via

FAILURES_BEFORE_BACKOFF = 3
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class Transport:
    """How requests travel to an upstream."""

    tls: ssl.SSLContext | None = None
    server_name: str = HOST  # for SNI and verification; HOST: what each request's Host header says
    proxy_protocol: bool = False  # each connection begins with a PROXY header, and serves one client only
    forwarded_for: bool = False  # X-Forwarded-For is added
    via_header: bytes = b""  # of the response, in lower case: says which upstream a balancer chose; taken off
    read_via: Callable[[bytes], Via | None] | None = None  # its value


PLAIN = Transport()


class Upstream:
    """An upstream's address and its passive state. Times are seconds of the caller's monotonic clock."""

    __slots__ = (
        "_pause_s",
        "_probing",
        "_retry_at_s",
        "cookie",
        "draining",
        "effective_weight",
        "endpoint",
        "failures",
        "family",
        "healthy",
        "in_flight",
        "index",
        "name",
        "sockaddr",
        "transport",
        "weight",
    )

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        index: int = 0,
        spec: UpstreamSpec | None = None,
        transport: Transport = PLAIN,
    ) -> None:
        self.name = name  # as outcomes show it: "192.0.2.1:80"
        self.endpoint = endpoint
        self.family = endpoint.family
        self.sockaddr: tuple[Any, ...] | str = endpoint.sockaddr
        self.index = index  # place in the pool it was made for
        self.transport = transport
        self.weight = spec.weight if spec else 1
        self.cookie = spec.cookie if spec else ""
        self.effective_weight = float(self.weight)  # less in a slow start
        self.in_flight = 0  # requests assigned and not ended, waiting ones included
        self.failures = 0  # connect failures since the last success
        self.healthy = True  # what the last health checks said
        self.draining = False  # takes nothing new
        self._pause_s = 0.0  # 0 while well
        self._retry_at_s = 0.0
        self._probing = False

    def usable(self, now_s: float) -> bool:
        """Whether a connection may be tried now."""
        return self._pause_s == 0.0 or (now_s >= self._retry_at_s and not self._probing)

    def connecting(self) -> None:
        """A connection is being tried; in a backoff it is the probe."""
        self._probing = self._pause_s > 0.0

    def connected(self) -> None:
        """A connection was made: all is forgotten."""
        self.failures = 0
        self._pause_s = 0.0
        self._probing = False

    def abandoned(self) -> None:
        """A connection was given up for a reason of our own: it says nothing of the upstream."""
        self._probing = False

    def connect_failed(self, now_s: float) -> None:
        """A connection was refused, unreachable or not accepted in time.

        Connections that were begun together fail together: only the first of them opens or prolongs the pause.
        """
        self.failures += 1
        self._probing = False
        if self.failures < FAILURES_BEFORE_BACKOFF or now_s < self._retry_at_s:
            return
        self._pause_s = min(BACKOFF_MAX_S, self._pause_s * 2 or BACKOFF_MIN_S)
        self._retry_at_s = now_s + self._pause_s

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, in_flight={self.in_flight}, failures={self.failures})"


def make_pool(
    specs: Iterable[UpstreamSpec | str],
    production: Production | None = None,
    resolver: Resolver | None = None,
    transport: Transport = PLAIN,
) -> tuple[Upstream, ...]:
    """The upstreams of a pool, names resolved (this blocks). A name stands for the first address it resolves to.

    UpstreamError when the pool is empty, an address is malformed, unknown or listed twice, or any address it resolves
    to is one of production's.
    """
    production = production or Production()
    pool: list[Upstream] = []
    seen: dict[str, str] = {}
    for each in specs:
        spec = UpstreamSpec(each) if isinstance(each, str) else each
        text = spec.address
        endpoints = resolve(text, resolver) if resolver else resolve(text)
        for endpoint in endpoints:
            if production.has(endpoint):
                raise UpstreamError(f"upstream {text!r} is the production address {show(endpoint)}: choose another")
        first = endpoints[0]
        name = show(first)
        if name in seen:
            raise UpstreamError(f"upstream {text!r} is listed twice in the pool (also as {seen[name]!r})")
        seen[name] = text
        pool.append(Upstream(name, first, len(pool), spec, transport))
    if not pool:
        raise UpstreamError("the shadow pool has no upstream: list at least one host:port")
    return tuple(pool)
