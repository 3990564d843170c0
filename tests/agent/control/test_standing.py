"""Where one shadow stands: what is in force, what a verdict is about, and the troubles that trip it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.guard import Cause, Now
from agent.control.marker import Trip
from agent.control.ramp import State as RampState
from agent.control.standing import JUDGED, LEAK_REQUESTS, LEAK_WINDOW_S, Standing, guard_settings, rules
from agent.shadow_config import Shadow
from agent.watch_config import Judging, RampPlan, Rollback

ROLLBACK = Rollback(cooldown_s=100, probe_percentage=2, balancer_s=5)
PLAN = RampPlan.model_validate({"steps": [{"percentage": 1, "hold_s": 5}, {"percentage": 50, "hold_s": 5}]})
SHADOW = Shadow(percentage=10).model_dump(mode="json")


def at(second: float) -> Now:
    return Now("boot", 1000 + second, 1e9 + second)


@pytest.fixture
def standing() -> Standing:
    return Standing("one", 0, ROLLBACK, at(0))


def trip(standing: Standing, cause: Cause = Cause.JUDGE) -> None:
    assert standing.guard.trip(cause, "bad", at(1))


def period(standing: Standing, fresh: bool = False, **changes: Any) -> dict[str, Any]:
    return standing.begin_period({**SHADOW, **changes}, Judging(), 10.0, fresh)


def test_settings_are_those_of_the_configuration() -> None:
    rollback = Rollback(
        failing_percent=1, failing_requests=2, failing_s=3, production_percent=4, unreachable_percent=5,
        unreachable_requests=6, unreachable_s=7, cooldown_s=8, probe_s=9, probe_requests=10, retries=11,
    )  # fmt: skip
    found = rules(rollback)
    assert (found.failing_percent, found.failing_requests, found.failing_s, found.production_percent) == (1, 2, 3, 4)
    assert (found.unreachable_percent, found.unreachable_requests, found.unreachable_s) == (5, 6, 7)
    guard = guard_settings(rollback)
    assert (guard.cooldown_s, guard.probe_s, guard.probe_requests, guard.retries) == (8, 9, 10, 11)


@pytest.mark.parametrize(
    ("guard", "ramp", "overlay"),
    [
        ("active", None, {}),
        ("active", "running", {"percentage": 1}),
        ("active", "paused", {"percentage": 1}),
        ("active", "done", {"percentage": 50}),
        ("active", "aborted", {"percentage": 1}),
        ("active", "failed", {"percentage": 1}),
        ("tripped", None, {"enabled": False}),
        ("tripped", "running", {"enabled": False}),
        ("probing", None, {"percentage": 2}),
        ("probing", "running", {"percentage": 1}),
        ("probing", "aborted", {"percentage": 1}),
        ("probing", "done", {"percentage": 2}),
    ],
)
def test_what_is_in_force(standing: Standing, guard: str, ramp: str | None, overlay: dict[str, Any]) -> None:
    if guard != "active":
        trip(standing)
    if guard == "probing":
        assert standing.guard.look(at(200)) is not None
    if ramp is not None:
        started = standing.start_ramp(PLAN)
        started.state = RampState(ramp)
        started.step = 1 if started.over else 0
    assert standing.overlay(10) == overlay


@pytest.mark.parametrize("end", ["aborted", "failed"])
def test_a_ramp_that_did_not_end_well_leaves_no_more_than_is_configured(standing: Standing, end: str) -> None:
    standing.start_ramp(PLAN).state = RampState(end)
    assert standing.overlay(0.25) == {"percentage": 0.25}


@pytest.mark.parametrize("state", list(RampState))
def test_only_a_ramp_that_is_over_is_forgotten(standing: Standing, state: RampState) -> None:
    standing.forget_ended_ramp()
    ramp = standing.start_ramp(PLAN)
    ramp.state = state
    standing.forget_ended_ramp()
    assert (standing.ramp is None) is ramp.over


def test_a_probe_never_takes_more_than_is_configured(standing: Standing) -> None:
    trip(standing)
    standing.guard.look(at(200))
    assert standing.overlay(0.5) == {"percentage": 0.5}


# Periods


def test_the_same_again_is_no_new_period(standing: Standing) -> None:
    order = period(standing)
    assert order["shadow"] == "one"
    assert order["settings"]["rollback_alpha"] == 0.001
    assert period(standing) == {}
    assert period(standing, max_connections=9, exclusive=True, enabled=False) == {}
    assert period(Standing("one", 0, ROLLBACK, at(5))) == order, "nor is it in another process"
    anew = period(standing, fresh=True)
    assert (anew["fresh"], anew["fingerprint"]) == (True, order["fingerprint"])


@pytest.mark.parametrize("key", JUDGED)
def test_whatever_is_judged_makes_a_new_period(standing: Standing, key: str) -> None:
    before = period(standing)["fingerprint"]
    changes: dict[str, Any] = {key: "something else"}
    assert period(standing, **changes)["fingerprint"] != before


def test_so_do_the_judge_s_settings_the_time_limit_a_ramp_s_step_and_a_trip(standing: Standing) -> None:
    seen = [period(standing)["fingerprint"]]
    seen.append(standing.begin_period(SHADOW, Judging(warn_alpha=0.1), 10.0, False)["fingerprint"])
    seen.append(standing.begin_period(SHADOW, Judging(), 11.0, False)["fingerprint"])
    ramp = standing.start_ramp(PLAN)
    order = period(standing)
    assert order["settings"]["rollback_alpha"] == pytest.approx(0.0005)
    assert order["settings"]["warn_alpha"] == pytest.approx(0.025)
    assert order["settings"]["pass_alpha"] == 0.05
    seen.append(order["fingerprint"])
    ramp.step = 1
    seen.append(period(standing)["fingerprint"])
    ramp.pause()
    assert period(standing) == {}, "a pause changes nothing of what is judged"
    ramp.abort()
    assert period(standing)["fingerprint"] == seen[0]
    trip(standing)
    standing.guard.reset("ann", at(3))
    seen.append(period(standing, fresh=True)["fingerprint"])
    assert len(set(seen)) == len(seen)


def test_only_a_verdict_about_the_present_period_is_taken(standing: Standing) -> None:
    order = period(standing)
    told = {"fingerprint": order["fingerprint"], "verdict": {"word": "pass"}, "period_started_ns": 7}
    assert standing.take_verdict(told, 55.0)
    assert (standing.verdict, standing.period_started_ns, standing.heard_s) == ({"word": "pass"}, 7, 55.0)
    period(standing, percentage=11)
    assert (standing.verdict, standing.judged) == (None, {})
    assert not standing.take_verdict(told, 66.0)
    assert (standing.verdict, standing.heard_s) == (None, 55.0)


# Probes


def probing(**rollback: Any) -> Standing:
    made = Standing("one", 0, Rollback(cooldown_s=100, probe_s=1, **rollback), at(0))
    trip(made)
    assert made.guard.look(at(200)) is not None
    return made


@pytest.mark.parametrize(
    ("rollback", "answers", "failed", "trips"),
    [
        ({}, 9, 9, False),
        ({}, 10, 4, False),
        ({}, 10, 5, True),
        ({}, 100, 49, False),
        ({"probe_requests": 3}, 2, 2, False),
        ({"probe_requests": 3}, 3, 2, True),
        ({"failing_percent": 100}, 10, 9, False),
        ({"failing_percent": 100}, 10, 10, True),
        ({"failing_percent": 0}, 10, 0, False),
        ({"failing_percent": 0}, 10, 1, True),
    ],
)
def test_a_probe_fails_by_its_own_few_answers(
    rollback: dict[str, float], answers: int, failed: int, trips: bool
) -> None:
    standing = probing(**rollback)
    said = [standing.probed(1, int(number >= answers - failed), 0) for number in range(answers)]
    assert not any(said[:-1])
    assert said[-1] == (f"{failed} of the probe's {answers} answers failed" if trips else "")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))))
def test_a_probe_passes_with_as_many_good_answers_as_are_wanted(counts: list[tuple[int, int, int]]) -> None:
    standing = probing(failing_percent=100)
    for good, failed, production_failed in counts:
        standing.probed(good + failed + production_failed, failed, production_failed)
    passed = standing.guard.look(at(300)) is not None
    assert passed is (sum(good for good, _, _ in counts) >= 20)


def test_what_failed_before_a_probe_is_none_of_it() -> None:
    standing = probing()
    assert standing.probed(9, 9, 0) == ""
    standing.forget_trouble()
    assert standing.probed(9, 9, 0) == ""
    assert standing.probed(1, 0, 0)


def test_answers_of_a_shadow_that_is_not_probed_say_nothing(standing: Standing) -> None:
    assert standing.probed(1000, 1000, 0) == ""
    trip(standing)
    assert standing.probed(1000, 1000, 0) == ""
    standing.guard.look(at(200))
    assert standing.probed(9, 9, 0) == ""


# Troubles


def test_a_leak_is_so_many_marked_requests_within_the_window(standing: Standing) -> None:
    assert standing.leaked(0, 100) == "", "what came before it began does not count"
    assert standing.leaked(1, 100 + LEAK_REQUESTS - 1) == ""
    assert f"{LEAK_REQUESTS} requests that carry the shadow's mark" in standing.leaked(2, 100 + LEAK_REQUESTS)
    standing.forget_trouble()
    assert standing.leaked(3, 100 + LEAK_REQUESTS) == ""


def test_a_slow_drip_and_a_count_that_falls_are_no_leak(standing: Standing) -> None:
    for second in range(0, 1000, 3):
        assert standing.leaked(second, second // 3) == ""
    assert standing.leaked(1001, 0) == ""
    assert standing.leaked(1001 + LEAK_WINDOW_S, 4) == ""


def test_a_balancer_program_is_waited_for(standing: Standing) -> None:
    assert standing.balancer_down(0, False) == standing.balancer_down(4.9, False) == ""
    assert "has been down for 5 s" in standing.balancer_down(5, False)
    assert (
        standing.balancer_down(6, True) == standing.balancer_down(7, False) == standing.balancer_down(11, False) == ""
    )
    assert standing.balancer_down(12, False)
    assert standing.balancer_down(13, None) == standing.balancer_down(14, False) == ""
    standing.forget_trouble()
    assert standing.balancer_down(100, False) == ""


# What was kept


def test_a_guard_is_taken_up(standing: Standing) -> None:
    trip(standing)
    other = Standing("one", 0, ROLLBACK, at(50))
    other.take_up(json.loads(json.dumps(standing.guard.as_json())), None, at(50))
    assert other.guard_view(at(50)) == standing.guard_view(at(50))


@pytest.mark.parametrize(
    ("kept", "marked", "cause", "reason"),
    [
        (None, Trip("leak", "x"), Cause.LEAK, "x"),
        ("active", Trip("manual", "x"), Cause.MANUAL, "x"),
        ("tripped", Trip("leak", "x"), Cause.JUDGE, "bad"),
        ("tripped", None, Cause.JUDGE, "bad"),
        ("damaged", None, Cause.STATE, "what was kept of its guard is damaged"),
        (None, Trip("of a newer agent", "x"), Cause.STATE, "x"),
    ],
)
def test_a_trip_that_either_knows_of_is_a_trip(
    standing: Standing, kept: str | None, marked: Trip | None, cause: Cause, reason: str
) -> None:
    if kept == "tripped":
        trip(standing)
    data = {"state": "no"} if kept == "damaged" else standing.guard.as_json() if kept else None
    other = Standing("one", 0, ROLLBACK, at(50))
    other.take_up(data, marked, at(50))
    assert (other.guard.state, other.guard.cause, other.guard.reason) == ("tripped", cause, reason)


def test_nothing_kept_is_active(standing: Standing) -> None:
    standing.take_up(None, None, at(0))
    assert standing.guard.state == "active"


def test_a_configured_ramp_begins_once(standing: Standing) -> None:
    assert standing.take_up_ramp({}, PLAN)
    assert standing.ramp is not None
    standing.ramp.abort()
    kept = json.loads(json.dumps({"ramp": standing.ramp.as_json(), "plan": PLAN.model_dump()}))
    assert not standing.take_up_ramp(kept, PLAN)
    assert standing.ramp_view()["state"] == "aborted"
    other = RampPlan.model_validate({**PLAN.model_dump(), "inconclusive": 1})
    assert standing.take_up_ramp(kept, other)
    assert standing.ramp_view()["state"] == "running"


def test_a_ramp_that_is_damaged_is_none(standing: Standing) -> None:
    assert not standing.take_up_ramp({"ramp": {"state": "flying"}, "plan": PLAN.model_dump()}, PLAN)
    assert standing.ramp_view() == {"state": "none"}


def test_a_ramp_whose_plan_has_left_the_configuration_is_dropped_and_one_of_a_person_is_not(standing: Standing) -> None:
    running = standing.start_ramp(PLAN).as_json()
    assert not standing.take_up_ramp({"ramp": running, "plan": None}, None)
    assert standing.ramp_view()["state"] == "running"
    assert not standing.take_up_ramp({"ramp": running, "plan": PLAN.model_dump()}, None)
    assert standing.ramp_view() == {"state": "none"}
