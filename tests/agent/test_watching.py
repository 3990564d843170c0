"""What happens when something happens: the order of a trip, what it leaves, what ends it, ramps, periods, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import parse
from agent.control.guard import Cause
from agent.control.request import ControlError
from agent.control.store import StateError
from tests.agent.watch_bench import FAILING, ONE, TEXT, TWO, Bench, FakeClock, verdict

RAMP = TEXT.replace(
    "upstreams: [", "ramp: {steps: [{percentage: 1, hold_s: 5}, {percentage: 4, hold_s: 5}]}, upstreams: ["
)
ALPHA = 0.001


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    made.install(monkeypatch)
    return made


@pytest.fixture
def bench(clock: FakeClock, tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def trip(bench: Bench, cause: Cause = Cause.FAILING, name: str = "one", reason: str = "it fails") -> None:
    bench.watching.trip(bench.watching.standings[name], cause, reason)


# The order of a trip


def test_a_trip_switches_the_kernel_off_before_anything_else(bench: Bench) -> None:
    bench.watching.pulse(FAILING, 12345)
    assert bench.log[0] == ("enabled", TWO)
    assert bench.steps.index("rules") < bench.steps.index("mark") < bench.steps.index("note"), "the disk may be slow"
    assert (bench.state(), bench.cause(), bench.tables.enabled) == ("tripped", "failing", TWO)
    assert not bench.steering.config.shadows["one"].enabled
    assert bench.steering.configured.shadows["one"].enabled, "what is configured stays"


def test_an_audit_entry_says_when_it_was_decided_and_when_it_was_off(bench: Bench) -> None:
    bench.watching.pulse(FAILING, 12345)
    entry = bench.desk.audit(1, "one")[0]
    assert (entry["author"], entry["action"]) == ("shadowtap", "trip")
    assert "60 of the shadow's 60 answers" in entry["reason"]
    assert entry["detail"]["decided_ns"] == 12345 < entry["detail"]["switched_ns"]
    assert (entry["detail"]["cause"], entry["detail"]["version"]) == ("failing", 1)


@pytest.mark.parametrize("what", ["store", "reading", "marker", "pools", "kernel"])
def test_a_trip_holds_whatever_fails(bench: Bench, clock: FakeClock, what: str) -> None:
    bench.desk.change("one", {"upstreams": ["198.51.100.7:80"], "criteria": "cidr:10.0.0.0/8"}, "ann", "")
    bench.log.clear()
    if what == "store":
        bench.fail_store()
    elif what == "reading":
        bench.fail_reading()
    elif what == "marker":
        bench.watching.records._marker.write = fail_to_write  # type: ignore[method-assign,union-attr]
    else:
        bench.pool_fails, bench.tables.full = what == "pools", what == "kernel"
    bench.watching.pulse(FAILING, 0)
    assert bench.log[0] == ("enabled", TWO)
    assert (bench.state(), bench.tables.enabled) == ("tripped", TWO)
    if what in ("store", "reading", "marker"):
        assert bench.watching.records.problem
        assert bench.desk.status()["problems"]
    clock.look(bench, times=5)
    assert [mask for step, mask in bench.log if step == "enabled"] == [TWO], "nothing turned it on again"


def fail_to_write(tripped: object) -> None:
    raise StateError("tripped: Input/output error")


def test_a_marker_that_fails_is_told_until_it_works(bench: Bench) -> None:
    marker = bench.watching.records._marker
    assert marker is not None
    write = marker.write
    marker.write = fail_to_write  # type: ignore[method-assign]
    trip(bench)
    bench.watching.keep(bench.watching.standings["one"])
    assert "Input/output error" in bench.watching.records.problem, "though the store can be written"
    marker.write = write  # type: ignore[method-assign]
    bench.watching.mark()
    assert bench.watching.records.problem == ""


def test_a_trip_on_a_ramp_holds_when_the_kernel_has_no_room(clock: FakeClock, tmp_path: Path) -> None:
    """Back to the configured percentage takes other tables; off takes none."""
    bench = Bench(tmp_path, RAMP)
    bench.tables.full = True
    trip(bench)
    assert bench.tables.enabled == TWO
    assert not bench.steering.config.shadows["one"].enabled
    bench.steering.pause(True)
    bench.steering.pause(False)
    assert bench.tables.enabled == TWO


def test_all_are_off_before_the_first_is_torn_down(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.link.told.harm = verdict(rollback=True)
    bench.watching.take()
    assert bench.log[:2] == [("enabled", TWO), ("enabled", 0)]
    assert [mask for step, mask in bench.log[2:] if step == "enabled"] == []
    assert (bench.cause("one"), bench.cause("two")) == ("harm", "harm")


def test_a_template_that_is_gone_does_not_stand_in_the_way(clock: FakeClock, tmp_path: Path) -> None:
    template = tmp_path / "slack.json"
    template.write_text("{}")
    alerts = f"\nalerts: {{webhooks: [{{url: 'http://127.0.0.1:1/', template: {template}}}]}}\n"
    bench = Bench(tmp_path, TEXT + alerts)
    template.unlink()
    trip(bench)
    assert (bench.state(), bench.tables.enabled) == ("tripped", TWO)
    bench.desk.change("two", {"enabled": False}, "ann", "")
    bench.desk.reset("one", "", "ann")
    assert bench.tables.enabled == ONE


# What a trip restores


def test_a_trip_restores_the_newest_good_settings_and_never_bad_ones(bench: Bench, clock: FakeClock) -> None:
    for percentage in (11, 12, 13):
        bench.desk.change("one", {"percentage": percentage}, "ann", f"to {percentage}")
    seen = []
    for _ in range(5):
        trip(bench)
        seen.append(bench.steering.configured.shadows["one"].percentage)
        bench.desk.reset("one", "", "ann")
    assert seen == [12, 11, 10, 10, 10]
    versions = bench.desk.history(20, None)
    assert (versions[0]["author"], versions[0]["reason"]) == ("shadowtap", "rolled back to version 1: it fails")
    assert versions[0]["diff"]
    assert [each["reason"] for each in versions[-3:]] == ["to 12", "to 11", "the agent started"]
    assert all(each["bad"] == {"one": "it fails"} for each in versions)
    assert [each["current"] for each in versions] == [True, *[False] * (len(versions) - 1)]
    assert bench.steering.configured.shadows["two"].percentage == 20


@pytest.mark.parametrize("cause", [Cause.MANUAL, Cause.HARM, Cause.AGENT, Cause.STATE])
def test_nothing_is_restored_where_the_settings_are_not_to_blame(bench: Bench, cause: Cause) -> None:
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    trip(bench, cause)
    assert bench.steering.configured.shadows["one"].percentage == 11
    assert all(each["bad"] == {} for each in bench.desk.history(9, None))


def test_settings_that_do_not_fit_any_more_are_not_restored(bench: Bench) -> None:
    bench.desk.change("one", {"upstreams": ["198.51.100.7:80"]}, "ann", "")
    bench.pool_fails = True
    trip(bench)
    assert any("could not be restored" in line for line in bench.said)
    assert (bench.state(), bench.tables.enabled) == ("tripped", TWO)


def test_a_cause_that_is_not_wanted_trips_nothing(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT.replace("rollback: {", "rollback: {on: [judge], "))
    bench.watching.pulse(FAILING, 0)
    bench.link.told.harm = verdict(rollback=True)
    bench.watching.take()
    assert (bench.state(), bench.tables.enabled, bench.log) == ("active", ONE | TWO, [])
    trip(bench, Cause.MANUAL)
    assert bench.state() == "tripped", "a person's word always does"


# What survives


@pytest.mark.parametrize("orderly", [True, False])
def test_a_trip_is_found_again(bench: Bench, orderly: bool) -> None:
    trip(bench, reason="it was bad")
    bench.again(orderly=orderly)
    assert (bench.state(), bench.cause(), bench.tables.enabled) == ("tripped", "failing", TWO)
    assert any("it was bad" in line for line in bench.said)


def test_a_trip_is_found_again_when_only_the_marker_could_be_written(bench: Bench) -> None:
    bench.fail_store()
    trip(bench, reason="it was bad")
    bench.again(orderly=False)
    assert (bench.state(), bench.cause(), bench.tables.enabled) == ("tripped", "failing", TWO)
    assert bench.watching.standings["one"].guard.reason == "it was bad"


def test_after_a_manual_trip_of_a_tripped_shadow_the_marker_knows_of_it(bench: Bench) -> None:
    trip(bench)
    bench.fail_store()
    bench.desk.trip("one", "not tonight", "ann")
    bench.again(orderly=False)
    assert bench.watching.records.content.tripped["one"].cause == "manual"


def test_no_tripped_shadow_is_on_for_a_moment_at_the_start(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    trip(bench, name="two", cause=Cause.MANUAL)
    bench.again(parse(f"{RAMP}\nstate: {{directory: {tmp_path}}}\n", "f.yaml"))  # `Bench` looks as well
    assert [mask for step, mask in bench.begun if step == "enabled"] == []
    assert (bench.state("two"), bench.tables.enabled) == ("tripped", ONE)


def damage_database(directory: Path) -> None:
    (directory / "state.db").write_bytes(b"this is no database" * 500)


def damage_row(directory: Path) -> None:
    data = (directory / "state.db").read_bytes()
    assert b'{"state": "active"' in data
    (directory / "state.db").write_bytes(data.replace(b'{"state": "active"', b'x"state": "active"'))


def damage_marker(directory: Path) -> None:
    (directory / "tripped").write_bytes(b"half")


@pytest.mark.parametrize("damage", [damage_database, damage_row, damage_marker])
def test_a_state_that_cannot_be_read_trips_all_until_a_reset(bench: Bench, tmp_path: Path, damage: Any) -> None:
    bench.watching.close()
    damage(tmp_path)
    bench.begin(bench.watching.config)
    assert [(bench.state(name), bench.cause(name)) for name in ("one", "two")] == [("tripped", "state")] * 2
    assert bench.tables.enabled == 0
    with pytest.raises(Exception, match="begins anew") as refused:
        bench.desk.change("one", {"percentage": 5}, "ann", "")
    assert refused.value.status == 507  # type: ignore[attr-defined]
    bench.desk.reset("one", "looked at it", "ann")
    assert (bench.state("one"), bench.state("two"), bench.tables.enabled) == ("active", "tripped", ONE)
    assert list(tmp_path.glob("*.damaged-*"))
    assert bench.desk.status()["problems"] == []
    assert [(each["author"], each["current"]) for each in bench.desk.history(9, None)] == [("ann", True)]
    bench.desk.change("one", {"percentage": 5}, "ann", "")
    bench.again(orderly=False)
    assert (bench.state("one"), bench.state("two"), bench.cause("two")) == ("active", "tripped", "state")


def test_a_ramp_begins_at_its_first_step_after_the_state_was_lost(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.watching.close()
    damage_database(tmp_path)
    bench.begin(bench.watching.config)
    bench.desk.reset("one", "", "ann")
    assert (bench.percentage(), bench.tables.enabled & ONE) == (1, ONE)


def test_a_full_disk_stops_changes_but_not_switching_off(bench: Bench) -> None:
    bench.fail_store()
    for refused in (
        lambda: bench.desk.change("one", {"percentage": 5}, "ann", ""),
        lambda: bench.desk.change("one", {"enabled": True}, "ann", ""),
        lambda: bench.desk.start_ramp("one", {"steps": [{"percentage": 1, "hold_s": 1}]}, "ann"),
        lambda: bench.desk.rollback(None, "", "ann"),
    ):
        with pytest.raises(Exception, match="disk is full") as error:
            refused()
        assert error.value.status == 507  # type: ignore[attr-defined]
    bench.desk.change("one", {"enabled": False}, "ann", "")
    assert bench.tables.enabled == TWO
    bench.desk.trip("two", "enough", "ann")
    assert bench.tables.enabled == 0
    with pytest.raises(Exception, match="disk is full"):
        bench.desk.reset("two", "", "ann")
    assert (bench.state("two"), bench.tables.enabled) == ("tripped", 0)


def test_nothing_is_kept_without_a_directory(clock: FakeClock) -> None:
    bench = Bench(None)
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    trip(bench)
    assert (bench.state(), bench.percentage(), bench.tables.enabled) == ("tripped", 10, TWO)
    bench.desk.reset("one", "", "ann")
    assert bench.tables.enabled == ONE | TWO


# Probes


def test_a_probe_brings_it_back_with_a_small_share(bench: Bench, clock: FakeClock) -> None:
    trip(bench)
    clock.look(bench, 99)
    assert bench.state() == "tripped"
    clock.look(bench, 2)
    assert (bench.state(), bench.percentage(), bench.tables.enabled) == ("probing", 2, ONE | TWO)
    clock.look(bench, 31)
    assert bench.state() == "probing", "nobody has answered yet"
    bench.watching.pulse([[0, 5, 0, 0, 0]], 0)
    clock.look(bench)
    assert (bench.state(), bench.percentage()) == ("active", 10)
    assert [action for _, action, _ in bench.audit] == ["trip", "probing", "active"]


def test_a_probe_that_fails_trips_again(bench: Bench, clock: FakeClock) -> None:
    trip(bench)
    clock.look(bench, 101)
    bench.watching.pulse(FAILING, 0)
    assert (bench.state(), bench.tables.enabled, bench.watching.standings["one"].guard.trips) == ("tripped", TWO, 2)
    bench.again(orderly=False)
    assert bench.state() == "tripped"


def test_a_probe_needs_good_answers(bench: Bench, clock: FakeClock) -> None:
    trip(bench)
    clock.look(bench, 101)
    bench.watching.pulse([[0, 6, 1, 1, 0]], 0)
    clock.look(bench, 31)
    assert bench.state() == "probing", "four were good, and five are wanted"
    bench.watching.pulse([[0, 1, 0, 0, 0]], 0)
    clock.look(bench)
    assert bench.state() == "active"


@pytest.mark.parametrize("on", ["", "on: [judge], "])
def test_a_probe_that_fails_by_few_answers_trips_whatever_is_to_trip(clock: FakeClock, tmp_path: Path, on: str) -> None:
    """The breaker wants fifty answers, which a probe's share may never come to."""
    bench = Bench(tmp_path, TEXT.replace("rollback: {", "rollback: {" + on))
    trip(bench, Cause.MANUAL)
    bench.watching.standings["one"].guard.cause = Cause.JUDGE  # so that it is probed
    clock.look(bench, 101)
    for _ in range(4):
        bench.watching.pulse([[0, 1, 1, 0, 0]], 0)
        assert bench.state() == "probing"
    bench.watching.pulse([[0, 1, 0, 0, 0]], 77)
    assert (bench.state(), bench.cause(), bench.tables.enabled) == ("tripped", "failing", TWO)
    entry = bench.desk.audit(1, "one")[0]
    assert (entry["reason"], entry["detail"]["decided_ns"]) == ("4 of the probe's 5 answers failed", 77)
    clock.look(bench, 201)
    assert bench.state() == "probing"
    bench.watching.pulse([[0, 1, 1, 0, 0]], 0)
    assert bench.state() == "probing", "each probe counts its own"


