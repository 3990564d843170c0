"""Passive outlier ejection: an upstream whose answers are errors several times in a row takes nothing for a while.

The rules are those of Envoy's consecutive-error ejection (its documentation, "Outlier detection"):

    counting ──`consecutive_errors` in a row──► ejected ──time──► counting, from 0
                    └──too many are ejected already──► counting, from 0 (*spared*)

The n-th ejection in a row lasts n times `ejection_s`, up to `ejection_max_s`; for each `ejection_s` that passes without
one, n falls by one again. What comes from an upstream while it is ejected (answers that were under way, or the panic
threshold) says nothing new and is not counted.

Here is also the panic threshold, which is for every reason that may make an upstream unwell. No clock is read here:
times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from replay.balancer.settings import OutlierSettings
from replay.exchange import Answer, Dropped, Outcome

Member = TypeVar("Member")

_ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996


@dataclass(slots=True)
class EjectionCounters:
    """Totals of one pool, for metrics and the report."""

    ejections: int = 0
    spared: int = 0  # rows of errors that ejected nothing, because too many were ejected or there is only one upstream


class _Record:
    """One upstream that had errors."""

    __slots__ = ("errors", "times", "until_s")

    def __init__(self) -> None:
        self.errors = 0  # in a row
        self.times = 0  # ejections in a row
        self.until_s = float("-inf")  # end of the last ejection


class Ejection:
    """The ejections of one pool. Keys are the members of the pool; `forget` one that leaves it, and observe it no more,
    or it is remembered for good."""

    __slots__ = ("_last_end_s", "_records", "_settings", "counts")

    def __init__(self, settings: OutlierSettings) -> None:
        self._settings = settings
        self._records: dict[Hashable, _Record] = {}
        self._last_end_s = float("-inf")  # of all ejections
        self.counts = EjectionCounters()

    def observe(self, key: Hashable, error: bool, now_s: float, pool_size: int) -> bool:
        """Take how a request ended there. True when the upstream is ejected by it.

        Answers that are no errors need to be told only of an upstream whose last one was an error.
        """
        limit = self._settings.consecutive_errors
        record = self._records.get(key)
        if not limit or (record is None and not error):
            return False
        if record is None:
            record = self._records[key] = _Record()
        if now_s < record.until_s:
            return False
        record.errors = record.errors + 1 if error else 0
        if record.errors < limit:
            return False
        record.errors = 0
        if not self._room(now_s, pool_size):
            self.counts.spared += 1
            return False
        self._eject(record, now_s)
        return True

    def ejected(self, key: Hashable, now_s: float) -> bool:
        """Whether the upstream is to be passed over now."""
        record = self._records.get(key)
        return record is not None and now_s < record.until_s

    def any(self, now_s: float) -> bool:
        """Whether any upstream is ejected now; one comparison."""
        return now_s < self._last_end_s

    def forget(self, key: Hashable) -> None:
        """The upstream has left the pool. One of the same key that comes later starts afresh."""
        if self._records.pop(key, None):
            self._last_end_s = max((record.until_s for record in self._records.values()), default=float("-inf"))

    def _room(self, now_s: float, pool_size: int) -> bool:
        """Whether one more may be ejected. Looks at all, which is rare: at the end of a row of errors."""
        already = sum(now_s < record.until_s for record in self._records.values())
        if pool_size <= 1:
            return False
        return already == 0 or already + 1 <= self._settings.ejected_max_ratio * pool_size + _ROUNDING

    def _eject(self, record: _Record, now_s: float) -> None:
        base_s, max_s = self._settings.ejection_s, self._settings.ejection_max_s
        if record.times and base_s:
            record.times = max(0, record.times - int((now_s - record.until_s) / base_s))
        if record.times * base_s < max_s:  # more of them would only take longer to be forgotten
            record.times += 1
        record.until_s = now_s + min(base_s * record.times, max_s)
        self._last_end_s = max(self._last_end_s, record.until_s)
        self.counts.ejections += 1


_NAMES = ("is not a server name", "Hostname mismatch", "IP address mismatch")  # what a request's own Host brings about


def is_error(settings: OutlierSettings, result: Outcome | Dropped) -> bool | None:
    """Whether this end of a request speaks against its upstream. None: it says nothing, for it was never
    sent, or asked TLS for a name that its client made up."""
    if isinstance(result, Dropped):
        return None
    if result.answer is Answer.TLS and any(sign in result.detail for sign in _NAMES):
        return None
    if result.answer is not Answer.OK:
        return True
    return any(low <= result.status <= high for low, high in settings.statuses)


def choose_candidates(
    pool: Sequence[Member], well: Sequence[Member], panic_ratio: float
) -> tuple[Sequence[Member], bool]:
    """The members that requests may go to, and whether that is for panic.

    `pool` holds those that take anything new at all (the draining ones are none of it), `well` those of them that
    nothing speaks against, in the same order. When the well ones are less than `panic_ratio` of the pool, they could
    not carry its load, and what speaks against the rest is itself suspect: all are used. 0 never panics, and may leave
    no candidate.

    A function of its arguments alone, so its result may be kept until a member comes or goes, or becomes well or
    unwell. Ejections and backoffs end by time, without a call.
    """
    if len(well) == len(pool):
        return pool, False
    if len(well) + _ROUNDING < panic_ratio * len(pool):
        return pool, True
    return well, False
