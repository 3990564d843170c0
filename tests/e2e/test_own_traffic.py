"""Shadow traffic is known as such: marked, never captured again, never sent to production. And capture on loopback."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from replay.account import Account
from tests.e2e.agent_process import Agent, Settings, running, until
from vagrant.lab import Lab, origin

pytestmark = pytest.mark.root

MARK = 0x5AD0
LOOPBACK: Settings = {"capture": {"interface": "lo"}}


def test_a_request_with_our_mark_is_skipped(lab: Lab) -> None:
    with running(lab) as agent:
        for value in ("1", "1"):
            lab.get("/", headers={"X-Shadowtap": value})
        lab.get("/")
        ended = agent.stop()
        assert agent.shadow() == 1
    assert ended.account.skipped == {"shadow_traffic": 2}
    assert (ended.account.seen, ended.account.replayed) == (3, 1)


def test_what_is_replayed_carries_the_header_and_the_socket_mark(lab: Lab) -> None:
    received = lab.directory / "received"
    server = f"import socket;s=socket.create_server(('{lab.address('shadow')}',8080));c=s.accept()[0];"
    server += f"open('{received}','wb').write(c.recv(65536));s.accept()"
    listener = lab.popen_in("shadow", [sys.executable, "-c", server])
    upstream = f"{lab.address('shadow')}:8080"
    with running(lab, {"shadows": {"candidate": {"upstreams": [upstream]}}, "stop_timeout_s": 0.2}) as agent:
        until(lambda: "8080" in lab.run_in("shadow", ["ss", "-tln"]).stdout, what="the server listens")
        lab.get("/api/items/7?x=1", headers={"Cookie": "a=b"})
        shown = until(lambda: _connections(lab, upstream), what="the request is sent")
        assert all(f"fwmark:{MARK:#x}" in line for line in shown), shown
        until(lambda: received.exists() and received.stat().st_size, what="the request arrives")
        agent.stop()
    head = received.read_bytes()
    assert head.startswith(b"GET /api/items/7?x=1 HTTP/1.1\r\n")
    assert b"\r\nX-Shadowtap: 1\r\n" in head
    assert b"\r\nCookie: a=b\r\n" in head
    listener.kill()


def _connections(lab: Lab, upstream: str) -> list[str]:
    lines = lab.run_in("lb", ["ss", "-tneH", "dst", upstream]).stdout.splitlines()
    return [line for line in lines if line.startswith("ESTAB")]


def test_a_shadow_behind_the_captured_interface_and_port_is_not_captured(lab: Lab) -> None:
    """It answers on the same port, on the client's side of the balancer."""
    argv = [sys.executable, origin.__file__, "--listen", f"{lab.address('client')}:80"]
    server = lab.popen_in("client", argv)
    until(lambda: ":80" in lab.run_in("client", ["ss", "-tln"]).stdout, what="the server listens")
    with running(lab, {"shadows": {"candidate": {"upstreams": [f"{lab.address('client')}:80"]}}}) as agent:
        lab.rate(300, 1)
        ended = agent.stop()
        assert agent.production() == 300
    server.kill()
    assert ended.account == Account(seen=300, replayed=300, answers=ended.account.answers)


def refused(lab: Lab, command: str, settings: Settings) -> str:
    """What `check` or `run` says about a configuration that it does not take: one line."""
    agent = Agent(lab, settings)
    done = lab.run_in("lb", [Path(sys.executable).parent / "shadowtap", command, "-c", agent.config], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return str(line)


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_upstream_that_is_production_is_refused(lab: Lab, command: str) -> None:
    def with_upstream(address: str, **more: Any) -> Settings:
        return {"shadows": {"candidate": {"upstreams": [address]}}, **more}

    for upstream in (f"{lab.address('lb')}:80", f"{lab.address('back')}:80", "127.0.0.1:80", "[::1]:80"):
        assert f"{upstream!r} is the production address" in refused(lab, command, with_upstream(upstream))
    production = f"{lab.address('prod1')}:80"
    line = refused(lab, command, with_upstream(production, production=[production]))
    assert f"{production!r} is the production address" in line
    assert "nowhere.invalid" in refused(lab, command, with_upstream("nowhere.invalid:80"))


def test_loopback_shows_each_request_once(lab: Lab) -> None:
    with running(lab, LOOPBACK) as agent:
        argv = ["h2load", "--h1", "-n", "400", "-c", "8", f"http://{lab.address('lb')}/api/items/7"]
        assert "400 succeeded" in lab.run_in("lb", argv).stdout
        ended = agent.stop()
        assert agent.production() == agent.shadow() == 400
    assert ended.account == Account(seen=400, replayed=400, answers=ended.account.answers)


def test_loopback_by_clsact_shows_each_request_once(lab: Lab) -> None:
    with running(lab, {"capture": {"interface": "lo", "attach": "clsact"}}) as agent:
        argv = ["h2load", "--h1", "-n", "100", "-c", "8", f"http://{lab.address('lb')}/api/items/7"]
        assert "100 succeeded" in lab.run_in("lb", argv).stdout
        ended = agent.stop()
    assert ended.account == Account(seen=100, replayed=100, answers=ended.account.answers)
    assert "clsact" not in lab.run_in("lb", ["tc", "qdisc", "show", "dev", "lo"]).stdout


def test_the_agents_own_connections_are_left_in_the_kernel(lab: Lab) -> None:
    """On loopback its requests do pass the hook: the socket mark keeps them out."""
    with running(lab, LOOPBACK) as agent:
        with lab.inside("lb"):
            client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        client.connect((lab.address("lb"), 80))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        while client.recv(65536):
            pass
        client.close()
        ended = agent.stop()
        assert agent.production() == 1
    assert ended.kernel["own"] >= 2
    assert (ended.account.replayed, ended.account.skipped.total()) == (0, 0)


def test_the_shadow_may_be_on_this_host_beside_loopback_capture(lab: Lab) -> None:
    argv = [sys.executable, origin.__file__, "--listen", "127.0.0.1:8081"]
    server = lab.popen_in("lb", argv)
    until(lambda: ":8081" in lab.run_in("lb", ["ss", "-tln"]).stdout, what="the server listens")
    settings = {**LOOPBACK, "shadows": {"candidate": {"upstreams": ["127.0.0.1:8081"]}}}
    with running(lab, settings) as agent:
        lab.run_in("lb", ["h2load", "--h1", "-n", "50", "-c", "2", f"http://{lab.address('lb')}/"])
        ended = agent.stop()
    server.kill()
    assert ended.account == Account(seen=50, replayed=50, answers=ended.account.answers)


def test_check_says_what_a_configuration_means(lab: Lab) -> None:
    agent = Agent(lab, {"shadows": {"candidate": {"percentage": 12.5, "enabled": False}}})
    done = lab.run_in("lb", [Path(sys.executable).parent / "shadowtap", "check", "-c", agent.config])
    assert f"{agent.config}: valid" in done.stdout
    assert "copies   on front, port 80" in done.stdout and "12.5 % of the connections" in done.stdout
    assert "note     shadow candidate is disabled" in done.stdout
    settings = json.loads(agent.config.read_text())
    settings["capture"]["interface"] = "nope0"
    agent.config.write_text(json.dumps(settings))
    done = lab.run_in("lb", [Path(sys.executable).parent / "shadowtap", "check", "-c", agent.config], check=False)
    assert done.returncode == 2
    assert "capture.interface: no 'nope0' on this host; there are: " in done.stderr
