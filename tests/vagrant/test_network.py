"""The namespaces: built, entered, and removed, those of dead labs too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vagrant.lab import LabError, network
from vagrant.lab.lab import remove_stale
from vagrant.lab.network import ADDRESSES, ADDRESSES6, NAMESPACES, Network

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    made = Network(f"shadowtap-{os.getpid()}-900")
    try:
        made.build()
        yield made
    finally:
        made.destroy()


def interfaces(made: Network, namespace: str) -> set[str]:
    with made.inside(namespace):
        return {name for _, name in socket.if_nameindex()}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_balancer_has_a_front_and_a_back(built: Network) -> None:
    assert interfaces(built, "lb") == {"lo", "front", "back"}
    assert interfaces(built, "client") == {"lo", "eth0"}


@pytest.mark.parametrize("namespace", ["prod1", "prod2", "shadow"])
def test_the_balancer_reaches_every_server(built: Network, namespace: str) -> None:
    with built.inside(namespace):
        listener = socket.create_server((ADDRESSES[namespace], 80))
    with listener, built.inside("lb"), socket.create_connection((ADDRESSES[namespace], 80), timeout=5) as connection:
        assert connection.getsockname()[0] == ADDRESSES["back"]


def test_client_and_balancer_speak_ipv6_at_once(built: Network) -> None:
    with built.inside("lb"):
        listener = socket.create_server((ADDRESSES6["lb"], 80), family=socket.AF_INET6)
    with listener, built.inside("client"), socket.create_connection((ADDRESSES6["lb"], 80), timeout=5) as connection:
        assert connection.getsockname()[0] == ADDRESSES6["client"]


def test_the_client_cannot_reach_the_shadow(built: Network) -> None:
    with built.inside("client"), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((ADDRESSES["shadow"], 80), timeout=1)


def test_inside_ends_at_home_also_after_an_exception(built: Network) -> None:
    home = Path("/proc/thread-self/ns/net").readlink()
    with pytest.raises(RuntimeError), built.inside("shadow"):
        assert Path("/proc/thread-self/ns/net").readlink() != home
        raise RuntimeError
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_a_command_keeps_the_mounts(built: Network) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    argv = built.argv_in("lb", ["cat", "/proc/self/mountinfo"])
    inside = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert [line.split()[4] for line in inside.splitlines()] == [line.split()[4] for line in mounts.splitlines()]


def test_an_unknown_namespace_is_told(built: Network) -> None:
    with pytest.raises(LabError, match="no namespace 'moon'"):
        built.path("moon")


def test_destroy_kills_what_runs_inside_and_may_be_repeated() -> None:
    made = Network(f"shadowtap-{os.getpid()}-901")
    made.build()
    process = subprocess.Popen(made.argv_in("prod1", ["sleep", "1000"]))
    while not network._pids_inside([made.path("prod1")]):
        pass
    made.destroy()
    assert process.wait(5) == -9
    made.destroy()
    assert made.prefix not in network.prefixes()


def test_the_lab_of_a_dead_process_is_removed() -> None:
    stale = Network(f"shadowtap-{dead_pid()}-0")
    stale.build()
    left = subprocess.Popen(["nsenter", f"--net={stale.path('shadow')}", "sleep", "1000"])
    directory = Path(tempfile.gettempdir(), stale.prefix)
    directory.mkdir()
    while not network._pids_inside([stale.path("shadow")]):
        pass
    assert stale.prefix in remove_stale()
    assert left.wait(5) == -9
    assert not directory.exists()
    assert not any(stale.path(namespace).exists() for namespace in NAMESPACES)


def test_a_living_lab_is_not_stale(built: Network) -> None:
    assert built.prefix in network.prefixes()
    assert built.prefix not in network.stale_prefixes()


def test_ip_refusing_is_one_line() -> None:
    twice = Network(f"shadowtap-{os.getpid()}-902")
    try:
        twice.build()
        with pytest.raises(LabError, match="File exists") as error:
            twice.build()
        assert "\n" not in str(error.value)
    finally:
        twice.destroy()
