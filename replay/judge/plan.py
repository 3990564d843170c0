"""What is judged, and how strictly: metrics with their floors, and the error rates of the whole.

Floors of ratios are logs, so log(1.02) is "2 % more"; floors of rates are shares of the pairs. An effect up to the
floor never counts against the shadow. `margin` is for PASS: the effect is shown to be smaller than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

RATE_MOST = 0.05  # for PASS a block's rate counts as at most this, so that one burst does not outweigh an hour
ROUTE_LIMIT = 64
# A PASS asks for so many times the evidence that its error rate does. A stall that two blocks share makes them alike,
# which the theory does not allow for; at the margins, with stalls, up to 5 % reached 20 to 1 in the simulation. A FAIL
# needs no such caution: its evidence is that of one metric among several, of which most have none.
PASS_CAUTION = 2.0


class Kind(StrEnum):
    """What a block's number is."""

    RATIO = "ratio"  # the log of a ratio, shadow to production
    RATE = "rate"  # a share of the block's pairs, the shadow's less production's: -1 to 1
    CHANGE = "change"  # any other number that changes sign when the sides are swapped


@dataclass(frozen=True, slots=True)
class MetricPlan:
    """One metric. `weight` is its part in the whole; `required`: no PASS of the whole without its PASS."""

    name: str
    kind: Kind
    weight: float
    warn: float
    rollback: float
    margin: float
    required: bool = True


DEFAULT_PLANS = (
    MetricPlan("latency", Kind.RATIO, 0.3, math.log(1.02), math.log(1.10), math.log(1.10)),
    MetricPlan("tail", Kind.RATIO, 0.2, math.log(1.10), math.log(1.25), math.log(1.25)),
    MetricPlan("errors", Kind.RATE, 0.3, 0.0, 0.0, 0.005),
    MetricPlan("differences", Kind.RATE, 0.1, 0.001, 0.001, 0.01, required=False),
    MetricPlan("cpu", Kind.RATIO, 0.05, math.log(1.05), math.log(1.15), math.log(1.15), required=False),
    MetricPlan("memory", Kind.CHANGE, 0.05, 0.0, 0.0, 0.001, required=False),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one judge. ValueError, with what is wrong, when they make no sense.

    `warn_alpha` and `rollback_alpha` bound the probability that a shadow which is no worse than the floors is ever
    failed at that level, however long it runs and however often it is looked at; `pass_alpha` that a metric that is
    always worse than the margin passes; `guilty_share` the expected share of wrong names among the metrics named.
    """

    plans: tuple[MetricPlan, ...] = DEFAULT_PLANS
    warn_alpha: float = 0.05
    rollback_alpha: float = 0.001
    pass_alpha: float = 0.05
    guilty_share: float = 0.05
    routes_weight: float = 0.3  # of single routes, all together; the rest is for all requests
    warm_up_blocks: int = 2  # of each metric, from which only its scale is learnt
    least_blocks: int = 8  # before a PASS
    block_ns: int = 1_000_000_000  # the shortest block
    longest_block_ns: int = 30_000_000_000
    loss_share: float = 0.01  # of the requests; with more lost, nothing is concluded
    bias_share: float = 0.001  # of the requests; with fewer lost it does not matter which
    bias_alpha: float = 0.01

    def __post_init__(self) -> None:
        names = [plan.name for plan in self.plans]
        if not names or len(set(names)) != len(names):
            raise ValueError("each metric needs a name of its own, and there must be one")
        if not math.isclose(sum(plan.weight for plan in self.plans), 1.0) or min(p.weight for p in self.plans) <= 0:
            raise ValueError("weights of metrics must be above 0 and add up to 1")
        for plan in self.plans:
            _check(plan)
        if not all(0 < alpha < 1 for alpha in (self.warn_alpha, self.rollback_alpha, self.pass_alpha, self.bias_alpha)):
            raise ValueError("error rates must be between 0 and 1")
        if not 0 <= self.routes_weight < 1 or not 0 < self.block_ns <= self.longest_block_ns:
            raise ValueError("the routes' weight must be in [0, 1), and the shortest block not above the longest")

    def plan(self, name: str) -> MetricPlan:
        """The plan of one metric; KeyError when there is none."""
        for plan in self.plans:
            if plan.name == name:
                return plan
        raise KeyError(name)

    def route_weight(self, number: int) -> float:
        """Weight of route 1, 2, 3, ... in order of appearance, so fixed before any of its numbers are known; 0 is all
        requests together. All weights add up to at most 1."""
        if number == 0:
            return 1 - self.routes_weight
        return self.routes_weight / (number * (number + 1))

    @property
    def pass_evidence(self) -> float:
        """Log of the evidence that a metric needs for a PASS."""
        return math.log(PASS_CAUTION / self.pass_alpha)

    def as_json(self) -> dict[str, Any]:
        """What a kept state must have been made with: evidence against other floors is other evidence."""
        return {
            "plans": [[p.name, p.kind.value, p.weight, p.warn, p.rollback, p.margin] for p in self.plans],
            "alphas": [self.warn_alpha, self.rollback_alpha, self.pass_alpha, self.bias_alpha],
            "routes_weight": self.routes_weight,
            "warm_up_blocks": self.warm_up_blocks,
        }


# Mirroring on against mirroring off, both of production: the log of the ratio between a block with it and one without.
HARM_PLANS = (
    MetricPlan("harm_tail", Kind.RATIO, 0.5, math.log(1.05), math.log(1.05), math.log(1.25)),
    MetricPlan("harm_level", Kind.RATIO, 0.5, math.log(1.02), math.log(1.02), math.log(1.10)),
)


def _check(plan: MetricPlan) -> None:
    if not all(math.isfinite(number) for number in (plan.warn, plan.rollback, plan.margin)):
        raise ValueError(f"{plan.name}: floors and margin must be finite")
    if plan.warn > plan.rollback:
        raise ValueError(f"{plan.name}: the floor of a warning is above that of a rollback")
    if plan.kind is Kind.RATE and not 0 < plan.margin < RATE_MOST:
        raise ValueError(f"{plan.name}: the margin of a rate must be between 0 and {RATE_MOST}")


HARM_SETTINGS = Settings(plans=HARM_PLANS, warn_alpha=0.05, rollback_alpha=0.001, routes_weight=0.0)
