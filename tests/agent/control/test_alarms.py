"""Which alerts follow from what is known: one of each, with what it rests on."""

from __future__ import annotations

from typing import Any

import pytest

from agent.control.alarms import EVIDENCE_LINES, LAG_LIMIT_NS, Alarm, of_guard, of_host, of_lag, of_verdict
from agent.control.guard import Cause, Guard, GuardSettings
from agent.control.standing import Standing
from agent.watch_config import Rollback
from tests.agent.control.fake_desk import FINDING
from tests.agent.control.test_standing import at
from tests.agent.watch_bench import verdict


def host(**fields: Any) -> list[Alarm]:
    known: dict[str, Any] = {"harm": {}, "budget": "", "problems": [], "watch_runs": True, "missing": {}}
    return of_host(**(known | fields))


def test_where_all_is_well_there_are_none() -> None:
    standing = Standing("one", 0, Rollback(), at(0))
    assert of_guard("one", standing.guard_view(at(0))) == []
    assert (
        of_verdict("one", None)
        == of_verdict("one", verdict("pass"))
        == of_verdict("one", verdict("inconclusive"))
        == []
    )
    assert of_lag("one", None) == of_lag("one", LAG_LIMIT_NS) == []
    assert host() == host(harm=verdict("pass")) == host(harm=verdict("inconclusive")) == []


def test_a_tripped_shadow() -> None:
    standing = Standing("one", 0, Rollback(), at(0))
    standing.guard.trip(Cause.LEAK, "it leaks", at(1))
    (alarm,) = of_guard("one", standing.guard_view(at(1)))
    assert (alarm.name, alarm.severity, alarm.shadow) == ("ShadowTripped", "critical", "one")
    assert alarm.summary == "shadow one is off: it leaks"
    assert alarm.evidence == {"cause": "leak", "trips": "1"}
    standing.guard = Guard(GuardSettings(cooldown_s=1), at(0))
    standing.guard.trip(Cause.JUDGE, "", at(1))
    standing.guard.look(at(10))
    assert of_guard("one", standing.guard_view(at(10))) == [], "a probe is not a trip"


@pytest.mark.parametrize(
    ("rollback", "severity", "level"), [(True, "critical", "rollback"), (False, "warning", "warning")]
)
def test_a_failure_comes_with_findings_and_examples(rollback: bool, severity: str, level: str) -> None:
    (alarm,) = of_verdict("one", verdict(rollback=rollback))
    assert (alarm.name, alarm.severity, alarm.shadow) == ("ShadowFailed", severity, "one")
    assert alarm.evidence["finding_1"] == FINDING["sentence"]
    assert alarm.evidence["example_1"].startswith("GET /api/items/5")
    assert (alarm.evidence["blocks"], alarm.evidence["pairs"], alarm.evidence["level"]) == ("42", "100", level)


def test_evidence_is_bounded() -> None:
    many = {**verdict(rollback=True), "findings": [FINDING] * 50}
    (alarm,) = of_verdict("one", many)
    assert len(alarm.evidence) == 2 * EVIDENCE_LINES + 3
    found = host(problems=["p"] * 9, undelivered=["u"] * 9, missing={"one": ["t"] * 9})
    assert len(found) == 3
    assert all(len(each.evidence) <= EVIDENCE_LINES for each in found)


def test_data_that_cannot_be_relied_on_is_told_beside_a_failure() -> None:
    bad = {"problem": "3 % of the requests were lost", "lost_share": 0.031}
    failed, quality = of_verdict("one", {**verdict(), **bad})
    assert (failed.name, quality.name, quality.severity) == ("ShadowFailed", "DataQuality", "warning")
    assert quality.evidence == {"lost_share": "3.10%"}
    assert [each.name for each in of_verdict("one", {**verdict("inconclusive"), **bad})] == ["DataQuality"]


def test_a_schedule_that_is_not_kept() -> None:
    (alarm,) = of_lag("one", 25_000_000)
    assert (alarm.name, alarm.severity, alarm.evidence) == ("ScheduleLag", "warning", {"limit": "10 ms"})
    assert "99 of 100 within 25 ms" in alarm.summary


@pytest.mark.parametrize(("rollback", "severity"), [(True, "critical"), (False, "warning")])
def test_production_that_is_slowed_down(rollback: bool, severity: str) -> None:
    (alarm,) = host(harm=verdict(rollback=rollback))
    assert (alarm.name, alarm.severity, alarm.shadow) == ("MirroringHarms", severity, "")
    assert alarm.evidence == {"finding_1": FINDING["sentence"]}


def test_what_concerns_the_agent_itself() -> None:
    found = host(
        budget="the agent took too much",
        problems=["state.db: full", "tripped: full"],
        watch_runs=False,
        missing={"production": ["10.0.0.1:9100: timed out"], "one": ["10.0.0.2:9100: refused"]},
        undelivered=["alertmanager: refused", "webhooks.0: 404"],
    )
    assert [(each.name, each.severity, each.shadow) for each in found] == [
        ("AgentOverBudget", "critical", ""),
        ("StateNotKept", "warning", ""),
        ("AlertsUndelivered", "warning", ""),
        ("WatchDown", "critical", ""),
        ("PoolUsageGap", "info", "production"),
        ("PoolUsageGap", "info", "one"),
    ]
    assert found[1].evidence == {"problem_1": "state.db: full", "problem_2": "tripped: full"}
    assert found[2].summary == "alertmanager: refused"
    assert found[2].evidence == {"problem_1": "alertmanager: refused", "problem_2": "webhooks.0: 404"}
    assert found[4].evidence == {"target_1": "10.0.0.1:9100: timed out"}
    assert len({(each.name, each.shadow) for each in found}) == len(found)


def test_as_json_it_is_what_the_book_takes() -> None:
    alarm = Alarm("WatchDown", "critical", "", "down")
    assert alarm.as_json() == {
        "name": "WatchDown", "severity": "critical", "shadow": "", "summary": "down", "evidence": {},
    }  # fmt: skip