def test_what_a_person_switched_off_is_not_probed(bench: Bench, clock: FakeClock) -> None:
    trip(bench, Cause.MANUAL)
    clock.look(bench, 100_000)
    assert bench.state() == "tripped"


# Verdicts and periods


def test_a_verdict_at_the_rollback_level_trips_and_one_at_the_warning_level_does_not(bench: Bench) -> None:
    bench.judged(what=verdict(rollback=False))
    assert bench.state() == "active"
    bench.judged(what=verdict(rollback=True))
    assert (bench.state(), bench.cause()) == ("tripped", "judge")
    assert "latency: fail; shadow +20.1%" in bench.watching.standings["one"].guard.reason


def test_a_verdict_of_an_earlier_period_never_trips(bench: Bench) -> None:
    before = bench.link.orders("one")[-1]["fingerprint"]
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    bench.judged(fingerprint=before)
    assert (bench.state(), bench.watching.standings["one"].verdict) == ("active", None)


def test_a_verdict_that_was_under_way_at_a_reset_does_not_trip_again(bench: Bench) -> None:
    before = bench.link.orders("one")[-1]["fingerprint"]
    bench.judged()
    bench.desk.reset("one", "", "ann")
    assert bench.link.orders("one")[-1]["fresh"]
    bench.judged(fingerprint=before)
    assert bench.state() == "active"


