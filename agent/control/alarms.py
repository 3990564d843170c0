"""Which alerts should be active, from what is known now. Pure; telling them is the watch process's.

Each names what it rests on as evidence: numbers, blocks, examples. Texts from strangers are printable where they come
from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LAG_LIMIT_NS = 10_000_000  # the schedule is kept when 99 of 100 requests leave within it
EVIDENCE_LINES = 4


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alert that should be active; `name` and `shadow` ("" for the host) say which."""

    name: str
    severity: str
    shadow: str
    summary: str
    evidence: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the watch process."""
        return {
            "name": self.name,
            "severity": self.severity,
            "shadow": self.shadow,
            "summary": self.summary,
            "evidence": self.evidence,
        }


def of_guard(shadow: str, guard: dict[str, Any]) -> list[Alarm]:
    """A shadow that is tripped, from its guard as the API shows it."""
    if guard["state"] != "tripped":
        return []
    evidence = {"cause": str(guard["cause"]), "trips": str(guard["trips"])}
    if guard.get("detail"):
        evidence["detail"] = str(guard["detail"])
    return [Alarm("ShadowTripped", "critical", shadow, f"shadow {shadow} is off: {guard['reason']}", evidence)]


def of_verdict(shadow: str, verdict: dict[str, Any] | None) -> list[Alarm]:
    """What the judge says: a failure at either level, or data that cannot be relied on."""
    if not verdict:
        return []
    found = []
    if verdict["word"] == "fail":
        level = "rollback" if verdict["rollback"] else "warning"
        severity = "critical" if verdict["rollback"] else "warning"
        failed = [each for each in verdict["findings"] if each["word"] == "fail"]
        evidence = {f"finding_{n}": each["sentence"] for n, each in enumerate(failed[:EVIDENCE_LINES], 1)}
        examples = [example["reference"] for each in failed for example in each["examples"]][:EVIDENCE_LINES]
        evidence |= {f"example_{n}": text for n, text in enumerate(examples, 1)}
        evidence |= {"blocks": str(verdict["blocks"]), "pairs": str(verdict["pairs"]), "level": level}
        summary = f"shadow {shadow} is worse than production: {verdict['reason']}"
        found.append(Alarm("ShadowFailed", severity, shadow, summary, evidence))
    if verdict["problem"]:
        summary = f"nothing can be concluded about shadow {shadow}: {verdict['problem']}"
        found.append(Alarm("DataQuality", "warning", shadow, summary, {"lost_share": f"{verdict['lost_share']:.2%}"}))
    return found


def of_lag(shadow: str, lag_p99_ns: int | None) -> list[Alarm]:
    """Requests leave later than they should, so the shadow gets them bunched."""
    if lag_p99_ns is None or lag_p99_ns <= LAG_LIMIT_NS:
        return []
    summary = f"requests to shadow {shadow} leave late: 99 of 100 within {lag_p99_ns / 1e6:.0f} ms of their time"
    return [Alarm("ScheduleLag", "warning", shadow, summary, {"limit": f"{LAG_LIMIT_NS / 1e6:.0f} ms"})]


def of_host(
    harm: dict[str, Any],
    budget: str,
    problems: list[str],
    watch_runs: bool,
    missing: dict[str, list[str]],
    undelivered: list[str] = [],  # noqa: B006 (nobody changes it)
) -> list[Alarm]:
    """What concerns all shadows: production harmed, the agent's own needs, state that is not kept, gaps in what is
    known of the pools (`missing`: by pool, a line for each target)."""
    found = []
    if harm and harm["word"] == "fail":
        failed = [each["sentence"] for each in harm["findings"] if each["word"] == "fail"]
        evidence = {f"finding_{n}": text for n, text in enumerate(failed, 1)}
        severity = "critical" if harm["rollback"] else "warning"
        found.append(Alarm("MirroringHarms", severity, "", "production is slower while it is mirrored", evidence))
    if budget:
        found.append(Alarm("AgentOverBudget", "critical", "", budget))
    if problems:
        lines = {f"problem_{n}": text for n, text in enumerate(problems[:EVIDENCE_LINES], 1)}
        found.append(Alarm("StateNotKept", "warning", "", problems[0], lines))
    if undelivered:
        lines = {f"problem_{n}": text for n, text in enumerate(undelivered[:EVIDENCE_LINES], 1)}
        found.append(Alarm("AlertsUndelivered", "warning", "", undelivered[0], lines))
    if not watch_runs:
        found.append(Alarm("WatchDown", "critical", "", "the watch process is down: nothing is judged"))
    for pool, lines_ in missing.items():
        lines = {f"target_{n}": text for n, text in enumerate(lines_[:EVIDENCE_LINES], 1)}
        found.append(Alarm("PoolUsageGap", "info", pool, f"CPU and memory of {pool} are not known", lines))
    return found
