"""The metrics of a living agent, scraped over loopback as Prometheus would, against what was counted elsewhere."""

from __future__ import annotations

import http.client
from contextlib import suppress
from dataclasses import fields

import pytest

from agent.http.limits import HttpCounters
from agent.stream.limits import FlowCounters
from replay.account import Account
from replay.recording import RecordingCounters
from tests.e2e.agent_process import Agent, Metrics, hung_shadow, running, status_of
from vagrant.lab import Lab

pytestmark = pytest.mark.root


def account_of(metrics: Metrics) -> Account:
    """The account as the metrics tell it."""
    answers = metrics.by("requests_replayed_total", "answer")
    found = Account.from_dict(
        {
            "seen": int(metrics.get("requests_seen_total", shadow="candidate")),
            "replayed": sum(answers.values()),
            "answers": answers,
            **{n: metrics.by(f"requests_{n}_total", "reason") for n in ("incomplete", "skipped", "dropped")},
        }
    )
    assert found.in_flight == metrics.get("requests_in_flight", shadow="candidate")
    return found


def resident_bytes(agent: Agent) -> int:
    pids = (agent.pid, *agent.children().values())
    return sum(int(status_of(pid)["VmRSS"].split()[0]) * 1024 for pid in pids)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_last_scrape_is_the_account(lab: Lab, workers: int) -> None:
    with running(lab, {"capture": {"workers": workers}}) as agent:
        lab.rate(500, 2, targets=["/", "/api/items/3", "/old"])
        lab.get("/api/orders", method="POST", body=b"{}")
        metrics = agent.await_seen(1001)
        memory = resident_bytes(agent)
        ended = agent.stop()
    assert account_of(metrics) == ended.account
    assert metrics.by("kernel_segments_total", "action") == {
        name: value for name, value in ended.kernel.items() if value and not name.endswith("_bytes")
    }
    assert metrics.get("kernel_copied_bytes_total") == ended.kernel["copied_bytes"]
    assert metrics.get("replay_latency_seconds_count") == ended.account.answers["ok"] == 1000
    assert 0 < metrics.get("replay_latency_seconds_sum") < 1000
    assert metrics.get("replay_latency_seconds_bucket", le="+Inf") == 1000
    assert metrics.by("replay_events_total", "event")["submitted"] == 1000
    assert metrics.by("recording_events_total", "event")["rows"] == 1001
    assert metrics.get("ring_size_bytes") == workers * (4 << 20)
    assert 0 < metrics.get("ring_high_water_bytes") < workers * (4 << 20)
    assert metrics.get("worker_cpu_seconds_total") > 0
    assert 0.5 < metrics.get("memory_bytes") / memory < 2
    assert metrics.get("sampled_ratio", shadow="candidate") == 1
    assert metrics.get("unmarked_sockets_total") == 0


def test_every_name_is_there(lab: Lab) -> None:
    with running(lab) as agent:
        lab.requests(10)
        metrics = agent.await_seen(10)
    names = {name.removeprefix("shadowtap_") for name, _ in metrics.samples}
    gauges = "ring_waiting_bytes ring_size_bytes ring_high_water_bytes flows_open flows_buffered_bytes exchanges_open "
    gauges += "queue_requests queue_bytes queue_peak_requests connections_open memory_bytes sampled_ratio"
    assert names >= set(gauges.split())
    for name, counters in (
        ("stream_events_total", FlowCounters),
        ("http_events_total", HttpCounters),
        ("recording_events_total", RecordingCounters),
    ):
        events = {dict(labels)["event"] for found, labels in metrics.samples if found == f"shadowtap_{name}"}
        assert events == {field.name for field in fields(counters)}


def test_what_waits_is_shown_while_it_waits(lab: Lab) -> None:
    limits = {"max_connections": 2, "queue_entries": 30, "queue_timeout_s": 60, "timeout_s": 60}
    with running(lab, {"shadows": {"candidate": limits}, "stop_timeout_s": 0.2}) as agent, hung_shadow(lab):
        lab.requests(50)
        agent.await_metric("requests_in_flight", 32, shadow="candidate")
        metrics = agent.metrics()
        ended = agent.stop()
    assert (metrics.get("queue_requests"), metrics.get("connections_open")) == (30, 2)
    assert metrics.get("queue_bytes") > 30 * 20
    assert metrics.get("queue_peak_requests") == 30
    assert metrics.by("requests_dropped_total", "reason") == {"queue_full": 18}
    assert ended.account.dropped == {"queue_full": 18, "shutdown": 32}


def test_scraping_while_it_ends_is_no_error(lab: Lab) -> None:
    scrapes = 0
    with running(lab) as agent:
        lab.requests(10)
        agent.process.terminate()
        while agent.process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                agent.metrics()
                scrapes += 1
        ended = agent.await_end()
    assert ended.status == 0
    assert ended.errors.splitlines()[1:] == ["shadowtap: stopping: capture has ended, finishing what is in flight"]
    assert scrapes > 0


def test_a_port_that_is_taken_is_one_line(lab: Lab) -> None:
    with running(lab), Agent(lab, wait=False) as other:
        ended = other.await_end()
    assert ended.status == 2
    (line,) = ended.errors.splitlines()
    assert line.startswith("shadowtap: metrics.listen 127.0.0.1:9464: Address already in use: choose another port")


def test_no_metrics_when_none_are_wanted(lab: Lab) -> None:
    with running(lab, {"metrics": None}) as agent:
        lab.requests(10)
        with pytest.raises(ConnectionRefusedError):
            agent.metrics()
        assert agent.stop().account.seen == 10
