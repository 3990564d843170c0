"""(d) What production loses to the agent, and (g) whether a slow shadow costs it more than a fast one.

In the lab the shadow runs on production's own two CPUs. In reality it is another host, so it gets the lowest priority
here, where nothing else is said; the figures with a shadow of usual priority stand beside them.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.bench import processes
from tests.bench.figures import Figure, Plan, Target, progress, rounded
from tests.bench.measured_agent import MeasuredAgent, Setup
from vagrant.lab import Lab, Load, Options

CONNECTIONS = 200  # at 1 % of the connections some should be sampled
PERCENTAGES = (1.0, 10.0, 100.0)
TARGET_THROUGHPUT, TARGET_SLOW_SHADOW = 0.85, 0.95
SLOW_MS = 100.0
LAST = "lowest (nice 19, SCHED_IDLE, autogroup 19): in reality the shadow is another host"
USUAL = "usual: the shadow takes production's CPU"


@dataclass(slots=True)
class Pairs:
    """Runs with the agent, each with the run without it that stood beside it."""

    off: list[Load] = field(default_factory=list)
    on: list[Load] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def throughput(self) -> list[float]:
        """Of production with the agent, over that without."""
        return [on.per_second / off.per_second for off, on in zip(self.off, self.on, strict=True)]

    def p99(self) -> list[float]:
        """The same for the 99th percentile of the time a client waits."""
        return [on.p99_us / max(1, off.p99_us) for off, on in zip(self.off, self.on, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Absolute medians."""
        out: dict[str, Any] = {}
        for name, loads in (("off", self.off), ("on", self.on)):
            out[f"{name}_per_s"] = rounded(statistics.median(load.per_second for load in loads))
            out[f"{name}_p99_us"] = statistics.median(load.p99_us for load in loads)
        return out | {"runs": self.details}


def measure(plan: Plan) -> list[Figure]:
    """Throughput and p99 at three percentages, and with both priorities of the shadow."""
    figures: list[Figure] = []
    with Lab(Options(access_logs=False)) as lab:
        for priority in (USUAL, LAST):
            if priority is LAST:
                processes.put_last(processes.in_namespace(lab.netns("shadow")))
            pairs = {percentage: Pairs() for percentage in PERCENTAGES}
            for repeat in range(plan.repeats):
                for percentage in PERCENTAGES:
                    progress(f"(d) production at {percentage:g} %, run {repeat + 1} of {plan.repeats}")
                    add_pair(lab, plan, pairs[percentage], Setup(percentage), off_first=repeat % 2 == 0)
            for percentage, some in pairs.items():
                figures += _figures(percentage, some, priority)
    return figures


def _figures(percentage: float, pairs: Pairs, priority: str) -> list[Figure]:
    last = priority is LAST
    name = f"at {percentage:g} %" + ("" if last else ", shadow in the way")
    target = Target("at least", TARGET_THROUGHPUT) if last and percentage == 10.0 else None
    extra = {"shadow_priority": priority, **pairs.summary()}
    return [
        Figure(f"(d) throughput {name}", "of off", pairs.throughput(), target, extra),
        Figure(f"(d) p99 {name}", "of off", pairs.p99()),
        Figure(f"(d) delivered {name}", "share", [run["delivered"] for run in pairs.details]),
    ]


def add_pair(lab: Lab, plan: Plan, pairs: Pairs, setup: Setup, *, off_first: bool) -> None:
    """One run without and one with the agent, one right after the other."""
    if off_first:
        pairs.off.append(saturate(lab, plan))
    with_agent(lab, plan, pairs, setup)
    if not off_first:
        pairs.off.append(saturate(lab, plan))


def saturate(lab: Lab, plan: Plan) -> Load:
    """As many requests as production can answer."""
    return lab.saturate(plan.seconds(6), connections=CONNECTIONS)


def with_agent(lab: Lab, plan: Plan, pairs: Pairs, setup: Setup) -> None:
    """One run with the agent."""
    with MeasuredAgent(lab, setup) as agent:
        load = saturate(lab, plan)
        ending = agent.end()
    seen = ending.fates["seen"]
    pairs.on.append(load)
    pairs.details.append(
        {
            "production": load.requests,
            "seen": seen,
            "seen_share": rounded(seen / max(1, load.requests)),
            "delivered": ending.ok / expected if (expected := load.requests * setup.percentage / 100) else 0.0,
            "delivered_of_seen": rounded(ending.ok / max(1, seen)),
            "failed": load.failed,
            "lost": ending.lost(),
        }
    )


def measure_slow_shadow(plan: Plan) -> list[Figure]:
    """(g): a lab with a fast shadow and one with a slow one stand side by side; the runs take turns."""
    fast, slow = Pairs(), Pairs()
    options = (Options(access_logs=False, shadow="origin", shadow_delay_ms=delay_ms) for delay_ms in (0.0, SLOW_MS))
    fast_options, slow_options = options
    with Lab(fast_options) as fast_lab, Lab(slow_options) as slow_lab:
        for lab in (fast_lab, slow_lab):
            processes.put_last(processes.in_namespace(lab.netns("shadow")))
        for repeat in range(plan.repeats):
            progress(f"(g) production with a slow shadow, run {repeat + 1} of {plan.repeats}")
            order = [(fast_lab, fast), (slow_lab, slow)]
            for lab, pairs in order if repeat % 2 == 0 else reversed(order):
                add_pair(lab, plan, pairs, Setup(), off_first=repeat % 2 == 0)
    ratio = [s.per_second / f.per_second for s, f in zip(slow.on, fast.on, strict=True)]
    extra = {"shadow_priority": LAST, "fast": fast.summary(), "slow": slow.summary()}
    return [
        Figure(f"(g) production with a shadow of {SLOW_MS:g} ms", "of fast", ratio, Target("at least", 0.95), extra),
        Figure(f"(g) production with a shadow of {SLOW_MS:g} ms, of agent off", "of off", slow.throughput()),
        Figure("(g) production with a fast shadow, of agent off", "of off", fast.throughput()),
    ]
