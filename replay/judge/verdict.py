"""What the judge says, as data, as a sentence and as JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from replay.judge.blocks import Pair
from replay.judge.interval import Interval
from replay.judge.plan import Kind, MetricPlan

SCHEMA_VERSION = 1  # of the JSON


class Word(StrEnum):
    """The three verdicts."""

    FAIL = "fail"  # worse than the floor, at the stated error rate; stays
    PASS = "pass"  # better than the margin, as far as the latest blocks go
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric of one route. Evidence is the log of an e-value: 3.0 is 20 to 1."""

    route: str
    plan: MetricPlan
    word: Word
    rollback: bool  # failed at the rollback level, too
    reason: str
    blocks: int
    pairs: int
    effect: float | None
    interval: Interval
    log_e_warn: float
    log_e_rollback: float
    log_e_pass: float
    examples: tuple[Pair, ...]  # that show it best, the clearest first


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of the whole. `p_warn` and `p_rollback` may be looked at whenever one likes."""

    word: Word
    rollback: bool
    reason: str
    failed_at_ns: int | None
    p_warn: float
    p_rollback: float
    blocks: int
    pairs: int
    problem: str  # with the quality of the data; "" when there is none
    lost_share: float
    blocks_left_out: int
    left_out: dict[str, int]  # pairs, by why
    findings: tuple[Finding, ...]


def sentence(finding: Finding) -> str:
    """One finding in one line, with its numbers."""
    plan = finding.plan
    where = plan.name if finding.route == "all" else f"{plan.name} of {finding.route}"
    parts = [f"{where}: {finding.word.value}"]
    if finding.effect is not None:
        low, high = (_bound(plan.kind, end) for end in finding.interval)
        between = f" [{low}, {high}]" if finding.interval != (None, None) else ""
        parts.append(f"shadow {amount(plan.kind, finding.effect)}{between} over {finding.blocks} blocks")
    floor = plan.rollback if finding.rollback else plan.warn
    evidence = finding.log_e_rollback if finding.rollback else finding.log_e_warn
    parts.append(f"evidence for more than {amount(plan.kind, floor)}: {_odds(evidence)}")
    parts.append(f"for less than {amount(plan.kind, plan.margin)}: {_odds(finding.log_e_pass)}")
    if finding.reason:
        parts.append(finding.reason)
    return "; ".join(parts)


def amount(kind: Kind, value: float) -> str:
    """An effect or a floor in words a person uses."""
    if kind is Kind.RATIO:
        return f"{math.expm1(value):+.1%}" if value < 3 else f"{math.exp(value):.3g} times"
    return f"{100 * value:+.3g} points" if kind is Kind.RATE else f"{value:+.3g}"


def _bound(kind: Kind, value: float | None) -> str:
    return "?" if value is None else amount(kind, value)


def _odds(log_e: float) -> str:
    return f"{math.exp(log_e):.3g} to 1" if log_e < 20 else "more than 1e8 to 1"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as what JSON can hold."""
    found = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
    found["word"] = verdict.word.value
    found["findings"] = [_finding(each) for each in verdict.findings]
    return {"version": SCHEMA_VERSION, **found}


def _finding(finding: Finding) -> dict[str, Any]:
    plan = finding.plan
    return {
        "route": finding.route,
        "metric": plan.name,
        "kind": plan.kind.value,
        "word": finding.word.value,
        "rollback": finding.rollback,
        "reason": finding.reason,
        "sentence": sentence(finding),
        "blocks": finding.blocks,
        "pairs": finding.pairs,
        "effect": finding.effect,
        "interval": {"low": finding.interval.low, "high": finding.interval.high},
        "floors": {"warn": plan.warn, "rollback": plan.rollback, "margin": plan.margin},
        "log_e": {"warn": finding.log_e_warn, "rollback": finding.log_e_rollback, "pass": finding.log_e_pass},
        "examples": [dataclasses.asdict(pair) for pair in finding.examples],
    }
