"""Rules that need no statistics: a shadow that plainly fails or cannot be reached is given up within seconds.

    pulse ──► the last failing_s in buckets ──────────────► failing: so many answers, so large a share of them failed
          └─► the last unreachable_s, and the streak ─────► unreachable: next to nobody was there, for all of that time

A *streak* begins with the first answer that was not to be had, and goes on while, counted from there, more than
unreachable_percent of them were not. So it does not matter how many good answers there were just before it. It ends,
too, when nothing at all is asked for long. The rules stand beside the judge and outside its error rate.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

BUCKETS_PER_S = 10
STREAK_CREDIT = 10  # so many good answers in a row end any streak, however long it was
SILENCE = 10  # times unreachable_s: a streak ends when nothing was asked for so long

FAILING = "failing"
UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Rules:
    """What trips, and from how many answers on. Percentages are of answers, of any kind."""

    failing_percent: float = 50.0
    failing_requests: int = 50
    failing_s: float = 5.0
    production_percent: float = 5.0  # with so many of its own failing in the same exchanges, production is not fine
    unreachable_percent: float = 90.0
    unreachable_s: float = 3.0
    unreachable_requests: int = 5


class Broken(NamedTuple):
    """Why a shadow is to be switched off."""

    cause: str  # FAILING or UNREACHABLE
    reason: str  # one sentence


class _Window:
    """Sums over the last `seconds`, in buckets: up to one bucket less is looked at, never more."""

    __slots__ = ("_buckets", "_ticks", "answers", "failed", "production_failed", "unreachable")

    def __init__(self, seconds: float) -> None:
        self._ticks = max(1, round(seconds * BUCKETS_PER_S))
        self._buckets: deque[tuple[int, list[int]]] = deque()  # at most _ticks of them
        self.clear()

    def clear(self) -> None:
        self._buckets.clear()
        self.answers = self.failed = self.production_failed = self.unreachable = 0

    def add(self, tick: int, counts: tuple[int, int, int, int]) -> None:
        if not self._buckets or self._buckets[-1][0] != tick:
            self._buckets.append((tick, [0, 0, 0, 0]))
        bucket = self._buckets[-1][1]
        for place, count in enumerate(counts):
            bucket[place] += count
        self._sum(counts, 1)
        while self._buckets[0][0] <= tick - self._ticks:
            _, old = self._buckets.popleft()
            self._sum(old, -1)

    def _sum(self, counts: tuple[int, int, int, int] | list[int], sign: int) -> None:
        self.answers += sign * counts[0]
        self.failed += sign * counts[1]
        self.production_failed += sign * counts[2]
        self.unreachable += sign * counts[3]


class Breaker:
    """Of one shadow. Not safe for threads; costs some 10 microseconds a pulse."""

    __slots__ = ("_credit", "_last_s", "_near", "_recent", "_streak_answers", "_streak_since_s", "rules")

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._recent = _Window(self.rules.failing_s)
        self._near = _Window(self.rules.unreachable_s)
        self._last_s = float("-inf")
        self._credit = 0.0
        self._streak_since_s = 0.0
        self._streak_answers = 0

    def clear(self) -> None:
        """Forget everything, as after a trip."""
        self._recent.clear()
        self._near.clear()
        self._last_s = float("-inf")
        self._end_streak()

    def add(self, now_s: float, answers: int, failed: int, production_failed: int, unreachable: int) -> Broken | None:
        """Take one pulse at a monotonic time; what is broken now, if anything is.

        `answers` counts all of them. `failed` are those in which the shadow alone failed, `production_failed` those in
        which production did, and `unreachable` those whose connection was refused or timed out.
        """
        if answers <= 0:
            return None
        now_s = max(now_s, self._last_s)
        counts = (answers, _within(failed, answers), _within(production_failed, answers), _within(unreachable, answers))
        tick = int(now_s * BUCKETS_PER_S)
        self._recent.add(tick, counts)
        self._near.add(tick, counts)
        self._follow_streak(now_s, answers, counts[3])
        self._last_s = now_s
        return self._unreachable(now_s) or self._failing()

    def _follow_streak(self, now_s: float, answers: int, unreachable: int) -> None:
        if now_s - self._last_s > SILENCE * self.rules.unreachable_s:
            self._end_streak()
        # Above 0 exactly while more than the percentage of the answers since the streak began was unreachable.
        percent = self.rules.unreachable_percent
        credit = self._credit + (100 - percent) * unreachable - percent * (answers - unreachable)
        if credit <= 0:
            self._end_streak()
            return
        if self._streak_answers == 0:
            self._streak_since_s = now_s
        self._credit = min(credit, STREAK_CREDIT * percent) if percent else credit
        self._streak_answers += answers

    def _end_streak(self) -> None:
        self._credit = 0.0
        self._streak_since_s = 0.0
        self._streak_answers = 0

    def _unreachable(self, now_s: float) -> Broken | None:
        rules, near = self.rules, self._near
        lasted_s = now_s - self._streak_since_s
        if self._streak_answers < max(1, rules.unreachable_requests) or lasted_s < rules.unreachable_s:
            return None
        if near.unreachable * 100 <= rules.unreachable_percent * near.answers:
            return None
        share = 100 * near.unreachable / near.answers
        return Broken(
            UNREACHABLE,
            f"the shadow could not be reached for {lasted_s:.1f} s: {near.unreachable} of the {near.answers} requests "
            f"of the last {rules.unreachable_s:g} s found no connection ({share:.0f} %, the limit is "
            f"{rules.unreachable_percent:g} %)",
        )

    def _failing(self) -> Broken | None:
        rules, recent = self.rules, self._recent
        if recent.answers < max(1, rules.failing_requests):
            return None
        if not recent.failed or recent.failed * 100 < rules.failing_percent * recent.answers:
            return None
        if recent.production_failed * 100 >= rules.production_percent * recent.answers:
            return None  # what both sides have in common is not the shadow's doing
        share = 100 * recent.failed / recent.answers
        unreached = recent.unreachable * 100 > rules.unreachable_percent * recent.failed
        return Broken(
            UNREACHABLE if unreached else FAILING,
            f"{recent.failed} of the shadow's {recent.answers} answers within {rules.failing_s:g} s failed "
            f"({share:.0f} %, the limit is {rules.failing_percent:g} %) and {recent.production_failed} of production's"
            + (f"; {recent.unreachable} found no connection" if unreached else ""),
        )


def _within(count: int, answers: int) -> int:
    """A worker's counts are not trusted to add up."""
    return min(max(count, 0), answers)
