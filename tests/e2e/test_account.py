"""The account of a run closes exactly, and its numbers are those that HAProxy and the shadow counted themselves."""

from __future__ import annotations

from typing import Any

import pytest

from replay.account import Account
from tests.e2e.agent_process import Agent, Ended, hung_shadow, is_sampled, running
from vagrant.lab import Lab

pytestmark = pytest.mark.root

STAYS_ON: dict[str, Any] = {"rollback": {"on": []}}  # however the shadow fails

SERVER = "10.77.1.1:80"


def assert_closed(ended: Ended) -> None:
    """In order, nothing in flight, and the recording tells the same."""
    assert ended.status == 0, ended.errors
    assert "Traceback" not in ended.errors, ended.errors
    account = ended.account
    assert account.in_flight == 0
    assert account.replayed == account.answers.total()
    report = ended.report()
    assert Account.from_dict(report["account"]) == account
    assert Account.from_dict(report["all"]["account"]) == account
    assert report["workers_not_ended"] == 0
    assert report["rows"] == account.seen
    assert {name: report["counters"].get(f"capture.{name}", 0) for name in ended.kernel} == dict(ended.kernel)


def test_everything_is_seen_replayed_and_counted_once(lab: Lab) -> None:
    with running(lab) as agent:
        load = lab.rate(800, 3, targets=["/", "/products/7.html", "/api/items/3", "/old", "/no"])
        scraped = agent.await_seen(agent.production())
        ended = agent.stop()
        assert (load.failed, lab.production_failures()) == (0, 0)
        assert agent.production() == load.requests == 2400
        assert ended.account == Account(seen=2400, replayed=2400, answers=ended.account.answers)
        assert ended.account.answers == {"ok": 2400}
        assert agent.shadow() == 2400
    assert_closed(ended)
    assert scraped.get("requests_seen_total", shadow="candidate") == 2400
    assert scraped.by("requests_replayed_total", "answer") == {"ok": 2400}
    assert (ended.kernel["ring_full"], ended.kernel["over_budget"], ended.kernel["unsampled"]) == (0, 0, 0)


def test_every_kind_of_request_has_its_place(lab: Lab) -> None:
    with running(lab) as agent:
        lab.mix(2, connections=10, rate=400)
        for method in ("HEAD", "OPTIONS", "PUT"):
            lab.get("/", method=method)
        ended = agent.stop()
        assert ended.account.seen == agent.production()
        assert ended.account.skipped["method"] > 0
        assert set(ended.account.skipped) == {"method"}
        assert ended.account.replayed == agent.shadow()
    assert_closed(ended)
    methods = {row["method"]: row["fate"] for row in ended.rows()}
    assert methods["POST"] == methods["PUT"] == "skipped"
    assert methods["HEAD"] == methods["OPTIONS"] == methods["GET"] == "replayed"


def test_ten_percent_are_the_requests_of_the_sampled_connections(lab: Lab) -> None:
    with running(lab, {"shadows": {"candidate": {"percentage": 10}}, "seed": 3}) as agent:
        lab.visits(600, requests_each=3)
        ended = agent.stop()
        logged = agent.logged()
        expected = {client: n for client, n in logged.items() if is_sampled(client, SERVER, 100_000, seed=3)}
        assert agent.production() == sum(logged.values()) == 1800
        assert 0 < len(expected) < len(logged)
        assert ended.account.seen == ended.account.replayed == sum(expected.values()) == agent.shadow()
    assert_closed(ended)
    assert {row["client"] for row in ended.rows()} == set(expected)


def test_a_shadow_that_is_down_costs_answers_only(lab: Lab) -> None:
    lab.stop_shadow()
    try:
        with running(lab, STAYS_ON) as agent:
            load = lab.rate(500, 2)
            ended = agent.stop()
            assert load.failed == 0
            assert ended.account.seen == agent.production() == 1000
    finally:
        lab.start_shadow()
    assert_closed(ended)
    assert ended.account.answers["connect"] > 0
    assert set(ended.account.answers) == {"connect"}
    assert set(ended.account.dropped) <= {"queue_full", "queue_timeout", "no_upstream", "backoff"}
    assert ended.account.replayed + ended.account.dropped.total() == 1000


