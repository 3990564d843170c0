"""What is watched and decided, as metric families: every figure once, and none where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent.monitor.traffic import Sample, Traffic
from agent.monitor.watch_metrics import VERDICTS, WatchSnapshot, families
from replay.judge import Judge, as_json
from replay.judge.plan import HARM_SETTINGS
from replay.judge.verdict import Word

Samples = dict[str, dict[tuple[str, ...], float]]  # by name, by the values of its labels in the order of their names
ROUTE = 'GET /a "b"\\c/{id}'


def traffic() -> dict[str, Any]:
    """Three pairs of one route, one of another, two lost requests."""
    made = Traffic()
    ok = Sample(ROUTE, 1_000_000, 2_000_000, 2_500_000, 500_000, False, False, False, 200, 200)
    failed = ok._replace(shadow_ns=20_000_000_000, shadow_error=True, different=None, shadow_status=0)
    made.add([ok, ok._replace(different=True), failed, ok._replace(route="POST /", production_error=True)])
    made.lose(ROUTE, "dropped queue_full")
    made.lose("GET /lost", "incomplete gap")
    return made.as_json()


def finding(**changes: Any) -> dict[str, Any]:
    log_e = {"warn": 3.5, "rollback": -1.0, "pass": 0.0}
    return {"route": "all", "metric": "latency", "effect": 0.1, "log_e": log_e, "word": "fail"} | changes


def usage(first: float) -> dict[str, Any]:
    names = ("cpu_cores", "memory_bytes", "requests_per_s", "cpu_seconds_per_request")
    return {name: first + n for n, name in enumerate(names)} | {"missing": []}


def filled() -> WatchSnapshot:
    """Everything there can be."""
    return WatchSnapshot(
        traffic={"candidate": traffic()},
        verdicts={"candidate": {"word": "fail", "rollback": False, "findings": [finding(), finding(route=ROUTE)]}},
        guards={"candidate": {"state": "tripped", "trips": 2}},
        ramps={"candidate": {"state": "running", "step": 2, "steps": 3, "percentage": 25.0}},
        resources={"production": usage(1), "shadows": {"candidate": usage(11)}},
        harm={"word": "inconclusive", "findings": [finding(metric="harm_tail"), finding(metric="harm_level")]},
        alerts={"critical": 1},
        watch_up=True,
        pairs_unsent=5,
    )


def scraped(watch: WatchSnapshot) -> Samples:
    """As Prometheus would read it; each sample once."""

    class Collector:
        def collect(self) -> Iterator[Metric]:
            return families(watch)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    out: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.documentation
        for sample in family.samples:
            assert sample.name.startswith("shadowtap_")
            found = out.setdefault(sample.name.removeprefix("shadowtap_"), {})
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found
            found[labels] = sample.value
    return out


def test_requests_errors_and_differences_by_route_and_side() -> None:
    found = scraped(filled())
    assert found["side_requests_total"] == {
        (ROUTE, "candidate", "production"): 3,
        (ROUTE, "candidate", "shadow"): 3,
        ("POST /", "candidate", "production"): 1,
        ("POST /", "candidate", "shadow"): 1,
        ("GET /lost", "candidate", "production"): 0,
        ("GET /lost", "candidate", "shadow"): 0,
    }
    assert found["side_errors_total"][ROUTE, "candidate", "production"] == 0
    assert found["side_errors_total"][ROUTE, "candidate", "shadow"] == 1
    assert found["side_errors_total"]["POST /", "candidate", "production"] == 1
    assert found["responses_compared_total"][ROUTE, "candidate"] == 2
    assert found["response_differences_total"][ROUTE, "candidate"] == 1
    assert found["pairs_lost_total"] == {
        ("dropped queue_full", "candidate"): 1,
        ("incomplete gap", "candidate"): 1,
    }


def test_latency_is_a_histogram_of_each_side() -> None:
    found = scraped(filled())
    buckets = {
        labels: value
        for labels, value in found["side_latency_seconds_bucket"].items()
        if labels[1:] == (ROUTE, "candidate", "shadow")
    }
    values = [buckets[key] for key in sorted(buckets, key=lambda labels: float(labels[0]))]
    assert values == sorted(values)
    assert len(values) == 25
    assert (values[0], values[-2], values[-1]) == (0, 2, 3), "20 s are beyond the last bound"
    assert found["side_latency_seconds_count"][ROUTE, "candidate", "shadow"] == 3
    assert found["side_latency_seconds_sum"][ROUTE, "candidate", "shadow"] == 20.004
    assert found["side_latency_seconds_sum"][ROUTE, "candidate", "production"] == 0.003
    assert found["side_latency_seconds_sum"][ROUTE, "candidate", "shadow_response"] == 0.0075


def test_schedule_lag_is_a_summary() -> None:
    found = scraped(filled())
    assert math.isclose(found["schedule_lag_seconds"]["0.99", "candidate"], 0.0005, rel_tol=0.01)
    assert found["schedule_lag_seconds_count"]["candidate",] == 4
    assert found["schedule_lag_seconds_sum"]["candidate",] == 0.002


def test_the_judge() -> None:
    found = scraped(filled())
    assert found["judge_log_e"]["warn", "latency", "all", "candidate"] == 3.5
    assert found["judge_log_e"]["rollback", "latency", ROUTE, "candidate"] == -1
    assert found["judge_effect"]["latency", "all", "candidate"] == 0.1
    assert found["judge_verdict"] == {
        ("candidate", "pass"): 0,
        ("candidate", "fail"): 1,
        ("candidate", "inconclusive"): 0,
    }


def test_a_verdict_of_the_judge_itself() -> None:
    judge = Judge(HARM_SETTINGS)
    for second in range(30):
        judge.measure("harm_tail", 0.5, second * 1_000_000_000)
    verdict = as_json(judge.verdict())
    found = scraped(WatchSnapshot(verdicts={"candidate": verdict}, harm=verdict))
    assert set(VERDICTS) == {word.value for word in Word}
    assert found["judge_verdict"]["candidate", "fail"] == 1
    assert found["judge_effect"]["harm_tail", "all", "candidate"] == found["harm_effect"]["harm_tail",] == 0.5
    assert found["harm_log_e"]["rollback", "harm_tail"] > 7.6, "as the rule asks"
    levels = {labels[0] for labels in found["judge_log_e"]}
    assert levels == {"warn", "rollback", "pass"}


def test_guard_and_ramp() -> None:
    found = scraped(filled())
    assert found["guard_state"] == {
        ("candidate", "active"): 0,
        ("candidate", "tripped"): 1,
        ("candidate", "probing"): 0,
    }
    assert found["trips_total"]["candidate",] == 2
    assert (found["ramp_percentage"]["candidate",], found["ramp_step"]["candidate",]) == (25, 2)


def test_pools_harm_alerts_and_the_rest() -> None:
    found = scraped(filled())
    assert found["pool_cpu_cores"] == {("production",): 1, ("candidate",): 11}
    assert found["pool_memory_bytes"]["production",] == 2
    assert found["pool_requests_per_second"]["production",] == 3
    assert found["pool_cpu_seconds_per_request"]["candidate",] == 14
    assert found["harm_log_e"]["rollback", "harm_tail"] == -1
    assert len(found["harm_log_e"]) == 6
    assert found["harm_effect"] == {("harm_tail",): 0.1, ("harm_level",): 0.1}
    assert found["alerts_active"] == {("critical",): 1, ("warning",): 0, ("info",): 0}
    assert found["watch_up"][()] == 1
    assert found["pairs_unsent_total"][()] == 5


def test_what_is_not_known_has_no_sample() -> None:
    unknown = dict.fromkeys(usage(1), None)
    nothing = finding(effect=None, log_e={"warn": None, "rollback": 0.0})
    found = scraped(
        replace(
            filled(),
            resources={"production": unknown, "shadows": {"candidate": None}},
            verdicts={"candidate": {"word": "inconclusive", "findings": [nothing]}},
            ramps={"candidate": {"state": "done", "step": None, "percentage": None}},
            harm={"word": "inconclusive", "findings": []},
        )
    )
    for name in ("pool_cpu_cores", "pool_cpu_seconds_per_request", "judge_effect", "ramp_step", "harm_log_e"):
        assert name not in found
    assert list(found["judge_log_e"]) == [("rollback", "latency", "all", "candidate")]


def test_before_anything_was_said_there_are_only_zeros() -> None:
    found = scraped(WatchSnapshot())
    assert {name for name, samples in found.items() if samples} == {"alerts_active", "pairs_unsent_total"}
    assert scraped(WatchSnapshot(watch_up=False))["watch_up"][()] == 0


def test_a_shadow_without_traffic_has_no_quantile() -> None:
    found = scraped(WatchSnapshot(traffic={"idle": Traffic().as_json()}))
    assert found["schedule_lag_seconds_count"]["idle",] == 0
    assert "schedule_lag_seconds" not in found
    assert "side_requests_total" not in found
