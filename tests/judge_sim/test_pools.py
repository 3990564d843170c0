"""The simulated pools are what their scenarios say, and are judged as `Judge.measure` does it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from replay.judge import Judge
from tests.judge_sim import pools
from tests.judge_sim.figures import NEVER
from tests.judge_sim.pools import Harm, Heap, Memory, simulate
from tests.judge_sim.run import judge_scenario, line

RUNS = 12


def named(name: str) -> pools.Pool:
    return next(each for each in (*pools.MEMORY, *pools.HARM) if each.name == name)


def test_the_control_fails_where_the_judge_does_not() -> None:
    scenario = named(pools.CONTROLS[pools.FIXED_STEPS])
    result = judge_scenario(scenario, simulate(scenario, RUNS, 1), strict=False)
    assert result.broken == []
    assert result.shares[pools.FIXED_STEPS]["value"] > 0.8
    assert result.shares["memory/warn"]["value"] == 0
    assert line(scenario, result).startswith(f"{scenario.name}: memory/warn 0.0000")


def test_a_control_that_does_not_fail_is_told() -> None:
    scenario = named(pools.CONTROLS[pools.FIXED_STEPS])
    firsts = simulate(scenario, 4, 1)
    firsts[pools.FIXED_STEPS][:] = NEVER
    assert any("control" in each for each in judge_scenario(scenario, firsts, strict=False).broken)


@pytest.mark.parametrize("name", ["leak 1 %, climbs of 1 min", "harm +30 % of the tail"])
def test_effects_are_found_in_time(name: str) -> None:
    scenario = named(name)
    result = judge_scenario(scenario, simulate(scenario, RUNS, 2), strict=False)
    assert result.broken == []
    assert result.delays["rollback"]["found"] == 1
    assert "warn 1" in line(scenario, result)
    late = judge_scenario(replace(scenario, target=3), simulate(scenario, RUNS, 2), strict=False)
    assert "blocks (median), not in 3" in late.broken[0]


@pytest.mark.parametrize(
    "scenario", [Harm("h", tail=math.log(1.3), pairs_of_blocks=25), Memory("m", Heap(1, 1), Heap(1, 1), leak=0.01)]
)
def test_one_run_is_judged_as_the_judge_does_it(scenario: pools.Pool) -> None:
    first = simulate(scenario, 1, 5)
    judge = Judge(scenario.settings)
    random = np.random.default_rng([5, pools.seed_of(scenario)])
    failed: dict[str, int] = {}
    blocks = dict.fromkeys(scenario.metrics, 0)
    for metric, numbers, live in scenario.numbers(1, random):
        if metric in blocks and live[0]:
            judge.measure(metric, float(numbers[0]), blocks[metric])
            verdict = judge.verdict()
            for level, found in (("warn", verdict.failed_at_ns is not None), ("rollback", verdict.rollback)):
                if found:
                    failed.setdefault(level, blocks[metric])
            blocks[metric] += 1
        if len(failed) == 2:
            break
    assert failed == {level: first[level][0] for level in ("warn", "rollback")}


def test_the_coin_turns_what_drifts() -> None:
    numbers = [each for name, each, _ in Harm("", drift=0.1).numbers(400, np.random.default_rng(1)) if "level" in name]
    assert np.mean(numbers) == pytest.approx(0, abs=0.005)
    assert np.mean(np.abs(numbers)) == pytest.approx(0.1, abs=0.01)


def test_quantiles_of_blocks() -> None:
    drawn = np.exp(np.random.default_rng(2).normal(0, 0.5, (2000, 3000)))
    level, tail = Harm("")._quantiles(2000, np.random.default_rng(3))
    for got, share in ((level, 0.5), (tail, 0.99)):
        expected = np.log(np.quantile(drawn, share, axis=1))
        assert np.mean(got) == pytest.approx(np.mean(expected), abs=0.005)
        assert np.std(got) == pytest.approx(np.std(expected), rel=0.1)


def test_memory_is_what_its_scenario_says() -> None:
    scenario = Memory("", Heap(2, 20), Heap(1, 10), leak=0.001)
    production, shadow = pools._Pools(scenario, 5, np.random.default_rng(4)).readings()
    assert production.shape == (round(pools.HOURS * 720), 5)
    assert production.min() > 0.99 and production.max() < 1.4
    hours = [each.min(axis=0) for each in np.split(shadow, 4)]
    assert np.diff(hours, axis=0) == pytest.approx(0.12, abs=0.04)
