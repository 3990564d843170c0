"""The do-no-harm check as the service runs it: what trips, what a reset forgives, what judges are told of pauses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.control.guard import Cause
from agent.harm_watch import HarmWatch
from tests.agent.watch_bench import ONE, TEXT, TWO, Bench, FakeClock, FakeHistogram, FakeLatency, verdict

CHECKED = TEXT + "harm: {every_s: 1, block_s: 1}\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    made.install(monkeypatch)
    return made


@pytest.fixture
def bench(clock: FakeClock, tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def trip(bench: Bench, cause: Cause, name: str = "one") -> None:
    bench.watching.trip(bench.watching.standings[name], cause, "bad")


def harmed(bench: Bench, word: str = "fail", rollback: bool = True) -> None:
    bench.link.told.harm = verdict(word, rollback)
    bench.watching.take()


def check(bench: Bench, clock: FakeClock, times: int) -> None:
    for _ in range(times):
        clock.now_s += 0.3
        bench.watching.look_at_harm(clock.now_s)


def told(bench: Bench, kind: str) -> list[Any]:
    return [each[kind] for each in bench.link.sent if kind in each]


def test_harm_trips_all_once_and_is_forgiven_with_a_reset(bench: Bench) -> None:
    bench.link.told.harm = verdict(rollback=True)
    bench.watching.take()
    assert (bench.cause("one"), bench.cause("two")) == ("harm", "harm")
    bench.desk.reset("one", "", "ann")
    assert {"forget_harm": True} in bench.link.sent
    bench.link.told.harm = verdict(rollback=True)  # was under way
    bench.watching.take()
    assert (bench.state("one"), bench.state("two")) == ("active", "tripped")
    assert bench.link.sent.count({"forget_harm": True}) == 2, "it may not have heard"
    bench.link.told.harm = verdict("inconclusive")
    bench.watching.take()
    bench.link.told.harm = verdict(rollback=True)
    bench.watching.take()
    assert bench.cause("one") == "harm", "new evidence"


def test_harm_is_forgiven_although_the_agent_was_restarted(bench: Bench) -> None:
    bench.link.told.harm = verdict(rollback=True)
    bench.watching.take()
    bench.again()
    bench.desk.reset("one", "", "ann")
    bench.link.told.harm = verdict(rollback=True)  # what the watch process had kept
    bench.watching.take()
    assert bench.state("one") == "active"


def test_the_harm_check_runs_and_no_tripped_shadow_comes_on_with_it(clock: FakeClock, tmp_path: Path) -> None:
    latency = FakeLatency()
    bench = Bench(tmp_path, CHECKED, latency)
    trip(bench, name="two", cause=Cause.MANUAL)
    seen = set()
    now_s = 1e9
    for _ in range(400):
        now_s += 0.3
        bench.watching.look_at_harm(now_s)
        seen.add(bench.tables.enabled)
    assert seen == {0, ONE}
    told = [each["harm"] for each in bench.link.sent if "harm" in each]
    assert len(told) > 5
    assert all(each["harm_level"] == pytest.approx(0.6931, abs=1e-3) for each in told)
    while bench.tables.enabled:
        now_s += 0.3
        bench.watching.look_at_harm(now_s)
    trip(bench, Cause.MANUAL)
    assert bench.tables.enabled == 0
    bench.watching.look_at_harm(now_s + 100)
    assert bench.tables.enabled == 0
    assert latency.calls[-1] == "pause"


def test_with_too_few_requests_the_harm_check_says_nothing(clock: FakeClock, tmp_path: Path) -> None:
    latency = FakeLatency()
    latency.found = {0: FakeHistogram(29, 1), 1: FakeHistogram(1000, 1)}
    bench = Bench(tmp_path, CHECKED, latency)
    for step in range(100):
        bench.watching.look_at_harm(1e9 + step)
    assert not any("harm" in each for each in bench.link.sent)


def test_harm_holds_what_was_off_already(bench: Bench, clock: FakeClock) -> None:
    """Else a cooldown would let it slow production down again."""
    trip(bench, Cause.FAILING)
    harmed(bench)
    assert (bench.cause("one"), bench.cause("two")) == ("harm", "harm")
    clock.look(bench, 1000)
    assert (bench.state("one"), bench.tables.enabled) == ("tripped", 0)
    assert bench.watching.standings["one"].guard.notes == ["bad"]
    bench.again(orderly=False)
    assert bench.cause("one") == "harm"


def test_harm_at_the_warning_level_trips_nothing_and_is_forgiven_too(bench: Bench) -> None:
    harmed(bench, rollback=False)
    assert bench.tables.enabled == ONE | TWO
    bench.desk.reset("one", "", "ann")
    assert told(bench, "forget_harm") == [True]
    assert bench.link.told.harm == {}


def test_a_reset_without_any_harm_forgets_nothing(bench: Bench) -> None:
    harmed(bench, "inconclusive", rollback=False)
    bench.desk.reset("one", "", "ann")
    assert told(bench, "forget_harm") == []


def test_judges_are_told_of_each_pause(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, CHECKED, FakeLatency())
    for _ in range(100):
        check(bench, clock, 1)
        assert bench.watching.harm.paused is (bench.tables.enabled == 0)
    while bench.watching.harm.paused:
        check(bench, clock, 1)
    pauses = told(bench, "paused")
    assert len(pauses) >= 6
    for began, ended in zip(pauses[::2], pauses[1::2], strict=True):
        assert began == [ended[0], 0]
        assert ended[0] <= ended[1]
    assert all(before[1] <= after[0] for before, after in zip(pauses[1::2], pauses[2::2], strict=False))


def test_a_trip_in_the_midst_of_a_pause_ends_it(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, CHECKED, FakeLatency())
    while not bench.watching.harm.paused:
        check(bench, clock, 1)
    trip(bench, Cause.MANUAL)
    assert (bench.watching.harm.paused, bench.tables.enabled) == (False, TWO)
    assert told(bench, "paused")[-1][1] > 0


def test_with_some_evidence_the_check_does_not_rest(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, CHECKED.replace("every_s: 1", "every_s: 1000"), FakeLatency())
    check(bench, clock, 100)
    assert told(bench, "harm") == []
    bench.link.told.harm = verdict("inconclusive")
    bench.link.told.harm["findings"][0]["log_e"] = {"warn": 2.0, "rollback": 1.5}
    check(bench, clock, 100)
    assert len(told(bench, "harm")) > 3


def test_without_a_watch_process_nothing_is_checked(bench: Bench) -> None:
    harm = HarmWatch(bench.steering, None)
    harm.look(5.0, True)
    harm.abandon()
    harm.forgive(bench.watching.standings["one"])
    assert (harm.take(), harm.paused) == ("", False)
