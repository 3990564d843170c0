"""The judge of one shadow: pairs go in, blocks of time are tested, a verdict can be asked for at any time.

    pairs ──blocks──► numbers ──metric──► evidence ──group──► failed at a level ──► verdict

All requests together have most of the weight; single routes share the rest, in the order in which they appear. The
state can be kept as JSON and taken up again; the block that was open then is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from replay.judge.blocks import FEW_PAIRS, Block, BlockBuilder, Lost, Pair
from replay.judge.group import Group, Series, guilty
from replay.judge.interval import KEPT_LIMIT, KEPT_OF_ROUTE, Interval
from replay.judge.plan import ROUTE_LIMIT, Settings
from replay.judge.quality import Quality
from replay.judge.verdict import Finding, Verdict, Word

ALL = "all"
OTHER = "other"
PAIR_METRICS = ("latency", "tail", "errors", "differences")
STATE_VERSION = 1

Key = tuple[str, str]  # route, and the group's name


class Judge:
    """Not safe for threads. ValueError when settings or a kept state cannot be used."""

    __slots__ = ("_builders", "_groups", "_left_out", "_quality", "_routes", "settings")

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._routes: dict[str, int] = {ALL: 0}
        self._builders = {ALL: BlockBuilder(self.settings)}
        self._groups: dict[Key, Group] = {}
        self._quality = Quality(self.settings)
        self._left_out: Counter[str] = Counter()
        self._open(ALL)

    def add(self, pair: Pair) -> None:
        """Take a pair, in any order within the timeout."""
        self._builders[ALL].add(pair)
        if self.settings.routes_weight > 0:
            self._builders[self._route(pair.route)].add(pair)

    def lose(self, lost: Lost) -> None:
        """Take a request of which no pair came, through no fault of the shadow."""
        self._builders[ALL].add(lost)

    def advance(self, watermark_ns: int) -> list[Block]:
        """Test the blocks that are over: the fate of every request that came before the watermark is known.

        Gives the closed blocks of all requests.
        """
        closed = self._builders[ALL].close(watermark_ns)
        for block in closed:
            self._quality.add(block)
            self._test(ALL, block)
        for route, builder in self._builders.items():
            if route != ALL:
                for block in builder.close(watermark_ns):
                    self._test(route, block)
        return closed

    def measure(self, metric: str, value: float, at_ns: int) -> None:
        """Take a number of the pools, e.g. log of the shadow's CPU seconds a request over production's.

        KeyError when the metric is not in the plan, ValueError when it is one of pairs. A number that is not finite is
        counted and left out.
        """
        plan = self.settings.plan(metric)
        if metric in PAIR_METRICS:
            raise ValueError(f"{metric} is measured from pairs")
        if not math.isfinite(value):
            self._left_out[f"{metric}_not_finite"] += 1
            return
        key = (ALL, metric)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group((plan,), self.settings.route_weight(0), self.settings)
        group.series[metric].add(value, 0, None)
        group.look(at_ns)

    def verdict(self) -> Verdict:
        """What can be said now."""
        findings = self._findings()
        rollback = self._failed("rollback") is not None
        failed_at = min((at for at in (self._failed("warn"), self._failed("rollback")) if at is not None), default=None)
        problem = self._problem()
        word, reason = self._word(failed_at is not None, problem, findings)
        series = self._groups[ALL, "pairs"].series
        return Verdict(
            word=word,
            rollback=rollback and word is Word.FAIL,
            reason=reason,
            failed_at_ns=failed_at,
            p_warn=self._p("warn"),
            p_rollback=self._p("rollback"),
            blocks=max((each.test.blocks for each in series.values()), default=0),
            pairs=max((each.pairs for each in series.values()), default=0),
            problem=problem,
            lost_share=self._quality.lost_share,
            blocks_left_out=self._quality.blocks_left_out,
            left_out=dict(self._left_out + self._builders[ALL].counts),
            findings=findings,
        )

    def as_json(self) -> dict[str, Any]:
        """The state, without the requests of open blocks."""
        return {
            "version": STATE_VERSION,
            "settings": self.settings.as_json(),
            "routes": list(self._routes),
            "builders": {route: builder.as_json() for route, builder in self._builders.items()},
            "groups": [[*key, group.as_json()] for key, group in self._groups.items()],
            "quality": self._quality.as_json(),
            "left_out": dict(self._left_out),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any], settings: Settings | None = None) -> Judge:
        """A judge that goes on from a state; ValueError when it is damaged, newer, or of other settings."""
        judge = cls(settings)
        try:
            if state["version"] != STATE_VERSION:
                raise ValueError(f"a state of version {state['version']}; {STATE_VERSION} can be read")
            if state["settings"] != judge.settings.as_json():
                raise ValueError("floors, weights or error rates have changed since; start a new judge")
            judge._restore(state)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"the judge's state is damaged ({type(error).__name__}: {error})") from error
        return judge

    def _restore(self, state: dict[str, Any]) -> None:
        for route in state["routes"]:
            if route != ALL:
                self._open(str(route))
        for route, kept in state["builders"].items():
            self._builders[route].restore(kept)
        for route, name, kept in state["groups"]:
            if (route, name) not in self._groups:
                self._groups[route, name] = Group((self.settings.plan(name),), self._weight(route), self.settings)
            self._groups[route, name].restore(kept)
        self._quality.restore(state["quality"])
        self._left_out = Counter({str(name): int(n) for name, n in state["left_out"].items()})

    def _weight(self, route: str) -> float:
        return self.settings.route_weight(self._routes[route])

    def _route(self, route: str) -> str:
        """The name it is counted under."""
        if route == ALL or (route not in self._routes and len(self._routes) > ROUTE_LIMIT):
            route = OTHER
        if route not in self._routes:
            self._open(route)
        return route

    def _open(self, route: str) -> None:
        """Begin to judge a route."""
        self._routes.setdefault(route, len(self._routes))
        self._builders.setdefault(route, BlockBuilder(self.settings, lost_limit=0))  # loss is judged of all together
        plans = tuple(plan for plan in self.settings.plans if plan.name in PAIR_METRICS)
        kept = KEPT_LIMIT if route == ALL else KEPT_OF_ROUTE
        self._groups[route, "pairs"] = Group(plans, self._weight(route), self.settings, kept)

    def _test(self, route: str, block: Block) -> None:
        if self._quality.problem:
            return
        group = self._groups[route, "pairs"]
        for name, value in block.numbers.items():
            if name in group.series:
                group.series[name].add(value, block.pairs, block.examples.get(name))
        group.look(block.end_ns)

    def _problem(self) -> str:
        """With the quality of the data; also where nearly all is lost, so that no block can close."""
        pairs, lost = self._builders[ALL].waiting
        if lost >= FEW_PAIRS and lost > pairs:
            return f"{lost} requests were lost of late and only {pairs} pairs came"
        return self._quality.problem

    def _failed(self, level: str) -> int | None:
        """When it failed first at a level."""
        marks = (group.marks[level].failed_at_ns for group in self._groups.values())
        return min((at for at in marks if at is not None), default=None)

    def _p(self, level: str) -> float:
        return min(group.marks[level].p for group in self._groups.values())

    def _word(self, failed: bool, problem: str, findings: tuple[Finding, ...]) -> tuple[Word, str]:
        """The verdict of the whole, and why it is none."""
        named = ", ".join(dict.fromkeys(each.plan.name for each in findings if each.word is Word.FAIL))
        if problem:
            return Word.INCONCLUSIVE, problem + (f"; before that it failed ({named})" if failed else "")
        if failed:
            return Word.FAIL, named
        open_ = [each for each in findings if each.route == ALL and each.plan.required and each.word is not Word.PASS]
        if open_:
            return Word.INCONCLUSIVE, "; ".join(f"{each.plan.name}: {each.reason}" for each in open_)
        if not any(plan.required for plan in self.settings.plans):
            return Word.INCONCLUSIVE, "no metric is required, so nothing can pass"
        return Word.PASS, ""

    def _findings(self) -> tuple[Finding, ...]:
        parts = {
            (route, name): group.part(name, "warn")
            for (route, _), group in self._groups.items()
            for name in group.series
        }
        named = guilty(parts, self.settings.guilty_share) if self._failed("warn") is not None else set()
        measured = {metric for _, metric in self._groups}
        found = [
            self._finding(route, group, name, (route, name) in named)
            for (route, _), group in self._groups.items()
            for name in group.series
        ]
        silent = [p for p in self.settings.plans if p.name not in PAIR_METRICS and p.name not in measured]
        found += [self._silent(Series(plan, self.settings)) for plan in silent]
        return tuple(found)

    def _finding(self, route: str, group: Group, name: str, named: bool) -> Finding:
        series = group.series[name]
        failed = named or any(name in mark.named for mark in group.marks.values())
        word, reason = self._metric_word(series, failed)
        rollback = name in group.marks["rollback"].named
        return _finding(route, series, word, rollback, reason)

    def _metric_word(self, series: Series, failed: bool) -> tuple[Word, str]:
        test = series.test
        if failed:
            return Word.FAIL, ""
        if test.blocks == 0:
            return Word.INCONCLUSIVE, "no data yet"
        if test.blocks < self.settings.least_blocks:
            return Word.INCONCLUSIVE, f"too few blocks ({test.blocks} of {self.settings.least_blocks})"
        if float(test.passing.log_e) >= self.settings.pass_evidence:
            return Word.PASS, ""
        return Word.INCONCLUSIVE, "the evidence is not enough either way yet"

    def _silent(self, series: Series) -> Finding:
        """Of a metric that was never measured."""
        return _finding(ALL, series, Word.INCONCLUSIVE, False, "not measured")


def _finding(route: str, series: Series, word: Word, rollback: bool, reason: str) -> Finding:
    test = series.test
    return Finding(
        route=route,
        plan=test.plan,
        word=word,
        rollback=rollback,
        reason=reason,
        blocks=test.blocks,
        pairs=series.pairs,
        effect=series.history.effect,
        interval=series.history.interval() if route == ALL or word is Word.FAIL else Interval(None, None),
        log_e_warn=float(test.warn.log_e),
        log_e_rollback=float(test.rollback.log_e),
        log_e_pass=float(test.passing.log_e),
        examples=tuple(pair for _, pair in series.examples),
    )
