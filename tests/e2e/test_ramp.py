"""A canary's way up with the real agent: steps left with PASS, and people who hold it, let it go on, end it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.agent_process import MOODS, Agent, running, steady, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root

PER_SECOND = 400.0
# Both sides are the same, so a PASS comes soon where the margins are wide.
JUDGE = {
    "block_s": 0.5,
    "least_blocks": 3,
    "metrics": {
        "latency": {"warn": 50, "rollback": 100, "margin": 100},
        "tail": {"warn": 100, "rollback": 300, "margin": 300},
        "errors": {"warn": 1, "rollback": 1, "margin": 4.9},
    },
}
QUICK = {"judge": JUDGE, "harm": None}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(MOODS) as made:
        yield made


def ramp(agent: Agent) -> Any:
    return agent.ask("/v1/shadows/candidate/ramp")


def share(agent: Agent) -> float:
    """What the kernel and the workers are told to take."""
    return agent.metrics().get("sampled_ratio", shadow="candidate")


def test_it_goes_up_with_each_pass_and_stays_there(lab: Lab) -> None:
    with running(lab, {**QUICK, "shadows": {"candidate": {"percentage": 10}}}) as agent:
        said = agent.control("ramp", "candidate", "--steps", "50%:2s,100%:2s")
        assert said.splitlines()[0] == "candidate: ramp running"
        assert share(agent) == 0.5
        refused = agent.refused("set", "candidate", "percentage=20")
        assert refused.endswith("is on a ramp: `shadowtap ramp candidate --abort` ends that first")
        with steady(lab, PER_SECOND):
            until(lambda: ramp(agent)["step"] == 2, 60, "the first step is left")
            assert ramp(agent)["reason"].startswith("PASS after ")
            assert share(agent) == 1.0
            assert agent.metrics().get("ramp_percentage", shadow="candidate") == 100
            until(lambda: ramp(agent)["state"] == "done", 60, "the ramp is done")
        assert ramp(agent)["reason"].startswith("PASS after ")
        assert [line.split()[0] for line in agent.control("ramp").splitlines()[1:]] == ["done", "done"]
        assert share(agent) == 1.0
        assert agent.ask("/v1/shadows/candidate")["percentage"] == 100
        newest = agent.ask("/v1/history?limit=1")["versions"][0]
        assert newest["reason"].startswith("the ramp is done: PASS after ")
        config = agent.ask(f"/v1/history/{newest['id']}")["config"]
        assert config["shadows"]["candidate"]["percentage"] == 100, "it is configured so from now on"
        actions = [entry["action"] for entry in agent.ask("/v1/audit")["entries"]]
        assert actions == ["ramp done", "ramp running", "ramp started"]
        assert "ramp done" in agent.control("ramp")
        assert agent.stop().status == 0


def test_people_hold_it_let_it_go_on_and_end_it(lab: Lab) -> None:
    settings = {**QUICK, "state": {"directory": str(lab.directory / "state-ramp")}}
    with running(lab, {**settings, "shadows": {"candidate": {"percentage": 10}}}) as agent:
        assert agent.control("ramp").startswith("candidate: no ramp; start one like ")
        agent.control("ramp", "--steps", "25%:1h,100%:1h")
        assert agent.control("ramp", "--pause").startswith("candidate: ramp paused")
        assert agent.refused("ramp", "--pause").endswith("is paused, so it cannot pause")
        until(lambda: agent.status()["ramps"]["candidate"]["state"] == "paused", what="status shows it")
        held_s = ramp(agent)["held_s"]
        assert "paused, step 1 of 2, 25 %" in agent.control("status")
        with steady(lab, PER_SECOND):
            until(lambda: (agent.status()["verdicts"].get("candidate") or {}).get("word") == "pass", 60, "it says PASS")
        assert (ramp(agent)["state"], ramp(agent)["step"], ramp(agent)["held_s"]) == ("paused", 1, held_s)
        agent.stop()
    with running(lab, {**settings, "shadows": {"candidate": {"percentage": 10}}}) as agent:
        assert (ramp(agent)["state"], share(agent)) == ("paused", 0.25), "a restart ends no ramp"
        assert agent.control("ramp", "--resume").startswith("candidate: ramp running")
        until(lambda: ramp(agent)["held_s"] > held_s, what="time counts again")
        assert agent.control("ramp", "--abort").startswith("candidate: ramp aborted")
        assert share(agent) == pytest.approx(0.1), "what is configured"
        assert agent.refused("ramp", "--resume").endswith("is aborted, so it cannot resume")
        assert agent.stop().status == 0


def test_a_fail_ends_it_and_switches_off(lab: Lab) -> None:
    lab.mood("shadow", factor=8.0)
    try:
        with running(lab, {**QUICK, "shadows": {"candidate": {"percentage": 50}}}) as agent:
            agent.control("ramp", "--steps", "60%:1h,100%:1h")
            with steady(lab, PER_SECOND):
                agent.await_state("tripped", 90)
            assert agent.guard()["cause"] == "judge"
            assert (ramp(agent)["state"], ramp(agent)["step"]) == ("failed", 1)
            assert share(agent) == 0
            assert agent.refused("ramp", "--steps", "5%:1h").endswith("`shadowtap reset candidate` first")
    finally:
        lab.mood("shadow", factor=1.0)
