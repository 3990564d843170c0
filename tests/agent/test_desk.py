"""What may be asked for and done at the desk, what is refused in which state, and what each thing leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from agent.control.guard import Cause
from agent.control.openapi import document
from agent.control.readable import readable
from agent.control.request import ControlError
from agent.control.store import StateError
from agent.errors import ConfigError
from tests.agent.watch_bench import ONE, TEXT, TWO, Bench, FakeClock, verdict

STEPS: dict[str, Any] = {"steps": [{"percentage": 1, "hold_s": 5}, {"percentage": 4, "hold_s": 5}]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    made.install(monkeypatch)
    return made


@pytest.fixture
def bench(clock: FakeClock, tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(call: Callable[[], object], says: str, status: int = 409) -> None:
    with pytest.raises(ControlError, match=says) as error:
        call()
    assert error.value.status == status


def fits(name: str, answer: dict[str, Any]) -> None:
    """The answer has the shape that the API's document gives it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    OAS31Validator(schema).validate(json.loads(json.dumps(readable(answer))))


def test_a_change_leaves_a_version_and_an_entry(bench: Bench) -> None:
    bench.desk.change("one", {"percentage": 12}, "ann", "more of it")
    newest, first = bench.desk.history(9, None)
    assert (newest["author"], newest["reason"], newest["current"], first["current"]) == (
        "ann",
        "more of it",
        True,
        False,
    )
    assert newest["diff"] == ["shadows.one.percentage: 10.0 -> 12.0"]
    fits("Version", bench.desk.version(newest["id"]))
    fits("History", {"versions": [newest, first], "next_before": None})
    fits("Audit", {"entries": bench.desk.audit(9, None)})
    entry = bench.desk.audit(1, "one")[0]
    assert (entry["author"], entry["action"], entry["reason"]) == ("ann", "change", "more of it")
    assert entry["detail"] == {"fields": {"percentage": 12}, "version": newest["id"]}
    assert bench.desk.version(newest["id"])["config"]["shadows"]["one"]["percentage"] == 12
    assert bench.desk.status()["version"] == newest["id"]


def test_a_change_that_does_not_fit_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="less than or equal to 100"):
        bench.desk.change("one", {"percentage": 101}, "ann", "")
    assert len(bench.desk.history(9, None)) == 1
    assert bench.audit == []


def test_a_tripped_shadow_is_not_turned_on_by_a_change(bench: Bench) -> None:
    bench.desk.trip("one", "enough", "ann")
    refused(
        lambda: bench.desk.change("one", {"enabled": True}, "ann", ""), r"tripped \(enough\): `shadowtap reset one`"
    )
    bench.desk.change("one", {"percentage": 12}, "ann", "")
    bench.desk.change("two", {"enabled": True, "percentage": 1}, "ann", "")
    assert bench.tables.enabled == TWO
    bench.desk.reset("one", "", "ann")
    assert (bench.tables.enabled, bench.percentage()) == (ONE | TWO, 12)


def test_what_a_person_trips_is_held_and_noted(bench: Bench, clock: FakeClock) -> None:
    view = bench.desk.trip("one", "enough", "ann")
    assert (view["state"], view["cause"], view["reason"], view["permanent"]) == ("tripped", "manual", "enough", True)
    fits("Guard", view)
    assert bench.audit == [("ann", "trip", "enough")]
    bench.desk.trip("one", "still enough", "bob")
    assert bench.audit[-1] == ("bob", "trip", "still enough"), "that, too, was done by somebody"


def test_a_person_s_trip_holds_what_would_have_been_tried_again(bench: Bench, clock: FakeClock) -> None:
    bench.watching.trip(bench.watching.standings["one"], Cause.FAILING, "it fails")
    assert not bench.watching.standings["one"].guard.permanent
    assert bench.desk.trip("one", "enough", "ann")["notes"] == ["it fails"]
    clock.look(bench, 1000)
    assert bench.state() == "tripped"


def test_a_reset_lets_it_go_on_with_new_evidence(bench: Bench) -> None:
    bench.judged()
    view = bench.desk.reset("one", "mended", "ann")
    assert (view["state"], view["trips"], view["cause"]) == ("active", 1, "")
    assert bench.link.orders("one")[-1]["fresh"]
    assert bench.audit[-1] == ("ann", "reset", "mended")
    bench.again(orderly=False)
    assert bench.state() == "active"


