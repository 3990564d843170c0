"""Live figures of both sides of one shadow, from the pairs that the workers tell: totals for Prometheus, and the last
minute for `shadowtap status`.

A pair is one request that both sides answered (or that the shadow failed to answer). Its latencies are

    production       request's last byte to the answer's last byte, from packets
    shadow           service time: the moment the kernel sent the request to the answer's last byte
    shadow_response  response time: the same from the moment the request was meant to leave

so what separates the last two is the lag of the schedule. Totals are classic histogram buckets a route, counted from
the start of the watch process; what is recent is kept in slots of 5 s, in buckets 2 % wide. No clock is read here: what
came since the last look belongs to the time of the next one, so `recent` is to be asked about once a second.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.compare.routes import OTHER, printable

ROUTES_LIMIT = 32  # counted apart, by first appearance; the rest is "other"
ROUTE_LIMIT_CHARS = 140
REASONS_LIMIT = 32
BATCH = 1_000  # pairs are counted by so many, since most of the cost is that of a numpy call
SIDES = ("production", "shadow", "shadow_response")
BUCKETS = 24  # and one above the last bound
LOWEST_NS, HIGHEST_NS = 200_000, 10_000_000_000
LONGEST_NS = 3_600_000_000_000  # what claims to have taken longer is taken for this, so that sums stay sound
BOUNDS_NS = tuple(round(LOWEST_NS * (HIGHEST_NS / LOWEST_NS) ** (k / (BUCKETS - 1))) for k in range(BUCKETS))

SLOT_NS = 5_000_000_000
LOOK_NS = 1_000_000_000  # what came before the first look is taken to have come within so much
SLOTS = 12  # whole ones that are looked back at, beside the present one: 60 to 65 s
FINE_LOWEST_NS, FINE_WIDTH = 1_000, 1.02
FINE_BUCKETS = 932  # 1 us to 100 s

_LAG = len(SIDES)  # its place beside the sides in what is recent
_FLAGS = ("production_error", "shadow_error", "compared", "different")

Counts = NDArray[np.int64]


class Sample(NamedTuple):
    """One pair. `different` is None when the answers could not be compared; `lag_ns` is the actual less the intended
    time of sending and may be a little below 0."""

    route: str
    production_ns: int
    shadow_ns: int
    response_ns: int
    lag_ns: int
    production_error: bool
    shadow_error: bool
    different: bool | None
    status: int
    shadow_status: int


class Traffic:
    """The figures of one shadow. Memory does not grow with the traffic: about 450 KB."""

    def __init__(self) -> None:
        self._rows = _Rows()
        places = ROUTES_LIMIT + 1
        self._counts: Counts = np.zeros((places, len(SIDES), BUCKETS + 1), np.int64)
        self._sums: Counts = np.zeros((places, len(SIDES)), np.int64)
        self._flags: Counts = np.zeros((places, len(_FLAGS)), np.int64)
        self._lost = [0] * places
        self._reasons: Counter[str] = Counter()
        self._lag_sum_ns = 0
        self._recent = _Recent()
        self._waiting: list[Sample] = []

    def add(self, samples: Sequence[Sample]) -> None:
        """Count a batch of pairs."""
        self._waiting += samples
        if len(self._waiting) >= BATCH:
            self._settle()

    def _settle(self) -> None:
        """Count what waits."""
        if not self._waiting:
            return
        columns = self._columns()
        self._waiting.clear()
        rows = np.fromiter(map(self._rows.__getitem__, columns[0]), np.int64, len(columns[0]))
        times = np.stack([np.frombuffer(array("q", column), np.int64) for column in columns[1:5]])
        np.clip(times, 0, LONGEST_NS, out=times)
        flags = _flags(*columns[5:8])
        self._count(rows, times[:_LAG], flags)
        self._lag_sum_ns += int(times[_LAG].sum())
        self._recent.present.add(times, flags.sum(axis=1))

    def _columns(self) -> list[Any]:
        """A tuple a field."""
        flat = tuple(chain.from_iterable(self._waiting))  # faster by half than zip
        width = len(Sample._fields)
        return [flat[n::width] for n in range(width)]

    def _count(self, rows: Counts, times: Counts, flags: NDArray[np.bool_]) -> None:
        places = len(self._sums)
        for side, latencies in enumerate(times):
            found = np.searchsorted(BOUNDS_NS_ARRAY, latencies)
            cells = np.bincount(rows * (BUCKETS + 1) + found, minlength=places * (BUCKETS + 1))
            self._counts[:, side] += cells.reshape(places, BUCKETS + 1)
            self._sums[:, side] += np.bincount(rows, latencies, places).astype(np.int64)
        for flag, on in enumerate(flags):
            self._flags[:, flag] += np.bincount(rows, on, places).astype(np.int64)

    def lose(self, route: str, reason: str) -> None:
        """Count a request of which no pair came, through no fault of the shadow."""
        if reason not in self._reasons and len(self._reasons) >= REASONS_LIMIT:
            reason = OTHER
        self._reasons[reason] += 1
        self._lost[self._rows[route]] += 1
        self._recent.present.lost += 1

    def as_json(self) -> dict[str, Any]:
        """Totals, and the lag of the last minute; as JSON below 100 000 bytes, so that it fits a message."""
        self._settle()
        pairs = self._counts[:, 0].sum(axis=1)
        return {
            "bounds_ns": list(BOUNDS_NS),
            "routes": {name: self._route(row) for name, row in self._rows.named() if pairs[row] or self._lost[row]},
            "lost": dict(self._reasons),
            "lag": {"count": int(pairs.sum()), "sum_ns": self._lag_sum_ns, "p99_ns": self.lag_p99_ns()},
        }

    def _route(self, row: int) -> dict[str, Any]:
        return {
            "counts": {side: self._counts[row, place].tolist() for place, side in enumerate(SIDES)},
            "sum_ns": {side: int(self._sums[row, place]) for place, side in enumerate(SIDES)},
            **{name: int(self._flags[row, place]) for place, name in enumerate(_FLAGS)},
            "lost": self._lost[row],
        }

    def recent(self, now_ns: int) -> dict[str, Any]:
        """Of the last minute, by side: requests a second, share of errors, p50, p90 and p99 in ns. None where there was
        nothing. Both sides have the same requests a second, since a pair is one of each."""
        self._settle()
        self._recent.look(now_ns)
        return self._recent.as_json(now_ns)

    def lag_p99_ns(self) -> int | None:
        """How late the latest 1 % of the requests left, in the minute before the last look and since; None without
        any."""
        self._settle()
        return self._recent.quantiles(_LAG, (0.99,))[0]


BOUNDS_NS_ARRAY = np.array(BOUNDS_NS)


def _flags(
    production_error: Sequence[bool], shadow_error: Sequence[bool], different: Sequence[bool | None]
) -> NDArray[np.bool_]:
    """By flag and pair, in the order of _FLAGS."""
    found = np.frombuffer(bytes([2 if each is None else each for each in different]), np.uint8)
    errors = (np.frombuffer(bytes(side), np.bool_) for side in (production_error, shadow_error))
    return np.stack([*errors, found != 2, found == 1])


class _Rows(dict[str, int]):
    """Rows of routes. A route that finds no room, or whose name is no fit key, is looked up anew each time."""

    def __missing__(self, route: str) -> int:
        if len(route) > ROUTE_LIMIT_CHARS or not route.isprintable():
            return self[printable(route[:ROUTE_LIMIT_CHARS])]
        if route == OTHER or len(self) >= ROUTES_LIMIT:
            return ROUTES_LIMIT
        self[route] = row = len(self)
        return row

    def named(self) -> Iterable[tuple[str, int]]:
        """Every row with its route, "other" last."""
        return (*self.items(), (OTHER, ROUTES_LIMIT))


class _Slot:
    """What came in one stretch of SLOT_NS."""

    __slots__ = ("counts", "flags", "lost", "number", "pairs")

    def __init__(self) -> None:
        self.number = 0
        self.counts: Counts = np.zeros((_LAG + 1, FINE_BUCKETS), np.int64)
        self.flags: Counts = np.zeros(len(_FLAGS), np.int64)
        self.pairs = 0
        self.lost = 0

    def add(self, times: Counts, flags: Counts) -> None:
        """`times` by side, then the lag; `flags` are sums over the batch."""
        logs = np.log(np.maximum(times, FINE_LOWEST_NS) * (1 / FINE_LOWEST_NS)) * (1 / math.log(FINE_WIDTH))
        found = np.minimum(logs.astype(np.int64), FINE_BUCKETS - 1) + _FINE_STARTS
        self.counts += np.bincount(found.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        self.flags += flags
        self.pairs += times.shape[1]

    def merge(self, other: _Slot) -> None:
        """Add another's figures."""
        self.counts += other.counts
        self.flags += other.flags
        self.pairs += other.pairs
        self.lost += other.lost


