"""What `shadowtap verdict` says, of whatever an agent answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.control.verdict_view import lines
from tests.agent.control.fake_desk import AT_NS, FINDING, VERDICT
from tests.agent.control.test_status_view import paths

ANSWER: dict[str, Any] = {
    "shadow": "candidate",
    "period": {"started_ns": AT_NS, "noisy_routes": ["GET /a\x1b", "GET /b"]},
    "verdict": VERDICT,
}


def test_all_that_a_verdict_rests_on() -> None:
    assert list(lines(ANSWER)) == [
        "candidate: FAIL at the rollback level: latency",
        "  judged since 2026-01-01 00:00:00Z",
        "  answers differ by themselves, so that only requests asked twice count: GET /a\\x1b, GET /b",
        "  42 blocks of time, 12345 pairs of answers",
        "  failed at 2026-01-01 00:00:00Z",
        "  chance of so much evidence against a shadow that is no worse: 0.0001 at the warning's floors, "
        "0.0005 at the rollback's",
        "  0.1 % of the requests were lost",
        "  pairs left out: late 3",
        "",
        FINDING["sentence"],
        "  42 blocks, 12345 pairs",
        "  for a warning: more than +2.0%; evidence 8.1e+03 to 1",
        "  for a rollback: more than +10.0%; evidence 2e+03 to 1",
        "  for a PASS: less than +10.0%; evidence 2.06e-09 to 1",
        "  example: GET /api/items/5\\x1b[31m at 2026-01-01 00:00:00Z: production 5.1 ms, shadow 60 ms",
    ]


def test_what_failed_comes_first_and_what_was_not_measured_is_short() -> None:
    passed = {**FINDING, "word": "pass", "sentence": "errors: pass"}
    silent = {"route": "all", "metric": "cpu", "word": "inconclusive", "sentence": "cpu: not measured", "blocks": 0}
    found = list(lines({**ANSWER, "verdict": {**VERDICT, "findings": [passed, silent, FINDING]}}))
    places = [found.index(sentence) for sentence in (FINDING["sentence"], "cpu: not measured", "errors: pass")]
    assert places == sorted(places)
    assert found[places[1] + 1] == ""


def test_examples_say_what_differs() -> None:
    pair = {**FINDING["examples"][0], "different": True, "shadow_error": True, "reference": "", "shadow_ns": 10**10}
    found = list(lines({**ANSWER, "verdict": {**VERDICT, "findings": [{**FINDING, "examples": [pair] * 5}]}}))
    examples = [line for line in found if "example:" in line]
    assert len(examples) == 3
    assert examples[0].endswith("production 5.1 ms, shadow 10 s and an error, the answers differ")
    assert "GET /api/items/{}" in examples[0]


@pytest.mark.parametrize("answer", [{"shadow": "x", "verdict": None}, {"shadow": "x"}])
def test_before_there_is_a_verdict(answer: dict[str, Any]) -> None:
    assert list(lines(answer)) == ["x: no verdict yet: nothing was compared, or the agent does not judge"]


@pytest.mark.parametrize("gone", [True, False])
def test_any_part_may_be_missing_or_null(gone: bool) -> None:
    for path in paths(ANSWER):
        answer = copy.deepcopy(ANSWER)
        place: Any = answer
        for key in path[:-1]:
            place = place[key]
        if gone:
            del place[path[-1]]
        else:
            place[path[-1]] = None
        assert all(line.isprintable() for line in lines(answer)), path
