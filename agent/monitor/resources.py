"""CPU and memory of pools: readings of targets become figures of an interval, and figures what the judge is fed with.

    target ──Reading or Gap──► PoolUsage ──Usage──► Comparison ──("cpu", D), ("memory", D)──► Judge.measure

A figure of an interval exists only where every target of the pool was read at both ends and nothing began anew between;
else there is none, with the reasons. Nothing is filled in.

**CPU** is judged by the log of the ratio of CPU seconds a request. What a host does without any request weighs the more
on each the fewer there are, so a shadow with far less load a host than production's is not compared.

**Memory** is judged by a host's growth in a step, the shadow's less production's, as a share of what a host used when
both had warmed up: the mean of both sides, for each side's own would make pools differ that are alike. What a step is
where memory swings is said in replay/judge/growth.py. A FAIL takes some 16 to 20 numbers even of a large leak, and the
margin of a PASS, 0.1 % a step of 30 s, is 12 % an hour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.monitor.exposition import Gap, Key, Reading, Values
from replay.judge.growth import Growth

CPU, MEMORY = "cpu", "memory"  # names of metrics in the judge's plan
START_SLACK_S = 2.0  # by which a start seems to move when the clock is set a little
SHOWN_LIMIT = 8  # reasons in JSON
REQUESTS = "requests"  # stands for a target where their counter is missing


@dataclass(frozen=True, slots=True)
class Rates:
    """What a Prometheus server says of a whole pool; None for what it was not asked, or does not know (`why`)."""

    cpu_cores: float | None = None
    memory_bytes: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """When figures are good enough to judge by. Figures are compared by host."""

    interval_s: float = 5.0
    cpu_step_s: float = 0.0  # between two numbers of CPU: the range of a query, whose next answers share it
    memory_step_s: float = 30.0
    warm_up_s: float = 300.0
    least_requests: int = 20
    least_load: float = 0.5
    production_hosts: int = 1
    shadow_hosts: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """A pool's figures of one interval; None is unknown, and `missing` says of which target and why.

    `requests_per_s` and `cpu_seconds_per_request` are `estimated` where the requests were counted by sampling.
    `restarts` counts, since the beginning, what began anew in the pool.
    """

    cpu_cores: float | None = None
    memory_bytes: float | None = None
    requests_per_s: float | None = None
    cpu_seconds_per_request: float | None = None
    targets: int = 0
    missing: tuple[tuple[str, str], ...] = ()
    estimated: bool = False
    restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        """For status and metrics; bounded."""
        return {
            "cpu_cores": self.cpu_cores,
            "memory_bytes": self.memory_bytes,
            "requests_per_s": self.requests_per_s,
            "cpu_seconds_per_request": self.cpu_seconds_per_request,
            "targets": self.targets,
            "missing": [list(each) for each in self.missing[:SHOWN_LIMIT]],
            "missing_count": len(self.missing),
            "estimated": self.estimated,
            "restarts": self.restarts,
        }


@dataclass(slots=True)
class _Series:
    """The last two looks at one target, and why there is none. `last` outlives gaps: a restart in one is seen."""

    before: tuple[Reading | Rates, float] | None = None
    now: tuple[Reading | Rates, float] | None = None
    last: Reading | Rates | None = None
    why: str = "not read yet"


@dataclass(slots=True)
class _Requests:
    """What is known of a pool's requests: a count that goes on, and what it makes a second."""

    last: tuple[Values, float] | None = None
    per_s: float | None = None
    why: str = "not counted"
    estimated: bool = False

    def take(self, values: Values | Gap, at_s: float) -> None:
        """A series that comes up has begun at 0; one that goes or falls tells of a new beginning."""
        last, self.per_s = self.last, None
        if isinstance(values, Gap):
            self.last, self.why = None, values.why
            return
        self.last = (values, at_s)
        if last is None or at_s <= last[1]:
            self.why = "counted once so far"
        elif any(values.get(key, -1.0) < value for key, value in last[0].items()):
            self.why = "the count began anew"
        else:
            self.per_s, self.why = (sum(values.values()) - sum(last[0].values())) / (at_s - last[1]), ""


