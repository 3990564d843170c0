"""Numbers of pools that never were: memory of both, and production's latency with mirroring on and off.

What the judge is fed with `Judge.measure`, a number a block, for many runs at once. Delays are in blocks.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from replay.judge.growth import Growth
from replay.judge.metric import MetricTest
from replay.judge.plan import HARM_SETTINGS, Settings
from tests.judge_sim.figures import NEVER

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Firsts = dict[str, NDArray[np.int64]]
Numbers = tuple[str, Floats, Bools]  # a metric, its number in a block of each run, and which runs have one

LEVELS = ("warn", "rollback")
ALPHA = 0.05
READING_S, STEP_S = 5.0, 30.0
HOURS = 4.0
FIXED_STEPS = "steps of 30 s"
CONTROLS = {FIXED_STEPS: "memory alike, climbs of 10 min, two servers against one"}


@dataclass(frozen=True, slots=True)
class Heap:
    """A pool whose servers climb from nothing to `climb_min` minutes' worth of garbage, and fall."""

    servers: int = 1
    climb_min: float = 0.0  # 0: no garbage
    height: float = 0.3  # of a climb, in shares of what is always used


@dataclass(frozen=True, slots=True)
class Memory:
    """Readings of both pools. `leak` is what the shadow grows in STEP_S."""

    name: str
    production: Heap
    shadow: Heap
    leak: float = 0.0
    filling: float = 0.0  # a cache of the shadow, in shares; after an hour two thirds of it are full
    target: int = 0
    onset: int = 0
    pairs: int = 1
    metrics: tuple[str, ...] = ("memory",)

    @property
    def null(self) -> tuple[tuple[str, str], ...]:
        return () if self.leak else (("memory", "warn"), ("memory", "rollback"))

    @property
    def calm(self) -> tuple[str, ...]:
        return () if self.leak else LEVELS

    @property
    def settings(self) -> Settings:
        return Settings()

    def numbers(self, runs: int, random: np.random.Generator) -> Iterator[Numbers]:
        """What the judge is fed with, of which runs have differently much; and the rival's."""
        production, shadow = _Pools(self, runs, random).readings()
        grown = [_grown(production[:, run], shadow[:, run]) for run in range(runs)]
        for block in range(max(map(len, grown), default=0)):
            live = np.array([block < len(each) for each in grown])
            yield "memory", np.array([each[block] if block < len(each) else 0.0 for each in grown]), live
        everywhere = np.ones(runs, dtype=np.bool_)
        yield from ((FIXED_STEPS, each, everywhere) for each in _fixed_steps(production, shadow))


def _fixed_steps(production: Floats, shadow: Floats) -> Floats:
    """Growth from each half a minute to the next, however the pools swing."""
    per_step = round(STEP_S / READING_S)
    levels = [np.median(each.reshape(-1, per_step, each.shape[1]), axis=1) for each in (production, shadow)]
    return np.diff(levels[1] / levels[1][0] - levels[0] / levels[0][0], axis=0)


def _grown(production: Floats, shadow: Floats) -> list[float]:
    growth = Growth(STEP_S)
    both = zip(production.tolist(), shadow.tolist(), strict=True)
    return [each for at, (ours, theirs) in enumerate(both) for each in growth.add(at * READING_S, ours, theirs)]


