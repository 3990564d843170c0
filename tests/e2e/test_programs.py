"""The shadow balancer is HAProxy, run from production's own file: who answers, what is named, what a change does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agent_process import SHADOWTAP, Agent, running, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root


def settings(lab: Lab, source: Path | None = None, **balancer: Any) -> dict[str, Any]:
    production = lab.directory / "haproxy.cfg"
    chosen = {"engine": "haproxy", "from": str(source or production), "servers": {"*": lab.shadow_upstream}}
    return {"shadows": {"candidate": {"upstreams": [], "balancer": {**chosen, **balancer}}}}


def test_traffic_goes_through_production_s_own_configuration(lab: Lab) -> None:
    before = lab.shadow_requests()
    with running(lab, settings(lab)) as agent:
        lab.requests(200, connections=5, targets=["/", "/api/items/3"])
        agent.await_seen(200)
        pool = agent.control("pool")
        ended = agent.stop()
    assert (ended.account.seen, ended.account.replayed) == (200, 200)
    assert lab.shadow_requests() - before == 200
    assert "engine haproxy" in pool
    replayed = ended.rows()
    assert {row["upstream"] for row in replayed} == {lab.shadow_upstream}
    assert {row["shadow_status"] for row in replayed} == {200}
    assert all(row["shadow_connect_ns"] is not None for row in replayed)


def test_the_program_dies_and_comes_back(lab: Lab) -> None:
    with running(lab, settings(lab)) as agent:
        lab.get("/")
        agent.await_seen(1)
        (pid,) = balancers(agent)
        lab.run_in("lb", ["kill", "-9", str(pid)])
        until(lambda: "haproxy died" in "".join(agent.errors), what="its death is told")
        until(lambda: balancers(agent) not in ([], [pid]), what="it is started again")
        until(lambda: works(lab, agent), what=f"requests go through; it said {agent.errors}")
        agent.stop()
    assert balancers(agent) == []


def works(lab: Lab, agent: Agent) -> bool:
    """Whether a request comes to the shadow, a moment after it was answered."""
    before = lab.shadow_requests()
    lab.get("/")
    try:
        until(lambda: lab.shadow_requests() > before, seconds=1.0)
    except AssertionError:
        return False
    return True


def balancers(agent: Agent) -> list[int]:
    """Process ids of the masters of an agent's shadow balancers; other agents may run beside."""
    run_directory = f"/run/shadowtap-balancer-{agent.process.pid}/"
    listed = agent.lab.run_in("lb", ["pgrep", "-f", f"haproxy -W -db -f {run_directory}"], check=False).stdout
    parents = {int(pid): _parent(int(pid)) for pid in listed.split() if Path("/proc", pid).exists()}
    return [pid for pid, parent in parents.items() if parent not in parents]


def _parent(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_balancer_outlives_the_agent(lab: Lab, number: signal.Signals) -> None:
    with running(lab, settings(lab)) as agent:
        assert len(balancers(agent)) == 1
        agent.process.send_signal(number)
        agent.process.wait(30)
        until(lambda: balancers(agent) == [], what="the balancer ends")


def test_a_change_of_the_file_is_followed_without_a_failed_request(lab: Lab) -> None:
    path = lab.directory / "followed.cfg"
    text = (lab.directory / "haproxy.cfg").read_text()
    path.write_text(text)
    with running(lab, settings(lab, path)) as agent:
        with lab.background(lab.rate, 200, 3.0, connections=5) as load:
            path.write_text(
                text.replace("option forwardfor", "option forwardfor\n    http-response set-header X-New 1")
            )
            until(lambda: "was taken over" in "".join(agent.errors), what="the change is taken over")
            path.write_text(text.replace("balance roundrobin", "balance no-such-policy"))
            until(lambda: "only supports 'roundrobin'" in "".join(agent.errors), what="the broken change is told")
            count = load.result().requests
        agent.await_seen(count)
        ended = agent.stop()
    assert ended.account.replayed == count
    assert ended.account.answers == {"ok": count}
    assert {row["shadow_status"] for row in ended.rows()} == {200}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("balance roundrobin", "balance nonsense"), "only supports 'roundrobin'"),
        (lambda text: text + "\n    no-such-directive\n", "no-such-directive"),
        (lambda text: text.replace("bind ", "bind :1 ssl crt /no/such.pem,", 1), "/no/such.pem"),
    ],
)
def test_a_broken_candidate_is_refused_at_the_start(lab: Lab, tmp_path: Path, change: Any, words: str) -> None:
    candidate = tmp_path / "candidate.cfg"
    candidate.write_text(change((lab.directory / "haproxy.cfg").read_text()))
    agent = Agent(lab, settings(lab, candidate, production=str(lab.directory / "haproxy.cfg")))
    done = lab.run_in("lb", [SHADOWTAP, "run", "-c", agent.config], check=False)
    assert done.returncode == 2
    assert words in done.stderr and "candidate.cfg" in done.stderr


def test_servers_of_production_are_refused(lab: Lab) -> None:
    production = f"{lab.address('prod1')}:80"
    agent = Agent(lab, settings(lab, servers={"*": production}))
    done = lab.run_in("lb", [SHADOWTAP, "run", "-c", agent.config], check=False)
    assert done.returncode == 2
    assert f"which is production's {production}" in done.stderr
