"""What the agent's processes may still do once it runs: nothing but looking, and the keeper CAP_NET_ADMIN."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from agent import privileges
from tests.e2e.agent_process import running, status_of
from vagrant.lab import Lab

pytestmark = pytest.mark.root

NET_ADMIN = 1 << privileges.CAP_NET_ADMIN
SETS = ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")


def assert_bare(pid: int, keep: int = 0) -> None:
    """No capability but those kept, no way to gain one, no groups; in every thread, for each has its own."""
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    for status in map(status_of, threads):
        found = {name: int(status[name], 16) for name in SETS}
        assert found == {"CapEff": keep, "CapPrm": keep, "CapInh": 0, "CapAmb": 0, "CapBnd": keep}
        assert status["NoNewPrivs"] == "1"
        assert status["Groups"] == ""


@pytest.mark.parametrize("attach", ["tcx", "clsact"])
def test_nobody_keeps_more_than_it_needs(lab: Lab, attach: str) -> None:
    user = privileges.service_user()
    with running(lab, {"capture": {"attach": attach, "workers": 2}}) as agent:
        lab.requests(20)
        children = agent.children()
        assert set(children) == {"keeper", "worker0", "worker1"}
        for pid in (agent.pid, children["worker0"], children["worker1"]):
            assert_bare(pid)
        assert_bare(children["keeper"], keep=NET_ADMIN)
        for pid in (agent.pid, *children.values()):
            assert status_of(pid)["Uid"].split() == [str(user.pw_uid)] * 4
            assert status_of(pid)["Gid"].split() == [str(user.pw_gid)] * 4
        ended = agent.stop()
        assert ended.account.replayed == 20


def test_where_only_root_can_read_the_installation_it_stays_root_without_capabilities(lab: Lab) -> None:
    with running(lab, {"user": "root"}) as agent:
        children = agent.children()
        lab.requests(20)
        assert_bare(agent.pid)
        assert_bare(children["worker0"])
        assert_bare(children["keeper"], keep=NET_ADMIN)
        assert status_of(agent.pid)["Uid"].split() == ["0"] * 4
        assert agent.stop().account.replayed == 20


def test_the_recording_belongs_to_the_service_user(lab: Lab) -> None:
    with running(lab) as agent:
        lab.requests(5)
        ended = agent.stop()
    user = pwd.getpwuid(privileges.service_user().pw_uid)
    assert {path.owner() for path in (ended.recording, *ended.recording.iterdir())} == {user.pw_name}


def test_workers_yield_the_cpu(lab: Lab) -> None:
    with running(lab, {"capture": {"nice": 15, "scheduler": "idle"}}) as agent:
        worker = agent.children()["worker0"]
        assert os.getpriority(os.PRIO_PROCESS, worker) == 15
        assert os.sched_getscheduler(worker) == os.SCHED_IDLE
        assert os.sched_getscheduler(agent.pid) == os.SCHED_OTHER