def test_a_reset_of_an_active_shadow_begins_to_judge_anew(bench: Bench) -> None:
    bench.judged(what=verdict("pass"))
    view = bench.desk.reset("one", "another build", "ann")
    assert (view["state"], view["trips"]) == ("active", 0)
    assert [each["fresh"] for each in bench.link.orders("one")] == [False, True]
    assert bench.desk.verdict("one")["verdict"] is None
    assert bench.audit == [("ann", "reset", "another build")]
    assert bench.tables.enabled == ONE | TWO


def test_a_probe_can_be_reset(bench: Bench, clock: FakeClock) -> None:
    bench.watching.trip(bench.watching.standings["one"], Cause.FAILING, "")
    clock.look(bench, 101)
    assert (bench.state(), bench.percentage()) == ("probing", 2)
    bench.desk.reset("one", "", "ann")
    assert (bench.state(), bench.percentage()) == ("active", 10)


# Ramps


def test_a_ramp_is_started_steered_and_ended(bench: Bench) -> None:
    assert bench.desk.ramp("one") == {"state": "none"}
    view = bench.desk.start_ramp("one", {**STEPS, "inconclusive": 2}, "ann")
    assert (view["state"], view["step"], view["percentage"], view["inconclusive"]) == ("running", 1, 1, 2)
    fits("Ramp", view)
    assert bench.percentage() == 1
    assert bench.desk.steer_ramp("one", "pause", "ann")["state"] == "paused"
    refused(lambda: bench.desk.steer_ramp("one", "pause", "ann"), "is paused, so it cannot pause")
    assert bench.percentage() == 1
    assert bench.desk.steer_ramp("one", "resume", "ann")["state"] == "running"
    assert bench.desk.steer_ramp("one", "abort", "ann")["state"] == "aborted"
    assert bench.percentage() == 1, "nobody has said that more is well"
    assert [action for _, action, _ in bench.audit] == ["ramp started", "ramp pause", "ramp resume", "ramp abort"]
    refused(lambda: bench.desk.steer_ramp("one", "resume", "ann"), "is aborted, so it cannot resume")
    refused(lambda: bench.desk.steer_ramp("two", "pause", "ann"), "shadow two has no ramp")


def test_a_ramp_outlives_the_agent(bench: Bench) -> None:
    bench.desk.start_ramp("one", STEPS, "ann")
    bench.desk.steer_ramp("one", "pause", "ann")
    bench.again(orderly=False)
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == ("paused", 1)


def test_the_percentage_is_the_ramp_s_while_there_is_one(bench: Bench) -> None:
    bench.desk.start_ramp("one", STEPS, "ann")
    refused(lambda: bench.desk.change("one", {"percentage": 50}, "ann", ""), "`shadowtap ramp one --abort`")
    bench.desk.steer_ramp("one", "pause", "ann")
    refused(lambda: bench.desk.change("one", {"percentage": 50}, "ann", ""), "is on a ramp")
    refused(lambda: bench.desk.start_ramp("one", STEPS, "ann"), "on a ramp already")
    bench.desk.change("one", {"methods": ["GET"]}, "ann", "")
    bench.desk.change("two", {"percentage": 50}, "ann", "")
    bench.desk.steer_ramp("one", "abort", "ann")
    assert bench.percentage() == 1
    bench.desk.change("one", {"methods": ["POST"]}, "ann", "")
    assert bench.percentage() == 1
    bench.desk.change("one", {"percentage": 50}, "ann", "")
    assert (bench.percentage(), bench.desk.ramp("one")) == (50, {"state": "none"})
    bench.again(orderly=False)
    assert bench.desk.ramp("one") == {"state": "none"}


def test_an_aborted_ramp_never_leaves_more_than_is_configured(bench: Bench) -> None:
    bench.desk.start_ramp("one", {"steps": [{"percentage": 40, "hold_s": 5}]}, "ann")
    assert bench.percentage() == 40
    bench.desk.steer_ramp("one", "abort", "ann")
    assert bench.percentage() == 10


def test_a_rollback_ends_what_a_ramp_left(bench: Bench) -> None:
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    bench.desk.start_ramp("one", STEPS, "ann")
    bench.desk.steer_ramp("one", "abort", "ann")
    bench.desk.rollback(1, "", "ann")
    assert (bench.percentage(), bench.desk.ramp("one")) == (10, {"state": "none"})
    bench.again(orderly=False)
    assert (bench.percentage(), bench.desk.ramp("one")) == (10, {"state": "none"})


