"""The Prometheus rules: the real promtool takes them, their unit tests hold, and they ask for metrics that exist."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.packaging.exposition import PACKAGING, metrics_in, promtool, samples, text, unmatched

RULES = PACKAGING / "prometheus" / "shadowtap-rules.yml"
TESTS = sorted(RULES.parent.glob("*-test.yml"))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts_in_tests() -> tuple[set[str], set[str]]:
    """Names of the alerts that unit tests see firing, and of those they see silent."""
    firing: set[str] = set()
    silent: set[str] = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", []):
                (firing if case.get("exp_alerts") else silent).add(case["alertname"])
    return firing, silent


def test_promtool_takes_the_rules() -> None:
    assert promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES)) == ""


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_unit_tests_of_the_rules_hold(path: Any) -> None:
    assert promtool("test", "rules", path.name, cwd=path.parent) == ""


def test_there_are_unit_tests() -> None:
    assert len(TESTS) == 2


def test_every_alert_is_seen_firing_and_silent() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    firing, silent = alerts_in_tests()
    assert (alerts - firing, alerts - silent) == (set(), set())


def test_every_alert_has_a_severity_and_one_line() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in alerts} <= {"critical", "warning"}
    assert [rule["alert"] for rule in alerts if "\n" in rule["annotations"]["summary"].strip()] == []


def test_the_rules_use_what_is_exposed_or_recorded() -> None:
    known = set(samples()) | {rule["record"] for rule in rules() if "record" in rule}
    assert {name for rule in rules() for name in metrics_in(rule["expr"])} - known == set()


def test_the_rules_ask_for_labels_and_values_that_exist() -> None:
    assert [each for rule in rules() for each in unmatched(rule["expr"])] == []


def test_a_name_or_a_label_that_does_not_exist_is_noticed() -> None:
    expression = 'sum(rate(shadowtap_requests_sen_total{a="x"}[5m])) > 0'
    assert metrics_in(expression) - set(samples()) == {"shadowtap_requests_sen_total"}
    for wrong in ('verdict="failed"', 'verdikt="fail"', 'verdict=~"fail|passed"'):
        assert len(unmatched(f"shadowtap_judge_verdict{{{wrong}}} == 1")) == 1
    assert unmatched('shadowtap_judge_verdict{verdict=~"fail|pass", job="x", shadow="$shadow"} == 1') == []


def test_promtool_takes_the_exposition() -> None:
    assert promtool("check", "metrics", text_in=text()) == ""
