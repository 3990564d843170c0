"""(f) Resident memory of all the agent's processes: after the start, and the most over a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench import processes
from tests.bench.figures import Figure, Plan, Target, progress
from tests.bench.measured_agent import MeasuredAgent, Setup
from tests.bench.processes import MIB
from vagrant.lab import Lab, Load, Options

TARGET_MIB = 120
REST_S = 1.5


def measure(plan: Plan) -> list[Figure]:
    """Sums over the processes. RSS counts pages that processes share in each of them; PSS only once."""
    results: dict[str, list[dict[str, Any]]] = {}
    with Lab(Options(access_logs=False)) as lab:
        loads: dict[str, Callable[[], Load]] = {
            "3500 req/s": lambda: lab.rate(3500, plan.seconds(20)),
            "saturation": lambda: lab.saturate(plan.seconds(20), connections=32),
        }
        for repeat in range(plan.repeats):
            for name, load in loads.items():
                progress(f"(f) memory at {name}, run {repeat + 1} of {plan.repeats}")
                results.setdefault(name, []).append(one(lab, load))
    start = [run["start"] for runs in results.values() for run in runs]
    figures = _figures("after the start", start)
    for name, runs in results.items():
        figures += _figures(f"peak at {name}", [run["peak"] for run in runs])
    return figures


def _figures(name: str, samples: list[dict[str, Any]]) -> list[Figure]:
    """What the agent takes from the host is the PSS; the sum of RSS has the interpreter's pages in it three times."""
    pss, rss = ([sample[key] for sample in samples] for key in ("pss_mib", "rss_mib"))
    return [
        Figure(f"(f) memory {name} (PSS)", "MiB", pss, Target("at most", TARGET_MIB), {"runs": samples}),
        Figure(f"(f) memory {name} (sum of RSS)", "MiB", rss),
    ]


def one(lab: Lab, load: Callable[[], Load]) -> dict[str, Any]:
    """Memory before, during and after one load."""
    with MeasuredAgent(lab, Setup()) as agent:
        start = processes.MemoryWatch(agent.pid)
        time.sleep(REST_S)
        start.sample()
        with processes.MemoryWatch(agent.pid) as watch:
            load()
        highest = {processes.role(pid): processes.peak_rss_bytes(pid) for pid in processes.family(agent.pid)}
    peak = _in_mib(watch) | {"peak_by_process_mib": _all_in_mib(highest)}
    return {"start": _in_mib(start), "peak": peak}


def _in_mib(watch: processes.MemoryWatch) -> dict[str, Any]:
    mib = _all_in_mib({"rss": watch.rss, "pss": watch.pss})
    return {"rss_mib": mib["rss"], "pss_mib": mib["pss"], "rss_by_process_mib": _all_in_mib(watch.by_role)}


def _all_in_mib(values: dict[str, int]) -> dict[str, float]:
    return {name: round(value / MIB, 1) for name, value in values.items()}
