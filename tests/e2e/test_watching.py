"""What is seen of both sides while an agent runs: it adds up, outlives what dies, and costs nobody anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.agent_process import MOODS, TARGETS, Agent, Metrics, running, steady, until
from vagrant.lab import Lab
from vagrant.lab.stage import pool_targets

pytestmark = pytest.mark.root

SIDES = ("production", "shadow")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(MOODS) as made:
        yield made


def by_side(metrics: Metrics, name: str) -> dict[str, int]:
    """Sums over the routes."""
    found = dict.fromkeys(SIDES, 0)
    for (sample, labels), value in metrics.samples.items():
        if sample == f"shadowtap_{name}" and (side := dict(labels)["side"]) in found:
            found[side] += int(value)
    return found


def replayed(metrics: Metrics) -> int:
    return sum(metrics.by("requests_replayed_total", "answer").values())


def told(metrics: Metrics) -> int:
    """Pairs that were told to the watch process, or had to be left out."""
    return by_side(metrics, "side_requests_total")["production"] + int(metrics.get("pairs_unsent_total"))


def await_told(agent: Agent, seconds: float = 30.0) -> Metrics:
    """Until every replayed request has become a pair."""

    def all_told() -> Metrics | None:
        now = agent.metrics()
        return now if told(now) == replayed(now) > 0 and not now.by("requests_in_flight", "shadow") else None

    found: Metrics = until(all_told, seconds, "every replayed request is told")
    return found


def test_live_figures_are_those_of_the_account(lab: Lab) -> None:
    with running(lab) as agent:
        lab.rate(400, 2, targets=[*TARGETS, "/", "/nothing-here"])
        for _ in range(5):
            assert lab.get("/api/orders", method="POST", body=b"{}").status == 201
        agent.await_seen(805)
        metrics = await_told(agent)
        requests = by_side(metrics, "side_requests_total")
        latencies = by_side(metrics, "side_latency_seconds_count")
        errors = by_side(metrics, "side_errors_total")
        status = agent.status()
        ended = agent.stop()
        assert agent.shadow() == 800, "not one request more than is replayed, by default"
    assert ended.account.replayed == ended.account.answers["ok"] == 800
    assert ended.account.skipped == {"method": 5}
    assert requests == latencies == {"production": 800, "shadow": 800}
    assert errors == {"production": 0, "shadow": 0}
    assert sum(metrics.by("responses_compared_total", "route").values()) == 800
    assert metrics.by("response_differences_total", "route") == {}
    assert metrics.by("pairs_lost_total", "reason") == {}
    assert metrics.by("replay_events_total", "event")["kernel_sent"] == 800, "the kernel says when each one left"
    assert metrics.get("watch_up") == 1
    traffic = status["traffic"]["candidate"]
    for side in SIDES:
        assert 0 < traffic[side]["p50_ns"] <= traffic[side]["p99_ns"] < 1e9
        assert traffic[side]["error_share"] == 0
    assert status["accounts"]["candidate"]["replayed"] == 800


def test_errors_of_either_side_are_counted_there(lab: Lab) -> None:
    lab.mood("shadow", error=0.2)
    lab.mood("production", error=0.1)
    try:
        with running(lab, {"rollback": {"on": []}}) as agent:
            lab.requests(500, targets=TARGETS)
            metrics = await_told(agent)
            failed = lab.mood("shadow")["shadow"]["errors"]
    finally:
        lab.mood("shadow", error=0.0)
        lab.mood("production", error=0.0)
    errors = by_side(metrics, "side_errors_total")
    assert errors["shadow"] == failed > errors["production"] > 0
    differences = metrics.by("response_differences_total", "route")
    assert 0 < sum(differences.values()) <= errors["shadow"] + errors["production"]


def test_a_watch_process_that_is_killed_comes_back_and_mirroring_never_stops(lab: Lab) -> None:
    with running(lab) as agent:
        with lab.background(lab.rate, 200, 6.0, connections=10, targets=TARGETS) as load:
            first = until(agent.watch_pid, what="there is one")
            until(lambda: told(agent.metrics()) > 100, what="it is told pairs")
            os.kill(first, signal.SIGKILL)
            agent.await_line("the watch process died (status -9): nothing is judged until it is started again")
            second = until(lambda: (agent.watch_pid() or first) != first and agent.watch_pid(), what="another one runs")
            until(lambda: agent.metrics().get("watch_up") == 1, what="it is up")
            count = load.result().requests
        agent.await_seen(count)
        until(lambda: agent.ask("/v1/status")["traffic"]["candidate"]["production"]["requests_per_s"], what="figures")
        assert agent.watch_pid() == second
        assert agent.guard()["state"] == "active"
        ended = agent.stop()
        assert agent.shadow() == agent.production() == count
    assert (ended.status, ended.account.seen, ended.account.answers) == (0, count, {"ok": count})


def test_a_watch_process_that_hangs_slows_nobody_down(lab: Lab) -> None:
    with running(lab) as agent:
        pid = until(agent.watch_pid, what="there is one")
        os.kill(pid, signal.SIGSTOP)
        try:
            load = lab.rate(1000, 5, targets=TARGETS)
            agent.await_seen(load.requests)
            hung = agent.metrics()
        finally:
            os.kill(pid, signal.SIGCONT)
        metrics = await_told(agent)
        ended = agent.stop()
        assert agent.shadow() == load.requests
    assert load.failed == 0
    assert by_side(hung, "side_requests_total")["production"] < load.requests, "it was late"
    assert metrics.by("requests_dropped_total", "reason") == {}
    assert metrics.get("kernel_segments_total", action="ring_full") == 0
    assert (ended.account.seen, ended.account.answers) == (load.requests, {"ok": load.requests})


def usages(agent: Agent) -> dict[str, Any]:
    """By pool."""
    found = agent.status()["resources"]
    return {"production": found.get("production"), **found.get("shadows", {})}


def measured(agent: Agent) -> dict[str, Any]:
    """The same; {} until there is a number for everything and the shadow's CPU is what the test makes it burn."""
    keys = ("cpu_cores", "memory_bytes", "requests_per_s", "cpu_seconds_per_request")
    pools = usages(agent)
    whole = len(pools) == 2 and all(pool and all(pool[key] for key in keys) for pool in pools.values())
    return pools if whole and 0.001 < pools["candidate"]["cpu_seconds_per_request"] < 0.01 else {}


