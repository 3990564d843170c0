"""The judge as a whole: verdicts, routes, restarts, damaged states; and that it is what the simulation simulates."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.judge.blocks import Lost, Pair
from replay.judge.judge import ALL, OTHER, Judge
from replay.judge.plan import DEFAULT_PLANS, ROUTE_LIMIT, Kind, MetricPlan, Settings
from replay.judge.verdict import Finding, Verdict, Word
from tests.judge_sim.run import Runs
from tests.judge_sim.scenarios import BLOCKS, PAIRS, Sample, Scenario, Traffic
from tests.replay.judge.traffic import T0, S, pairs


def feed(judge: Judge, given_: list[Pair], lost: list[Lost] | None = None) -> Verdict:
    for each in given_:
        judge.add(each)
    for gone in lost or []:
        judge.lose(gone)
    judge.advance(given_[-1].at_ns + 2 * S)
    return judge.verdict()


def finding(verdict: Verdict, metric: str, route: str = ALL) -> Finding:
    return next(each for each in verdict.findings if each.plan.name == metric and each.route == route)


def test_alike_passes() -> None:
    verdict = feed(Judge(), pairs(20_000))
    assert (verdict.word, verdict.rollback, verdict.problem) == (Word.PASS, False, "")
    assert verdict.p_warn > 0.05
    assert finding(verdict, "cpu").reason == "not measured"


def test_slower_fails_with_numbers_and_pairs() -> None:
    verdict = feed(Judge(), pairs(10_000, factor=1.3))
    assert (verdict.word, verdict.rollback) == (Word.FAIL, True)
    assert verdict.failed_at_ns is not None and verdict.failed_at_ns < T0 + 20 * S
    assert verdict.p_rollback <= 0.001
    latency = finding(verdict, "latency")
    assert (latency.word, latency.blocks, latency.pairs) == (Word.FAIL, 38, 9500)
    assert latency.effect == pytest.approx(math.log(1.3), abs=0.02)
    low, high = latency.interval
    assert low is not None and high is not None and low < math.log(1.3) < high
    assert latency.examples and all(pair.shadow_ns > pair.production_ns for pair in latency.examples)
    assert finding(verdict, "errors").word is not Word.FAIL


def test_a_little_slower_is_a_warning_only() -> None:
    verdict = feed(Judge(), pairs(20_000, factor=1.06))
    assert (verdict.word, verdict.rollback) == (Word.FAIL, False)


def test_errors_fail() -> None:
    verdict = feed(Judge(), pairs(10_000, errors=0.01))
    assert (verdict.word, verdict.reason) == (Word.FAIL, "errors")
    assert all(pair.shadow_error for pair in finding(verdict, "errors").examples)


def test_a_faster_shadow_passes_and_production_is_not_blamed_on_it() -> None:
    verdict = feed(Judge(), pairs(20_000, factor=0.7))
    assert verdict.word is Word.PASS
    assert finding(verdict, "latency").effect == pytest.approx(math.log(0.7), abs=0.02)


def test_swapping_the_sides_turns_effects() -> None:
    there = pairs(5_000, factor=1.1)
    back = [replace(pair, production_ns=pair.shadow_ns, shadow_ns=pair.production_ns) for pair in there]
    one, other = feed(Judge(), there), feed(Judge(), back)
    for metric in ("latency", "tail"):
        assert finding(one, metric).effect == pytest.approx(-(finding(other, metric).effect or 0), abs=1e-12)


def test_too_little_is_inconclusive_with_a_reason() -> None:
    judge = Judge()
    assert judge.verdict().word is Word.INCONCLUSIVE
    assert "no data yet" in judge.verdict().reason
    verdict = feed(judge, pairs(2_000))
    assert verdict.word is Word.INCONCLUSIVE
    assert "latency: too few blocks (6 of 8)" in verdict.reason


def test_much_loss_is_inconclusive_whatever_else() -> None:
    gone = [Lost(T0 + at * S // 10, "GET /a", "incomplete") for at in range(400)]
    verdict = feed(Judge(), pairs(10_000, factor=1.5), gone)
    assert verdict.word is Word.INCONCLUSIVE and not verdict.rollback
    assert "lost" in verdict.reason
    assert verdict.blocks_left_out > 30


def test_where_all_is_lost_it_says_so() -> None:
    judge = Judge()
    for at in range(100):
        judge.lose(Lost(T0 + at * S, "GET /a", "dropped"))
    judge.advance(T0 + 200 * S)
    assert judge.verdict().reason == "100 requests were lost of late and only 0 pairs came"


def test_loss_after_a_failure_says_so() -> None:
    judge = Judge()
    feed(judge, pairs(10_000, factor=1.5))
    verdict = feed(judge, pairs(2500, start_ns=T0 + 41 * S), [Lost(T0 + 42 * S, "", "dropped")] * 500)
    assert verdict.word is Word.INCONCLUSIVE
    assert "before that it failed (latency" in verdict.reason


def test_a_route_is_named_and_routes_are_bounded() -> None:
    routes = ("GET /a", "GET /b", "GET /c", "GET /d")
    mixed = [
        replace(pair, shadow_ns=pair.shadow_ns * 2) if pair.route == "GET /b" else pair
        for pair in pairs(20_000, routes=routes, rate=1000)
    ]
    judge = Judge()
    verdict = feed(judge, mixed)
    failed = {each.route for each in verdict.findings if each.word is Word.FAIL}
    assert "GET /b" in failed and not failed & {"GET /a", "GET /c", "GET /d"}
    for number in range(ROUTE_LIMIT + 40):
        judge.add(replace(mixed[0], route=f"GET /{number}", at_ns=T0 + 100 * S))
    names = {each.route for each in judge.verdict().findings}
    assert OTHER in names and len(names) <= ROUTE_LIMIT + 2


def test_numbers_of_the_pools() -> None:
    judge = Judge()
    random = np.random.default_rng(5)
    for block in range(60):
        judge.measure("cpu", math.log(1.4) + float(random.normal(0, 0.05)), T0 + block * S)
    judge.measure("cpu", math.nan, T0)
    verdict = judge.verdict()
    assert (verdict.word, verdict.rollback, verdict.reason) == (Word.FAIL, True, "cpu")
    assert verdict.left_out == {"cpu_not_finite": 1}
    with pytest.raises(KeyError):
        judge.measure("colour", 0.0, T0)
    with pytest.raises(ValueError, match="pairs"):
        judge.measure("latency", 0.0, T0)


def test_a_single_number_may_be_judged_alone() -> None:
    """As for mirroring that harms production: no pairs, one metric, the strict level."""
    plan = MetricPlan("harm", Kind.RATIO, 1.0, 0.0, 0.0, math.log(1.05))
    random = np.random.default_rng(9)
    for effect, word in ((0.0, Word.PASS), (0.1, Word.FAIL)):
        judge = Judge(Settings(plans=(plan,), routes_weight=0.0))
        judge.advance(T0)
        assert judge.verdict().reason == "harm: not measured"
        for block in range(60):
            judge.measure("harm", effect + float(random.normal(0, 0.03)), T0 + block)
        assert (judge.verdict().word, judge.verdict().rollback) == (word, word is Word.FAIL)
        assert Judge.from_json(judge.as_json(), judge.settings).verdict() == judge.verdict()


def test_nothing_required_never_passes() -> None:
    plans = tuple(replace(plan, required=False) for plan in DEFAULT_PLANS)
    assert "nothing can pass" in feed(Judge(Settings(plans=plans)), pairs(5_000)).reason


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([1.0, 1.1, 1.5]), st.integers(1, 30), st.booleans())
def test_a_kept_state_goes_on_as_if_nothing_had_been(seed: int, factor: float, seconds: int, routes: bool) -> None:
    chosen = Settings() if routes else Settings(routes_weight=0.0)
    first = pairs(250 * seconds, seed, factor=factor)
    second = pairs(2500, seed + 1, factor=factor, start_ns=T0 + seconds * S)
    straight = Judge(chosen)
    for pair in first:
        straight.add(pair)
    straight.measure("memory", 0.1, T0)
    straight.advance(T0 + seconds * S)
    kept = json.loads(json.dumps(straight.as_json(), allow_nan=False))
    resumed = Judge.from_json(kept, chosen)
    assert json.loads(json.dumps(resumed.as_json())) == kept
    for judge in (straight, resumed):
        for pair in second:
            judge.add(pair)
        judge.advance(T0 + (seconds + 10) * S)
    assert resumed.as_json() == straight.as_json()
    assert resumed.verdict() == straight.verdict()


def test_the_block_that_was_open_is_left_out() -> None:
    judge = Judge()
    for pair in pairs(600):
        judge.add(pair)
    judge.advance(T0 + 2 * S)
    resumed = Judge.from_json(judge.as_json())
    assert resumed.advance(T0 + 99 * S) == []
    assert len(judge.advance(T0 + 99 * S)) == 1


def test_states_that_cannot_be_used() -> None:
    judge = Judge()
    feed(judge, pairs(3_000))
    good = judge.as_json()
    with pytest.raises(ValueError, match="version 99"):
        Judge.from_json({**good, "version": 99})
    plans = (replace(DEFAULT_PLANS[0], warn=0.0), *DEFAULT_PLANS[1:])
    with pytest.raises(ValueError, match="floors, weights or error rates have changed"):
        Judge.from_json(good, Settings(plans=plans))
    with pytest.raises(ValueError, match="damaged"):
        Judge.from_json({})


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside, by keys and the first few indices."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [path, *itertools.chain.from_iterable(_places(each, (*path, key)) for key, each in inside)]


@pytest.mark.parametrize("junk", [None, "x", [], {}])
def test_no_damage_raises_anything_else(junk: Any) -> None:
    """Each part of a state replaced by junk: ValueError, or a judge that works."""
    judge = Judge()
    feed(judge, pairs(1_000))
    good = json.loads(json.dumps(judge.as_json()))
    for path in _places(good)[1:]:
        state = copy.deepcopy(good)
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = copy.deepcopy(junk)
        try:
            resumed = Judge.from_json(state)
        except ValueError:
            continue
        feed(resumed, pairs(300, start_ns=T0 + 10 * S))


def _pairs_of(sample: Sample, block: int) -> list[Pair]:
    return [
        Pair(
            T0 + block * S + at * S // PAIRS,
            "GET /a",
            int(sample.production[0, at]),
            int(sample.shadow[0, at]),
            bool(sample.production_error[0, at]),
            bool(sample.shadow_error[0, at]),
            bool(sample.different[0, at]),
        )
        for at in range(PAIRS)
    ]


def test_it_is_what_the_simulation_simulates() -> None:
    """The same traffic through the judge, pair by pair, and through the simulation: the same evidence."""
    scenario = Scenario("both", effect=math.log(1.05), errors=(0.01, 0.02), differing=0.01)
    traffic, judge, runs = Traffic(scenario, 1, np.random.default_rng(6)), Judge(), Runs(1, Settings())
    most = -math.inf
    for block in range(BLOCKS // 3):
        sample = traffic.next()
        runs.add(sample)
        if block >= Settings().warm_up_blocks:
            most = max(most, float(runs.whole("warn")[0]))
        for pair in _pairs_of(sample, block):
            judge.add(pair)
    assert len(judge.advance(T0 + 1000 * S)) == BLOCKS // 3
    verdict = judge.verdict()
    assert -math.log(verdict.p_warn) == pytest.approx(max(most, 0.0), abs=1e-6)
    for metric, test in runs.tests.items():
        assert finding(verdict, metric).log_e_pass == pytest.approx(float(test.passing.log_e[0]), abs=1e-6)
