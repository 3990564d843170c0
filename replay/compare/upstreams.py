"""What a comparison says of the shadow's balancer, as data: its upstreams, and what a balancer program answered itself.

A balancer program names the upstream of every answer that it passed on. To an answer that it gave itself, or made up
when its upstream gave none, belongs its own address on this host. How far it had come, the times tell that it gives:

    queue  connect
    -      -        NO_UPSTREAM    it named none: denied, redirected, or no upstream was usable (nginx always says this)
    known  -        NO_CONNECTION  HAProxy had chosen one and could not connect
    known  known    NO_ANSWER      HAProxy was connected, and no answer could be passed on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from replay.compare.statistics import Quantiles, plain

NO_UPSTREAM, NO_CONNECTION, NO_ANSWER = "no upstream", "no connection", "no answer"


class Waited(NamedTuple):
    """Queue or connect times in milliseconds; None when there are too few."""

    n: int
    p50: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One upstream, or the address of the balancer program itself."""

    name: str  # "" when nothing was named
    itself: bool
    requests: int
    failed: dict[str, int]  # those without a whole answer, by how that ended
    statuses: dict[int, int]  # of the others
    time: Quantiles  # of the shadow: from the sending to the answer's last byte
    queue: Waited
    connect: Waited

    @property
    def server_errors(self) -> int:
        """Answers with a 5xx status."""
        return sum(n for status, n in self.statuses.items() if status >= 500)

    @property
    def label(self) -> str:
        """For a table."""
        name = self.name or "no upstream named"
        return f"{name} (the balancer itself)" if self.itself else name


class Own(NamedTuple):
    """Answers that a balancer program gave itself."""

    status: int
    stage: str  # NO_UPSTREAM, NO_CONNECTION or NO_ANSWER
    requests: int
    worse: int  # of them where production had answered with less of an error

    @property
    def why(self) -> str:
        """What is known of the reason; "" when nothing is."""
        if self.stage == NO_CONNECTION:
            return "no connection to an upstream"
        if self.stage == NO_ANSWER:
            return "no whole answer from an upstream"
        return "no upstream named, as when all health checks fail" if self.status in (502, 503, 504) else ""


@dataclass(frozen=True, slots=True)
class Balancing:
    """What is known of the balancer: upstreams by number of requests, and its own answers by theirs."""

    upstreams: tuple[Upstream, ...] = ()
    own: tuple[Own, ...] = ()
    perhaps_own: tuple[str, ...] = ()  # addresses on this host with errors, when it is not known whose they are
    every: int = 1  # times are from one answer in about so many

    @property
    def requests(self) -> int:
        """All that were replayed."""
        return sum(upstream.requests for upstream in self.upstreams)

    @property
    def itself(self) -> frozenset[str]:
        """Names that stand for the balancer program."""
        return frozenset(upstream.name for upstream in self.upstreams if upstream.itself)


def as_dict(balancing: Balancing) -> dict[str, Any]:
    """For JSON."""
    return {
        "upstreams": [_upstream(each, balancing.requests) for each in balancing.upstreams],
        "own_answers": [own._asdict() for own in balancing.own],
        "perhaps_own": list(balancing.perhaps_own),
        "times_from_one_in": balancing.every,
    }


def _upstream(upstream: Upstream, total: int) -> dict[str, Any]:
    return {
        "upstream": upstream.name,
        "balancer_itself": upstream.itself,
        "requests": upstream.requests,
        "share": plain(upstream.requests / total),
        "failed": upstream.failed,
        "server_errors": upstream.server_errors,
        "statuses": {str(status): n for status, n in upstream.statuses.items()},
        "time_ms": _plain(upstream.time._asdict()),
        "queue_ms": _plain(upstream.queue._asdict()),
        "connect_ms": _plain(upstream.connect._asdict()),
    }


def _plain(times: dict[str, float | None]) -> dict[str, float | str | None]:
    return {name: plain(value) for name, value in times.items()}
