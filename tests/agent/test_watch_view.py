"""How the watching looks from outside: alerts, problems, metrics, reasons, and a configuration as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from agent.config import parse, validated
from agent.control.guard import Cause
from agent.monitor.watch_metrics import families
from agent.watch_view import clocks, missing_usage, plain, problems_of, snapshot_of, verdict_reason
from tests.agent.control.fake_desk import FINDING
from tests.agent.watch_bench import TEXT, Bench, FakeClock, verdict


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    made.install(monkeypatch)
    return made


@pytest.fixture
def bench(clock: FakeClock, tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_situation_is_an_alert_once_while_it_lasts(bench: Bench, clock: FakeClock) -> None:
    clock.look(bench)
    assert bench.alarms == {}
    bench.judged(what={**verdict(rollback=True), "problem": "3 % of the requests were lost", "lost_share": 0.03})
    told = bench.link.told
    told.traffic["two"] = {"totals": {"lag": {"p99_ns": 25_000_000}}}
    told.harm = verdict(rollback=False)
    told.watch = {
        "problems": ["judge-one.json: the disk is full"],
        "undelivered": ["alertmanager: refused"],
        "usage": {"production": {"missing": [["10.0.0.1:9100", "timed out"]]}, "shadows": {"one": None}},
    }
    bench.watching.over_budget = ""
    bench.link.running = False
    clock.look(bench, times=3)
    assert ("PoolUsageGap", "production") not in bench.alarms, "at the start nothing is known yet"
    clock.look(bench, 31)
    for _ in range(3):
        clock.look(bench)
        assert sorted(bench.alarms) == [
            ("AlertsUndelivered", ""),
            ("DataQuality", "one"),
            ("MirroringHarms", ""),
            ("PoolUsageGap", "production"),
            ("ScheduleLag", "two"),
            ("ShadowFailed", "one"),
            ("ShadowTripped", "one"),
            ("StateNotKept", ""),
            ("WatchDown", ""),
        ]
    assert bench.alarms["ShadowFailed", "one"]["evidence"]["finding_1"] == FINDING["sentence"]
    assert bench.alarms["ShadowTripped", "one"]["evidence"]["cause"] == "judge"
    told.traffic, told.harm, told.watch, bench.link.running = {}, {}, {}, True
    bench.desk.reset("one", "", "ann")
    clock.look(bench)
    assert bench.alarms == {}


def test_a_trip_is_told_at_once(bench: Bench) -> None:
    bench.desk.trip("one", "enough", "ann")
    assert bench.alarms["ShadowTripped", "one"]["summary"] == "shadow one is off: enough"


def test_problems_are_those_of_the_state_and_of_the_watch_process(bench: Bench) -> None:
    assert problems_of(bench.watching) == []
    bench.fail_store()
    bench.desk.trip("one", "", "ann")
    bench.link.told.watch = {"problems": ["webhook: refused", ""]}
    assert problems_of(bench.watching) == ["state.db: the disk is full", "webhook: refused"]


def values(found: list[Metric], name: str) -> dict[str, float]:
    family = next(family for family in found if family.name == f"shadowtap_{name}")
    return {" ".join(sample.labels.values()): sample.value for sample in family.samples}


def test_the_snapshot_for_the_metrics_is_complete(bench: Bench, clock: FakeClock) -> None:
    bench.desk.start_ramp("two", {"steps": [{"percentage": 3, "hold_s": 5}]}, "ann")
    bench.judged(what=verdict(rollback=True))
    told = bench.link.told
    told.harm = verdict("inconclusive")
    told.watch = {"alerts": [{"severity": "critical"}, {"severity": "critical"}, {"severity": "info"}], "unsent": 7}
    snapshot = snapshot_of(bench.watching)
    assert (snapshot.alerts, snapshot.pairs_unsent, snapshot.watch_up) == ({"critical": 2, "info": 1}, 7, True)
    found = list(families(snapshot))
    guards = values(found, "guard_state")
    assert {name for name, value in guards.items() if value} == {"one tripped", "two active"}
    assert values(found, "trips") == {"one": 1, "two": 0}
    assert values(found, "ramp_percentage") == {"two": 3}
    assert values(found, "judge_verdict") == {"one pass": 0, "one fail": 1, "one inconclusive": 0}
    assert values(found, "alerts_active") == {"critical": 2, "warning": 0, "info": 1}
    bench.link.running = False
    assert values(list(families(snapshot_of(bench.watching))), "watch_up") == {"": 0}


def test_without_a_judge_the_snapshot_is_empty_and_still_metrics(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT + "judge: null\n")
    snapshot = snapshot_of(bench.watching)
    assert (snapshot.watch_up, snapshot.verdicts, list(snapshot.guards)) == (True, {}, ["one", "two"])
    assert list(families(snapshot))


def test_trips_without_a_judge_are_in_the_metrics(clock: FakeClock, tmp_path: Path) -> None:
    bench = Bench(tmp_path, TEXT + "judge: null\n")
    bench.watching.trip(bench.watching.standings["one"], Cause.FAILING, "")
    assert values(list(families(snapshot_of(bench.watching))), "trips") == {"one": 1, "two": 0}


def test_gaps_in_what_is_known_of_the_pools() -> None:
    assert missing_usage({}) == {}
    usage = {
        "production": {"missing": [("10.0.0.1:9100", "timed out"), ("10.0.0.2:9100", "404")]},
        "shadows": {
            "one": None,
            "two": {"cpu_cores": 0.0, "memory_bytes": 0.0, "missing": []},
            "three": {"cpu_cores": None, "memory_bytes": 5.0, "missing": [("h", "gone")]},
            "four": {"cpu_cores": 1.5, "memory_bytes": None, "missing": [("i", "gone")]},
            "five": {"cpu_cores": 1.5, "memory_bytes": 5.0, "missing": [("j", "gone")]},
        },
    }
    assert missing_usage(usage) == {
        "production": ["10.0.0.1:9100: timed out", "10.0.0.2:9100: 404"],
        "three": ["h: gone"],
        "four": ["i: gone"],
    }, "of a pool whose figures are known no target is missed"


def test_a_gap_is_told_when_it_lasts_and_ends_with_it(bench: Bench, clock: FakeClock) -> None:
    gap = {"production": {"missing": [["10.0.0.1:9100", "timed out"]]}}
    known = {"production": {"cpu_cores": 1.0, "memory_bytes": 1.0, "missing": []}}
    seen = []
    for usage, after_s in ((gap, 1), (gap, 30), (known, 1), (gap, 1), (gap, 29), (gap, 2), (known, 1)):
        bench.link.told.watch = {"usage": usage}
        clock.look(bench, after_s)
        seen.append(("PoolUsageGap", "production") in bench.alarms)
    assert seen == [False, False, False, False, False, True, False]


def test_the_reason_is_the_finding_that_says_most() -> None:
    def finding(route: str, log_e: float, word: str = "fail") -> dict[str, object]:
        return {"route": route, "word": word, "log_e": {"rollback": log_e}, "sentence": f"{route} {log_e}"}

    findings = [finding("GET /a", 99.0), finding("all", 7.0), finding("all", 8.0), finding("all", 50.0, "pass")]
    assert verdict_reason({"findings": findings, "reason": "latency"}) == "all 8.0"
    assert verdict_reason({"findings": findings[:1], "reason": "latency"}) == "GET /a 99.0"
    assert verdict_reason({"findings": findings[3:], "reason": "latency"}) == "latency"
    assert verdict_reason({}) == ""


def test_a_configuration_as_json_is_read_again_and_has_no_secrets() -> None:
    text = TEXT + (
        "judge: {metrics: {latency: {warn: 1, rollback: 2, margin: 3}}}\n"
        "resources: {production: {targets: ['127.0.0.1:9100']}}\n"
    )
    receiver = "{url: 'http://127.0.0.1:9093', headers: {Authorization: Bearer hunter2}}"
    alerts = f"alerts: {{alertmanager: [{receiver}], labels: {{team: x}}}}\n"
    kept = json.dumps(plain(parse(text + alerts, "f.yaml")))
    assert "hunter2" not in kept
    assert validated(json.loads(kept), "kept") == parse(text, "f.yaml")


def test_all_clocks_are_of_one_moment_and_one_boot() -> None:
    first, second = clocks(), clocks()
    assert len(first.boot_id) == 36
    assert first.boot_id == second.boot_id
    assert 0 <= second.boottime_s - first.boottime_s < 5
    assert abs(first.wall_s - time.time()) < 5