def test_a_shadow_that_hangs_costs_answers_and_drops(lab: Lab) -> None:
    shadow = {"timeout_s": 0.5, "connect_timeout_s": 0.5, "max_connections": 4, "queue_entries": 20}
    settings = {**STAYS_ON, "shadows": {"candidate": {**shadow, "queue_timeout_s": 0.4}}}
    with running(lab, settings) as agent, hung_shadow(lab):
        load = lab.rate(500, 3)
        ended = agent.stop()
        assert load.failed == 0
        assert ended.account.seen == agent.production() == 1500
    assert_closed(ended)
    assert ended.account.answers["timeout"] > 0
    assert set(ended.account.answers) <= {"timeout", "connect_timeout"}
    assert ended.account.dropped["queue_full"] > 0
    assert ended.account.replayed + ended.account.dropped.total() == 1500


def test_the_end_does_not_wait_for_a_shadow_that_hangs(lab: Lab) -> None:
    with running(lab, {"stop_timeout_s": 0.5}) as agent, hung_shadow(lab):
        lab.requests(100)
        ended = agent.stop()
    assert_closed(ended)
    assert ended.account.seen == ended.account.dropped["shutdown"] == 100


def test_a_ring_too_small_loses_and_says_what(lab: Lab) -> None:
    with running(lab, {"capture": {"ring_kib": 4}}) as agent:
        load = lab.saturate(2, target="/static/photo.bin")
        ended = agent.stop()
        production = agent.production()
        assert load.failed == 0
    assert_closed(ended)
    kernel, account = ended.kernel, ended.account
    assert kernel["ring_full"] > 0
    assert f"{kernel['ring_full']} found the ring full" in ended.output
    assert f"{kernel['lost_to_server']} of them carried requests" in ended.output
    assert 0 <= production - account.seen <= kernel["lost_to_server"]
    assert set(account.incomplete) <= {"gap", "request_lost", "cut", "end", "unasked"}
    assert ended.report()["lost"]["ring_full"] == kernel["ring_full"]


def test_a_small_ring_loses_requests_and_says_so(lab: Lab) -> None:
    """Small messages fit, but not as many as come between two reads."""
    with running(lab, {"capture": {"ring_kib": 8, "poll_ms": 50}}) as agent:
        lab.saturate(2, target="/api/items/7")
        ended = agent.stop()
        production = agent.production()
    assert_closed(ended)
    kernel, account = ended.kernel, ended.account
    assert 0 < kernel["lost_to_server"] <= kernel["ring_full"]
    assert 0 < account.seen < production
    assert production - account.seen <= kernel["lost_to_server"]
    assert account.incomplete["request_lost"] > 0


def test_the_budget_is_kept_and_what_is_over_it_is_told(lab: Lab) -> None:
    with running(lab, {"capture": {"budget_packets_per_s": 200}}) as agent:
        lab.rate(400, 2)
        ended = agent.stop()
        production = agent.production()
    assert_closed(ended)
    assert ended.kernel["over_budget"] > 0
    assert f"{ended.kernel['over_budget']} were over the budget" in ended.output
    assert 0 < production - ended.account.seen <= ended.kernel["lost_to_server"]


def test_capture_only_records_and_sends_nothing(lab: Lab) -> None:
    with running(lab, {"shadows": {"candidate": {"upstreams": []}}}) as agent:
        lab.requests(200)
        ended = agent.stop()
        assert agent.shadow() == 0
    assert_closed(ended)
    assert ended.account.seen == ended.account.skipped["dry_run"] == 200


def test_segments_cut_by_the_limit_are_told(lab: Lab) -> None:
    with running(lab, {"capture": {"response_limit_bytes": 512}}) as agent:
        lab.requests(100, targets=["/static/photo.bin"])
        ended = agent.stop()
    assert_closed(ended)
    assert ended.account.seen == ended.account.replayed == 100
    assert ended.report()["lost"]["cut"] == ended.kernel["cut"] > 0
    assert all(row["response_complete"] is False for row in ended.rows())


def test_two_runs_record_to_one_directory(lab: Lab) -> None:
    with Agent(lab) as agent:
        lab.requests(50)
        first = agent.stop()
        with Agent(lab, {"recording": {"directory": str(agent.recording)}}) as again:
            lab.requests(70)
            second = again.stop()
    assert (first.account.seen, second.account.seen) == (50, 70)
    report = first.report()
    assert (report["rows"], len(report["runs"])) == (120, 2)
