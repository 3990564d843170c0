"""The scout as a process: what it tells, that nothing holds up anything else, what it holds, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import messages, privileges
from agent.discovery import scout
from agent.discovery.scout import (
    Child,
    as_message,
    discover_each,
    discover_once,
    from_message,
    open_source,
    start,
)
from agent.discovery.settings import DnsSource, FileSource, Found, Settings, TargetGroup
from replay.balancer.settings import UpstreamSpec
from tests.agent.discovery.test_dns import NameServer

ROOT = Path(__file__).parents[3]
LIMIT_S = 20.0
ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/shadow/0123456789abcdef"


def write(path: Path, *targets: str) -> Path:
    path.with_suffix(".new").write_text(json.dumps([{"targets": targets}]))
    return path.with_suffix(".new").rename(path)


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that the scout can read when it has become nobody."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def silent() -> Iterator[str]:
    """A name server that never says anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def running(**shadows: Settings) -> Iterator[Child]:
    process, channel = start(shadows)
    channel.settimeout(LIMIT_S)
    try:
        yield process, channel
    finally:
        channel.close()
        try:
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()


def heard(channel: socket.socket) -> tuple[str, list[str], str]:
    """The next message: shadow, addresses, problem."""
    message = messages.receive(channel)
    assert message is not None
    shadow, found = from_message(message)
    return shadow, [each.address for each in found.upstreams], found.problem


def quiet(channel: socket.socket, seconds: float) -> bool:
    return not select.select([channel], [], [], seconds)[0]


def status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def ended(pid: int) -> bool:
    try:
        return status(pid)["State"][0] == "Z"
    except OSError:
        return True


def awaits(condition: Any) -> bool:
    until_s = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.02)
    return bool(condition())


def test_messages_are_read_back() -> None:
    specs = (UpstreamSpec("192.0.2.1:80", 3, "s1"), UpstreamSpec("[2001:db8::1]:80"))
    message = json.loads(json.dumps(as_message("candidate", Found(specs, 5.0, "trouble"))))
    assert message == {
        "shadow": "candidate",
        "upstreams": [
            {"address": "192.0.2.1:80", "weight": 3, "cookie": "s1"},
            {"address": "[2001:db8::1]:80", "weight": 1, "cookie": ""},
        ],
        "problem": "trouble",
    }
    assert from_message(message) == ("candidate", Found(specs, 0.0, "trouble"))


def test_every_kind_is_opened() -> None:
    settings = [DnsSource("shadow.example", 80), FileSource("/none"), TargetGroup(ARN)]
    assert [type(open_source(each)).__name__ for each in settings] == ["Dns", "FileSd", "Targets"]


def test_only_what_is_used_is_loaded() -> None:
    """The service itself imports this module."""
    code = "import sys, agent.discovery.scout; print(*sorted({'dns', 'yaml', 'boto3', 'botocore'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_is_found_is_told_at_first_and_when_it_changes(directory: Path) -> None:
    server = NameServer()
    server.set("shadow.example", "A", "192.0.2.1", ttl_s=1)
    path = write(directory / "pool.json", "192.0.2.9:80")
    dns = DnsSource("shadow.example", 8080, "A", (server.address,))
    with running(named=dns, listed=FileSource(str(path))) as (process, channel):
        first = sorted([heard(channel), heard(channel)])
        assert first == [("listed", ["192.0.2.9:80"], ""), ("named", ["192.0.2.1:8080"], "")]
        assert quiet(channel, 1.5)  # looked at again, and the same
        assert len(server.told()) > 1
        server.set("shadow.example", "A", "192.0.2.2", "192.0.2.1", ttl_s=1)
        assert heard(channel) == ("named", ["192.0.2.1:8080", "192.0.2.2:8080"], "")
        server.drop("shadow.example")
        trouble = "shadow.example does not exist (NXDOMAIN)"
        assert heard(channel) == ("named", ["192.0.2.1:8080", "192.0.2.2:8080"], trouble)
        write(path, "192.0.2.9:80", "192.0.2.8:80")
        assert heard(channel) == ("listed", ["192.0.2.8:80", "192.0.2.9:80"], "")
        assert process.poll() is None
    server.close()


def test_a_slow_source_holds_up_no_other(directory: Path, silent: str) -> None:
    path = write(directory / "pool.json", "192.0.2.9:80")
    slow = DnsSource("shadow.example", 80, "A", (silent,))
    with running(slow=slow, listed=FileSource(str(path))) as (_, channel):
        started_s = time.monotonic()
        assert heard(channel)[0] == "listed"
        write(path, "192.0.2.8:80")
        assert heard(channel) == ("listed", ["192.0.2.8:80"], "")
        assert time.monotonic() - started_s < 4
    # And leaving does not wait for it either: `running` has seen the process end.


