"""Pools that change under a living agent: discovery, people, health checks; who is asked, who never is, who says so."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.agent.discovery.test_dns import NameServer
from tests.e2e.agent_process import SHADOWTAP, Agent, Ended, _children, alive, running, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root

ORIGIN = Path(__file__).resolve().parents[2] / "vagrant" / "lab" / "origin.py"
SERVICE = "_http._tcp.shadow.example"
REGION = "eu-west-1"


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[str]:
    """Another shadow server, on the shadow's host."""
    address = f"{lab.address('shadow')}:8081"
    process = lab.popen_in("shadow", [sys.executable, ORIGIN, "--listen", address])
    until(lambda: _accepts(lab, address), what="the second shadow listens")
    yield address
    process.kill()
    process.wait()


def _accepts(lab: Lab, address: str) -> bool:
    host, _, port = address.partition(":")
    with lab.inside("lb"), socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def with_pool(upstreams: list[Any] | None = None, **shadow: Any) -> dict[str, Any]:
    return {"shadows": {"candidate": {"upstreams": upstreams or [], **shadow}}}


def write(path: Path, *targets: str) -> None:
    """A file in file_sd form, renamed into its place."""
    path.with_suffix(".new").write_text(json.dumps([{"targets": targets}]))
    path.with_suffix(".new").chmod(0o644)
    path.with_suffix(".new").rename(path)


def states(agent: Agent) -> dict[str, dict[str, int]]:
    """What the metrics say of each upstream: in how many workers it is in which state."""
    found: dict[str, dict[str, int]] = {}
    for (name, labels), value in agent.metrics().samples.items():
        if name == "shadowtap_upstream_workers":
            of = dict(labels)
            assert of["shadow"] == "candidate"
            found.setdefault(of["upstream"], {})[of["state"]] = int(value)
    return found


def await_pool(agent: Agent, *upstreams: str) -> None:
    """Until the workers' pool is this."""
    until(lambda: sorted(states(agent)) == sorted(upstreams), what=f"the pool is {upstreams}")


def asked(ended: Ended) -> Counter[str]:
    """Requests by who was asked."""
    return Counter(row["upstream"] for row in ended.rows())


def all_were_answered(ended: Ended, count: int) -> None:
    account = ended.account
    assert (account.seen, account.answers, account.dropped) == (count, {"ok": count}, {})
    assert ended.status == 0


def test_a_file_moves_traffic_and_production_is_left_out(lab: Lab, second: str) -> None:
    first, production = lab.shadow_upstream, f"{lab.address('prod1')}:80"
    path = lab.directory / "pool.json"
    write(path, first)
    settings = with_pool(discovery={"file": str(path)}) | {"production": [production], "capture": {"workers": 2}}
    with running(lab, settings) as agent:
        assert states(agent) == {first: {"well": 2}}, "each worker says it"
        with lab.background(lab.rate, 200, 4.0, connections=5) as load:
            write(path, second, production, f"{lab.address('lb')}:80")
            await_pool(agent, second)
            (scout,) = [pid for pid, command in _children(agent.pid) if "discovery.scout" in command]
            lab.run_in("lb", ["kill", "-9", str(scout)])
            until(lambda: "discovery died" in "".join(agent.errors), what="its death is told")
            write(path, first, second)
            await_pool(agent, first, second)
            count = load.result().requests
        agent.await_seen(count)
        said = "".join(agent.errors)
        assert f"upstream '{production}' is the production address {production}: choose another" in said
        assert f"upstream '{lab.address('lb')}:80' is the production address" in said, "this host's own port"
        assert agent.production() == count, "nobody but the clients"
        ended = agent.stop()
    all_were_answered(ended, count)
    assert set(asked(ended)) == {first, second}
    assert not alive(scout)


def test_names_move_traffic(lab: Lab, second: str) -> None:
    host, port = second.split(":")
    with lab.inside("lb"):
        server = NameServer()
    server.set(SERVICE, "SRV", "0 1 80 a.example.", ttl_s=1)
    server.set("a.example", "A", host, ttl_s=1)
    dns = {"name": SERVICE, "nameservers": [server.address]}
    try:
        with running(lab, with_pool(discovery={"dns": dns})) as agent:
            with lab.background(lab.rate, 200, 2.5, connections=5) as load:
                time.sleep(0.2)
                server.set(SERVICE, "SRV", f"0 1 {port} a.example.", ttl_s=1)
                await_pool(agent, second)
                server.drop(SERVICE, "a.example")
                until(lambda: "NXDOMAIN" in "".join(agent.errors), what="it is told that the name is gone")
                assert sorted(states(agent)) == [second], "and the pool stays"
                count = load.result().requests
            agent.await_seen(count)
            ended = agent.stop()
    finally:
        server.close()
    all_were_answered(ended, count)
    assert set(asked(ended)) == {lab.shadow_upstream, second}


