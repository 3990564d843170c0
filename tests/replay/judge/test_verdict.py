"""What is said of a finding, and as JSON."""

from __future__ import annotations

import json

import pytest

from replay.judge.judge import Judge
from replay.judge.plan import Kind
from replay.judge.verdict import amount, as_json, sentence
from tests.replay.judge.traffic import T0, S, pairs


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Kind.RATIO, 0.0953, "+10.0%"),
        (Kind.RATIO, -0.2231, "-20.0%"),
        (Kind.RATIO, 6.0, "403 times"),
        (Kind.RATE, 0.004, "+0.4 points"),
        (Kind.CHANGE, 0.00123, "+0.00123"),
    ],
)
def test_amounts(kind: Kind, value: float, words: str) -> None:
    assert amount(kind, value) == words


def test_a_sentence_has_the_numbers() -> None:
    judge = Judge()
    for pair in pairs(10_000, factor=1.3):
        judge.add(pair)
    judge.advance(T0 + 41 * S)
    verdict = judge.verdict()
    said = {(each.route, each.plan.name): sentence(each) for each in verdict.findings}
    assert said["all", "latency"].startswith("latency: fail; shadow +2") or "shadow +3" in said["all", "latency"]
    assert "over 38 blocks; evidence for more than +10.0%: " in said["all", "latency"]
    assert said["GET /a", "errors"].startswith("errors of GET /a: ")
    assert said["all", "cpu"].endswith("not measured")


def test_json_holds_everything() -> None:
    judge = Judge()
    for pair in pairs(8_000, errors=0.05):
        judge.add(pair)
    judge.advance(T0 + 40 * S)
    found = json.loads(json.dumps(as_json(judge.verdict()), allow_nan=False))
    assert (found["version"], found["word"], found["rollback"]) == (1, "fail", True)
    errors = next(each for each in found["findings"] if (each["route"], each["metric"]) == ("all", "errors"))
    assert errors["floors"]["margin"] == 0.005
    assert 0 < len(errors["examples"]) <= 5
    assert errors["examples"][0]["reference"].startswith("row ")
    assert errors["sentence"].startswith("errors: fail; shadow +")