def test_a_channel_that_ends_before_the_order_ends_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = str(theirs.fileno())
    process = subprocess.Popen([sys.executable, "-m", scout.__name__, fd], cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.close()
    assert process.wait(LIMIT_S) == 0


def test_signals_for_the_service_do_not_end_it(directory: Path) -> None:
    path = write(directory / "pool.json", "192.0.2.9:80")
    with running(listed=FileSource(str(path))) as (process, channel):
        heard(channel)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert quiet(channel, 0.2)  # its end would be heard
        assert process.poll() is None


@pytest.mark.root
def test_it_holds_no_privilege_and_yields_the_cpu(directory: Path) -> None:
    path = write(directory / "pool.json", "192.0.2.9:80")
    with running(listed=FileSource(str(path))) as (process, channel):
        assert heard(channel) == ("listed", ["192.0.2.9:80"], "")
        seen, nice = status(process.pid), os.getpriority(os.PRIO_PROCESS, process.pid)
    assert {int(each) for each in seen["Uid"]} == {privileges.service_user().pw_uid}
    assert {int(seen[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {0}
    assert (seen["Groups"], seen["NoNewPrivs"]) == ([], ["1"])
    assert nice >= scout.NICE


def test_a_file_that_is_not_for_it_is_a_problem(directory: Path) -> None:
    path = write(directory / "pool.json", "192.0.2.9:80")
    path.chmod(0)
    found = discover_once(FileSource(str(path)), LIMIT_S)
    assert (found.upstreams, found.problem) == ((), f"{path}: Permission denied")


PARENT = """
import sys, time
from agent.discovery.scout import start
from agent.discovery.settings import FileSource
process, channel = start({"listed": FileSource(sys.argv[1])})
channel.recv(65536)
print(process.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_the_service(directory: Path) -> None:
    path = write(directory / "pool.json", "192.0.2.9:80")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not ended(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert awaits(lambda: ended(child))


def test_one_that_lost_its_parent_before_it_looked_ends() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = str(theirs.fileno())
    process = subprocess.Popen([sys.executable, "-m", scout.__name__, fd], cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    messages.send(ours, {"user": "", "parent": 1, "shadows": {"x": {"kind": "file", "path": "/none.json"}}})
    assert messages.receive(ours) is None
    assert process.wait(LIMIT_S) == 0
    ours.close()


BUG = """
import sys
from agent.discovery import file_sd, scout
file_sd.FileSd.look = lambda self: 1 / 0
scout.main()
"""


def test_a_bug_in_a_thread_ends_it_and_shows(directory: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-c", BUG, str(theirs.fileno())]
    process = subprocess.Popen(argv, cwd=ROOT, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    theirs.close()
    shadows = {"x": {"kind": "file", "path": "/none.json"}}
    messages.send(ours, {"user": "", "parent": os.getpid(), "shadows": shadows})
    assert messages.receive(ours) is None
    assert "ZeroDivisionError" in process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 1
    ours.close()


def test_finding_out_once(directory: Path, silent: str) -> None:
    path = write(directory / "pool.yaml", "192.0.2.9:80")
    assert discover_once(FileSource(str(path)), LIMIT_S) == Found((UpstreamSpec("192.0.2.9:80"),), 0.0, "")
    started_s = time.monotonic()
    slow = DnsSource("shadow.example", 80, "A", (silent,))
    both = discover_each({"slow": slow, "listed": FileSource(str(path))}, 1.5)
    assert both["listed"].upstreams == (UpstreamSpec("192.0.2.9:80"),)
    assert both["slow"] == Found((), 0.0, "nothing was found out within 1.5 s")
    assert time.monotonic() - started_s < 3
    assert discover_each({}, LIMIT_S) == {}


def test_finding_out_once_tells_a_problem_at_once() -> None:
    found = discover_once(FileSource("/none/pool.json"), LIMIT_S)
    assert found == Found((), 0.0, "/none/pool.json: No such file or directory")


def test_a_scout_that_cannot_start_is_a_problem(capfd: pytest.CaptureFixture[str]) -> None:
    found = discover_once(FileSource("/none/pool.json"), LIMIT_S, "no-such-user")
    assert found == Found((), 0.0, "the process that looks for upstreams ended by itself, with status 1")
    assert "no user 'no-such-user' on this host" in capfd.readouterr().err
