"""What can be set for a shadow pool and the balancer in front of it, as plain data. Loads nothing.

Times are seconds. Every setting holds for each worker of the agent on its own: they share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

STATUS_MIN, STATUS_MAX = 100, 599
HOST = "host"  # of `TlsSettings.server_name`: what the request's Host header says


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """One upstream as it is asked for. `address` is "host:port", "[address]:port" or "unix:/path"."""

    address: str
    weight: int = 1  # its share against the others'; 0 takes nothing new
    cookie: str = ""  # value of the sticky cookie that means this upstream, "" for none


@dataclass(frozen=True, slots=True)
class HashBy:
    """What ring_hash and maglev hash: "client", "path", "header" or "cookie"; `name` of the latter two."""

    what: str = "client"
    name: str = ""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS to an upstream. Paths are of PEM files; "" for none."""

    verify: bool = True
    server_name: str = HOST  # sent as SNI and verified; HOST: the request's own; "" sends none
    ca: str = ""  # what is trusted instead of the system's store
    certificate: str = ""  # the client's own chain
    key: str = ""  # its key, where that is not in `certificate`


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active health checks of every upstream."""

    kind: str = "tcp"  # or "http"
    path: str = "/"
    host: str = ""  # Host header; "": the upstream's address
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)  # ranges that are well, both ends included
    body: str = ""  # regular expression that the body must hold somewhere, "" for none
    interval_s: float = 2.0
    jitter_ratio: float = 0.1  # each pause is longer or shorter by up to this part of the interval
    timeout_s: float = 1.0
    rise: int = 2  # good checks in a row that make it healthy
    fall: int = 3  # bad ones that make it unhealthy


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """Passive ejection: an upstream whose answers are errors several times in a row takes nothing for a while."""

    consecutive_errors: int = 5  # 0: never
    statuses: tuple[tuple[int, int], ...] = ((500, 599),)  # ranges that are errors, besides no answer at all
    ejection_s: float = 10.0  # the first; each further one in a row is longer by as much
    ejection_max_s: float = 300.0
    ejected_max_ratio: float = 0.5  # of the pool at once; one may always be, unless it is the only one


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """The embedded balancer."""

    policy: str = "round_robin"
    hash_by: HashBy = field(default_factory=HashBy)
    seed: int = 0  # of everything random
    slow_start_s: float = 0.0  # in which a new or recovered upstream's weight grows to its own
    sticky_cookie: str = ""  # name of the cookie that keeps requests on one upstream
    sticky_entries: int = 65_536  # cookie values that are remembered
    panic_ratio: float = 0.5  # with fewer than this part of the pool well, all of it is used
    max_requests: int = 0  # in flight at one upstream; more go elsewhere, or are dropped. 0: no limit
    health: HealthCheck | None = None
    outlier: OutlierSettings | None = field(default_factory=OutlierSettings)
    tls: TlsSettings | None = None  # None: plain
    proxy_protocol: bool = False  # PROXY protocol v2 names the client at each connection's start
    forwarded_for: bool = True  # X-Forwarded-For names the client, where a request does not say it already
