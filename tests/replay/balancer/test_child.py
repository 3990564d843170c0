"""A program as a child: its start, readiness, words and reload, and that it ends with whoever started it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.balancer import child as module
from replay.balancer.child import OUTPUT_LIMIT_BYTES, WORDS_LINES, Child, check, free_port, words
from replay.errors import UpstreamError

ROOT = Path(__file__).parents[3]
Start = Callable[..., Child]

# Listens at argv[1], says what it is told by signals, and ends at SIGTERM unless it is stubborn.
LISTENS = """
import os, signal, socket, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, lambda *_: print("reloaded", flush=True))
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if "forks" in sys.argv and os.fork() == 0:
    print("worker", os.getpid(), flush=True)
print("cwd", os.getcwd(), flush=True)
while True:
    time.sleep(10)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a script; it is ended with the test."""
    started = []

    def begin(script: str, *arguments: str, addresses: list[tuple[str, int]] | None = None) -> Child:
        argv = [sys.executable, "-c", script, *arguments]
        started.append(Child(argv, signal.SIGHUP, tmp_path / "output.log"))
        started[-1].start(addresses or [])
        return started[-1]

    yield begin
    for child in started:
        child.stop(0.1)


def listening(start: Start, *words: str) -> tuple[Child, tuple[str, int]]:
    address = free_port()
    return start(LISTENS, str(address[1]), *words, addresses=[address]), address


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def worker_of(log: Path) -> int:
    """What forked, and said so."""
    until(lambda: re.search(r"worker \d+\s", log.read_text()))
    return int(log.read_text().partition("worker ")[2].split()[0])


# Start


def test_it_is_ready_when_it_accepts(start: Start, tmp_path: Path) -> None:
    child, address = listening(start)
    assert accepts(address) and child.alive() and lives(child.pid)
    until(lambda: "cwd /" in (tmp_path / "output.log").read_text())
    assert os.getsid(child.pid) == child.pid, "a terminal's Ctrl-C is not for it"


def test_what_ends_at_once_is_told_with_its_words(start: Start) -> None:
    script = "import sys; print('this is fine'); print('[emerg] no such thing', file=sys.stderr); sys.exit(1)"
    with pytest.raises(UpstreamError, match=r"ended at once: \[emerg\] no such thing$"):
        start(script, addresses=[free_port()])


def test_what_never_listens_is_ended_and_told(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "READY_LIMIT_S", 0.3)
    place = free_port()
    script = "import os, time; print('worker', os.getpid(), flush=True); time.sleep(30)"
    with pytest.raises(UpstreamError, match=f"does not listen on 127.0.0.1:{place[1]}: worker"):
        start(script, addresses=[place])
    assert not lives(worker_of(tmp_path / "output.log"))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    child = Child([str(tmp_path / "none")], signal.SIGHUP, tmp_path / "output.log")
    with pytest.raises(UpstreamError, match="none: no such file or directory"):
        child.start([])
    assert not child.alive() and child.pid == 0


# End


def test_it_is_stopped(start: Start) -> None:
    child, address = listening(start)
    pid = child.pid
    child.stop()
    assert not child.alive() and child.pid == 0 and not lives(pid) and not accepts(address)
    child.stop()


def test_what_does_not_end_is_killed(start: Start) -> None:
    child, address = listening(start, "stubborn")
    pid = child.pid
    child.stop(0.2)
    assert not lives(pid) and not accepts(address)


def test_its_workers_end_with_it(start: Start, tmp_path: Path) -> None:
    child, _ = listening(start, "forks")
    worker = worker_of(tmp_path / "output.log")
    assert lives(worker)
    child.stop()
    until(lambda: not lives(worker))


def test_one_that_was_killed_is_started_again_at_the_same_address(start: Start, tmp_path: Path) -> None:
    """Its workers live on, and hold the address, until they are ended as well."""
    child, address = listening(start, "forks")
    first, worker = child.pid, worker_of(tmp_path / "output.log")
    os.kill(first, signal.SIGKILL)
    until(lambda: not child.alive())
    assert lives(worker) and accepts(address)
    child.start([address])
    assert child.alive() and child.pid != first and accepts(address)
    until(lambda: not lives(worker))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    address = free_port()
    script = f"""
import signal, sys, time
from pathlib import Path
from replay.balancer.child import Child
child = Child([sys.executable, "-c", {LISTENS!r}, "{address[1]}"], signal.SIGHUP, Path({str(tmp_path)!r}, "output.log"))
child.start([("127.0.0.1", {address[1]})])
print(child.pid, flush=True)
time.sleep(30)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.send_signal(number)
    until(lambda: not lives(pid))


# Reload and words


def test_reload_sends_its_signal(start: Start, tmp_path: Path) -> None:
    child, _ = listening(start)
    child.reload()
    until(lambda: "reloaded" in child.tail() or "reloaded" in (tmp_path / "output.log").read_text())
    assert child.alive()
    child.stop()
    child.reload()


def test_a_log_that_has_grown_long_is_begun_anew(start: Start, tmp_path: Path) -> None:
    child, _ = listening(start)
    with (tmp_path / "output.log").open("ab") as log:
        log.write(b"x" * OUTPUT_LIMIT_BYTES)
    child.reload()
    assert (tmp_path / "output.log").stat().st_size < 1000


def test_last_words_are_bounded(tmp_path: Path) -> None:
    child = Child(["none"], signal.SIGHUP, tmp_path / "output.log")
    assert child.tail() == ""
    (tmp_path / "output.log").write_bytes(b"\xff" * 100_000 + b"\nthe end \xff\n")
    assert child.tail().endswith("the end \ufffd")
    assert len(child.tail()) < 5000


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", ""),
        ("\n \n", ""),
        ("  one \t line \n", "one line"),
        ("[NOTICE] fine\n[ALERT] parsing [a.cfg:3]: unknown\n[ALERT] Fatal errors found in configuration.\n",
         "[ALERT] parsing [a.cfg:3]: unknown"),
        ("nginx: [emerg] unknown directive\nnginx: configuration file /a test failed\n",
         "nginx: [emerg] unknown directive"),
        ("[ALERT] Fatal errors found in configuration.\n", "[ALERT] Fatal errors found in configuration."),
        ("".join(f"error {n}\n" for n in range(99)), "; ".join(f"error {n}" for n in range(WORDS_LINES))),
    ],
)  # fmt: skip
def test_words_that_tell(output: str, said: str) -> None:
    assert words(output) == said


def test_a_check_has_the_programs_words_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check([sys.executable, "-c", "print('[ALERT] not so bad')"]) == ""
    assert check([sys.executable, "-c", "print('[ALERT] too bad'); raise SystemExit(3)"]) == "[ALERT] too bad"
    assert check(["/no/such/program"]) == (
        "/no/such/program: no such file or directory: install it, or name it in balancer.program"
    )
    monkeypatch.setattr(module, "CHECK_LIMIT_S", 0.2)
    assert "did not finish its check within" in check([sys.executable, "-c", "import time; time.sleep(9)"])


def test_a_free_port_is_free() -> None:
    host, port = free_port()
    with contextlib.closing(socket.create_server((host, port))):
        assert host == "127.0.0.1"
