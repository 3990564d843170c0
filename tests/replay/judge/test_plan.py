"""Settings that make no sense are refused with what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replay.judge.plan import DEFAULT_PLANS, Kind, MetricPlan, Settings

LATENCY, ERRORS = DEFAULT_PLANS[0], DEFAULT_PLANS[2]


def test_all_weights_together_are_one() -> None:
    settings = Settings()
    routes = sum(settings.route_weight(number) for number in range(100_000))
    assert routes == pytest.approx(1, abs=1e-5)
    assert sum(plan.weight for plan in settings.plans) == pytest.approx(1)
    assert Settings(routes_weight=0).route_weight(0) == 1


@pytest.mark.parametrize(
    ("plans", "wrong"),
    [
        ((), "name"),
        ((replace(LATENCY, weight=0.5), replace(LATENCY, weight=0.5)), "name"),
        ((LATENCY,), "weights"),
        ((replace(LATENCY, weight=1.5), replace(ERRORS, weight=-0.5)), "weights"),
        ((replace(LATENCY, weight=1.0, warn=float("nan")),), "latency: floors"),
        ((replace(LATENCY, weight=1.0, warn=1.0),), "latency: the floor of a warning"),
        ((replace(ERRORS, weight=1.0, margin=0.0),), "errors: the margin"),
        ((MetricPlan("x", Kind.RATE, 1.0, 0.0, 0.0, 0.05),), "x: the margin"),
    ],
)
def test_plans_that_make_no_sense(plans: tuple[MetricPlan, ...], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Settings(plans=plans)


def test_other_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="error rates"):
        Settings(warn_alpha=0.0)
    with pytest.raises(ValueError, match="routes"):
        Settings(routes_weight=1.0)
    with pytest.raises(ValueError, match="block"):
        Settings(block_ns=0)
    with pytest.raises(KeyError):
        Settings().plan("colour")
