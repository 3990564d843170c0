"""Traffic that never was: latencies and errors of both pools, many runs at once, a block of pairs at a time.

Requests come at RATE a second, so a block of PAIRS is a second. Latencies are lognormal (sigma 0.6, median 10 ms) and
correlated within a pair. What a scenario adds is added to both pools alike, unless it is an effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.judge.plan import DEFAULT_PLANS

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RATE, PAIRS = 250, 250
BLOCKS = 120  # 30 000 pairs
SIGMA = 0.6
SLOW_MS = 16.6  # a fifth of the latencies is above
BASE_MS = 10.0
TIMEOUT_MS = 200.0
PLANS = {plan.name: plan for plan in DEFAULT_PLANS}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What the traffic is like, and what is claimed of the judge in it."""

    name: str
    null: tuple[tuple[str, str], ...] = ()  # metric and process whose hypothesis is true: 20 to 1 at most in 5 %
    calm: tuple[str, ...] = ()  # levels at which the whole must not fail more often than it says
    target: int = 0  # pairs in which half of the runs must be warned
    pairs: int = PAIRS  # in a block
    rho: float = 0.7
    effect: float = 0.0  # log, of every latency of the shadow
    slow_effect: float = 0.0  # log, of its slowest fifth
    onset: int = 0  # block from which the effect is there
    blocks: int = BLOCKS
    tail_share: float = 0.0
    tail_factor: float = 10.0
    errors: tuple[float, float] = (0.001, 0.001)
    stall_every: int = 0  # requests, for each pool
    stall: tuple[int, int] = (12, 125)  # shortest and longest, in requests: 50 to 500 ms
    error_burst_every: int = 0  # requests; half of 100 requests fail
    differing: float = 0.0  # share of answers that differ
    load: bool = False
    diurnal: bool = False
    clock_ms: float = 0.0
    loss: float = 0.0
    timeouts: float = 0.0  # share of requests that hang, at either pool


# Of 50 to 500 ms, each pool once in 12 s. The judge makes its blocks 2.5 times as long as stalls; so are they here.
STALLS: dict[str, Any] = {"stall_every": 3000, "pairs": 312}
LEVELS = ("warn", "rollback")
FAILS = tuple((name, level) for name in ("latency", "tail", "errors") for level in LEVELS)


def _boundary(metric: str, process: str, **changes: object) -> Scenario:
    """Exactly at a floor, which must not count as beyond it."""
    floor = getattr(PLANS[metric], "margin" if process == "passing" else process)
    where: dict[str, object] = {"effect": floor} if metric == "latency" else {"slow_effect": floor}
    if metric == "errors":
        where = {"errors": (0.001, 0.001 + floor)}
    elif metric == "differences":
        where = {"differing": floor}
    name = f"{metric} at its floor, {process}" + ", stalls" * ("stall_every" in changes)
    name += ", error bursts" * ("error_burst_every" in changes)
    calm = {"warn": LEVELS, "rollback": LEVELS[1:], "passing": ()}[process]
    return Scenario(name, ((metric, process),), calm, **where, **changes)  # type: ignore[arg-type]


