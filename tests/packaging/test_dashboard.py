"""The Grafana dashboard: sound JSON whose every expression Prometheus parses, on metrics that exist."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.exposition import PACKAGING, metrics_in, promtool, samples, unmatched
from tests.packaging.test_rules import rules

DASHBOARD = json.loads((PACKAGING / "grafana" / "shadowtap.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
BUILT_IN = {"$__rate_interval": "5m", "$__range": "1h"}
SHOWN = (
    "side_latency_seconds_bucket", "side_errors_total", "response_differences_total", "side_requests_total",
    "requests_seen_total", "requests_replayed_total", "requests_incomplete_total", "requests_skipped_total",
    "requests_dropped_total", "judge_log_e", "judge_verdict", "guard_state", "ramp_percentage", "pool_cpu_cores",
    "pool_memory_bytes", "pool_cpu_seconds_per_request", "memory_bytes", "worker_cpu_seconds_total",
    "kernel_segments_total", "kernel_lost_segments_total", "harm_log_e", "schedule_lag_seconds", "alerts_active",
)  # fmt: skip


def expressions() -> list[str]:
    """All of panels and annotations, as they stand."""
    targets = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    return targets + [each["expr"] for each in DASHBOARD["annotations"]["list"] if "expr" in each]


def substituted(expression: str) -> str:
    """With values for Grafana's variables."""
    for name, value in BUILT_IN.items():
        expression = expression.replace(name, value)
    for name in VARIABLES:
        expression = expression.replace(f"${name}", "x")
    return expression


def area(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    across, down = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
    return set(itertools.product(across, down))


def test_it_is_a_dashboard() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"] == DASHBOARD["title"] == "shadowtap"
    assert "id" not in DASHBOARD, "a number of the Grafana it was exported from"
    assert list(VARIABLES) == ["datasource", "instance", "shadow", "route"]


def test_every_panel_has_a_number_a_title_and_a_place_of_its_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(panel["title"] for panel in PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        cells = area(panel)
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_everything_is_asked_of_the_chosen_prometheus() -> None:
    for panel in PANELS:
        targets = panel.get("targets", [])
        assert (panel["type"] == "row") == (not targets)
        assert len({target["refId"] for target in targets}) == len(targets)
        assert {target["datasource"]["uid"] for target in targets} <= {"${datasource}"}
    queries = [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    assert {variable["datasource"]["uid"] for variable in queries} == {"${datasource}"}


def test_prometheus_parses_every_expression(tmp_path: Path) -> None:
    found = [substituted(each) for each in expressions()]
    assert [each for each in found if "$" in each] == []
    named = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(found)]
    path = tmp_path / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": named}]}))
    assert promtool("check", "rules", str(path)) == ""


def test_it_uses_what_is_exposed_or_recorded() -> None:
    known = set(samples()) | {rule["record"] for rule in rules() if "record" in rule}
    variables = [variable["definition"] for variable in VARIABLES.values() if "definition" in variable]
    assert {name for each in [*expressions(), *variables] for name in metrics_in(each)} - known == set()


def test_it_asks_for_labels_and_values_that_exist() -> None:
    assert [wrong for each in expressions() for wrong in unmatched(each)] == []


def test_it_shows_what_matters() -> None:
    used = set().union(*(metrics_in(each) for each in expressions()))
    assert {f"shadowtap_{name}" for name in SHOWN} - used == set()
