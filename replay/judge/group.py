"""The metrics of one route whose blocks close together, and what was failed in them.

Their evidence may be averaged: a weighted average of e-processes of the same blocks is one, however they depend on each
other. Between groups whose blocks close at other times it may not be (to stop at a block of one, one has seen a part of
an open block of the other), so there each group has a part of the error rate instead: it fails alone, at
alpha * weight. By Ville's inequality and the union bound the whole is failed wrongly with probability at most alpha.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from replay.judge import eprocess
from replay.judge.blocks import Pair
from replay.judge.eprocess import Floats
from replay.judge.interval import KEPT_LIMIT, History
from replay.judge.metric import MetricTest, most_of
from replay.judge.plan import Kind, MetricPlan, Settings

EXAMPLES_LIMIT = 5
NAMED_PART = 0.1  # a metric is named when its evidence is at least this part of the strongest
LEVELS = ("warn", "rollback")


class Series:
    """One metric of one route: its test, its last blocks, and the pairs that show it best."""

    __slots__ = ("examples", "history", "pairs", "test")

    def __init__(self, plan: MetricPlan, settings: Settings, kept: int = KEPT_LIMIT) -> None:
        self.test = MetricTest(plan, settings.warm_up_blocks, settings.pass_evidence)
        self.history = History(plan.kind, kept)
        self.examples: list[tuple[float, Pair]] = []
        self.pairs = 0

    def add(self, value: float, pairs: int, example: Pair | None) -> None:
        """Take the number of one block."""
        scale, tested = self.test.add(value, pairs)
        if not tested:
            return
        self.pairs += pairs
        self.history.add(value, most_of(pairs) if self.test.plan.kind is Kind.RATE else float(scale))
        if example is not None:
            self.examples.append((value, example))
            self.examples.sort(key=lambda each: (-each[0], each[1].at_ns))
            del self.examples[EXAMPLES_LIMIT:]

    def as_json(self) -> dict[str, Any]:
        """The state."""
        return {
            "test": self.test.as_json(),
            "history": self.history.as_json(),
            "examples": [[value, dataclasses.asdict(pair)] for value, pair in self.examples],
            "pairs": self.pairs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.test.restore(state["test"])
        self.history.restore(state["history"])
        self.examples = [(float(value), Pair(**pair)) for value, pair in state["examples"]]
        self.pairs = int(state["pairs"])


@dataclasses.dataclass(slots=True)
class Mark:
    """The most evidence there ever was at one level, and the first time that it sufficed."""

    peak: float = -math.inf  # log, times the group's weight
    failed_at_ns: int | None = None
    named: list[str] = dataclasses.field(default_factory=list)  # metrics that carried it then

    @property
    def p(self) -> float:
        """An anytime-valid p-value of the whole, as far as this group goes."""
        return min(1.0, math.exp(-self.peak)) if self.peak > -math.inf else 1.0


class Group:
    """`route_weight` times the weights of the metrics is this group's part of the whole."""

    __slots__ = ("_settings", "marks", "plans", "route_weight", "series")

    def __init__(
        self, plans: tuple[MetricPlan, ...], route_weight: float, settings: Settings, kept: int = KEPT_LIMIT
    ) -> None:
        self.plans = plans
        self.route_weight = route_weight
        self.series = {plan.name: Series(plan, settings, kept) for plan in plans}
        self.marks = {level: Mark() for level in LEVELS}
        self._settings = settings

    def look(self, at_ns: int) -> None:
        """Note the evidence, after a block has been given to every metric of the group that has a number for it."""
        if not self.series:
            return
        alphas = {"warn": self._settings.warn_alpha, "rollback": self._settings.rollback_alpha}
        for level, mark in self.marks.items():
            parts = {name: self.part(name, level) for name in self.series}
            evidence = float(eprocess.log_sum(np.array(list(parts.values()))))
            mark.peak = max(mark.peak, evidence)
            if mark.failed_at_ns is None and evidence >= math.log(1 / alphas[level]):
                mark.failed_at_ns = at_ns
                most = max(parts.values())
                mark.named = [name for name, part in parts.items() if part > most + math.log(NAMED_PART)]

    def part(self, name: str, level: str) -> float:
        """Log of one metric's part in the evidence of the whole: its weight in it times its e-value."""
        test = self.series[name].test
        process = test.warn if level == "warn" else test.rollback
        return math.log(self.route_weight * test.plan.weight) + float(process.log_e)

    def as_json(self) -> dict[str, Any]:
        """The state."""
        return {
            "series": {name: each.as_json() for name, each in self.series.items()},
            "marks": {
                level: [None if mark.peak == -math.inf else mark.peak, mark.failed_at_ns, mark.named.copy()]
                for level, mark in self.marks.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        for name, series in self.series.items():
            series.restore(state["series"][name])
        for level in LEVELS:
            peak, failed_at, named = state["marks"][level]
            self.marks[level] = Mark(
                -math.inf if peak is None else float(peak),
                None if failed_at is None else int(failed_at),
                [str(name) for name in named],
            )


def group_evidence(log_es: list[Floats], weights: list[float], route_weight: float) -> Floats:
    """The same as in `look`, for many runs at once."""
    parts = [log_e + math.log(route_weight * weight) for log_e, weight in zip(log_es, weights, strict=True)]
    return eprocess.log_sum(np.stack(parts, axis=-1))


def guilty(parts: dict[tuple[str, str], float], share: float) -> set[tuple[str, str]]:
    """Weighted e-BH (Wang and Ramdas 2022): the k strongest, for the largest k for which the k-th log part is at least
    log(1 / (share k)). The expected share of wrong names among them is at most `share`, however they depend, at a look
    whose time was not chosen by open blocks of other groups."""
    ranked = sorted(parts, key=lambda key: -parts[key])
    enough = [k for k, key in enumerate(ranked, 1) if parts[key] >= math.log(1 / (share * k))]
    return set(ranked[: enough[-1]]) if enough else set()
