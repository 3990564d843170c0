"""The metrics: every counter of the account, the kernel and the workers is there, once, under its name."""

from __future__ import annotations

import http.client
import math
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agent.capture.layout import ACTIONS, Counters
from agent.errors import LoadError
from agent.http.limits import HttpCounters
from agent.merge import add_up
from agent.monitor.metrics import LATENCY_FIRST_LOG2, AgentCollector, MetricsServer, Snapshot
from agent.stream.limits import FlowCounters
from replay.account import Account
from replay.exchange import Answer, Dropped, Incomplete, Skipped
from replay.recording import RecordingCounters
from replay.settings import ReplayCounters

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
CANDIDATE = (("shadow", "candidate"),)


def numbered(names: Any, first: int) -> dict[str, int]:
    return {str(name): first + n for n, name in enumerate(names)}


def snapshot(**changes: Any) -> Snapshot:
    """Every counter there is, each with a number of its own."""
    answers, incomplete = Counter(numbered(Answer, 1)), Counter(numbered(Incomplete, 100))
    skipped, dropped = Counter(numbered(Skipped, 200)), Counter(numbered([*Dropped, "worker_died"], 300))
    account = Account(5000, answers.total(), incomplete, skipped, dropped, answers)
    replay = asdict(ReplayCounters()) | numbered((k for k, v in asdict(ReplayCounters()).items() if v == 0), 600)
    replay |= {"latency_log2": [0] * 64, "latency_count": 6, "latency_sum_ns": 3_000_000_000}
    for power, count in ((10, 1), (16, 2), (17, 1), (30, 1), (50, 1)):
        replay["latency_log2"][power] = count
    workers = {
        "ring": {"size_bytes": 4096, "waiting_bytes": 12, "high_water_bytes": 2048},
        "flows": numbered(asdict(FlowCounters()), 400) | {"open": 41, "buffered_bytes": 42},
        "http": numbered(asdict(HttpCounters()), 500) | {"open": 51},
        "replay": replay,
        "recording": numbered(asdict(RecordingCounters()), 700),
        "unmarked_sockets": 3,
        "cpu_s": 1.5,
    }
    base = {
        "accounts": {"candidate": account}, "kernel": numbered(Counters._fields, 800), "workers": add_up([workers]),
        "restarts": 2, "memory_bytes": 99_000_000, "shares_ppm": {"candidate": 125_000},
    }  # fmt: skip
    return Snapshot(**{**base, **changes})