def test_a_period_begins_when_what_is_judged_changes_and_not_otherwise(bench: Bench) -> None:
    def begun(fields: dict[str, Any], name: str = "one") -> int:
        before = len(bench.link.orders("one"))
        bench.desk.change(name, fields, "ann", "")
        return len(bench.link.orders("one")) - before

    assert len(bench.link.orders("one")) == 1
    assert begun({"percentage": 10}) == 0
    assert begun({"enabled": False}) == begun({"enabled": True}) == 0
    assert begun({"percentage": 99}, "two") == 0
    for fields in ({"percentage": 12}, {"criteria": "cidr:10.0.0.0/8"}, {"sample_by": "client"}, {"methods": ["GET"]}):
        assert begun(fields) == 1, fields
    assert begun({"upstreams": ["198.51.100.9:80"]}) == 1


def test_a_period_goes_on_after_a_restart_of_the_agent_and_of_the_watch_process(bench: Bench, clock: FakeClock) -> None:
    order = bench.link.orders("one")[-1]
    bench.link.restarted = True
    clock.look(bench)
    assert bench.link.orders("one")[1:] == [order]
    bench.again()
    assert bench.link.orders("one") == [order]
    assert not order["fresh"]


def test_a_tripped_shadow_keeps_its_verdict_until_the_reset(bench: Bench) -> None:
    bench.judged()
    assert bench.desk.verdict("one")["verdict"]["rollback"]
    bench.desk.reset("one", "", "ann")
    assert bench.desk.verdict("one") == {"shadow": "one", "period": None, "verdict": None}


