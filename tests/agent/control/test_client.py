"""The client: answers, and every way to get none, in one line that says what to do."""

from __future__ import annotations

import grp
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.control.client import NoAnswerError, ask
from agent.control.request import BODY_LIMIT_BYTES, ControlError, Reply
from replay.errors import ShadowtapError
from tests.agent.control.loop import serving, without_privilege


def failure(path: Path, timeout_s: float = 5) -> str:
    with pytest.raises(NoAnswerError) as caught:
        ask(path, "GET", "/v1/status", timeout_s=timeout_s)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def answering(path: Path, answer: bytes | None) -> threading.Thread:
    """Something else listens at `path`: it sends `answer` to one client, None keeps it waiting until it leaves."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as end:
            end.recv(65536)
            if answer is None:
                end.recv(1)
            else:
                end.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_it_gets_the_answer(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as loop:
        assert ask(loop.path, "GET", "/v1/status") == {"method": "GET", "path": "/v1/status", "body": None}
        assert ask(loop.path, "PATCH", "/v1/x", {"criteria": "path:/ü"})["body"] == {"criteria": "path:/ü"}
        assert ask(loop.path, "PATCH", "/v1/x", {})["body"] == {}
        loop.handler.reply = Reply({"much": "x" * 3_000_000})
        assert len(ask(loop.path, "GET", "/v1/status")["much"]) == 3_000_000


def test_it_raises_what_the_agent_refuses(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as loop:
        loop.handler.error = ControlError(404, "no shadow is called x")
        with pytest.raises(ControlError, match=r"^no shadow is called x$") as caught:
            ask(loop.path, "GET", "/v1/shadows/x")
        assert caught.value.status == 404
        loop.handler.error = ControlError(400, "two\nlines and \x1b[31m red")
        with pytest.raises(ControlError) as caught:
            ask(loop.path, "GET", "/v1/shadows/x")
        assert str(caught.value).isprintable()
        loop.handler.error = None
        with pytest.raises(ControlError, match="65536 bytes") as caught:
            ask(loop.path, "PATCH", "/v1/shadows/x", {"criteria": "x" * 20 * BODY_LIMIT_BYTES})
        assert caught.value.status == 413


@pytest.mark.parametrize("there", ["nothing", "no directory", "stale"])
def test_no_agent(tmp_path: Path, there: str) -> None:
    path = tmp_path / "s"
    if there == "no directory":
        path = tmp_path / "none" / "s"
    elif there == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    assert failure(path).startswith(
        f"no agent listens on {path}: is `shadowtap run` running, with `control` set in its configuration?"
    )


def test_no_permission(public: Path) -> None:
    with serving(public / "s", mode=0) as loop:
        group = grp.getgrgid(loop.path.stat().st_gid).gr_name
        with without_privilege():
            assert f"it is for its owner and group {group} (mode 0000): join the group" in failure(loop.path)
        if os.geteuid() == 0:
            os.chown(loop.path, 0, 54321)
            with without_privilege():
                assert "group 54321" in failure(loop.path)
        public.chmod(0)
        with without_privilege():
            assert "permission denied: its directory is closed to you" in failure(loop.path)


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    assert "too long" in failure(tmp_path / ("s" * 200))


def test_an_agent_that_hangs(tmp_path: Path) -> None:
    thread = answering(tmp_path / "s", None)
    assert "does not answer within 0.1 s: see its log" in failure(tmp_path / "s", timeout_s=0.1)
    thread.join()


def test_a_full_backlog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        first.connect(str(tmp_path / "s"))
        assert "too many ask the agent at once" in failure(tmp_path / "s", timeout_s=0.1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "does not answer as an agent does"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer as an agent does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "does not answer as an agent does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "does not answer as an agent does"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", "does not answer as an agent does"),
    ],
)
def test_something_else_listens_there(tmp_path: Path, answer: bytes, says: str) -> None:
    thread = answering(tmp_path / "s", answer)
    assert says in failure(tmp_path / "s")
    thread.join()


def test_an_agent_that_dies_meanwhile(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def serve() -> None:
        with listener:
            listener.accept()[0].close()  # with the request unread: a reset

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ShadowtapError, match=r"closed the connection|as an agent does"):
        ask(tmp_path / "s", "PATCH", "/", {"criteria": "x" * 1_000_000})
    thread.join()


def test_only_a_request_costs_the_import_of_a_client() -> None:
    code = "import sys, agent.control.commands; print('http.client' in sys.modules, 'ssl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
