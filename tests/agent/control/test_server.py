"""The control server: requests in pieces, clients that are slow, many, hostile or gone, and the socket file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import resource
import selectors
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import server as module
from agent.control import socketfile
from agent.control.server import (
    BODY_LIMIT_BYTES,
    CONNECTIONS_MAX,
    CROWDED_DEADLINE_S,
    DEADLINE_S,
    HEAD_LIMIT_BYTES,
    Call,
    ControlError,
    ControlServer,
    Reply,
    Request,
)
from agent.errors import ConfigError, LoadError
from tests.agent.control.loop import Loop, parsed, received, request, serving, without_privilege

PATCH = request("PATCH", "/v1/shadows/candidate", {"percentage": 5.0})


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path / "control.sock")
    yield made
    made.close()


def test_a_request_is_handled_in_the_turn_that_finds_it(loop: Loop) -> None:
    with loop.connect(PATCH) as end:
        assert loop.turn() == 1
        assert [(call.method, call.path, call.body) for call in loop.handler.calls] == [
            ("PATCH", "/v1/shadows/candidate", {"percentage": 5.0})
        ]
        assert parsed(received(end))[0] == 200
    loop.turn()
    assert loop.open() == 0


def test_the_peer_is_who_the_kernel_says(loop: Loop) -> None:
    loop.talk(request("GET", "/v1/status"))
    name = pwd.getpwuid(os.getuid()).pw_name
    assert loop.handler.calls == [Call("GET", "/v1/status", None, f"uid {os.getuid()} ({name})")]


@pytest.mark.parametrize("passwd", [None, "", "short\nroot:x\n"])
def test_a_peer_without_a_local_name(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passwd: str | None
) -> None:
    monkeypatch.setattr(socketfile, "_PASSWD", tmp_path / "passwd")
    if passwd is not None:
        (tmp_path / "passwd").write_text(passwd)
    loop.talk(request("GET", "/"))
    assert loop.handler.calls[0].peer == f"uid {os.getuid()}"


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("?", {}),
        ("?limit=20&before=7", {"limit": "20", "before": "7"}),
        ("?a=", {"a": ""}),
        ("?a=%C3%BC+b", {"a": "ü b"}),
    ],
)
def test_a_query_is_read(loop: Loop, query: str, fields: dict[str, str]) -> None:
    assert loop.talk(request("GET", f"/v1/history{query}"))[0] == 200
    assert [(call.path, call.query) for call in loop.handler.calls] == [("/v1/history", fields)]


def test_byte_by_byte(loop: Loop) -> None:
    with loop.connect() as end:
        for n in range(len(PATCH)):
            assert loop.handler.calls == []
            end.sendall(PATCH[n : n + 1])
            loop.turn()
        assert parsed(received(end)) == (
            200,
            {"method": "PATCH", "path": "/v1/shadows/candidate", "body": {"percentage": 5.0}},
        )


def test_what_follows_a_request_is_ignored(loop: Loop) -> None:
    assert loop.talk(PATCH + PATCH + b"\0garbage")[0] == 200
    assert len(loop.handler.calls) == 1


def test_a_client_that_ends_its_side_is_answered(loop: Loop) -> None:
    with loop.connect(PATCH) as end:
        end.shutdown(socket.SHUT_WR)
        loop.turn(2)
        assert parsed(received(end))[0] == 200
    assert loop.open() == 0


def test_head_has_no_body(loop: Loop) -> None:
    with loop.connect(request("HEAD", "/v1/status")) as end:
        loop.turn()
        answer = received(end)
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"PRI * HTTP/2.0\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (request("GET", "/v1/status?verbose"), 400, "a query is NAME=VALUE&..."),
        (request("GET", "/v1/status?a=%ff"), 400, "a query is NAME=VALUE&..."),
        (request("GET", "/v1/status?a=\xff"), 400, "with other than ASCII as %XX"),
        (request("GET", "/v1/status?a=1&a=2"), 400, "twice"),
        (request("GET", "/v1/status?" + "&".join(f"a{n}=" for n in range(17))), 400, "16 of them at most"),
        (request("GET", "/v1/status?a=" + "x" * 1024), 400, "1024 bytes"),
        (request("GET", "http://localhost/"), 400, "a path has"),
        (request("GET", "/%2e\xff"), 400, "a path has"),
        (request("PATCH", "/", headers="Transfer-Encoding: chunked\r\n"), 411, "Content-Length"),
        (request("PATCH", "/", [1]), 400, "not a JSON object"),
        (b"PATCH / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{a}", 400, "not JSON"),
        (b"PATCH / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\xff\xfe", 400, "not JSON"),
        (b'PATCH / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"a":NaN}', 400, "not JSON"),
        (b'PATCH / HTTP/1.1\r\nContent-Length: 14\r\n\r\n{"a":"\\ud800"}', 400, "not JSON"),
        (b"PATCH / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000, 400, "not JSON"),
        (b"PATCH / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT_BYTES + 1), 413, "65536 bytes"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * HEAD_LIMIT_BYTES, 413, "16384 bytes"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * HEAD_LIMIT_BYTES + b"\r\n\r\n", 413, "16384 bytes"),
    ],
)
def test_what_is_no_request_is_told_so(loop: Loop, data: bytes, status: int, says: str) -> None:
    got, body = loop.talk(data)
    assert got == status
    assert list(body) == ["error"]
    assert says in body["error"]
    assert loop.handler.calls == []


def test_the_largest_request_is_taken(loop: Loop) -> None:
    body = {"criteria": "x" * (BODY_LIMIT_BYTES - len('{"criteria": ""}'))}
    fill = "A: " + "a" * (HEAD_LIMIT_BYTES - len("A: \r\n") - len(request("PATCH", "/", body)) + BODY_LIMIT_BYTES)
    data = request("PATCH", "/", body, fill + "\r\n")
    assert len(data) == HEAD_LIMIT_BYTES + BODY_LIMIT_BYTES
    with loop.connect(data) as end:
        loop.turn(5)
        assert parsed(received(end))[0] == 200
    assert loop.handler.calls[0].body == body


def test_an_end_in_the_middle(loop: Loop) -> None:
    with loop.connect(PATCH[:-1]) as end:
        end.shutdown(socket.SHUT_WR)
        loop.turn(3)
        assert parsed(received(end)) == (400, {"error": "the request ends in the middle"})
    assert loop.open() == 0


@pytest.mark.parametrize("data", [b"", b"GET", PATCH])
def test_a_client_that_leaves_is_forgotten(loop: Loop, data: bytes) -> None:
    loop.connect(data).close()
    loop.turn(3)
    assert loop.open() == 0


def test_a_client_that_is_refused_while_it_sends_gets_to_know_why(loop: Loop) -> None:
    with loop.connect(b"GET / HTTP/1.1\r\nA: ") as end:
        for _ in range(20):
            end.sendall(b"a" * 65536)
            loop.turn(3)
        assert parsed(received(end))[0] == 413


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ControlError(404, "no shadow is called x"), 404, "no shadow is called x"),
        (ConfigError("percentage: too much"), 400, "percentage: too much"),
        (ConfigError("one: wrong\ntwo: wrong"), 400, "one: wrong; two: wrong"),
    ],
)
def test_what_the_handler_refuses(loop: Loop, error: Exception, status: int, text: str) -> None:
    loop.handler.error = error
    assert loop.talk(PATCH) == (status, {"error": text})


def test_the_methods_there_are(loop: Loop) -> None:
    loop.handler.error = ControlError(405, "this is for reading", allow=("GET", "HEAD"))
    with loop.connect(PATCH) as end:
        loop.turn()
        answer = received(end)
    assert b"HTTP/1.1 405 Method Not Allowed\r\n" in answer
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize("reply", [None, Reply({"ratio": float("nan")}), Reply({}, 999)])
def test_a_bug_is_answered_and_raised(loop: Loop, reply: Reply | None) -> None:
    loop.handler.error, loop.handler.reply = None if reply else KeyError("bug"), reply
    with loop.connect(PATCH) as end:
        with pytest.raises((KeyError, ValueError)):
            loop.turn()
        status, body = parsed(received(end))
    assert status == 500
    assert "its log" in body["error"]


def test_a_slow_reader_gets_all_and_holds_nobody_up(loop: Loop) -> None:
    loop.handler.reply = Reply({"much": "x" * 3_000_000})
    with loop.connect(PATCH) as slow:
        loop.turn()
        assert loop.turn(3) == 0  # it does not read: nothing to do
        loop.handler.reply = None
        assert loop.talk(PATCH)[0] == 200
        answer = b""
        while piece := slow.recv(65536):
            answer += piece
            loop.turn()
    assert len(parsed(answer)[1]["much"]) == 3_000_000


@pytest.mark.parametrize("data", [b"", PATCH[:-1], PATCH])
def test_a_connection_ends_at_its_deadline(loop: Loop, data: bytes) -> None:
    with loop.connect(data) as end:
        loop.turn()
        loop.server.expire(time.monotonic() + DEADLINE_S - 1)
        assert loop.open() == 1
        loop.server.expire(time.monotonic() + DEADLINE_S + 1)
        assert loop.open() == 0
        assert received(end) == b"" or data == PATCH


def test_more_clients_than_it_takes_wait_for_a_place(loop: Loop) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            stack.enter_context(loop.connect(b"GET"))
        late = stack.enter_context(loop.connect(PATCH))
        loop.turn(2)
        assert loop.open() == CONNECTIONS_MAX
        assert loop.turn(3) == 0  # nor does who waits wake the loop
        loop.server.expire(time.monotonic() + CROWDED_DEADLINE_S + 0.1)
        loop.turn()
        assert parsed(received(late))[0] == 200


def test_who_leaves_makes_place(loop: Loop) -> None:
    ends = [loop.connect() for _ in range(CONNECTIONS_MAX + 1)]
    loop.turn(2)
    for end in ends[:-1]:
        end.close()
    ends[-1].sendall(PATCH)
    loop.turn(3)
    with ends[-1] as late:
        assert parsed(received(late))[0] == 200


def test_without_descriptors_it_waits(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with loop.connect(PATCH) as end:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
        try:
            loop.turn()
            assert loop.turn(3) == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        loop.server.expire(time.monotonic())
        assert loop.turn() == 0
        loop.server.expire(time.monotonic() + module.ACCEPT_PAUSE_S)
        loop.turn()
        assert parsed(received(end))[0] == 200


def test_keys_of_others_are_left_to_them(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        key = loop.selector.register(ours, selectors.EVENT_READ, "a worker")
        assert not loop.server.take(key)
        loop.selector.unregister(ours)


def test_a_key_that_was_closed_in_the_same_turn(loop: Loop) -> None:
    with loop.connect(b"GET"):
        loop.turn()
        key = next(key for key in loop.selector.get_map().values() if key.data is not loop.server)
        loop.server.expire(time.monotonic() + 60)
        assert loop.server.take(key)


def test_the_handler_may_close_the_server(tmp_path: Path) -> None:
    selector = selectors.DefaultSelector()

    def handle(call: Call) -> Reply:
        server.close()
        return Reply({})

    server = ControlServer(tmp_path / "s", selector, handle)
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(tmp_path / "s"))
        end.sendall(PATCH)
        for key, _ in selector.select(1):
            server.take(key)
    server.expire(time.monotonic() + 60)
    assert not selector.get_map()


@settings(deadline=None)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=300), st.sampled_from([PATCH, PATCH[:40], PATCH[40:], b"\r\n\r\n"])))
)
def test_any_bytes_get_an_answer_or_an_end(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        loop = Loop(Path(directory, "s"))
        with loop.connect() as end:
            for piece in pieces:
                end.sendall(piece)
                loop.turn()
            end.shutdown(socket.SHUT_WR)
            loop.turn(3)
            assert parsed(received(end))[0] in (200, 400, 411, 413)
        assert loop.open() == 0
        loop.close()


@given(body=st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps))
def test_any_body_is_an_object_or_refused(body: bytes | str) -> None:
    data = body.encode() if isinstance(body, str) else body
    asked = Request()
    try:
        assert asked.feed(b"PATCH / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))
        assert asked.body is None or isinstance(asked.body, dict)
    except ControlError as error:
        assert error.status == 400


@given(cuts=st.lists(st.integers(0, len(PATCH)), max_size=8).map(sorted))
def test_any_cuts_give_the_same(cuts: list[int]) -> None:
    asked = Request()
    ends = [*cuts, len(PATCH)]
    pieces = [PATCH[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
    done = [asked.feed(piece) for piece in pieces if piece]
    assert done == [False] * (len(done) - 1) + [True]
    assert asked.body == {"percentage": 5.0}


def test_many_clients_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "s") as loop:
        ends = [loop.connect(PATCH) for _ in range(3 * CONNECTIONS_MAX)]
        for end in ends:
            assert parsed(received(end))[0] == 200
            end.close()
        assert len(loop.handler.calls) == len(ends)


def test_a_disable_is_handled_well_below_a_millisecond(loop: Loop) -> None:
    took_s = []
    for _ in range(200):
        with loop.connect(request("PATCH", "/v1/shadows/candidate", {"enabled": False})):
            start = time.perf_counter()
            loop.turn()
            took_s.append(time.perf_counter() - start)
        loop.turn()
    assert len(loop.handler.calls) == len(took_s)
    assert sorted(took_s)[len(took_s) // 2] < 0.001


@pytest.mark.parametrize("mode", [0o660, 0o600])
def test_the_mode_is_right_when_the_socket_appears(tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    listen = socket.socket.listen

    def spy(self: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE((tmp_path / "s").stat().st_mode))
        listen(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", spy)
    before = os.umask(0o002)
    try:
        loop = Loop(tmp_path / "s", mode=mode)
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)
    assert modes == [mode]
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    loop.close()


def test_the_group(tmp_path: Path) -> None:
    group = 12345 if os.geteuid() == 0 else os.getgid()
    loop = Loop(tmp_path / "s", group=group)
    assert (tmp_path / "s").stat().st_gid == group
    loop.close()


def test_close_removes_the_socket(loop: Loop) -> None:
    with loop.connect(PATCH) as end:
        loop.turn()
        loop.server.close()
        loop.server.close()
        assert parsed(received(end))[0] == 200
    assert not loop.path.exists()
    assert not loop.selector.get_map()


def test_close_leaves_the_socket_of_another(loop: Loop) -> None:
    loop.path.unlink()
    other = Loop(loop.path)
    loop.server.close()
    assert other.talk(PATCH)[0] == 200
    other.close()
    assert not loop.path.exists()


def test_close_without_a_right_to_the_directory(public: Path) -> None:
    loop = Loop(public / "s")
    public.chmod(0o555)
    with without_privilege():
        loop.server.close()
    assert loop.path.exists()
    public.chmod(0o755)
    again = Loop(public / "s")
    again.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    loop = Loop(tmp_path / "s")
    assert loop.talk(PATCH)[0] == 200
    loop.close()


def refused(path: Path) -> str:
    with selectors.DefaultSelector() as selector, pytest.raises(LoadError) as caught:
        ControlServer(path, selector, lambda call: Reply({}))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_live_socket_is_left_alone(loop: Loop) -> None:
    assert "another agent listens there: stop it" in refused(loop.path)
    loop.turn(3)
    assert loop.open() == 0
    assert loop.talk(PATCH)[0] == 200


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_listener_that_takes_nobody_is_alive(tmp_path: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as busy, socket.socket(socket.AF_UNIX, kind) as first:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        first.connect(str(tmp_path / "s"))
        assert "another agent listens there" in refused(tmp_path / "s")


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    assert "something else: remove it" in refused(path)
    assert path.is_symlink() or path.exists()


def test_paths_that_cannot_be(tmp_path: Path, public: Path) -> None:
    assert f"make the directory {tmp_path}/none" in refused(tmp_path / "none" / "s")
    assert "give a shorter path" in refused(tmp_path / ("s" * 200))
    public.chmod(0o555)
    with without_privilege():
        assert f"Permission denied: let {pwd.getpwuid(os.geteuid()).pw_name} write to" in refused(public / "s")


def test_two_that_start_at_once(tmp_path: Path) -> None:
    with socketfile._claim(tmp_path):
        assert "another agent is starting there" in refused(tmp_path / "s")


def test_a_start_that_fails_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with selectors.DefaultSelector() as selector, pytest.raises(LoadError, match="not permitted"):
        ControlServer(tmp_path / "s", selector, lambda call: Reply({}), group=1)
    monkeypatch.undo()
    Loop(tmp_path / "s").close()