@dataclass(slots=True)
class PoolUsage:
    """One pool. `at_s` is of any clock that never goes back. A target that is not of `targets` is a KeyError."""

    targets: Sequence[str]
    idle_cores: float = 0.0  # used by the pool without any request
    _series: dict[str, _Series] = field(init=False)
    _requests: _Requests = field(default_factory=_Requests, init=False)
    _restarts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._series = {target: _Series() for target in self.targets}

    def add(self, target: str, reading: Reading | Rates, at_s: float) -> None:
        """Take what a target has said."""
        series = self._series[target]
        series.before, series.now, series.why = series.now, (reading, at_s), ""
        if began_anew(series.last, reading):
            self._restarts += 1
            series.before, series.why = None, "it began anew"
        elif series.before is None and isinstance(reading, Reading):
            series.why = "read once so far"
        series.last = reading

    def gap(self, target: str, at_s: float, why: str) -> None:
        """Take that a target has said nothing, or nothing that can be used."""
        series = self._series[target]
        series.before, series.now, series.why = None, None, why

    def count(self, values: Values | Gap, at_s: float, estimated: bool = False) -> None:
        """Take a count of the pool's requests, which goes on from look to look."""
        self._requests.estimated = estimated
        self._requests.take(values, at_s)

    def rate(self, per_s: float | Gap) -> None:
        """Take how many requests a second the pool has, where no count of them is at hand."""
        self._requests = _Requests(None, None, per_s.why) if isinstance(per_s, Gap) else _Requests(None, per_s, "")

    def usage(self) -> Usage:
        """The figures of the interval between the last two looks."""
        cores = _sum([_cores(series) for series in self._series.values()])
        rate = self._requests.per_s
        busy = None if cores is None else cores - self.idle_cores
        missing = [(target, why) for target, series in self._series.items() if (why := _why(series))]
        if rate is None:
            missing.append((REQUESTS, self._requests.why))
        return Usage(
            cpu_cores=cores,
            memory_bytes=_sum([_memory(series) for series in self._series.values()]),
            requests_per_s=rate,
            cpu_seconds_per_request=busy / rate if busy is not None and busy > 0 and rate else None,
            targets=len(self._series),
            missing=tuple(missing),
            estimated=self._requests.estimated,
            restarts=self._restarts,
        )


def began_anew(before: Reading | Rates | None, after: Reading | Rates) -> bool:
    """Two readings of one target do not belong together: something was started between them, or others speak now."""
    if not isinstance(before, Reading) or not isinstance(after, Reading):
        return False
    if before.source != after.source or before.cpu_seconds.keys() != after.cpu_seconds.keys():
        return True
    if before.started.keys() != after.started.keys():
        return True
    if any(abs(after.started[key] - at) > START_SLACK_S for key, at in before.started.items()):
        return True
    return any(after.cpu_seconds[key] < value for key, value in before.cpu_seconds.items())


def _why(series: _Series) -> str:
    """What is lacking of a target's CPU and memory; "" when nothing is."""
    if series.why or series.now is None:
        return series.why
    if isinstance(series.now[0], Rates):
        return series.now[0].why
    lacking = [what for what, value in (("CPU", _cores(series)), ("memory", _memory(series))) if value is None]
    return f"it says nothing of {' and '.join(lacking)}" if lacking else ""


def _cores(series: _Series) -> float | None:
    if series.now is None:
        return None
    now, at_s = series.now
    if isinstance(now, Rates):
        return now.cpu_cores
    if series.before is None or not now.cpu_seconds:
        return None
    before, before_s = series.before
    if not isinstance(before, Reading) or at_s <= before_s:
        return None
    used: dict[Key, float] = {key: value - before.cpu_seconds[key] for key, value in now.cpu_seconds.items()}
    return math.fsum(used.values()) / (at_s - before_s)


