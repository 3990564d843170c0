"""One metric's three tests: directions, floors, scale, and that a state goes on."""

from __future__ import annotations

import json
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.judge.metric import SCALE_BLOCKS, MetricTest, middle_magnitude, most_of
from replay.judge.plan import DEFAULT_PLANS, MetricPlan, Settings

PLANS = {plan.name: plan for plan in DEFAULT_PLANS}
ENOUGH = math.log(20)
PASS = Settings().pass_evidence


def after(plan: MetricPlan, values: list[float], pairs: int = 250) -> MetricTest:
    test = MetricTest(plan, 2, PASS)
    for value in values:
        test.add(value, pairs)
    return test


def logs_e(test: MetricTest) -> tuple[float, float, float]:
    return float(test.warn.log_e), float(test.rollback.log_e), float(test.passing.log_e)


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, (False, False, True)), (5, (True, False, True)), (20, (True, True, False)), (-30, (False, False, True))],
)
def test_floors_of_latency(percent: float, expected: tuple[bool, bool, bool]) -> None:
    noise = np.random.default_rng(1).normal(0, 0.02, 60)
    found = logs_e(after(PLANS["latency"], (noise + math.log1p(percent / 100)).tolist()))
    assert tuple(each >= ENOUGH for each in found) == expected


def test_errors_fail_and_pass() -> None:
    random = np.random.default_rng(2)
    alike = (random.poisson(0.5, 90) - random.poisson(0.5, 90)) / 250
    worse = (random.poisson(2.5, 90) - random.poisson(0.5, 90)) / 250
    assert [each >= ENOUGH for each in logs_e(after(PLANS["errors"], alike.tolist()))] == [False, False, True]
    assert [each >= ENOUGH for each in logs_e(after(PLANS["errors"], worse.tolist()))] == [True, True, False]


def test_a_pass_is_taken_back_soon() -> None:
    random = np.random.default_rng(3)
    test = after(PLANS["latency"], random.normal(0, 0.02, 3000).tolist())
    assert logs_e(test)[2] >= PASS
    turned = random.normal(math.log(1.2), 0.02, 40).tolist()
    for value in turned[:8]:
        test.add(value)
    assert logs_e(test)[2] < PASS
    for value in turned[8:]:
        test.add(value)
    assert logs_e(test)[0] >= ENOUGH


def test_warm_up_teaches_only_the_scale() -> None:
    test = MetricTest(PLANS["latency"], 2, PASS)
    assert [test.add(9.0)[1], test.add(-9.0)[1], test.add(0.1)[1]] == [False, False, True]
    assert test.blocks == test.warn.blocks == 1


def test_the_scale_is_of_past_blocks_with_something_in_them() -> None:
    magnitudes = deque([np.array([0.0, 3.0]), np.array([0.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 2.0])])
    assert middle_magnitude(magnitudes, (2,)).tolist() == [0.0, 2.0]
    assert middle_magnitude(deque(), (2,)).tolist() == [0.0, 0.0]
    test = after(PLANS["latency"], [1.0] * 3)
    assert test.add(1000.0)[0] == 1.0


def test_small_blocks_may_have_a_few_errors_in_full() -> None:
    assert (most_of(20), most_of(100), most_of(10_000), most_of(0)) == (0.25, 0.05, 0.05, 1.0)


def test_many_runs_side_by_side_are_as_each_alone() -> None:
    values = np.random.default_rng(4).normal(0.02, 0.05, (5, 80))
    for plan in (PLANS["latency"], PLANS["errors"]):
        together = MetricTest(plan, 2, PASS, (5,))
        for block in values.T:
            together.add(block, 250)
        for run, row in enumerate(values):
            alone = logs_e(after(plan, row.tolist()))
            side = (together.warn.log_e[run], together.rollback.log_e[run], together.passing.log_e[run])
            assert alone == pytest.approx(side, abs=1e-9)


@given(st.floats(0.01, 100), st.integers(0, 5))
def test_the_unit_of_a_metric_does_not_matter(factor: float, seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(3, 30)
    plan = MetricPlan("x", PLANS["memory"].kind, 1.0, 0.1, 0.2, 0.3)
    scaled = MetricPlan("x", plan.kind, 1.0, 0.1 * factor, 0.2 * factor, 0.3 * factor)
    assert logs_e(after(plan, values.tolist())) == pytest.approx(
        logs_e(after(scaled, (values * factor).tolist())), abs=1e-6
    )


@settings(deadline=None)
@given(
    st.sampled_from(DEFAULT_PLANS),
    st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 10_000)), max_size=SCALE_BLOCKS + 10),
    st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 10_000)), max_size=10),
)
def test_a_kept_state_goes_on(
    plan: MetricPlan, before: list[tuple[float, int]], after: list[tuple[float, int]]
) -> None:
    straight, resumed = MetricTest(plan, 2, PASS), MetricTest(plan, 2, PASS)
    for value, pairs in before:
        straight.add(value, pairs)
    resumed.restore(json.loads(json.dumps(straight.as_json(), allow_nan=False)))
    for value, pairs in after:
        straight.add(value, pairs)
        resumed.add(value, pairs)
    assert resumed.as_json() == straight.as_json()
    assert all(math.isfinite(each) for each in logs_e(resumed))
