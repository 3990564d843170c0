"""False alarms and delays of the judge, simulated: `python -m tests.judge_sim.run [--short] [--runs N] [--only A;B]`.

Uses the judge's own measures, e-processes and averages, on arrays of runs. Prints a table on stderr and JSON on stdout;
exit status 1 when a claim does not hold, or when the negative controls do not fail where they must.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.judge import measures
from replay.judge.group import group_evidence
from replay.judge.metric import MetricTest
from replay.judge.plan import Settings
from tests.judge_sim import pools, scenarios
from tests.judge_sim.figures import NEVER, delay, share, upper_bound
from tests.judge_sim.pools import Pool
from tests.judge_sim.rivals import KAYENTA_Z, PEEKING_Z, MannWhitney
from tests.judge_sim.scenarios import Sample, Scenario, Traffic

RUNS_ALIKE, RUNS_EFFECT = 2000, 500
RUNS_MEMORY = 500
SHORT_ALIKE, SHORT_EFFECT, SHORT_MEMORY = 150, 40, 25
CHUNK, SHORT_CHUNK = 250, 75
SEED = 20_240_601
METRICS = ("latency", "tail", "errors", "differences")
PROCESSES = ("warn", "rollback", "passing")
LEVELS = PROCESSES[:2]
CONTROLS = {"mann-whitney, peeking": "alike, iid", "kayenta": "alike, stalls"}  # where each must raise false alarms
ALPHA = 0.05
# What the judge decides by; the bound of these must be within alpha. Of the single e-processes, which come close to it
# since they waste nothing, only the share itself must not be beyond.
DECISIONS = ("warn", "rollback", *(f"{metric}/passing" for metric in METRICS))

Firsts = dict[str, NDArray[np.int64]]


class Runs:
    """Some runs of the judge side by side, as `Group` does it for one."""

    def __init__(self, runs: int, settings: Settings) -> None:
        self._settings = settings
        self.tests = {
            name: MetricTest(settings.plan(name), settings.warm_up_blocks, settings.pass_evidence, (runs,))
            for name in METRICS
        }

    def add(self, sample: Sample) -> None:
        """Take a block of every run."""
        production, shadow = measures.logs(sample.production), measures.logs(sample.shadow)
        pairs = production.shape[1]
        self.tests["latency"].add(measures.level(production, shadow), pairs)
        self.tests["tail"].add(measures.tail(production, shadow), pairs)
        self.tests["errors"].add(measures.excess(sample.production_error, sample.shadow_error), pairs)
        nothing = np.zeros_like(sample.different)
        self.tests["differences"].add(measures.excess(nothing, sample.different), pairs)

    def whole(self, level: str) -> NDArray[np.float64]:
        """Log of the evidence of all requests, times their weight."""
        processes = [getattr(test, level) for test in self.tests.values()]
        weights = [test.plan.weight for test in self.tests.values()]
        return group_evidence([each.log_e for each in processes], weights, self._settings.route_weight(0))


def simulate(scenario: Scenario, runs: int, seed: int) -> Firsts:
    """The first block at which each thing was found in each run, by its name."""
    settings = Settings()
    random = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
    traffic, judged, rival = Traffic(scenario, runs, random), Runs(runs, settings), MannWhitney(runs)
    firsts: Firsts = {}

    def note(name: str, block: int, found: NDArray[np.bool_]) -> None:
        first = firsts.setdefault(name, np.full(runs, NEVER))
        first[found & (first == NEVER)] = block

    for block in range(scenario.blocks):
        sample = traffic.next()
        judged.add(sample)
        note("warn", block, judged.whole("warn") >= math.log(1 / settings.warn_alpha))
        note("rollback", block, judged.whole("rollback") >= math.log(1 / settings.rollback_alpha))
        for name, test in judged.tests.items():
            for process in PROCESSES:
                needed = settings.pass_evidence if process == "passing" else math.log(1 / ALPHA)
                note(f"{name}/{process}", block, getattr(test, process).log_e >= needed)
        z = rival.add(sample.production, sample.shadow)
        note("mann-whitney, peeking", block, np.abs(z) > PEEKING_Z)
        note("kayenta", block, np.abs(z) > KAYENTA_Z)
    return firsts


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario: what was found in how many runs, and what of the claims does not hold."""

    scenario: str
    runs: int
    shares: dict[str, dict[str, float]]
    delays: dict[str, dict[str, float | None]]
    broken: list[str]


def judge_scenario(scenario: Scenario | Pool, firsts: Firsts, strict: bool) -> Result:
    """Turn first blocks into figures, and check the claims. Not `strict`: with few runs, only what is surely wrong."""
    runs = len(firsts["warn"])
    shares = {name: share(first != NEVER) for name, first in firsts.items()}
    delays = {name: delay(first, scenario.onset, scenario.pairs) for name, first in firsts.items()}
    broken = [
        f"{name}: {shares[name].count} of {runs}, between {shares[name].least:.4f} and {shares[name].most:.4f}"
        for name, alpha in claims(scenario).items()
        if shares[name].least > alpha or (strict and name in DECISIONS and _enough(runs, alpha) < shares[name].count)
    ]
    median = delays["warn"].median
    if scenario.target and (median is None or median > scenario.target):
        unit = "pairs" if isinstance(scenario, Scenario) else "blocks"
        broken.append(f"found in {median} {unit} (median), not in {scenario.target}")
    for name, where in (CONTROLS | pools.CONTROLS).items():
        if where == scenario.name and shares[name].least <= ALPHA:
            broken.append(f"control: {name} should raise false alarms and does not")
    numbers = {name: asdict(each) | {"value": each.value} for name, each in shares.items()}
    return Result(scenario.name, runs, numbers, {name: asdict(each) for name, each in delays.items()}, broken)