@pytest.mark.parametrize("why", ["group", "kernel"])
def test_a_ramp_whose_first_step_has_no_room_is_not_started(clock: FakeClock, tmp_path: Path, why: str) -> None:
    text = TEXT.replace("one: {", "one: {exclusive: true, ").replace(
        "two: {percentage: 20", "two: {exclusive: true, percentage: 80"
    )
    bench = Bench(tmp_path, text)
    bench.tables.full = why == "kernel"
    share = 30 if why == "group" else 1
    refused(
        lambda: bench.desk.start_ramp("one", {"steps": [{"percentage": share, "hold_s": 5}]}, "ann"), "put in force"
    )
    assert (bench.desk.ramp("one"), bench.percentage(), bench.audit) == ({"state": "none"}, 10, [])
    bench.again(orderly=False)
    assert (bench.desk.ramp("one"), bench.percentage()) == ({"state": "none"}, 10)


def test_a_ramp_that_cannot_be_kept_is_not_started(bench: Bench) -> None:
    store = bench.watching.records.store
    keep = store.keep

    def full(name: str, data: object) -> None:
        if name == "ramp one":
            raise StateError("state.db: the disk is full")
        keep(name, data)

    store.keep = full  # type: ignore[method-assign]
    refused(lambda: bench.desk.start_ramp("one", STEPS, "ann"), "the disk is full", 507)
    assert (bench.desk.ramp("one"), bench.percentage()) == ({"state": "none"}, 10)


