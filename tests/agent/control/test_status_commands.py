"""`shadowtap status` and `verdict`: once, again and again, on a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.control.api import Api
from agent.control.client import NoAnswerError
from tests.agent.control.command_line import Terminal, parser
from tests.agent.control.fake_desk import FINDING, FakeDesk, FakeSteering
from tests.agent.control.full_status import full
from tests.agent.control.loop import serving


def test_the_status_on_a_pipe_is_plain(terminal: Terminal) -> None:
    terminal.desk.more = {key: value for key, value in full().items() if key != "shadows"}
    out = terminal("status")
    assert out.startswith("candidate: enabled, 12.5 % of the clients, criteria path:/api/*\n  state    ACTIVE since")
    assert all(line.isprintable() for line in out.splitlines())
    assert "other: disabled" in out


def test_the_status_as_json_is_the_agents_answer(terminal: Terminal) -> None:
    answer = json.loads(terminal("status", "--json"))
    assert [shadow["name"] for shadow in answer["shadows"]] == ["candidate", "other"]
    assert answer["guards"]["candidate"]["state"] == "active"


def test_a_verdict_is_explained(terminal: Terminal) -> None:
    out = terminal("verdict", "candidate")
    assert out.startswith("candidate: FAIL at the rollback level: latency\n  judged since 2026-01-01 00:00:00Z")
    assert FINDING["sentence"] in out
    assert all(line.isprintable() for line in out.splitlines())
    assert terminal("verdict", "other").startswith("other: no verdict yet")
    assert json.loads(terminal("verdict", "candidate", "--json"))["verdict"]["findings"][0]["metric"] == "latency"


@pytest.mark.parametrize("options", [[], ["--watch"], ["--json"]])
def test_nobody_there(tmp_path: Path, options: list[str]) -> None:
    arguments = parser().parse_args(["status", "--socket", str(tmp_path / "none"), *options])
    with pytest.raises(NoAnswerError, match="no agent listens on"):
        arguments.run(arguments)


@contextlib.contextmanager
def watching(path: Path, output: int, *options: str, encoding: str = "utf-8") -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "agent.cli", "status", "--watch", "--socket", str(path), *options]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_until(end: int, *needed: bytes, seconds: float = 15) -> bytes:
    """What comes until all of it has come."""
    found, until_s = b"", time.monotonic() + seconds
    while not all(each in found for each in needed):
        assert select.select([end], [], [], max(0, until_s - time.monotonic()))[0], found
        found += os.read(end, 65536)
    return found


def api() -> Api:
    steering = FakeSteering()
    steering.shadows[0]["criteria"] = "path:/ü"
    return Api(steering, FakeDesk(steering), lambda line: None)


def test_a_terminal_is_refreshed_until_ctrl_c_also_while_the_agent_restarts(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        with contextlib.ExitStack() as first:
            first.enter_context(serving(tmp_path / "s", handle=api()))
            with watching(tmp_path / "s", theirs) as process:
                shown = read_until(ours, b"candidate", b"\x1b[32mACTIVE", b"other")
                assert b"no agent listens" not in shown
                first.close()
                read_until(ours, b"no agent listens")
                with serving(tmp_path / "s", handle=api()):
                    read_until(ours, b"candidate")
                    process.send_signal(signal.SIGINT)
                    assert process.wait(10) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_gets_one_status_after_the_other_in_its_encoding(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        with serving(tmp_path / "s", handle=api()), watching(tmp_path / "s", theirs, encoding="ascii") as process:
            shown = read_until(ours, b"other: disabled", b"\n\ncandidate: enabled")
            assert b"criteria path:/?\n" in shown
            assert b"\x1b" not in shown
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_json_is_watched_line_by_line(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        with serving(tmp_path / "s", handle=api()), watching(tmp_path / "s", theirs, "--json"):
            lines = read_until(ours, b"}\n{").splitlines()
            assert json.loads(lines[0])["shadows"][0]["name"] == "candidate"
    finally:
        os.close(ours)
        os.close(theirs)