def scraped(now: Snapshot) -> Samples:
    """As Prometheus would read it; each sample once."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(lambda: now))
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    out: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix("shadowtap_"), tuple(sorted(sample.labels.items())))
            assert sample.name.startswith("shadowtap_")
            assert key not in out
            out[key] = sample.value
    return out


def by(samples: Samples, name: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for (found, labels), value in samples.items() if found == name}


def test_the_account() -> None:
    now = snapshot()
    samples, account = scraped(now), now.accounts["candidate"]
    assert samples["requests_seen_total", CANDIDATE] == 5000
    assert by(samples, "requests_replayed_total", "answer") == account.answers
    for name in ("incomplete", "skipped", "dropped"):
        assert by(samples, f"requests_{name}_total", "reason") == getattr(account, name)
    assert samples["requests_in_flight", CANDIDATE] == account.in_flight


def test_each_shadow_has_its_own_account_and_share() -> None:
    accounts = {"one": Account(9, 2), "other": Account(8, 0)}
    accounts["one"].answers["ok"] = 2
    accounts["other"].skipped["disabled"] = 5
    samples = scraped(snapshot(accounts=accounts, shares_ppm={"one": 10_000, "other": 0}))
    assert by(samples, "requests_seen_total", "shadow") == {"one": 9, "other": 8}
    assert by(samples, "requests_in_flight", "shadow") == {"one": 7, "other": 3}
    assert by(samples, "sampled_ratio", "shadow") == {"one": 0.01, "other": 0}
    assert samples["requests_replayed_total", (("answer", "ok"), ("shadow", "one"))] == 2
    assert samples["requests_skipped_total", (("reason", "disabled"), ("shadow", "other"))] == 5


def test_the_identity_can_be_computed_from_the_metrics() -> None:
    samples = scraped(snapshot())
    ends = ("requests_replayed_total", "requests_incomplete_total", "requests_skipped_total", "requests_dropped_total")
    ended = sum(value for (name, _), value in samples.items() if name in ends)
    assert samples["requests_seen_total", CANDIDATE] == ended + samples["requests_in_flight", CANDIDATE]


def test_the_kernel() -> None:
    now = snapshot()
    samples = scraped(now)
    assert by(samples, "kernel_segments_total", "action") == {name: now.kernel[name] for name in ACTIONS}
    others = {n: v for n, v in now.kernel.items() if n not in ACTIONS and not n.endswith("_bytes")}
    assert by(samples, "kernel_events_total", "event") == others
    lost = {name: now.kernel[name] for name in ("ring_full", "over_budget", "unreadable")}
    assert by(samples, "kernel_lost_segments_total", "reason") == lost
    assert samples["kernel_copied_bytes_total", ()] == now.kernel["copied_bytes"]
    assert samples["kernel_lost_bytes_total", ()] == now.kernel["lost_bytes"]


def test_ring_queue_flows_memory_and_the_rest() -> None:
    now = snapshot()
    samples, replay = scraped(now), now.workers["replay"]
    expected = {
        "ring_waiting_bytes": 12, "ring_size_bytes": 4096, "ring_high_water_bytes": 2048, "flows_open": 41,
        "flows_buffered_bytes": 42, "exchanges_open": 51, "queue_requests": replay["queue_entries"],
        "queue_bytes": replay["queue_bytes"], "queue_peak_requests": replay["queue_peak_entries"],
        "connections_open": replay["open_connections"], "memory_bytes": 99_000_000,
        "worker_restarts_total": 2, "unmarked_sockets_total": 3, "worker_cpu_seconds_total": 1.5,
    }  # fmt: skip
    assert {name: samples[name, ()] for name in expected} == expected
    assert samples["sampled_ratio", CANDIDATE] == 0.125


def test_every_counter_of_every_stage_is_an_event() -> None:
    now = snapshot()
    samples = scraped(now)
    shown = {"queue_entries", "queue_bytes", "queue_peak_entries", "open_connections"}
    for name, section, counters in (
        ("stream_events_total", "flows", FlowCounters()),
        ("http_events_total", "http", HttpCounters()),
        ("replay_events_total", "replay", ReplayCounters()),
        ("recording_events_total", "recording", RecordingCounters()),
    ):
        events = {k for k, v in asdict(counters).items() if v == 0 and not k.startswith("latency_")} - shown
        assert by(samples, name, "event") == {k: now.workers[section][k] for k in events}


def upstreams(samples: Samples) -> dict[tuple[str, str, str], float]:
    found = [(dict(labels), value) for (name, labels), value in samples.items() if name == "upstream_workers"]
    return {(each["shadow"], each["upstream"], each["state"]): value for each, value in found}


def test_upstreams_by_what_the_workers_say_of_them() -> None:
    one = {"pool": {"candidate": {"192.0.2.1:80": {"well": 1}, "[2001:db8::1]:80": {"ejected": 1}}, "idle": {}}}
    other = {"pool": {"candidate": {"192.0.2.1:80": {"unhealthy": 1}, "[2001:db8::1]:80": {"ejected": 1}}}}
    samples = scraped(snapshot(workers=add_up([one, other])))
    assert upstreams(samples) == {
        ("candidate", "192.0.2.1:80", "well"): 1,
        ("candidate", "192.0.2.1:80", "unhealthy"): 1,
        ("candidate", "[2001:db8::1]:80", "ejected"): 2,
    }
    assert upstreams(scraped(snapshot())) == {}, "nobody is asked"


def test_a_name_of_an_upstream_is_only_text() -> None:
    name = 'unix:/run/a "b"\\c\nd.sock'
    samples = scraped(snapshot(workers={"pool": {"candidate": {name: {"draining": 3}}}}))
    assert upstreams(samples) == {("candidate", name, "draining"): 3}


def test_balancer_programs_are_up_or_down() -> None:
    samples = scraped(snapshot(programs={"one": True, "other": False}))
    assert by(samples, "balancer_up", "shadow") == {"one": 1, "other": 0}
    assert by(scraped(snapshot()), "balancer_up", "shadow") == {}


def log2_ns(seconds: str) -> float:
    """A bucket's limit as the power of two that it is."""
    return round(math.log2(float(seconds) * 1e9), 3)


def test_latency_is_a_histogram() -> None:
    samples = scraped(snapshot())
    buckets = {log2_ns(le): n for le, n in by(samples, "replay_latency_seconds_bucket", "le").items()}
    values = [buckets[le] for le in sorted(buckets)]
    assert values == sorted(values)
    assert (buckets[LATENCY_FIRST_LOG2], buckets[17], buckets[29], buckets[30], buckets[35]) == (3, 4, 4, 5, 5)
    assert buckets[math.inf] == samples["replay_latency_seconds_count", ()] == 6
    assert samples["replay_latency_seconds_sum", ()] == 3


def test_before_the_first_report_everything_is_zero() -> None:
    nothing = dict.fromkeys(Counters._fields, 0)
    samples = scraped(snapshot(accounts={"candidate": Account()}, workers={}, kernel=nothing))
    assert samples["requests_seen_total", CANDIDATE] == 0
    assert samples["queue_requests", ()] == 0
    assert samples["replay_latency_seconds_count", ()] == 0


@pytest.fixture
def served() -> Iterator[MetricsServer]:
    server = MetricsServer(("127.0.0.1", 0), snapshot)
    yield server
    server.close()


def test_it_is_served_on_loopback(served: MetricsServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    assert parsed(answer.read().decode()) == scraped(snapshot())
    connection.close()


def test_a_port_that_is_taken_is_one_line(served: MetricsServer) -> None:
    with pytest.raises(LoadError, match=re.escape(f"metrics.listen 127.0.0.1:{served.port}: Address already in use")):
        MetricsServer(("127.0.0.1", served.port), snapshot)


def test_it_closes(served: MetricsServer) -> None:
    other = MetricsServer(("::1", 0), snapshot)
    other.close()
    with socket.socket(socket.AF_INET6) as probe:
        assert probe.connect_ex(("::1", other.port)) != 0