def _memory(series: _Series) -> float | None:
    return None if series.now is None else series.now[0].memory_bytes


def _sum(parts: Sequence[float | None]) -> float | None:
    """None when any part is unknown, or there is none."""
    known = [part for part in parts if part is not None]
    return math.fsum(known) if known and len(known) == len(parts) else None


class Comparison:
    """What the judge of one shadow is fed with. `reasons` says of each metric without a number why there was none."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._cpu_due_s = -math.inf
        self._memory = _Growth(rules)
        self.reasons: dict[str, str] = {}

    def compare_usage(self, production: Usage, shadow: Usage, at_s: float) -> list[tuple[str, float]]:
        """Take the figures of both pools of one look; gives metrics with their numbers for `Judge.measure`."""
        cpu, memory = self._cpu(production, shadow, at_s), self._memory.add(production, shadow, at_s)
        found = {CPU: cpu if isinstance(cpu, Gap) else [cpu], MEMORY: memory}
        self.reasons = {metric: each.why for metric, each in found.items() if isinstance(each, Gap)}
        return [(metric, value) for metric, each in found.items() if not isinstance(each, Gap) for value in each]

    def _cpu(self, production: Usage, shadow: Usage, at_s: float) -> float | Gap:
        if at_s < self._cpu_due_s:
            return Gap("waits until the queries look at new time alone")
        found = compare_cpu(production, shadow, self._rules)
        if not isinstance(found, Gap) and self._rules.cpu_step_s > self._rules.interval_s:
            self._cpu_due_s = at_s + self._rules.cpu_step_s
        return found


def compare_cpu(production: Usage, shadow: Usage, rules: Rules) -> float | Gap:
    """Log of the shadow's CPU seconds a request over production's."""
    for side, usage in (("production", production), ("the shadow", shadow)):
        if usage.requests_per_s is None or usage.cpu_cores is None:
            return Gap(f"{side}'s figures are not complete")
        if usage.requests_per_s * rules.interval_s < rules.least_requests:
            return Gap(f"{side} had fewer than {rules.least_requests} requests")
    share = _load(shadow, rules.shadow_hosts) / _load(production, rules.production_hosts)
    if share < rules.least_load:
        return Gap(f"a host of the shadow has {share:.0%} of the load of one of production's, too little to compare")
    if not production.cpu_seconds_per_request or not shadow.cpu_seconds_per_request:
        return Gap("no CPU was used beyond what is used without requests")
    return math.log(shadow.cpu_seconds_per_request) - math.log(production.cpu_seconds_per_request)


def _load(usage: Usage, hosts: int) -> float:
    return (usage.requests_per_s or 0.0) / hosts


class _Growth:
    """Memory of a host of both pools. A restart in either begins the whole anew."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._restarts: tuple[int, int] | None = None
        self._ready_s = 0.0
        self._growth: Growth | None = None

    def add(self, production: Usage, shadow: Usage, at_s: float) -> list[float] | Gap:
        """Take one look; gives the numbers that count now."""
        restarts = (production.restarts, shadow.restarts)
        if restarts != self._restarts:
            self._restarts, self._growth, self._ready_s = restarts, None, at_s + self._rules.warm_up_s
        if at_s < self._ready_s:
            return Gap(f"warms up for {self._ready_s - at_s:.0f} s more")
        if not production.memory_bytes or not shadow.memory_bytes:
            return Gap(f"{'the shadow' if production.memory_bytes else 'production'}'s memory is not known")
        if self._growth is None:
            self._growth = Growth(self._rules.memory_step_s)
        hosts = self._rules.production_hosts, self._rules.shadow_hosts
        found = self._growth.add(at_s, production.memory_bytes / hosts[0], shadow.memory_bytes / hosts[1])
        waits = self._growth.waiting
        return found or Gap(f"{waits} numbers wait for a swing of memory to end" if waits else "the step goes on")
