"""What `shadowtap verdict` says: the judge's word with all that it rests on, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.control.command import printable
from agent.control.wording import floor, milliseconds, odds, percent, when

EXAMPLES = 3
_WORSE_FIRST = {"fail": 0, "inconclusive": 1, "pass": 2}


def lines(answer: dict[str, Any]) -> Iterator[str]:
    """Of the answer to GET /v1/shadows/NAME/verdict."""
    name, verdict = printable(answer.get("shadow")), answer.get("verdict")
    if not isinstance(verdict, dict):
        yield f"{name}: no verdict yet: nothing was compared, or the agent does not judge"
        return
    word = printable(verdict.get("word")).upper()
    level = " at the rollback level" if verdict.get("rollback") else ""
    yield f"{name}: {word}{level}" + (f": {printable(verdict['reason'])}" if verdict.get("reason") else "")
    yield from (f"  {line}" for line in _whole(answer.get("period"), verdict))
    findings = [each for each in verdict.get("findings") or () if isinstance(each, dict)]
    for finding in sorted(findings, key=lambda each: _WORSE_FIRST.get(str(each.get("word")), 3)):
        yield ""
        yield from _finding(finding)


def _whole(period: Any, verdict: dict[str, Any]) -> Iterator[str]:
    if isinstance(period, dict):
        yield f"judged since {when(period.get('started_ns'))}"
        if noisy := period.get("noisy_routes"):
            routes = ", ".join(map(str, noisy))
            yield printable(f"answers differ by themselves, so that only requests asked twice count: {routes}")
    yield f"{verdict.get('blocks', 0)} blocks of time, {verdict.get('pairs', 0)} pairs of answers"
    if verdict.get("failed_at_ns") is not None:
        yield f"failed at {when(verdict['failed_at_ns'])}"
    if isinstance(verdict.get("p_warn"), int | float) and isinstance(verdict.get("p_rollback"), int | float):
        yield (
            f"chance of so much evidence against a shadow that is no worse: {verdict['p_warn']:.2g} at the warning's "
            f"floors, {verdict['p_rollback']:.2g} at the rollback's"
        )
    lost = f"{percent(verdict.get('lost_share'))} of the requests were lost"
    if verdict.get("blocks_left_out"):
        lost += f", {verdict['blocks_left_out']} blocks left out for that"
    yield lost + (f"; problem: {printable(verdict['problem'])}" if verdict.get("problem") else "")
    if isinstance(verdict.get("left_out"), dict) and verdict["left_out"]:
        yield "pairs left out: " + ", ".join(printable(f"{why} {n}") for why, n in verdict["left_out"].items())


def _finding(finding: dict[str, Any]) -> Iterator[str]:
    kind, floors, log_e = (finding.get(key) or {} for key in ("kind", "floors", "log_e"))
    yield printable(finding.get("sentence") or f"{finding.get('metric')} of {finding.get('route')}: no words for it")
    if not finding.get("blocks"):
        return
    yield f"  {finding.get('blocks')} blocks, {finding.get('pairs', 0)} pairs"
    for level, what in (("warn", "a warning"), ("rollback", "a rollback")):
        yield f"  for {what}: more than {floor(kind, floors.get(level))}; evidence {odds(log_e.get(level))}"
    yield f"  for a PASS: less than {floor(kind, floors.get('margin'))}; evidence {odds(log_e.get('pass'))}"
    examples = [each for each in finding.get("examples") or () if isinstance(each, dict)]
    for pair in examples[:EXAMPLES]:
        yield f"  example: {_example(pair)}"


def _example(pair: dict[str, Any]) -> str:
    sides = []
    for side in ("production", "shadow"):
        failed = " and an error" if pair.get(f"{side}_error") else ""
        sides.append(f"{side} {milliseconds(pair.get(f'{side}_ns'))}{failed}")
    different = pair.get("different")
    differ = "" if different is None else ", the answers differ" if different else ", the same answer"
    what = printable(pair.get("reference") or pair.get("route"), 160)
    return f"{what} at {when(pair.get('at_ns'))}: {', '.join(sides)}{differ}"
