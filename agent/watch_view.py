"""What the watching of the shadows reads, and how it looks from outside: alerts, metrics, problems."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.config import Config
from agent.control import alarms
from agent.control.guard import Now
from agent.monitor.watch_metrics import WatchSnapshot
from replay.account import Account

if TYPE_CHECKING:
    from agent.watching import Watching


class Figures:
    """What the watching reads of the rest of the agent, each second."""

    def __init__(
        self,
        accounts: Callable[[], dict[str, Account]],
        programs: Callable[[], dict[str, bool]],
        own: Callable[[], tuple[float, int]],
        kernel: Callable[[], dict[str, int]],
        echoes: Callable[[], dict[str, dict[str, int]]] = dict,
    ) -> None:
        """`own`: CPU seconds and resident bytes of all the agent's processes; `echoes`: by shadow, what agent.echo
        counted."""
        self.accounts = accounts
        self.programs = programs
        self.own = own
        self.kernel = kernel
        self.echoes = echoes


def alarms_of(watching: Watching) -> list[alarms.Alarm]:
    """Which alerts should be active now."""
    now, told = clocks(), watching.link.told if watching.link else None
    found: list[alarms.Alarm] = []
    for standing in watching.standings.values():
        found += alarms.of_guard(standing.name, standing.guard_view(now))
        found += alarms.of_verdict(standing.name, standing.verdict)
        totals = told.traffic.get(standing.name, {}).get("totals", {}) if told else {}
        found += alarms.of_lag(standing.name, totals.get("lag", {}).get("p99_ns"))
    harm = told.harm if told else {}
    undelivered = told.watch.get("undelivered", []) if told else []
    runs = watching.link is None or watching.link.running
    return found + alarms.of_host(harm, watching.over_budget, problems_of(watching), runs, watching.gaps, undelivered)


def problems_of(watching: Watching) -> list[str]:
    """What does not work and should, a line each."""
    found = [watching.records.unreadable, watching.records.problem]
    if watching.link is not None:
        found += watching.link.told.watch.get("problems", [])
    return [problem for problem in found if problem]


def snapshot_of(watching: Watching) -> WatchSnapshot:
    """For the metrics; called from their thread."""
    standings, now = watching.standings.values(), clocks()
    guards = {each.name: each.guard_view(now) for each in standings}
    if watching.link is None:
        return WatchSnapshot(guards=guards)
    told = watching.link.told
    alerts: dict[str, int] = {}
    for alert in told.watch.get("alerts", []):
        alerts[alert["severity"]] = alerts.get(alert["severity"], 0) + 1
    return WatchSnapshot(
        traffic={name: message["totals"] for name, message in list(told.traffic.items())},
        verdicts={each.name: each.verdict for each in standings if each.verdict},
        guards=guards,
        ramps={each.name: each.ramp_view() for each in standings if each.ramp},
        resources=told.watch.get("usage", {}),
        harm=told.harm,
        alerts=alerts,
        watch_up=watching.link.running,
        pairs_unsent=told.watch.get("unsent", 0),
    )


def missing_usage(usage: dict[str, Any]) -> dict[str, list[str]]:
    """By pool whose CPU and memory should be known and are not: which targets, and why."""
    pools = {"production": usage.get("production"), **usage.get("shadows", {})}
    return {
        name: [f"{target}: {why}" for target, why in pool["missing"]]
        for name, pool in pools.items()
        if pool and (pool.get("cpu_cores") is None or pool.get("memory_bytes") is None)
    }


def clocks() -> Now:
    """All of them at one moment."""
    return Now(_boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


@functools.cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def plain(config: Config) -> dict[str, Any]:
    """A configuration as JSON can hold it; `agent.config.validated` reads it."""
    data = config.model_dump(mode="json", by_alias=True)
    del data["alerts"]  # it may hold secrets, and only shadows are ever restored
    return data


def verdict_reason(verdict: dict[str, Any]) -> str:
    """The finding that says most, in one sentence."""
    failed = [each for each in verdict.get("findings", ()) if each["word"] == "fail"]
    failed.sort(key=lambda each: (each["route"] != "all", -each["log_e"]["rollback"]))
    return str(failed[0]["sentence"]) if failed else str(verdict.get("reason", ""))
