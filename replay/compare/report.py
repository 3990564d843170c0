"""What a comparison found, as data: for each route and in all. `compare` fills it, `render` and `as_json` show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from replay.account import Account
from replay.compare.behaviour import Behaviour
from replay.compare.behaviour import as_dict as behaviour_dict
from replay.compare.statistics import Quantiles, Ratio, plain
from replay.compare.tally import DIFFERENT, EQUAL, NOT_COMPARABLE, Kind
from replay.exchange import NOT_RECORDED, Answer, Fate

SCHEMA_VERSION = 1  # of the JSON


@dataclass(frozen=True, slots=True)
class Timing:
    """One latency of both sides, over the same requests."""

    production: Quantiles
    shadow: Quantiles
    ratio: Ratio


@dataclass(slots=True)
class Counts:
    """What was counted for one route, or for all."""

    account: Account = field(default_factory=Account)
    statuses: Counter[tuple[int | None, int | None]] = field(default_factory=Counter)  # production's, the shadow's
    bodies: Counter[str] = field(default_factory=Counter)
    compared: int = 0  # replayed requests with a status on both sides
    differing: int = 0  # of those: another status, or a body that is known to be different

    def add(self, kind: Kind, count: int) -> None:
        """Count rows of one kind."""
        self._add_fate(kind, count)
        if kind.fate != Fate.REPLAYED:
            return
        shadow_status = kind.shadow_status if kind.answer == Answer.OK else None
        self.statuses[kind.status, shadow_status] += count
        if kind.body is not None:
            self.bodies[kind.body] += count
        if kind.status is not None and shadow_status is not None:
            self.compared += count
            self.differing += count * (kind.status != shadow_status or kind.body == DIFFERENT)

    def _add_fate(self, kind: Kind, count: int) -> None:
        account, reason = self.account, kind.reason or ""
        account.seen += count
        if kind.fate == Fate.REPLAYED:
            account.replayed += count
            account.answers[kind.answer or ""] += count
        elif kind.fate == Fate.INCOMPLETE:
            account.incomplete[reason] += count
        elif kind.fate == Fate.SKIPPED:
            account.skipped[reason] += count
        else:
            account.dropped[reason] += count

    @property
    def failed(self) -> Counter[str]:
        """Replayed requests that got no whole answer, by how that ended."""
        return Counter({name: n for name, n in self.account.answers.items() if name != Answer.OK and n})


@dataclass(frozen=True, slots=True)
class RouteReport:
    """One route (or all): counts, and times from the request's last byte to the answer's first and last."""

    route: str
    counts: Counts
    first_byte: Timing
    total: Timing


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the recording itself, and of what is not in it."""

    directory: str
    shadow: str
    runs: tuple[str, ...]
    workers: int
    workers_not_ended: int  # that run still, or were killed
    rows: int
    account: Account  # what the workers last said, added up
    lost: dict[str, int]  # lost before the account could see it
    counters: dict[str, float]  # everything else the workers told
    recording: dict[str, int]  # counters of the recorders
    torn_bytes: int
    unreadable: tuple[str, ...]
    every: int  # times are from one pair in so many
    speed: float  # how much faster than captured it was sent

    @property
    def not_meant(self) -> dict[str, int]:
        """Requests that were seen and never meant for this shadow, by why: no row is written for them."""
        return {str(why): n for why, n in self.account.skipped.items() if why in NOT_RECORDED and n}


@dataclass(frozen=True, slots=True)
class Report:
    """A whole comparison."""

    seen: Seen
    all: RouteReport
    routes: tuple[RouteReport, ...]  # by number of requests
    behaviour: Behaviour  # of the shadow alone
    verdict: str  # one line
    cautions: tuple[str, ...]
    seed: int


def as_json(report: Report) -> dict[str, Any]:
    """The report as what JSON can hold. Times in milliseconds; null: too few values, or the quantile timed out."""
    seen = report.seen
    return {
        "version": SCHEMA_VERSION,
        "verdict": report.verdict,
        "cautions": list(report.cautions),
        "seed": report.seed,
        "directory": seen.directory,
        "shadow": seen.shadow,
        "runs": list(seen.runs),
        "workers": seen.workers,
        "workers_not_ended": seen.workers_not_ended,
        "rows": seen.rows,
        "account": seen.account.as_dict(),
        "lost": seen.lost,
        "counters": seen.counters,
        "recording": seen.recording,
        "torn_bytes": seen.torn_bytes,
        "unreadable": list(seen.unreadable),
        "pairs_thinned_to_one_in": seen.every,
        "speed": plain(seen.speed),
        "all": _route(report.all),
        "routes": [_route(route) for route in report.routes],
        **behaviour_dict(report.behaviour),
    }


def _route(route: RouteReport) -> dict[str, Any]:
    counts = route.counts
    pairs = sorted(counts.statuses.items(), key=lambda item: -item[1])
    return {
        "route": route.route,
        "account": counts.account.as_dict(),
        "statuses": [{"production": ours, "shadow": theirs, "count": n} for (ours, theirs), n in pairs],
        "bodies": {name.replace(" ", "_"): counts.bodies[name] for name in (EQUAL, DIFFERENT, NOT_COMPARABLE)},
        "compared": counts.compared,
        "differing": counts.differing,
        "first_byte": _timing(route.first_byte),
        "total": _timing(route.total),
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "production_ms": {name: plain(value) for name, value in timing.production._asdict().items()},
        "shadow_ms": {name: plain(value) for name, value in timing.shadow._asdict().items()},
        "ratio": {name: plain(value) for name, value in timing.ratio._asdict().items()},
    }