@pytest.mark.parametrize("spec", [{"steps": []}, {"steps": [{"percentage": 0, "hold_s": 1}]}, {}])
def test_a_ramp_that_makes_no_sense_is_not_started(bench: Bench, spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        bench.desk.start_ramp("one", spec, "ann")
    assert "\n" not in str(error.value)
    assert bench.desk.ramp("one") == {"state": "none"}


def test_a_ramp_needs_a_judge_and_a_shadow_that_is_on(bench: Bench, tmp_path: Path) -> None:
    bench.desk.trip("one", "", "ann")
    refused(lambda: bench.desk.start_ramp("one", STEPS, "ann"), "is tripped: `shadowtap reset one` first")
    bench.watching.close()
    unjudged = Bench(tmp_path, TEXT + "judge: null\n")
    refused(lambda: unjudged.desk.start_ramp("two", STEPS, "ann"), "nothing is judged")


# Versions


def test_a_rollback_goes_to_the_version_before_or_to_the_one_named(bench: Bench) -> None:
    bench.desk.change("one", {"percentage": 11, "upstreams": ["198.51.100.7:80"]}, "ann", "")
    bench.desk.change("two", {"percentage": 22, "criteria": "cidr:10.0.0.0/8"}, "ann", "")
    done = bench.desk.rollback(None, "try", "bob")
    assert (done["restored"], done["version"]) == (2, 4)
    assert any("two" in line for line in done["diff"])
    assert (bench.percentage("one"), bench.percentage("two")) == (11, 20)
    done = bench.desk.rollback(1, "", "bob")
    assert (done["restored"], bench.percentage("one"), bench.percentage("two")) == (1, 10, 20)
    newest = bench.desk.history(1, None)[0]
    assert (newest["author"], newest["reason"]) == ("bob", "back to version 1")
    fits("Rollback", done)
    assert bench.desk.audit(1, None)[0]["detail"] == {"to": 1, "from": 4}
    assert bench.desk.rollback(newest["id"], "", "bob")["diff"] == [], "nothing has changed"


def test_a_rollback_turns_no_tripped_shadow_on(bench: Bench) -> None:
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    bench.desk.trip("one", "enough", "ann")
    bench.desk.rollback(1, "", "ann")
    assert (bench.tables.enabled, bench.steering.configured.shadows["one"].percentage) == (TWO, 10)


def test_a_rollback_to_nowhere_is_refused(bench: Bench) -> None:
    refused(lambda: bench.desk.rollback(None, "", "ann"), "no earlier version to go back to")
    refused(lambda: bench.desk.rollback(99, "", "ann"), "no version 99", 404)
    refused(lambda: bench.desk.version(99), "no version 99", 404)
    refused(lambda: bench.desk.version(1 << 200), "no version", 404)


def test_a_rollback_passes_over_what_is_known_to_be_bad(bench: Bench) -> None:
    for percentage in (21, 22, 23):
        bench.desk.change("two", {"percentage": percentage}, "ann", "")
    for version in (2, 3):
        bench.watching.records.mark_bad(version, "two", "slower")
    assert bench.desk.rollback(None, "", "ann")["restored"] == 1
    assert bench.percentage("two") == 20
    bench.watching.records.mark_bad(4, "two", "slower")
    bench.watching.records.mark_bad(1, "two", "slower")
    refused(lambda: bench.desk.rollback(None, "", "ann"), "not known to be bad")
    assert bench.desk.rollback(3, "", "ann")["restored"] == 3, "a person may name a bad one"


def test_what_cannot_be_read_is_an_error_and_not_a_crash(bench: Bench) -> None:
    store = bench.watching.records.store

    def damaged(*args: object) -> None:
        raise StateError("state.db is damaged")

    store.versions = store.version = store.audits = damaged  # type: ignore[method-assign,assignment]
    for call in (
        lambda: bench.desk.history(9, None),
        lambda: bench.desk.version(1),
        lambda: bench.desk.audit(9, None),
        lambda: bench.desk.rollback(None, "", "ann"),
        lambda: bench.desk.rollback(1, "", "ann"),
    ):
        refused(call, "state.db is damaged", 500)


def test_no_secret_is_kept_or_shown(clock: FakeClock, tmp_path: Path) -> None:
    alerts = "alerts: {log: false, webhooks: ['https://hooks.example/T0/hunter2']}\n"
    bench = Bench(tmp_path, TEXT + alerts)
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    bench.watching.close()
    assert b"hunter2" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    bench.begin(bench.watching.config)
    assert "alerts" not in bench.desk.version(1)["config"]
    assert bench.desk.rollback(1, "", "ann")["restored"] == 1


def test_the_history_comes_in_pages(bench: Bench) -> None:
    for percentage in range(11, 16):
        bench.desk.change("one", {"percentage": percentage}, "ann", "")
    assert [each["id"] for each in bench.desk.history(2, None)] == [6, 5]
    assert [each["id"] for each in bench.desk.history(2, 5)] == [4, 3]
    assert bench.desk.history(0, None) == []


def test_entries_of_one_shadow_or_of_all(bench: Bench) -> None:
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    bench.desk.change("two", {"percentage": 11}, "ann", "")
    bench.desk.rollback(1, "", "ann")
    assert [each["shadow"] for each in bench.desk.audit(9, None)] == ["", "two", "one"]
    assert [each["shadow"] for each in bench.desk.audit(9, "one")] == ["one"]


# Asking


def test_the_verdict_says_what_it_is_about(bench: Bench) -> None:
    assert bench.desk.verdict("one") == {"shadow": "one", "period": None, "verdict": None}
    bench.judged(what=verdict("pass"))
    found = bench.desk.verdict("one")
    assert found["period"] == {
        "started_ns": 5, "fingerprint": bench.link.orders("one")[-1]["fingerprint"], "noisy_routes": [],
    }  # fmt: skip
    assert found["verdict"]["word"] == "pass"


def test_the_status_has_what_the_watch_process_told(bench: Bench) -> None:
    bench.judged(what=verdict("pass"))
    told = bench.link.told
    told.traffic["one"] = {"totals": {}, "recent": {"pairs": 3}}
    told.harm = verdict("inconclusive")
    told.watch = {"usage": {"production": None}, "alerts": [{"name": "X"}], "problems": ["alertmanager: refused"]}
    status = bench.desk.status()
    assert list(status["guards"]) == ["one", "two"]
    assert list(status["verdicts"]) == ["one"]
    assert status["traffic"] == {"one": {"pairs": 3}}
    assert status["resources"] == {"production": None}
    assert (status["ramps"], status["harm"]["word"]) == ({}, "inconclusive")
    assert (status["alerts"], bench.desk.alerts()) == ([{"name": "X"}], [{"name": "X"}])
    assert status["problems"] == ["alertmanager: refused"]
    fits("Verdict", bench.desk.verdict("one"))
    told.watch["alerts"] = []
    fits("Status", {**bench.desk.status(), "shadows": []})


def test_without_a_judge_there_is_still_a_status(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT + "judge: null\n")
    status = bench.desk.status()
    assert (status["verdicts"], status["traffic"], status["harm"], status["alerts"]) == ({}, {}, None, [])
    clock.look(bench, times=3)
    assert bench.link.orders("one") == []
    assert bench.alarms == {}, "alerts are told all the same"
    bench.desk.trip("one", "enough", "ann")
    assert bench.tables.enabled == TWO
    bench.desk.reset("one", "", "ann")
    assert bench.tables.enabled == ONE | TWO