class _Pools:
    """Memory of both pools: load drifts and has a day of six hours, both have the same."""

    def __init__(self, scenario: Memory, runs: int, random: np.random.Generator) -> None:
        self._scenario, self._runs, self._random = scenario, runs, random

    def readings(self) -> tuple[Floats, Floats]:
        """Of production and of the shadow, readings by runs."""
        count = round(HOURS * 3600 / READING_S)
        at = np.arange(count) * READING_S
        drift = np.zeros((count, self._runs))
        for each in range(1, count):
            drift[each] = 0.98 * drift[each - 1] + 0.04 * self._random.standard_normal(self._runs)
        phase = 2 * np.pi * (at[:, None] / 21_600 + self._random.random(self._runs))
        load = np.exp(drift) * (1 + 0.5 * np.sin(phase))
        scenario = self._scenario
        more = scenario.leak * at / STEP_S + scenario.filling * -np.expm1(-at / 3600)
        return self._pool(scenario.production, load), self._pool(scenario.shadow, load) + more[:, None]

    def _pool(self, heap: Heap, load: Floats) -> Floats:
        """Noise of 0.2 %, and each server's saw-tooth, whose teeth differ by a fifth."""
        random, shape = self._random, (self._runs, heap.servers)
        noise = 0.002 * random.standard_normal(load.shape)
        if not heap.climb_min:
            return 1 + noise
        pace = heap.height * READING_S / 60 / heap.climb_min
        used, full = heap.height * random.random(shape), heap.height * random.uniform(0.8, 1.2, shape)
        mean = np.empty_like(load)
        for at, share in enumerate(load):
            used = used + np.maximum(pace * share[:, None] * (1 + 0.2 * random.standard_normal(shape)), 0)
            falls = used >= full
            used = np.where(falls, heap.height * random.uniform(0, 0.05, shape), used)
            full = np.where(falls, heap.height * random.uniform(0.8, 1.2, shape), full)
            mean[at] = used.mean(axis=1)
        return 1 + mean + noise


@dataclass(frozen=True, slots=True)
class Harm:
    """Pairs of adjacent blocks, with mirroring on and off, of which a coin says which comes first."""

    name: str
    level: float = 0.0  # log, what mirroring adds to all latencies
    tail: float = 0.0  # log, what it adds to the slowest hundredth
    target: int = 0
    drift: float = 0.0  # log, from block to block, whatever is on
    load: float = 0.0  # spread of the logs of blocks, which hang together
    stalls: float = 0.0  # share of blocks whose slowest hundredth is three times as slow
    requests: int = 3000  # in a block: 600 a second for 5 s
    pairs_of_blocks: int = 120  # two hours, at one a minute
    onset: int = 0
    pairs: int = 1
    metrics: tuple[str, ...] = ("harm_tail", "harm_level")

    @property
    def null(self) -> tuple[tuple[str, str], ...]:
        effects = {"harm_tail": self.level + self.tail, "harm_level": self.level}
        true = [name for name in self.metrics if effects[name] <= HARM_SETTINGS.plan(name).warn + 1e-9]
        return tuple((name, level) for name in true for level in LEVELS)

    @property
    def calm(self) -> tuple[str, ...]:
        return LEVELS if len(self.null) == 4 else ()

    @property
    def settings(self) -> Settings:
        return HARM_SETTINGS

    def numbers(self, runs: int, random: np.random.Generator) -> Iterator[Numbers]:
        """What the judge is fed with."""
        load, blocks_between, everywhere = np.zeros(runs), 12, np.ones(runs, dtype=np.bool_)
        for pair in range(self.pairs_of_blocks):
            sides = []
            for second in range(2):
                stays = 0.95 if second else 0.95**blocks_between
                load = stays * load + self.load * math.sqrt(1 - stays**2) * random.standard_normal(runs)
                at = (pair * (blocks_between + 2) + second) * self.drift
                sides.append([each + load + at for each in self._quantiles(runs, random)])
            first_on = random.random(runs) < 0.5
            on_off = np.where(first_on, -1.0, 1.0)
            (level_1, tail_1), (level_2, tail_2) = sides
            yield "harm_level", on_off * (level_2 - level_1) + self.level, everywhere
            yield "harm_tail", on_off * (tail_2 - tail_1) + self.level + self.tail, everywhere

    def _quantiles(self, runs: int, random: np.random.Generator) -> tuple[Floats, Floats]:
        """Logs of the median and of the 99th percentile of so many lognormal latencies, as order statistics."""
        n = self.requests
        middle, high = n // 2, math.ceil(0.99 * n)
        above = random.beta(high, n - high + 1, runs)
        below = above * random.beta(middle, high - middle, runs)
        stalls = np.where(random.random(runs) < self.stalls, math.log(3), 0.0)
        return 0.5 * _normal(below), 0.5 * _normal(above) + stalls


_SHARES = np.linspace(1e-5, 1 - 1e-5, 20_001)
_NORMAL = np.array([NormalDist().inv_cdf(float(each)) for each in _SHARES])


def _normal(share: Floats) -> Floats:
    """The quantiles of the normal distribution."""
    return np.interp(share, _SHARES, _NORMAL)


Pool = Memory | Harm