ALIKE = (
    Scenario("alike, iid", FAILS, LEVELS, rho=0.0),
    Scenario("alike, rho 0.7", FAILS, LEVELS),
    Scenario("alike, load", FAILS, LEVELS, load=True),
    Scenario("alike, stalls", FAILS, LEVELS, **STALLS),
    Scenario("alike, error bursts", FAILS, LEVELS, error_burst_every=20_000),
    Scenario("alike, 1 ms clock", FAILS, LEVELS, clock_ms=5.0),
    Scenario("alike, day and night", FAILS, LEVELS, diurnal=True),
    Scenario("alike, 1 % lost", FAILS, LEVELS, loss=0.01),
    Scenario("alike, timeouts", FAILS, LEVELS, timeouts=0.002),
)
FLOORS = (
    _boundary("latency", "warn"),
    _boundary("latency", "warn", **STALLS),
    _boundary("latency", "rollback"),
    _boundary("latency", "passing"),
    _boundary("latency", "passing", **STALLS),
    _boundary("tail", "warn"),
    _boundary("tail", "warn", **STALLS),
    _boundary("tail", "rollback"),
    _boundary("tail", "rollback", **STALLS),
    _boundary("tail", "passing"),
    _boundary("tail", "passing", **STALLS),
    _boundary("errors", "passing"),
    _boundary("errors", "passing", error_burst_every=20_000),
    _boundary("differences", "warn"),
    _boundary("differences", "passing"),
)
EFFECTS = (
    Scenario("+5 %", effect=math.log(1.05)),
    Scenario("+10 %", target=5000, effect=math.log(1.10)),
    Scenario("+10 %, rho 0", target=5000, rho=0.0, effect=math.log(1.10)),
    Scenario("+10 %, stalls", target=5000, effect=math.log(1.10), **STALLS),
    Scenario("+20 %", target=5000, effect=math.log(1.20)),
    Scenario("+20 %, stalls", target=5000, effect=math.log(1.20), **STALLS),
    Scenario("1 % of requests x10", tail_share=0.01),
    Scenario("1 % of requests x10, stalls", tail_share=0.01, **STALLS),
    Scenario("errors 0.1 -> 0.5 %", target=7000, errors=(0.001, 0.005)),
    Scenario("errors 0.1 -> 0.5 %, stalls", target=7000, errors=(0.001, 0.005), **STALLS),
    Scenario("+10 % after 15 000 pairs", effect=math.log(1.10), onset=60),
    Scenario("+10 % after 15 000 pairs, stalls", effect=math.log(1.10), onset=60, **STALLS),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One block of every run: latencies in nanoseconds, runs by pairs."""

    production: Floats
    shadow: Floats
    production_error: Bools
    shadow_error: Bools
    different: Bools


class Traffic:
    """The blocks of some runs, one after the other."""

    def __init__(self, scenario: Scenario, runs: int, random: np.random.Generator) -> None:
        self.scenario = scenario
        self._runs = runs
        self._random = random
        self._block = 0
        self._load = np.zeros((runs, 1))
        self._stalls = (_Bursts(runs, scenario.pairs, random), _Bursts(runs, scenario.pairs, random))
        self._error_bursts = (_Bursts(runs, scenario.pairs, random), _Bursts(runs, scenario.pairs, random))
        self._phase = random.random((runs, 1)) * 2 * np.pi

    def next(self) -> Sample:
        """The next block of every run."""
        plan = self.scenario
        changed = self._block >= plan.onset
        shared = self._normal() * math.sqrt(plan.rho)
        own = math.sqrt(1 - plan.rho)
        sigma = np.full((self._runs, 1), SIGMA)
        if plan.load:
            self._load = 0.95 * self._load + 0.3 * math.sqrt(1 - 0.95**2) * self._random.standard_normal(
                (self._runs, 1)
            )
            shared = shared + self._load / SIGMA
        if plan.diurnal:
            wave = np.sin(2 * np.pi * self._block / 100 + self._phase)
            sigma, shared = sigma * (1 + 0.5 * wave), shared + wave
        sides = [np.log(BASE_MS) + sigma * (shared + own * self._normal()) for _ in range(2)]
        if changed and plan.tail_share:
            sides[1] = sides[1] + np.where(self._chance(plan.tail_share), math.log(plan.tail_factor), 0.0)
        latencies = [np.exp(side) for side in sides]
        rates = plan.errors if changed else (plan.errors[0], plan.errors[0])
        errors = [self._chance(rate) for rate in rates]
        different = self._chance(plan.differing if changed else 0.0)
        self._disturb(latencies, errors)
        if changed:
            slow = np.where(latencies[1] > SLOW_MS, plan.slow_effect, 0.0)
            latencies[1] = latencies[1] * np.exp(plan.effect + slow)
        self._block += 1
        return self._seen(latencies, errors, different)

    def _disturb(self, latencies: list[Floats], errors: list[Bools]) -> None:
        """Bursts and hanging requests, at each pool for itself."""
        plan = self.scenario
        for side in range(2):
            if plan.stall_every:
                latencies[side] = latencies[side] + self._stalls[side].next(plan.stall_every, *plan.stall) * 1000 / RATE
            if plan.error_burst_every:
                burst = self._error_bursts[side].next(plan.error_burst_every, 100, 100) > 0
                errors[side] = errors[side] | (burst & self._chance(0.5))
            if plan.timeouts:
                latencies[side] = np.where(self._chance(plan.timeouts), np.inf, latencies[side])
                errors[side] = errors[side] | (latencies[side] >= TIMEOUT_MS)
                latencies[side] = np.minimum(latencies[side], TIMEOUT_MS)

    def _seen(self, latencies: list[Floats], errors: list[Bools], different: Bools) -> Sample:
        plan = self.scenario
        if plan.clock_ms:
            latencies = [np.floor(side / plan.clock_ms) * plan.clock_ms for side in latencies]
        columns: list[NDArray[np.generic]] = [*latencies, *errors, different]
        if plan.loss:  # what is slow on either side is lost first, but not always
            kept = plan.pairs - math.ceil(plan.loss * plan.pairs)
            score = np.log(latencies[0] + 1) + np.log(latencies[1] + 1) + self._normal()
            order = np.sort(np.argpartition(score, kept, axis=1)[:, :kept], axis=1)
            columns = [np.take_along_axis(column, order, axis=1) for column in columns]
        production, shadow, failed, shadow_failed, unlike = columns
        return Sample(production * 1e6, shadow * 1e6, failed, shadow_failed, unlike)  # type: ignore[arg-type, operator]

    def _normal(self) -> Floats:
        return self._random.standard_normal((self._runs, self.scenario.pairs), dtype=np.float32).astype(np.float64)

    def _chance(self, share: float) -> Bools:
        if share <= 0:
            return np.zeros((self._runs, self.scenario.pairs), dtype=np.bool_)
        return self._random.random((self._runs, self.scenario.pairs), dtype=np.float32) < share


class _Bursts:
    """How many requests a burst still lasts, at each request; a burst may go on in the next block."""

    def __init__(self, runs: int, pairs: int, random: np.random.Generator) -> None:
        self._random = random
        self._pairs = pairs
        self._left = np.zeros((runs, 1))

    def next(self, every: int, shortest: int, longest: int) -> Floats:
        runs = len(self._left)
        at = np.arange(self._pairs)[None, :]
        starts = self._random.random((runs, 1)) < self._pairs / every
        start = self._random.integers(0, self._pairs, (runs, 1))
        end = start + self._random.integers(shortest, longest + 1, (runs, 1))
        fresh = np.where(starts & (at >= start), end - at, 0)
        left = np.maximum(np.maximum(self._left - at, fresh), 0.0)
        self._left = np.maximum(left[:, -1:] - 1, 0.0)
        return left