def test_people_move_traffic(lab: Lab, second: str) -> None:
    first = lab.shadow_upstream
    with running(lab, with_pool([first])) as agent:
        with lab.background(lab.rate, 200, 2.5, connections=5) as load:
            time.sleep(0.3)
            agent.control("pool", "candidate", "--add", f"{second}=3")
            until(lambda: states(agent) == {first: {"well": 1}, second: {"well": 1}}, what="it is added")
            time.sleep(0.3)
            agent.control("pool", "--drain", first)
            until(lambda: states(agent)[first] == {"draining": 1}, what="it is drained")
            before = lab.shadow_requests()
            time.sleep(0.3)
            assert lab.shadow_requests() == before, "nothing new goes there"
            shown = agent.control("pool", "--remove", first).splitlines()[1:]
            assert [line.split()[0] for line in shown] == [second]
            count = load.result().requests
        agent.await_seen(count)
        refused = lab.run_in(
            "lb",
            [SHADOWTAP, "pool", "--socket", agent.settings["control"]["socket"], "--add", f"{lab.address('lb')}:80"],
            check=False,
        )
        assert refused.returncode == 2 and "is the production address" in refused.stderr
        assert agent.control("pool").splitlines()[1].split() == [second, "well", "(1)"]
        ended = agent.stop()
    all_were_answered(ended, count)
    assert set(asked(ended)) == {first, second}


def test_a_killed_shadow_is_taken_out_and_brought_back(lab: Lab, second: str) -> None:
    first = lab.shadow_upstream
    check = {"type": "http", "path": "/", "interval_s": 0.2, "timeout_s": 0.5, "rise": 2, "fall": 2}
    balancer = {"health_check": check, "outlier": {"consecutive_errors": 0}}  # the checks alone decide
    with running(lab, with_pool([first, second], balancer=balancer, retries=1)) as agent:
        with lab.background(lab.rate, 200, 2.0, connections=5) as load:
            until(lambda: states(agent) == {first: {"well": 1}, second: {"well": 1}}, what="both are well")
            lab.stop_shadow()
            until(lambda: states(agent) == {first: {"unhealthy": 1}, second: {"well": 1}}, what="it is out")
            count = load.result().requests
        lab.start_shadow()
        until(lambda: states(agent)[first] == {"well": 1}, what="it is back")
        before = lab.shadow_requests()
        count += lab.rate(200, 0.5).requests
        agent.await_seen(count)
        assert lab.shadow_requests() - before > 40, "it is asked again, and by more than the checks"
        ended = agent.stop()
    all_were_answered(ended, count)


def test_a_balancer_program_is_up_or_down(lab: Lab) -> None:
    balancer = {"engine": "haproxy", "from": str(lab.directory / "haproxy.cfg"), "servers": {"*": lab.shadow_upstream}}
    with running(lab, with_pool(balancer=balancer)) as agent:
        assert agent.metrics().get("balancer_up", shadow="candidate") == 1
        fronts = states(agent)
        assert fronts and all(front.startswith("127.0.0.1:") for front in fronts)
        assert all(state == {"well": 1} for state in fronts.values())
        (balancing,) = [pid for pid, command in _children(agent.pid) if "agent.balancing" in command]
        (pid,) = [pid for pid, command in _children(balancing) if "haproxy -W" in command]
        lab.run_in("lb", ["kill", "-9", str(pid)])
        agent.await_metric("balancer_up", 0, shadow="candidate")
        agent.await_metric("balancer_up", 1, shadow="candidate")
        lab.run_in("lb", ["kill", "-9", str(balancing)])
        until(lambda: "restart the agent" in "".join(agent.errors), what="that nothing balances any more is told")
        assert agent.metrics().get("balancer_up", shadow="candidate") == 0
        assert agent.stop(signal.SIGTERM).status == 0


def test_a_target_group_is_asked(lab: Lab, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with lab.inside("lb"):
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        host, port = second.split(":")
        balancing: Any = boto3.client("elbv2", region_name=REGION, endpoint_url=url)
        computing: Any = boto3.client("ec2", region_name=REGION, endpoint_url=url)
        network = computing.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
        asked = {"Name": "shadow", "TargetType": "ip", "Protocol": "HTTP", "Port": 80, "VpcId": network}
        arn = balancing.create_target_group(**asked)["TargetGroups"][0]["TargetGroupArn"]
        balancing.register_targets(TargetGroupArn=arn, Targets=[{"Id": host, "Port": int(port)}])
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        agent = stack.enter_context(running(lab, with_pool(shadow_pool_arn=arn, discovery={"endpoint_url": url})))
        assert sorted(states(agent)) == [second]
        lab.requests(50)
        agent.await_seen(50)
        ended = agent.stop()
    all_were_answered(ended, 50)