def seed_of(scenario: Pool) -> int:
    """Each scenario has random numbers of its own."""
    return zlib.crc32(scenario.name.encode())


def simulate(scenario: Pool, runs: int, seed: int) -> Firsts:
    """The first block at which each thing was found in each run, by its name."""
    settings = scenario.settings
    random = np.random.default_rng([seed, seed_of(scenario)])
    firsts: Firsts = {name: np.full(runs, NEVER) for name in LEVELS}
    tests: dict[str, MetricTest] = {}
    blocks: Counter[str] = Counter()

    def note(name: str, found: Bools) -> None:
        first = firsts.setdefault(name, np.full(runs, NEVER))
        first[found & (first == NEVER)] = blocks[metric]

    for metric, numbers, live in scenario.numbers(runs, random):
        plan = settings.plan(scenario.metrics[0] if metric == FIXED_STEPS else metric)
        if metric not in tests:
            tests[metric] = MetricTest(plan, settings.warm_up_blocks, settings.pass_evidence, (runs,))
        test = tests[metric]
        test.add(numbers)
        alone = math.log(settings.route_weight(0) * plan.weight)  # a group of its own, as in Judge.measure
        if metric == FIXED_STEPS:
            note(metric, test.warn.log_e + alone >= math.log(1 / settings.warn_alpha))
        else:
            for level, alpha in (("warn", settings.warn_alpha), ("rollback", settings.rollback_alpha)):
                log_e = getattr(test, level).log_e
                note(level, live & (log_e + alone >= math.log(1 / alpha)))
                note(f"{metric}/{level}", live & (log_e >= math.log(1 / ALPHA)))
            note(f"{metric}/passing", live & (test.passing.log_e >= settings.pass_evidence))
        blocks[metric] += 1
    return firsts


_ONE = Heap()
_TWO = Heap(2)
MEMORY = (
    Memory("memory alike, no garbage", _TWO, _ONE),
    Memory("memory alike, climbs of 1 min", Heap(1, 1), Heap(1, 1)),
    Memory("memory alike, climbs of 10 min", Heap(1, 10), Heap(1, 10)),
    Memory("memory alike, climbs of 2 h", Heap(1, 120), Heap(1, 120)),
    Memory("memory alike, climbs of 1 min, two servers against one", Heap(2, 2), Heap(1, 1)),
    Memory("memory alike, climbs of 10 min, two servers against one", Heap(2, 20), Heap(1, 10)),
    Memory("memory, only the shadow's climbs, of 10 min", _TWO, Heap(1, 10)),
    Memory("memory, a cache of the shadow fills", _TWO, _ONE, filling=0.3),
    Memory("leak 0.1 %, no garbage", _TWO, _ONE, leak=0.001),
    Memory("leak 1 %, no garbage", _TWO, _ONE, leak=0.01, target=30),
    Memory("leak 0.3 %, climbs of 1 min", Heap(1, 1), Heap(1, 1), leak=0.003),
    Memory("leak 1 %, climbs of 1 min", Heap(1, 1), Heap(1, 1), leak=0.01, target=30),
    Memory("leak 1 %, climbs of 1 min, two servers against one", Heap(2, 2), Heap(1, 1), leak=0.01),
)
_LIVELY = {"load": 0.3, "stalls": 0.05}
HARM = (
    Harm("no harm", requests=500),
    Harm("no harm, load drifts and hangs together", load=0.3, drift=0.002),
    Harm("no harm, load, stalls", **_LIVELY),  # type: ignore[arg-type]
    Harm("harm at its floors", level=math.log(1.02), tail=math.log(1.05 / 1.02)),
    Harm("harm +5 % of the tail", tail=math.log(1.05)),
    Harm("harm +10 % of the tail", tail=math.log(1.10)),
    Harm("harm +10 % of the tail, load, stalls", tail=math.log(1.10), **_LIVELY),  # type: ignore[arg-type]
    Harm("harm +30 % of the tail", tail=math.log(1.30), target=25),
    Harm("harm +30 % of the tail, load, stalls", tail=math.log(1.30), **_LIVELY),  # type: ignore[arg-type]
    Harm("harm +10 % of all, load, stalls", level=math.log(1.10), **_LIVELY),  # type: ignore[arg-type]
)