def test_cpu_and_memory_of_both_pools_are_shown(lab: Lab) -> None:
    with running(lab, {"resources": {"interval_s": 2, **pool_targets(lab)}}) as agent:
        lab.mood("shadow", burn_us=1500)
        try:
            with steady(lab):
                pools = until(lambda: measured(agent), 60, "both pools are measured")
                assert all(pool["missing"] == [] for pool in pools.values())
                assert all(1e6 < pool["memory_bytes"] < 1e10 for pool in pools.values())
                assert all(20 < pool["requests_per_s"] < 2000 for pool in pools.values())
                assert set(agent.metrics().by("pool_memory_bytes", "pool")) == {"production", "candidate"}
                lab.stop_shadow()
                gap = until(lambda: usages(agent)["candidate"]["missing"], what="a gap is shown")
        finally:
            lab.start_shadow()
            lab.mood("shadow", burn_us=0)
    assert "refused" in gap[0][1]


def test_evidence_outlives_the_agent(lab: Lab) -> None:
    settings = {"state": {"directory": str(lab.directory / "state-evidence")}, "judge": {"block_s": 0.5}, "harm": None}

    def verdict(agent: Agent) -> dict[str, Any]:
        return agent.status()["verdicts"].get("candidate") or {"blocks": 0, "pairs": 0}

    with running(lab, settings) as agent:
        with steady(lab, 300.0):
            until(lambda: verdict(agent)["blocks"] >= 6, 60, "there is evidence")
        before = verdict(agent)
        assert agent.stop().status == 0
    with running(lab, settings) as agent:
        agent.await_line("the judge of candidate goes on with the evidence kept")
        after = until(lambda: verdict(agent) if verdict(agent)["blocks"] else None, what="there is a verdict")
        assert after["blocks"] >= before["blocks"] >= 6
        assert after["pairs"] >= before["pairs"]
        agent.control("set", "candidate", "percentage=50")
        until(lambda: verdict(agent)["blocks"] == 0, what="another share is another question")
