"""What a benchmark answers: figures with all their repeats, the median, and whether the target was met."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that the issue names."""

    bound: Literal["at least", "at most"]
    value: float

    def met_by(self, value: float) -> bool:
        """Whether a figure is on the right side."""
        return value >= self.value if self.bound == "at least" else value <= self.value


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. `extra` explains it: what else was seen in the same runs, and under which conditions."""

    name: str
    unit: str
    values: list[float]
    target: Target | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of the repeats; NaN of none."""
        return statistics.median(self.values) if self.values else float("nan")

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        return self.target.met_by(self.median) if self.target else None

    def as_json(self) -> dict[str, Any]:
        """Plain dict."""
        out: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "median": rounded(self.median),
            "repeats": [rounded(value) for value in self.values],
        }
        if self.target is not None:
            out["target"] = {self.target.bound: self.target.value}
            out["met"] = self.met
        return out | ({"extra": self.extra} if self.extra else {})

    def line(self) -> str:
        """One line of the closing table."""
        spread = f"{number(min(self.values))} - {number(max(self.values))}" if self.values else "no runs"
        target = f"{self.target.bound} {number(self.target.value)}" if self.target else ""
        met = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"  {self.name:<58}{number(self.median):>11} {self.unit:<12}{spread:>23}  {target:<16}{met}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    repeats: int = 3
    quick: bool = False

    def seconds(self, full: float, quick: float = 2.0) -> float:
        """Length of one run."""
        return quick if self.quick else full


def rounded(value: float) -> float:
    """Four digits are more than a noisy machine can tell; whole numbers stay whole."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def number(value: float) -> str:
    """For people."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each key that all runs have."""
    common = [key for key in runs[0] if all(key in run for run in runs)] if runs else []
    return {key: rounded(statistics.median(run[key] for run in runs)) for key in common}


def progress(text: str) -> None:
    """Tell whoever watches."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
