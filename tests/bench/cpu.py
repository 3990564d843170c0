"""(b) CPU time of the agent per exchange, from /proc of all its processes, and what it costs when nothing happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import processes
from tests.bench.figures import Figure, Plan, Target, medians, progress
from tests.bench.measured_agent import SETTLE_S, MeasuredAgent, Setup
from vagrant.lab import Lab, Load, Options

TARGET_CAPTURE_US, TARGET_REPLAY_US = 15, 80
CONNECTIONS = 32  # of the saturating load

MODES = {
    "capture alone": (Setup(replay=False, recording=False), Target("at most", TARGET_CAPTURE_US)),
    "capture and replay": (Setup(recording=False), Target("at most", TARGET_REPLAY_US)),
    "capture, replay and recording": (Setup(), Target("at most", TARGET_REPLAY_US)),
}
NOTE = (
    "all of the agent's processes (service, keeper, workers), divided by the exchanges it saw. Over veth pairs the "
    "agent's system time holds the shadow's receiving side of TCP as well. At saturation the shadow shares the 2 CPUs."
)


@dataclass(frozen=True, slots=True)
class Run:
    """One load with one agent."""

    us_per_exchange: float
    seen: int
    details: dict[str, float]


def measure(plan: Plan) -> list[Figure]:
    """Three modes at three loads; modes take turns within a repeat."""
    runs: dict[tuple[str, str], list[Run]] = {}
    idle: list[float] = []
    with Lab(Options(access_logs=False)) as lab:
        loads = _loads(lab, plan)
        for repeat in range(plan.repeats):
            for load_name, load in loads.items():
                for mode, (setup, _) in MODES.items():
                    progress(f"(b) {mode} at {load_name}, run {repeat + 1} of {plan.repeats}")
                    runs.setdefault((mode, load_name), []).append(one(lab, setup, load))
            idle.append(idle_share(lab, plan.seconds(8)))
    figures = [
        Figure(
            f"(b) {mode} at {load_name}",
            "us/exchange",
            [run.us_per_exchange for run in some],
            MODES[mode][1],
            {"note": NOTE, "medians": medians([run.details for run in some])},
        )
        for (mode, load_name), some in runs.items()
    ]
    return [*figures, Figure("(b) without traffic", "% of a CPU", idle)]


def _loads(lab: Lab, plan: Plan) -> dict[str, Callable[[], Load]]:
    seconds = plan.seconds(10)
    return {
        "1000 req/s": lambda: lab.rate(1000, seconds),
        "3500 req/s": lambda: lab.rate(3500, seconds),
        "saturation": lambda: lab.saturate(seconds, connections=CONNECTIONS),
    }


def one(lab: Lab, setup: Setup, load: Callable[[], Load]) -> Run:
    """Start the agent, apply the load, end the agent."""
    with MeasuredAgent(lab, setup) as agent:
        before, ticks = agent.cpu_by_role_ns(), _ticks(agent.pid)
        result = load()
        time.sleep(SETTLE_S)
        spent = {name: ns - before.get(name, 0) for name, ns in agent.cpu_by_role_ns().items()}
        user, system = (b - a for a, b in zip(ticks, _ticks(agent.pid), strict=True))
        ending = agent.end()
    seen = max(1, ending.fates["seen"])
    details = {
        "seen": seen,
        "production_per_s": result.per_second,
        "replayed_ok_share": ending.ok / seen,
        "us_per_replayed": sum(spent.values()) / 1000 / max(1, ending.ok),  # tells more where much was dropped
        "system_share": system / max(1, user + system),
        "cpu_share": sum(spent.values()) / 1e9 / max(result.seconds, 0.001),
        "at_the_end_us": agent.conversion_s * 1e6 / seen,  # the recording becomes Parquet; not in the figure
    }
    details |= {f"{name}_us": ns / 1000 / seen for name, ns in spent.items()}
    return Run(sum(spent.values()) / 1000 / seen, seen, details)


def idle_share(lab: Lab, seconds: float) -> float:
    """Per cent of one CPU that the agent uses without traffic."""
    progress("(b) without traffic")
    with MeasuredAgent(lab, Setup()) as agent:
        before = sum(agent.cpu_by_role_ns().values())
        time.sleep(seconds)
        spent = sum(agent.cpu_by_role_ns().values()) - before
    return spent / 1e9 / seconds * 100


def _ticks(pid: int) -> tuple[int, int]:
    pairs = [processes.system_share(each) for each in processes.family(pid)]
    return sum(user for user, _ in pairs), sum(system for _, system in pairs)