class _Recent:
    """The slots of the last minute, in order. `present` takes what comes, and is filed at the next look."""

    def __init__(self) -> None:
        self.present = _Slot()
        self._slots: deque[_Slot] = deque()
        self._began_ns: int | None = None

    def look(self, now_ns: int) -> None:
        """File what came, forget what is old. When the clock was set back, the minute begins anew."""
        number = now_ns // SLOT_NS
        if self._slots and self._slots[-1].number > number:
            self._slots.clear()
            self._began_ns = None
        if self._began_ns is None:
            self._began_ns = now_ns - LOOK_NS
        self.present.number = number
        if self._slots and self._slots[-1].number == number:
            self._slots[-1].merge(self.present)
        else:
            self._slots.append(self.present)
        self.present = _Slot()
        while self._slots[0].number < number - SLOTS:
            self._slots.popleft()

    def _seconds(self, now_ns: int) -> float:
        """How long what is recent has lasted."""
        oldest = (now_ns // SLOT_NS - SLOTS) * SLOT_NS
        return max(LOOK_NS, now_ns - max(self._began_ns or 0, oldest)) / 1e9

    def quantiles(self, place: int, shares: Sequence[float]) -> list[int | None]:
        """In ns, each within 1 % of the true one; `place` is that of a side or of the lag."""
        sums = np.cumsum(sum((slot.counts[place] for slot in self._slots), self.present.counts[place]))
        if not sums[-1]:
            return [None] * len(shares)
        found = np.searchsorted(sums, np.ceil(np.array(shares) * sums[-1]))  # the first that reaches the share
        middles = FINE_LOWEST_NS * FINE_WIDTH ** (found + 0.5)
        return [int(middle) for middle in middles]

    def as_json(self, now_ns: int) -> dict[str, Any]:
        """See Traffic.recent."""
        total, seconds = _Slot(), self._seconds(now_ns)
        for slot in self._slots:
            total.merge(slot)
        flags = dict(zip(_FLAGS, total.flags, strict=True))
        sides: dict[str, dict[str, float | None]] = {}
        for place, side in enumerate(SIDES):
            p50, p90, p99 = self.quantiles(place, (0.5, 0.9, 0.99))
            sides[side] = {"p50_ns": p50, "p90_ns": p90, "p99_ns": p99}
        for side in SIDES[:2]:
            errors = _share(flags[f"{side}_error"], total.pairs)
            sides[side] |= {"requests_per_s": round(total.pairs / seconds, 3), "error_share": errors}
        return {
            "seconds": round(seconds, 1),
            **sides,
            "different_share": _share(flags["different"], flags["compared"]),
            "lost_per_s": round(total.lost / seconds, 3),
            "lag_p99_ns": self.quantiles(_LAG, (0.99,))[0],
        }


_FINE_STARTS: Counts = np.arange(_LAG + 1)[:, None] * FINE_BUCKETS


def _share(part: int, whole: int) -> float | None:
    return round(int(part) / int(whole), 6) if whole else None
