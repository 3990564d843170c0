"""Metric families of what the watch process measures and the service decides: traffic of both sides, the judge's
evidence, guards, ramps, pools, the harm check and alerts.

Everything comes as the plain JSON of messages, from a process that may be older or just restarted: what is missing or
null gives no sample, never a guessed one. Names and labels are what packaging/ builds on; tests/packaging compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

PREFIX = "shadowtap_"
SIDES = ("production", "shadow", "shadow_response")
VERDICTS = ("pass", "fail", "inconclusive")
STATES = ("active", "tripped", "probing")
SEVERITIES = ("critical", "warning", "info")

Data = dict[str, Any]
Rows = Iterable[tuple[list[str], Any]]  # label values; None gives no sample


@dataclass(frozen=True, slots=True)
class WatchSnapshot:
    """All that a scrape needs; empty for what is not configured or has not said anything yet."""

    traffic: Data = field(default_factory=dict)  # by shadow: agent.monitor.traffic.Traffic.as_json
    verdicts: Data = field(default_factory=dict)  # by shadow: replay.judge.verdict.as_json
    guards: Data = field(default_factory=dict)  # by shadow: {"state", "trips"}
    ramps: Data = field(default_factory=dict)  # by shadow: {"state", "step", "steps", "percentage"}
    resources: Data = field(default_factory=dict)  # {"production": usage, "shadows": {name: usage}}
    harm: Data = field(default_factory=dict)  # agent.monitor.harm_judge.HarmJudge.message: a verdict
    alerts: dict[str, int] = field(default_factory=dict)  # active ones by severity
    watch_up: bool | None = None  # None: no watch process is wanted
    pairs_unsent: int = 0  # that workers had to throw away because the watch process was behind


def families(watch: WatchSnapshot) -> Iterator[Metric]:
    """In the order of the exposition."""
    yield from _traffic(watch.traffic)
    yield from _judge(watch.verdicts)
    yield from _guards(watch.guards, watch.ramps)
    yield from _pools(watch.resources)
    yield from _harm(watch.harm)
    yield _gauge(
        "alerts_active",
        "Alerts that are firing",
        ["severity"],
        [([severity], watch.alerts.get(severity, 0)) for severity in SEVERITIES],
    )
    yield _gauge("watch_up", "1 while the watch process answers, else 0", [], [([], watch.watch_up)])
    yield _counter("pairs_unsent", "Pairs that the watch process was too slow to take", [], [([], watch.pairs_unsent)])


def _traffic(traffic: Data) -> Iterator[Metric]:
    routes = [
        (shadow, name, route)
        for shadow, found in traffic.items()
        for name, route in _section(found, "routes").items()
        if "counts" in route
    ]
    yield _latency(traffic, routes)
    yield _counter(
        "side_requests",
        "Requests of pairs: each has one on both sides",
        ["shadow", "route", "side"],
        [([shadow, name, side], _pairs(route)) for shadow, name, route in routes for side in SIDES[:2]],
    )
    yield _counter(
        "side_errors",
        "Requests of pairs that failed on this side: status 5xx, or no answer of the shadow",
        ["shadow", "route", "side"],
        [([shadow, name, side], route.get(f"{side}_error")) for shadow, name, route in routes for side in SIDES[:2]],
    )
    for metric, key, text in (
        ("responses_compared", "compared", "Pairs whose answers could be compared"),
        ("response_differences", "different", "Pairs whose answers differ in status or body"),
    ):
        yield _counter(metric, text, ["shadow", "route"], [([s, name], route.get(key)) for s, name, route in routes])
    yield _counter(
        "pairs_lost",
        "Requests of which no pair came, through no fault of the shadow",
        ["shadow", "reason"],
        [([s, reason], count) for s, found in traffic.items() for reason, count in _section(found, "lost").items()],
    )
    yield _lag(traffic)


def _latency(traffic: Data, routes: list[tuple[str, str, Data]]) -> Metric:
    family = HistogramMetricFamily(
        PREFIX + "side_latency_seconds",
        "From the request's last byte to the answer's; shadow_response counts from the intended time of sending",
        labels=["shadow", "route", "side"],
    )
    for shadow, name, route in routes:
        bounds = [f"{bound / 1e9:.6g}" for bound in traffic[shadow]["bounds_ns"]] + ["+Inf"]
        for side, counts in route["counts"].items():
            family.add_metric([shadow, name, side], _cumulated(bounds, counts), route["sum_ns"][side] / 1e9)
    return family


def _cumulated(bounds: list[str], counts: list[int]) -> list[tuple[str, float]]:
    rows, total = [], 0
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def _pairs(route: Data) -> int:
    return sum(route["counts"]["production"])


def _lag(traffic: Data) -> Metric:
    """A summary, since its quantile is of the last minute and made where the pairs are."""
    family = SummaryMetricFamily(
        PREFIX + "schedule_lag_seconds", "How much later than intended requests left for the shadow", labels=["shadow"]
    )
    for shadow, found in traffic.items():
        lag = _section(found, "lag")
        if lag.get("p99_ns") is not None:
            labels = {"shadow": shadow, "quantile": "0.99"}
            family.add_sample(PREFIX + "schedule_lag_seconds", labels, lag["p99_ns"] / 1e9)
        family.add_metric([shadow], lag.get("count", 0), lag.get("sum_ns", 0) / 1e9)
    return family


def _judge(verdicts: Data) -> Iterator[Metric]:
    findings = [
        ([shadow, each["route"], each["metric"]], each)
        for shadow, verdict in verdicts.items()
        for each in verdict.get("findings") or []
    ]
    yield _gauge(
        "judge_log_e",
        "Natural logarithm of the judge's evidence: 3 is 20 to 1, 6.9 is 1000 to 1",
        ["shadow", "route", "metric", "level"],
        [([*names, level], each["log_e"].get(level)) for names, each in findings for level in each["log_e"]],
    )
    yield _gauge(
        "judge_effect",
        "Shadow against production: log ratio of latency, tail and cpu, share of the pairs of errors and differences",
        ["shadow", "route", "metric"],
        [(names, each.get("effect")) for names, each in findings],
    )
    yield _one_of("judge_verdict", "The judge's present word", "verdict", VERDICTS, verdicts, lambda v: v.get("word"))


def _guards(guards: Data, ramps: Data) -> Iterator[Metric]:
    yield _one_of("guard_state", "State of the shadow's guard", "state", STATES, guards, lambda g: g.get("state"))
    yield _counter("trips", "Times that the shadow was switched off for a cause", ["shadow"], _of_each(guards, "trips"))
    yield _gauge("ramp_percentage", "Percentage of the ramp's present step", ["shadow"], _of_each(ramps, "percentage"))
    yield _gauge("ramp_step", "Number of the ramp's present step", ["shadow"], _of_each(ramps, "step"))


def _of_each(found: Data, key: str) -> Rows:
    return [([shadow], each.get(key)) for shadow, each in found.items()]


def _pools(resources: Data) -> Iterator[Metric]:
    pools = {"production": resources.get("production"), **_section(resources, "shadows")}
    for name, key, text in (
        ("pool_cpu_cores", "cpu_cores", "CPU that all hosts of the pool use"),
        ("pool_memory_bytes", "memory_bytes", "Memory that all hosts of the pool use"),
        ("pool_requests_per_second", "requests_per_s", "Requests that the pool answers"),
        ("pool_cpu_seconds_per_request", "cpu_seconds_per_request", "CPU time of the pool for one request"),
    ):
        yield _gauge(name, text, ["pool"], [([pool], usage.get(key)) for pool, usage in pools.items() if usage])


def _harm(harm: Data) -> Iterator[Metric]:
    findings = harm.get("findings") or []
    yield _gauge(
        "harm_log_e",
        "Natural logarithm of the evidence that mirroring slows production down",
        ["metric", "level"],
        [([each["metric"], level], log_e) for each in findings for level, log_e in each["log_e"].items()],
    )
    yield _gauge(
        "harm_effect",
        "Log ratio of production's latency with mirroring to that without",
        ["metric"],
        [([each["metric"]], each.get("effect")) for each in findings],
    )


def _section(found: Data, key: str) -> Data:
    section: Data = found.get(key) or {}
    return section


def _one_of(
    name: str, text: str, label: str, words: tuple[str, ...], found: Data, word_of: Callable[[Data], Any]
) -> Metric:
    """1 for the word that holds and 0 for the others, so that each can be graphed and alerted on."""
    rows = [([shadow, word], int(word == word_of(each))) for shadow, each in found.items() for word in words]
    return _gauge(name, text, ["shadow", label], rows)


def _gauge(name: str, text: str, labels: list[str], rows: Rows) -> Metric:
    return _filled(GaugeMetricFamily(PREFIX + name, text, labels=labels), rows)


def _counter(name: str, text: str, labels: list[str], rows: Rows) -> Metric:
    return _filled(CounterMetricFamily(PREFIX + name, text, labels=labels), rows)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Rows) -> Metric:
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family