def claims(scenario: Scenario | Pool) -> dict[str, float]:
    """By name, the largest share of runs that may find it."""
    settings = Settings() if isinstance(scenario, Scenario) else scenario.settings
    alphas = {"warn": settings.warn_alpha, "rollback": settings.rollback_alpha}
    return {f"{metric}/{process}": ALPHA for metric, process in scenario.null} | {
        level: alphas[level] for level in scenario.calm
    }


def _enough(runs: int, alpha: float) -> float:
    """The most runs of so many whose upper bound is still within alpha; infinite when even none has one that is."""
    if upper_bound(0, runs) > alpha:
        return math.inf
    return next(count for count in range(runs) if upper_bound(count + 1, runs) > alpha)


def _chunk(task: tuple[Scenario | Pool, int, int]) -> Firsts:
    scenario, runs, seed = task
    return simulate(scenario, runs, seed) if isinstance(scenario, Scenario) else pools.simulate(scenario, runs, seed)


def run(chosen: list[Scenario | Pool], runs_of: dict[str, int], jobs: int, seed: int, strict: bool) -> list[Result]:
    """All scenarios, in chunks of runs; progress on stderr."""
    results = []
    chunk = CHUNK if strict else SHORT_CHUNK
    tasks = {
        scenario.name: [
            (scenario, min(chunk, runs_of[scenario.name] - done), seed + number)
            for number, done in enumerate(range(0, runs_of[scenario.name], chunk))
        ]
        for scenario in chosen
    }
    with multiprocessing.get_context("spawn").Pool(jobs) if jobs > 1 else _NoPool() as pool:
        done = iter(pool.imap(_chunk, [task for each in tasks.values() for task in each]))
        for scenario in chosen:
            began = time.monotonic()
            parts = [next(done) for _ in tasks[scenario.name]]
            firsts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            results.append(judge_scenario(scenario, firsts, strict))
            print(line(scenario, results[-1]), f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return results


class _NoPool:
    """`imap` in this process."""

    def __enter__(self) -> _NoPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @staticmethod
    def imap(function: Any, tasks: list[Any]) -> Any:
        return map(function, tasks)


def line(scenario: Scenario | Pool, result: Result) -> str:
    """One line of the table: shares with their upper bound, or pairs (of pools: blocks) until it was found."""
    names = list(claims(scenario))
    if not isinstance(scenario, Scenario):
        shown = [name for name in (*names, *pools.CONTROLS) if name in result.shares]
        numbers = [f"{n} {result.shares[n]['value']:.4f} (<{result.shares[n]['most']:.4f})" for n in shown]
        delays = LEVELS if not scenario.calm else [f"{metric}/passing" for metric in scenario.metrics]
        numbers += [f"{name} {_pairs(result.delays[name])}" for name in delays if name in result.delays]
        return f"{scenario.name}: {', '.join(numbers)}" + "".join(f"\n    BROKEN {each}" for each in result.broken)
    if names:
        own = max((name for name in names if "/" in name), key=lambda name: result.shares[name]["value"])
        shown = [*scenario.calm, own, *CONTROLS] if scenario.calm else [own]
        numbers = ", ".join(f"{n} {result.shares[n]['value']:.4f} (<{result.shares[n]['most']:.4f})" for n in shown)
        if scenario in scenarios.ALIKE:
            slowest = max(METRICS, key=lambda metric: result.delays[f"{metric}/passing"]["median"] or math.inf)
            numbers += f", {slowest} passes last, after {_pairs(result.delays[f'{slowest}/passing'])}"
    else:
        numbers = ", ".join(f"{name} {_pairs(result.delays[name])}" for name in ("warn", "rollback", *CONTROLS))
    return f"{scenario.name}: {numbers}" + "".join(f"\n    BROKEN {each}" for each in result.broken)


def _pairs(found: dict[str, float | None]) -> str:
    """Median and 90th percentile, and how many found it."""
    median, p90 = (f"{value:.0f}" if value is not None else "-" for value in (found["median"], found["p90"]))
    early = f", early {found['early']:.1%}" if found["early"] else ""
    return f"{median} ({p90}; {found['found']:.1%}{early})"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few runs, under a minute")
    parser.add_argument("--runs", type=int, help="runs of each scenario in which nothing differs")
    parser.add_argument("--only", default="", help="part of the scenarios' names; several separated by semicolons")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    null, effect = (SHORT_ALIKE, SHORT_EFFECT) if options.short else (options.runs or RUNS_ALIKE, RUNS_EFFECT)
    memory = SHORT_MEMORY if options.short else min(options.runs or RUNS_MEMORY, RUNS_MEMORY)
    everything = [*scenarios.ALIKE, *scenarios.FLOORS, *scenarios.EFFECTS, *pools.MEMORY, *pools.HARM]
    parts = [part.strip() for part in options.only.split(";") if part.strip()]
    chosen = [each for each in everything if not parts or any(part in each.name for part in parts)]
    runs_of = {each.name: null if each.null else effect for each in chosen}
    runs_of |= {each.name: memory for each in chosen if isinstance(each, pools.Memory)}
    results = run(chosen, runs_of, options.jobs, options.seed, strict=not options.short)
    json.dump({"seed": options.seed, "results": [asdict(each) for each in results]}, sys.stdout, indent=1)
    print()
    return int(any(each.broken for each in results))


if __name__ == "__main__":
    sys.exit(main())