# Ramps


def passes(bench: Bench, clock: FakeClock, word: str = "pass") -> None:
    bench.judged(what=verdict(word))
    clock.look(bench, times=7)


def test_a_ramp_climbs_with_passes_and_leaves_a_version(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    assert (bench.percentage(), bench.steering.configured.shadows["one"].percentage) == (1, 10)
    assert bench.link.orders("one")[-1]["settings"]["rollback_alpha"] == pytest.approx(ALPHA / 2)
    clock.look(bench, times=20)
    assert bench.percentage() == 1, "without a PASS it stays"
    passes(bench, clock)
    assert bench.percentage() == 4
    assert len(bench.link.orders("one")) == 2
    clock.look(bench, times=20)
    assert bench.percentage() == 4, "the PASS was of the step before"
    passes(bench, clock)
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == ("done", 4)
    assert bench.steering.configured.shadows["one"].percentage == 4
    newest = bench.desk.history(1, None)[0]
    assert (newest["author"], newest["current"]) == ("shadowtap", True)
    assert "the ramp is done" in newest["reason"]
    assert bench.link.orders("one")[-1]["settings"]["rollback_alpha"] == pytest.approx(ALPHA)


def test_a_ramp_is_taken_up_where_it_was(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    passes(bench, clock)
    bench.again(orderly=False)
    assert (bench.percentage(), bench.desk.ramp("one")["step"]) == (4, 2)


@pytest.mark.parametrize("end", ["done", "aborted"])
def test_a_ramp_that_is_over_does_not_begin_again(clock: FakeClock, tmp_path: Path, end: str) -> None:
    bench = Bench(tmp_path, RAMP)
    if end == "done":
        passes(bench, clock)
        passes(bench, clock)
    else:
        bench.desk.steer_ramp("one", "abort", "ann")
    left = {"done": 4, "aborted": 1}[end]
    assert bench.percentage() == left
    bench.again(orderly=False)
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == (end, left), "though the file says 10"
    bench.again(parse(f"{RAMP.replace('hold_s: 5}, ', 'hold_s: 6}, ')}\nstate: {{directory: {tmp_path}}}\n", "f.yaml"))
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == ("running", 1), "another ramp does"


@pytest.mark.parametrize("on", ["", "on: [failing], "])
def test_a_fail_trips_a_ramp(clock: FakeClock, tmp_path: Path, on: str) -> None:
    bench = Bench(tmp_path, RAMP.replace("rollback: {", "rollback: {" + on))
    passes(bench, clock, "fail")
    assert (bench.state(), bench.cause(), bench.desk.ramp("one")["state"]) == ("tripped", "judge", "failed")
    assert bench.tables.enabled == TWO
    assert "the ramp failed at 1 %" in bench.watching.standings["one"].guard.reason


def test_a_step_for_which_the_group_has_no_room_pauses_the_ramp(clock: FakeClock, tmp_path: Path) -> None:
    text = RAMP.replace("one: {percentage: 10", "one: {exclusive: true, percentage: 0").replace(
        "two: {percentage: 20", "two: {exclusive: true, percentage: 99"
    )
    bench = Bench(tmp_path, text)
    passes(bench, clock)
    passes(bench, clock)
    clock.look(bench)
    assert any("come to more than 100" in line for line in bench.said)
    assert (bench.desk.ramp("one")["state"], bench.desk.ramp("one")["step"], bench.percentage()) == ("paused", 2, 1)
    with pytest.raises(ControlError, match="cannot be put in force"):
        bench.desk.steer_ramp("one", "resume", "ann")
    assert bench.desk.ramp("one")["state"] == "paused"
    bench.desk.change("two", {"percentage": 50}, "ann", "")
    assert bench.desk.steer_ramp("one", "resume", "ann")["state"] == "running"
    assert bench.percentage() == 4


def test_a_tripped_shadow_s_ramp_is_over(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.desk.trip("one", "enough", "ann")
    ramp = bench.desk.ramp("one")
    assert (ramp["state"], ramp["reason"]) == ("failed", "tripped: enough")
    bench.desk.reset("one", "", "ann")
    assert bench.percentage() == 1, "nobody has said that more is well"
    bench.again(orderly=False)
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == ("failed", 1)
    bench.desk.change("one", {"percentage": 0.5}, "ann", "")
    assert (bench.desk.ramp("one"), bench.percentage()) == ({"state": "none"}, 0.5)


def test_a_ramp_moves_only_on_what_is_heard_now(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.judged(what=verdict("pass"))
    clock.look(bench, 10.5, times=5)
    assert bench.percentage() == 1, "the judge may be gone"
    bench.judged(what=verdict("pass"))
    clock.look(bench, 9.5)
    assert bench.percentage() == 4
    bench.judged(what=verdict("fail"))
    clock.look(bench, 10.5)
    assert bench.desk.ramp("one")["state"] == "running"


def test_a_ramp_waits_while_its_shadow_is_switched_off(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.desk.change("one", {"enabled": False}, "ann", "")
    passes(bench, clock)
    assert bench.desk.ramp("one")["step"] == 1
    bench.desk.change("one", {"enabled": True}, "ann", "")
    passes(bench, clock)
    assert (bench.desk.ramp("one")["step"], bench.percentage()) == (2, 4)


def test_a_ramp_whose_plan_has_left_the_file_is_dropped(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.again(parse(f"{TEXT}\nstate: {{directory: {tmp_path}}}\n", "f.yaml"), orderly=False)
    assert (bench.desk.ramp("one"), bench.percentage()) == ({"state": "none"}, 10)


# Trouble


def test_marked_requests_that_come_to_production_trip(bench: Bench, clock: FakeClock) -> None:
    clock.look(bench)
    bench.accounts["one"].skipped["shadow_traffic"] = 4
    clock.look(bench)
    assert bench.state() == "active"
    bench.accounts["one"].skipped["shadow_traffic"] = 5
    clock.look(bench)
    assert (bench.state(), bench.cause(), bench.watching.standings["one"].guard.permanent) == ("tripped", "leak", True)
    bench.desk.reset("one", "", "ann")
    clock.look(bench)
    assert bench.state() == "active", "what came before the reset is no reason"


def test_over_loopback_marked_requests_are_expected(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT.replace("eth9", "lo"))
    for count in (0, 1000):
        bench.accounts["one"].skipped["shadow_traffic"] = count
        clock.look(bench)
    assert bench.state() == "active"


def test_a_balancer_program_that_stays_down_trips(bench: Bench, clock: FakeClock) -> None:
    bench.programs = {"one": False}
    clock.look(bench, times=4)
    bench.programs = {"one": True}
    clock.look(bench)
    bench.programs = {"one": False}
    clock.look(bench, times=5)
    assert bench.state() == "active"
    clock.look(bench)
    assert (bench.state(), bench.cause(), bench.state("two")) == ("tripped", "balancer", "active")
    clock.look(bench, 101)
    assert bench.state() == "probing", "and is not tripped again in the same moment"
    clock.look(bench, times=6)
    assert bench.state() == "tripped"


def test_an_agent_that_needs_too_much_trips_all(bench: Bench, clock: FakeClock) -> None:
    bench.own = (0.0, 5 << 30)
    clock.look(bench, times=12)
    assert (bench.cause("one"), bench.cause("two"), bench.tables.enabled) == ("agent", "agent", 0)
    clock.look(bench)
    assert ("AgentOverBudget", "") in bench.alarms


# What the watch process is told


def test_requests_of_both_sides_are_told(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT[: TEXT.index("  two")])
    bench.accounts["one"].seen, bench.accounts["one"].replayed = 50, 40
    bench.echoes = {"one": {"asked": 7}}
    clock.look(bench)
    told = [each["requests"] for each in bench.link.sent if "requests" in each]
    assert told[-1] == {"one": 47, "production": 500}, "those that are sent again cost the shadow something too"
    bench.desk.change("one", {"criteria": "cidr:10.0.0.0/8"}, "ann", "")
    clock.look(bench)
    told = [each["requests"] for each in bench.link.sent if "requests" in each]
    assert told[-1] == {"one": 47}, "of a part that is chosen otherwise nobody knows how large it is"


def test_an_order_that_could_not_be_told_is_told_at_the_next_look(bench: Bench, clock: FakeClock) -> None:
    bench.link.deaf = True
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    clock.look(bench)
    assert len(bench.link.orders("one")) == 1
    bench.link.deaf = False
    clock.look(bench, times=3)
    assert [each["fingerprint"] for each in bench.link.orders("one")[1:]] == [fingerprint(bench)]


def test_what_is_to_be_judged_anew_is_so_although_the_watch_process_was_down(bench: Bench, clock: FakeClock) -> None:
    """Else it would go on with the evidence that it has kept."""
    bench.link.deaf = True
    bench.desk.reset("one", "", "ann")
    bench.link.deaf, bench.link.restarted = False, True
    clock.look(bench)
    assert [each["fresh"] for each in bench.link.orders("one")[1:]] == [True]
    bench.link.restarted = True
    clock.look(bench)
    assert not bench.link.orders("one")[-1]["fresh"], "once is enough"


def test_the_judge_waits_as_long_as_a_request_may_take_with_all_its_waiting(clock: FakeClock, tmp_path: Path) -> None:
    text = TEXT.replace("one: {", "one: {timeout_s: 20, queue_timeout_s: 3, connect_timeout_s: 2, ")
    bench = Bench(tmp_path, text)
    assert bench.link.orders("one")[0]["timeout_s"] == 25


def fingerprint(bench: Bench, name: str = "one") -> str:
    return bench.watching.standings[name].fingerprint


# The file is read again


def reload(bench: Bench) -> None:
    before = bench.steering.configured
    bench.watching.reloaded(bench.steering.reload(), before)


def test_a_reload_gets_a_version_and_leaves_a_tripped_shadow_off(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    trip(bench, Cause.MANUAL)
    path = tmp_path / "f.yaml"
    path.write_text(TEXT.replace("percentage: 10", "percentage: 33"))
    bench.steering._path = path
    reload(bench)
    assert (bench.steering.configured.shadows["one"].percentage, bench.tables.enabled) == (33, TWO)
    newest = bench.desk.history(1, None)[0]
    assert (newest["author"], newest["current"]) == ("SIGHUP", True)


@pytest.mark.parametrize(("percentage", "left"), [(33, ("none", 33)), (10, ("aborted", 1))])
def test_only_another_percentage_in_the_file_ends_what_a_ramp_left(
    clock: FakeClock, tmp_path: Path, percentage: int, left: tuple[str, float]
) -> None:
    bench = Bench(tmp_path, RAMP)
    bench.desk.steer_ramp("one", "abort", "ann")
    path = tmp_path / "f.yaml"
    path.write_text(RAMP.replace("percentage: 10", f"methods: [GET], percentage: {percentage}"))
    bench.steering._path = path
    reload(bench)
    assert bench.steering.config.shadows["one"].methods == ["GET"]
    assert (bench.desk.ramp("one")["state"], bench.percentage()) == left
    bench.again(orderly=False)
    assert bench.desk.ramp("one")["state"] == left[0]


@pytest.mark.parametrize("how", ["start", "reload"])
def test_settings_that_did_not_do_well_are_bad_when_they_are_only_read_again(
    clock: FakeClock, tmp_path: Path, how: str
) -> None:
    bench = Bench(tmp_path)
    bench.desk.change("one", {"percentage": 11}, "ann", "")
    trip(bench)
    assert bench.steering.configured.shadows["one"].percentage == 10
    text = TEXT.replace("percentage: 10", "percentage: 11")
    if how == "start":
        bench.again(parse(f"{text}\nstate: {{directory: {tmp_path}}}\n", "f.yaml"))
    else:
        bench.steering._path = tmp_path / "f.yaml"
        bench.steering._path.write_text(text)
        reload(bench)
    newest = bench.desk.history(1, None)[0]
    assert (newest["current"], newest["bad"]) == (True, {"one": "it fails"})
    bench.desk.change("one", {"percentage": 12}, "ann", "")
    bench.desk.change("one", {"percentage": 11}, "ann", "mended")
    assert bench.desk.history(1, None)[0]["bad"] == {}, "a person may give it another chance"
