"""Where packets to an address leave, as this host's routes say and as a lab's do."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.capture import egress
from agent.capture.egress import egress_interfaces
from vagrant.lab import Lab

LO = socket.if_nametoindex("lo")


def test_loopback_addresses_leave_through_lo_and_each_interface_is_named_once() -> None:
    addresses = ["127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1", "fe80::1%lo", f"fe80::1%{LO}"]
    assert egress_interfaces(addresses) == [LO]


def test_what_leads_nowhere_is_left_out() -> None:
    assert egress_interfaces(["shop.example", "", "fe80::1%nope0", "999.1.1.1", "-x"]) == []
    assert egress_interfaces([]) == []


def test_the_service_does_not_load_pyroute2() -> None:
    code = "import sys; from agent.capture.egress import egress_interfaces as e; print(e(['127.0.0.1']));"
    code += "print('pyroute2' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"[{LO}]", "False"]


def test_a_child_that_fails_or_hangs_means_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(egress, "_TIMEOUT_S", 0.2)
    for number, code in enumerate(("exit 3", "echo '{'", "echo '{}'; exit 1", "exec sleep 60")):
        script = tmp_path / f"python{number}"
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        assert egress_interfaces(["127.0.0.1"]) == []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert egress_interfaces(["127.0.0.1"]) == []


@pytest.mark.root
def test_routes_decide_and_so_does_the_mark(lab: Lab) -> None:
    """The lab's balancer has two interfaces; one mark has a table of its own."""
    lab.run_in("lb", ["ip", "rule", "add", "fwmark", "77", "table", "77"])
    lab.run_in("lb", ["ip", "route", "add", f"{lab.address('shadow')}/32", "dev", "front", "table", "77"])
    with lab.inside("lb"):
        front, back = map(socket.if_nametoindex, ("front", "back"))
        shadow, client, own = (lab.address(name) for name in ("shadow", "client", "lb"))
        assert egress_interfaces([shadow]) == egress_interfaces([shadow], 5) == [back]
        assert egress_interfaces([shadow], 77) == [front]
        assert egress_interfaces([shadow, client, shadow]) == [back, front]
        assert egress_interfaces(["203.0.113.9", "fd77:1::2", "2001:db8::1"]) == [front], "only one has a route"
        assert egress_interfaces([own]) == [LO]
