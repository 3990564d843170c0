"""Whatever of the agent is killed, and however: production does not notice, and nothing stays that still acts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.capture.layout import Counters
from replay.account import Account
from tests.e2e.agent_process import Agent, Ended, alive, hung_shadow, running, until
from tests.e2e.kernel_view import KernelView, has_clsact, our_filters, tcx_programs
from vagrant.lab import Lab

pytestmark = pytest.mark.root

CLSACT = {"capture": {"attach": "clsact", "lease_ms": 300}}


@contextmanager
def production_goes_on(lab: Lab, seconds: float = 2.5) -> Iterator[None]:
    """Load beside the block; not one request may fail."""
    failures = lab.production_failures()
    with lab.background(lab.rate, 300, seconds, connections=10) as load:
        asked = lab.production_requests()
        until(lambda: lab.production_requests() > asked, what="the load runs")
        yield
    assert load.result().failed == 0
    assert lab.production_failures() == failures


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def await_gone(*pids: int) -> None:
    until(lambda: not any(alive(pid) for pid in pids), what=f"processes {pids} are gone")


def test_killing_the_service_detaches_and_ends_everything(lab: Lab) -> None:
    with running(lab) as agent:
        children = agent.children()
        assert set(children) == {"keeper", "worker0"}
        assert len(tcx_programs(lab, "front")) == 2
        with production_goes_on(lab):
            kill(agent.pid)
            await_gone(agent.pid, *children.values())
            until(lambda: not tcx_programs(lab, "front"), what="the links are gone")
    assert agent.process.wait() == -signal.SIGKILL


def test_what_a_killed_agent_recorded_is_there(lab: Lab) -> None:
    with running(lab) as agent:
        lab.requests(200)
        agent.await_seen(200)
        kill(agent.pid)
        agent.process.wait()
        with Agent(lab, {"recording": {"directory": str(agent.recording)}}) as again:
            lab.requests(10)
            ended = again.stop()
    assert ended.report()["rows"] == len(ended.rows()) == 210


def test_killing_the_service_takes_the_clsact_filters_away(lab: Lab) -> None:
    with running(lab, CLSACT) as agent:
        children = agent.children()
        assert len(our_filters(lab, "front")) == 2
        assert not tcx_programs(lab, "front")
        with production_goes_on(lab):
            kill(agent.pid)
            await_gone(agent.pid, *children.values())
        assert not has_clsact(lab, "front")


def test_a_filter_that_nobody_is_left_to_remove_does_nothing_until_the_next_start(lab: Lab) -> None:
    with running(lab, CLSACT) as agent:
        children = agent.children()
        ingress, egress = our_filters(lab, "front")
        view = KernelView(ingress)
        with production_goes_on(lab):
            kill(children["keeper"])
            kill(agent.pid)
            await_gone(agent.pid, *children.values())
            over = view.counters().lease_over
            until(lambda: view.counters().lease_over > over, what="the lease is over")
            copied = view.counters().copied
        assert view.counters().copied == copied
        assert our_filters(lab, "front") == [ingress, egress]
        view.close()
    with running(lab, CLSACT) as agent:
        fresh = our_filters(lab, "front")
        assert len(fresh) == 2
        assert not {ingress, egress} & set(fresh)
        lab.requests(50)
        ended = agent.stop()
    assert (ended.account.seen, ended.account.replayed) == (50, 50)
    assert not has_clsact(lab, "front")


def test_a_living_agents_filters_are_not_taken_for_stale_ones(lab: Lab) -> None:
    with running(lab, CLSACT) as one:
        before = our_filters(lab, "front")
        with running(lab, {**CLSACT, "metrics": {"listen": "127.0.0.1:9465"}}) as other:
            assert set(before) < set(our_filters(lab, "front"))
            lab.requests(50)
            assert other.stop().account.seen == 50
        assert our_filters(lab, "front") == before
        lab.requests(50)
        assert one.stop().account.seen == 100
    assert not has_clsact(lab, "front")


def test_killing_the_keeper_is_noticed_and_harms_nothing(lab: Lab) -> None:
    with running(lab, {"capture": {"attach": "clsact"}}) as agent:
        keeper = agent.children()["keeper"]
        with production_goes_on(lab):
            kill(keeper)
            agent.await_line("keeper")
        ended = agent.stop()
        assert ended.account.seen == agent.production() == agent.shadow()
    assert ended.status == 0
    assert ended.account.in_flight == 0
    left = our_filters(lab, "front")
    with running(lab, {"capture": {"attach": "clsact"}}) as agent:
        assert not set(left) & set(our_filters(lab, "front"))
    until(lambda: not has_clsact(lab, "front"), what="the next agent cleans up")


def test_a_killed_worker_is_replaced_and_its_requests_are_accounted_for(lab: Lab) -> None:
    with running(lab, {"shadows": {"candidate": {"timeout_s": 30}}}) as agent:
        first = agent.children()["worker0"]
        with hung_shadow(lab):
            lab.requests(40)
            agent.await_metric("requests_in_flight", 40, shadow="candidate")
            with production_goes_on(lab, 1):
                kill(first)
                agent.await_line("worker 0 died")
                agent.await_metric("worker_restarts_total", 1)
        until(lambda: agent.children().get("worker0", first) != first, what="another worker is there")
        before = agent.production()
        lab.requests(100)
        ended = agent.stop()
        assert agent.production() == before + 100
    account = ended.account
    assert ended.status == 0
    assert account.in_flight == 0
    assert account.dropped["worker_died"] >= 40
    assert account.seen == account.replayed + account.incomplete.total() + account.dropped.total()
    assert account.seen <= before + 100
    assert account.replayed >= 100


def test_a_worker_that_keeps_dying_ends_the_agent(lab: Lab) -> None:
    with running(lab) as agent:
        for restarts in range(6):
            agent.await_metric("worker_restarts_total", restarts)
            kill(until(lambda: agent.children().get("worker0"), what="there is a worker"))
        agent.await_line("giving up")
        ended = agent.await_end()
    assert ended.status == 1
    assert ended.account.in_flight == 0
    assert not tcx_programs(lab, "front")


def test_killing_the_loader_is_one_line(lab: Lab) -> None:
    with Agent(lab, wait=False) as agent, production_goes_on(lab, 2):
        kill(until(lambda: agent.children().get("loader"), what="the loader runs"))
        ended = agent.await_end()
    assert ended.status == 2
    (line,) = ended.errors.splitlines()
    assert line.startswith("shadowtap: the kernel program was not loaded: the loader ")
    assert not tcx_programs(lab, "front")


def test_killing_the_service_ends_its_loader(lab: Lab) -> None:
    with Agent(lab, wait=False) as agent, production_goes_on(lab, 2):
        loader = until(lambda: agent.children().get("loader"), what="the loader runs")
        until(lambda: "libbcc" in Path(f"/proc/{loader}/maps").read_text(), what="it is about to compile")
        os.kill(loader, signal.SIGSTOP)  # so that it does not end because it is done
        kill(agent.pid)
        await_gone(agent.pid, loader)
    assert not tcx_programs(lab, "front")


@pytest.mark.parametrize("attach", ["tcx", "clsact"])
def test_a_stopped_service_loses_its_lease_and_gets_it_back(lab: Lab, attach: str) -> None:
    with running(lab, {"capture": {"attach": attach, "lease_ms": 300}}) as agent:
        view = KernelView((tcx_programs(lab, "front") or our_filters(lab, "front"))[0])
        with production_goes_on(lab, 5):
            until(lambda: view.counters().copied > 50, what="it copies")
            agent.process.send_signal(signal.SIGSTOP)
            try:
                until(lambda: view.counters().lease_over > 0, what="the lease is over")
                copied = view.counters().copied
                over = view.counters().lease_over
                until(lambda: view.counters().lease_over > over + 50, what="more goes by uncopied")
                assert view.counters().copied == copied
            finally:
                agent.process.send_signal(signal.SIGCONT)
            until(lambda: view.counters().copied > copied + 50, what="it copies again")
        view.close()
        ended = agent.stop()
        assert ended.account.seen < agent.production()
    assert ended.account.in_flight == 0
    assert ended.kernel["lease_over"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_it_in_order(lab: Lab, number: signal.Signals) -> None:
    with running(lab) as agent:
        children = agent.children()
        with production_goes_on(lab, 3):
            until(lambda: agent.shadow() > 200, what="requests are replayed")
            ended = agent.stop(number)
            assert not tcx_programs(lab, "front")
            await_gone(*children.values())
            assert ended.account.replayed == agent.shadow()
    assert_in_order(ended)


def test_a_signal_while_it_starts_ends_it_in_order(lab: Lab) -> None:
    with Agent(lab, wait=False) as agent:
        until(lambda: agent.children().get("loader"), what="the loader runs")
        ended = agent.stop()
    assert_in_order(ended, at_least=0)


def assert_in_order(ended: Ended, at_least: int = 200) -> None:
    """Status 0, all said, all recorded."""
    assert ended.status == 0, ended.errors
    assert "Traceback" not in ended.errors
    assert "account of requests" in ended.output
    assert ended.account.seen >= at_least
    assert ended.account.in_flight == 0
    assert not list(ended.recording.glob("*.arrows"))
    report = ended.report()
    assert report["workers_not_ended"] == 0
    assert Account.from_dict(report["all"]["account"]) == Account.from_dict(report["account"]) == ended.account


def test_the_counters_have_names(lab: Lab) -> None:
    """What is printed at the end is what the kernel counted."""
    with running(lab) as agent:
        view = KernelView(tcx_programs(lab, "front")[0])
        lab.requests(30)
        agent.await_seen(30)
        ended = agent.stop()
        counted = view.counters()._asdict()
        view.close()
    assert {name: value for name, value in counted.items() if value and name != "lease_over"} == {
        name: value for name, value in ended.kernel.items() if value and name != "lease_over"
    }
    assert set(ended.kernel) <= set(Counters._fields)
