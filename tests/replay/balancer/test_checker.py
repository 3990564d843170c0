"""Health checks against real servers, nginx among them, under both loops. No test may leave a socket behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from replay.balancer.checker import ANSWER_LIMIT_BYTES, STALL_S, Checker
from replay.balancer.health import CheckResult
from replay.balancer.settings import HealthCheck, TlsSettings
from replay.proxy_header import LOCAL
from replay.tls import make_context
from tests.replay.harness import Run, run
from tests.replay.scripted_server import OK, Peer, Script, ScriptedServer

__all__ = ["run"]  # the fixture

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]

MARK = b"X-Shadowtap: 1"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def quick(**changes: Any) -> HealthCheck:
    """Checks that come fast, and may take long on a busy machine."""
    return HealthCheck(**{"interval_s": 0.01, "jitter_ratio": 0.1, "timeout_s": 5.0, "rise": 1, "fall": 1, **changes})


def http(**changes: Any) -> HealthCheck:
    return quick(kind="http", **changes)


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.002)


class Watcher:
    """A Checker of one upstream (key "a"), what it told, and every socket it used."""

    def __init__(self, check: HealthCheck, **options: Any) -> None:
        self.changes: list[tuple[object, bool, str]] = []
        self.results: list[CheckResult] = []  # at each change
        self.sockets: list[socket.socket] = []
        self.shortage: OSError | None = None
        options = {"socket_factory": self._make_socket, "mark": MARK, **options}
        self.checker = Checker(asyncio.get_running_loop(), check, self._changed, **options)

    def _make_socket(self, family: socket.AddressFamily) -> socket.socket:
        if self.shortage is not None:
            raise self.shortage
        self.sockets.append(socket.socket(family, socket.SOCK_STREAM))
        return self.sockets[-1]

    def _changed(self, key: object, healthy: bool, reason: str) -> None:
        self.changes.append((key, healthy, reason))
        self.results.append(self.checker.results()[key])

    @property
    def result(self) -> CheckResult:
        return self.checker.results()["a"]

    def watch(self, address: str, key: object = "a", host: str = "") -> None:
        """`address`: "127.0.0.1:80", "::1:80", or a path."""
        if address.startswith("/"):
            self.checker.watch(key, socket.AF_UNIX, address, host or f"unix:{address}")
            return
        name, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        self.checker.watch(key, family, (name, int(port)), host or address)

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.checker.close()
        for _ in range(5):
            await asyncio.sleep(0)
        if exc[0] is None:
            assert [sock for sock in self.sockets if sock.fileno() >= 0] == []
            assert asyncio.all_tasks() == {asyncio.current_task()}


async def first_check(check: HealthCheck, address: str, host: str = "", **options: Any) -> str:
    """Check that address once: the reason, "" when it is well."""
    async with Watcher(replace(check, interval_s=1.0, jitter_ratio=0.0), **options) as watcher:
        watcher.watch(address, host=host)
        await until(lambda: watcher.changes or watcher.result.good)
        watcher.checker.close()
        if not watcher.changes:
            return ""
        assert watcher.changes == [("a", False, watcher.results[0].reason)]
        return watcher.results[0].reason


@contextlib.contextmanager
def listening(address: str | tuple[str, int] = ("127.0.0.1", 0), backlog: int = 128) -> Iterator[socket.socket]:
    """A socket that listens and that nobody accepts from."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(backlog)
        yield listener


def where(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


# Connecting


def test_tcp(run: Run) -> None:
    with listening() as listener:
        assert run(first_check(quick(), where(listener))) == ""
    assert run(first_check(quick(), where_nobody_listens())) == "connection refused"


def eventually(done: Callable[[], object]) -> None:
    """Wait for a server's thread."""
    limit_s = time.monotonic() + 10
    while not done() and time.monotonic() < limit_s:
        time.sleep(0.002)


def where_nobody_listens() -> str:
    with listening() as listener:
        return where(listener)


def test_ipv6(run: Run) -> None:
    with listening(("::1", 0)) as listener:
        assert run(first_check(quick(), where(listener))) == ""


def test_unix_sockets(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert run(first_check(quick(), path)) == "no such file or directory"
    with listening(path) as listener:
        assert run(first_check(quick(), where(listener))) == ""
    assert run(first_check(quick(), path)) == "connection refused"


def test_a_unix_socket_with_a_full_queue_is_not_connected(run: Run, tmp_path: Path) -> None:
    with listening(str(tmp_path / "s"), backlog=0) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(listener.getsockname())
        assert run(first_check(quick(), where(listener))) == "transport endpoint is not connected"


def test_a_connection_that_is_not_accepted_in_time(run: Run) -> None:
    with listening(backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())
        assert run(first_check(quick(timeout_s=0.1), where(listener))) == "no connection within 0.1 s"


# HTTP


def test_the_request_and_a_good_answer(run: Run) -> None:
    with ScriptedServer(Peer.serve) as server:
        check = http(path="/live", host="shop.example", body="^ok$", statuses=((200, 200),))
        assert run(first_check(check, server.address)) == ""
        assert server.requests[0] == (
            b"GET /live HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: shadowtap\r\nAccept: */*\r\n"
            b"Connection: close\r\nX-Shadowtap: 1\r\n\r\n"
        )


def test_the_host_is_the_upstream_s_own(run: Run) -> None:
    with ScriptedServer(Peer.serve) as server:
        run(first_check(http(), server.address, mark=b""))
        assert f"\r\nHost: {server.address}\r\n".encode() in server.requests[0]
        assert b"X-Shadowtap" not in server.requests[0]


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (http(statuses=((201, 299), (500, 599))), "status 200"),
        (http(body="OK"), "status 200, but the body does not hold 'OK'"),
        (http(body="(?i)OK"), ""),
    ],
)
def test_status_and_body(run: Run, check: HealthCheck, reason: str) -> None:
    with ScriptedServer(Peer.serve) as server:
        assert run(first_check(check, server.address)) == reason


def sends(*pieces: bytes, end: Callable[[Peer], None] = Peer.hold) -> Script:
    """Answer with these, one after the other."""

    def script(peer: Peer) -> None:
        peer.request()
        for piece in pieces:
            peer.send(piece)
            peer.pause(0.005)
        end(peer)

    return script


def closes(peer: Peer) -> None:
    pass


def sends_for_ever(head: bytes, piece: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        while True:
            peer.send(piece)

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD = {
    "byte by byte": sends(*(OK[n : n + 1] for n in range(len(OK)))),
    "chunked": sends(CHUNKED, b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
    "until close": sends(b"HTTP/1.1 200 OK\r\n\r\no", b"k", end=closes),
    "HTTP/1.0": sends(b"HTTP/1.0 200 OK\r\n\r\nok", end=closes),
    "interim": sends(b"HTTP/1.1 103 Early Hints\r\n\r\n", OK),
    "more than asked for": sends(OK + OK),
    "no end, but a good beginning": sends_for_ever(b"HTTP/1.1 200 OK\r\n\r\nok", b"x" * 10_000),
    "endless chunk lines": sends_for_ever(CHUNKED, b"1;" + b"x" * 4000 + b"\r\no\r\n"),
    "larger than is read": sends_for_ever(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\nok", b"x" * 10_000),
}
HANGS = "no whole response within 0.2 s"
BAD = {
    "no answer": (sends(), HANGS),
    "half a head": (sends(OK[:20]), HANGS),
    "half a body": (sends(OK[:-1]), HANGS),
    "not HTTP": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "not an HTTP/1.x response"),
    "HTTP/2": (sends(b"\0\0\x12\x04\0\0\0\0\0"), "not an HTTP/1.x response"),
    "two lengths": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok"),
        "not an HTTP/1.x response head, or its framing contradicts itself",
    ),
    "broken chunks": (sends(CHUNKED + b"xyz\r\n"), "broken chunked coding"),
    "closes at once": (sends(end=closes), "closed without an answer"),
    "closes in the head": (sends(OK[:20], end=closes), "closed inside the response"),
    "closes in the body": (sends(OK[:-1], end=closes), "closed inside the response"),
    "resets": (sends(end=Peer.reset), "connection reset by peer"),
    "endless head": (sends_for_ever(OK[:-6], b"a: b\r\n" * 999), "response head larger than 65536 bytes"),
    "endless interim": (sends_for_ever(b"", b"HTTP/1.1 100 C\r\n\r\n" * 9), "more than 32 interim responses"),
    "bad status, endless": (sends_for_ever(b"HTTP/1.1 500 E\r\n\r\n", b"x" * 10_000), "status 500"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_good_answers(run: Run, case: str) -> None:
    with ScriptedServer(GOOD[case]) as server:
        assert run(first_check(http(body="^o"), server.address)) == ""


@pytest.mark.parametrize("case", BAD)
def test_bad_answers_have_a_reason(run: Run, case: str) -> None:
    script, reason = BAD[case]
    with ScriptedServer(script) as server:
        timeout_s = 0.2 if reason == HANGS else 5.0
        assert run(first_check(http(timeout_s=timeout_s), server.address)) == reason


def test_a_long_answer_is_not_read_to_its_end(run: Run) -> None:
    sent = 0

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(b"x" * 10_000)
            sent += 10_000

    with ScriptedServer(script) as server:
        assert run(first_check(http(), server.address)) == ""
    assert ANSWER_LIMIT_BYTES - 10_000 < sent < 50 * ANSWER_LIMIT_BYTES


# PROXY header


def test_a_proxy_header_comes_first(run: Run) -> None:
    got = []

    def script(peer: Peer) -> None:
        got.append(peer.sock.recv(16, socket.MSG_WAITALL))
        peer.serve()

    with ScriptedServer(script) as server:
        assert run(first_check(http(), server.address, proxy_protocol=True)) == ""
        assert run(first_check(quick(), server.address, proxy_protocol=True)) == ""
        eventually(lambda: len(got) == 2)
    assert got == [LOCAL, LOCAL]
    assert server.requests[0].startswith(b"GET / HTTP/1.1\r\n")


# TLS

CA = trustme.CA()
NOW = datetime.now(UTC)


def server_context(*names: str, ca: trustme.CA = CA, days: int = 10) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    start, end = NOW - timedelta(days=20), NOW + timedelta(days=days)
    ca.issue_cert(*(names or ("127.0.0.1", "shop.example")), not_before=start, not_after=end).configure_cert(context)
    return context


def client_tls(verify: bool = True) -> Callable[[], ssl.SSLContext]:
    context = make_context(TlsSettings(verify=verify))
    if verify:
        CA.configure_trust(context)
    return lambda: context


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, if there is one."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext, serve: Serve = answer) -> AsyncIterator[str]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()


async def first_over_tls(context: ssl.SSLContext, check: HealthCheck, tls: Any = None, **options: Any) -> str:
    async with serving(context) as address:
        return await first_check(check, address, tls=tls or client_tls(), **options)


@pytest.mark.parametrize(
    "check", [quick(), http(body="ok"), http(host="shop.example:443")], ids=["tcp", "http", "name"]
)
def test_tls(run: Run, check: HealthCheck) -> None:
    assert run(first_over_tls(server_context(), check)) == ""


@pytest.mark.parametrize("check", [quick(), http()], ids=["tcp", "http"])
def test_a_failed_verification_is_told_in_openssl_s_words(run: Run, check: HealthCheck) -> None:
    failed = "certificate verify failed: "
    assert run(first_over_tls(server_context(days=-1), check)) == failed + "certificate has expired"
    other = server_context("127.0.0.1", ca=trustme.CA())
    assert run(first_over_tls(other, check)) == failed + "unable to get local issuer certificate"
    assert run(first_over_tls(other, check, tls=client_tls(verify=False))) == ""


def test_the_server_name_is_that_of_the_settings(run: Run) -> None:
    context = server_context("shop.example")
    assert run(first_over_tls(context, quick(), server_name="shop.example")) == ""
    assert "Hostname mismatch" in run(first_over_tls(context, quick(), server_name="blog.example"))
    assert "IP address mismatch" in run(first_over_tls(context, quick(), server_name="127.0.0.1"))
    assert "is not a server name" in run(first_over_tls(context, quick(), server_name=".example"))


def test_the_name_is_the_check_s_host_where_requests_have_their_own(run: Run) -> None:
    context = server_context("shop.example")
    assert run(first_over_tls(context, http(host="shop.example:443"))) == ""
    assert "Hostname mismatch" in run(first_over_tls(context, http(host="blog.example")))
    assert run(first_over_tls(context, http())) == "", "its address is no name to hold against it"


def test_no_tls_where_tls_should_be(run: Run) -> None:
    with ScriptedServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        assert run(first_check(quick(), server.address, tls=client_tls())) in (
            "wrong version number",
            "record layer failure",
        )
    with ScriptedServer(closes) as server:
        reason = run(first_check(quick(), server.address, tls=client_tls()))
        assert reason in ("closed inside the TLS handshake", "connection reset by peer")
    with ScriptedServer(Peer.hold) as server:
        reason = run(first_check(quick(timeout_s=0.1), server.address, tls=client_tls()))
        assert reason == "no TLS handshake within 0.1 s"


def test_a_client_certificate_that_is_missing(run: Run) -> None:
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)

    def script(peer: Peer) -> None:  # asyncio's own servers send no alert
        with context.wrap_socket(peer.sock, server_side=True, do_handshake_on_connect=False) as tls:
            with contextlib.suppress(ssl.SSLError):
                tls.do_handshake()
            peer.pause(0.05)

    with ScriptedServer(script) as server:
        reason = run(first_check(http(), server.address, tls=client_tls()))
        assert reason == "tlsv13 alert certificate required"


def test_a_proxy_header_comes_before_tls(run: Run) -> None:
    got = []

    def script(peer: Peer) -> None:
        got.append(peer.sock.recv(17, socket.MSG_WAITALL))

    with ScriptedServer(script) as server:
        run(first_check(quick(), server.address, tls=client_tls(), proxy_protocol=True))
        eventually(lambda: got)
    assert got == [LOCAL + b"\x16"], "a handshake record"


# nginx: who is down, and for how long


class Nginx:
    """A real one on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = where_nobody_listens()
        temporary = "".join(
            f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log {folder}/access.log; {temporary}\n"
            f"  server {{ listen {self.address}; location = /live {{ return 200 'live\\n'; }} }} }}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # One process, so that killing it leaves none behind.
        command = [
            "nginx",
            "-p",
            str(self.folder),
            "-c",
            str(self.folder / "nginx.conf"),
            "-e",
            str(self.folder / "error.log"),
        ]
        self._process = subprocess.Popen([*command, "-g", "daemon off; master_process off;"], stderr=subprocess.DEVNULL)
        host, _, port = self.address.rpartition(":")
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
                return
            time.sleep(0.01)
        raise AssertionError((self.folder / "error.log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    server = Nginx(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_it_goes_down_after_fall_checks_and_returns_after_rise(run: Run, nginx: Nginx, kind: str) -> None:
    async def main() -> None:
        check = quick(kind=kind, path="/live", body="^live$", rise=3, fall=4)
        async with Watcher(check) as watcher:
            watcher.watch(nginx.address)
            await until(lambda: watcher.result.good >= 3)
            nginx.kill()
            await until(lambda: watcher.changes)
            down = watcher.results[0]
            assert watcher.changes == [("a", False, down.reason)]
            assert (down.healthy, down.bad) == (False, 4)
            await until(lambda: watcher.result.bad >= 10)
            nginx.start()
            await until(lambda: len(watcher.changes) > 1)
            up = watcher.results[1]
            assert watcher.changes[1:] == [("a", True, "")]
            assert (up.healthy, up.good - down.good) == (True, 3)
            assert up.reason == "connection refused"

    run(main())


def test_a_missing_path_is_found(run: Run, nginx: Nginx) -> None:
    assert run(first_check(http(path="/health"), nginx.address)) == "status 404"
    assert "/health" in (nginx.folder / "access.log").read_text()


# Our own shortages and stalls


def test_a_shortage_of_our_own_is_no_bad_check(run: Run) -> None:
    async def main(address: str) -> None:
        async with Watcher(quick()) as watcher:
            watcher.shortage = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            watcher.watch(address)
            await until(lambda: watcher.result.skipped >= 3)
            assert watcher.result._replace(skipped=3) == (True, 0, 0, 3, "", "too many open files")
            watcher.shortage = None
            await until(lambda: watcher.result.good)
            assert not watcher.changes

    with listening() as listener:
        run(main(where(listener)))


def test_without_a_local_port_nothing_is_known(run: Run) -> None:
    class Portless(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    async def main() -> None:
        async with Watcher(quick(), socket_factory=Portless) as watcher:
            watcher.watch("127.0.0.1:1")
            await until(lambda: watcher.result.skipped)
            assert watcher.result.shortage == "cannot assign requested address"
            assert watcher.result.bad == 0

    run(main())


def test_without_a_tls_context_nothing_is_known(run: Run) -> None:
    def missing() -> ssl.SSLContext:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    async def main() -> None:
        async with Watcher(quick(), tls=missing) as watcher:
            watcher.watch("127.0.0.1:1")
            await until(lambda: watcher.result.skipped)
            assert watcher.result.shortage == "no TLS context: no such file or directory"

    run(main())


def test_a_stall_of_our_own_is_no_bad_check(run: Run) -> None:
    async def main(address: str) -> None:
        async with Watcher(http(timeout_s=0.05)) as watcher:
            watcher.watch(address)
            await until(lambda: watcher.sockets)
            time.sleep(STALL_S + 0.1)
            await until(lambda: watcher.result.skipped + watcher.result.bad)
            assert watcher.result == (True, 0, 0, 1, "", "this process stalled")
            await until(lambda: watcher.result.bad)

    with listening() as listener:
        run(main(where(listener)))


# Watching and its end


def test_unwatch_in_the_middle_of_a_check(run: Run) -> None:
    async def main(address: str) -> None:
        async with Watcher(http()) as watcher:
            watcher.watch(address)
            await until(lambda: watcher.sockets)
            assert watcher.sockets[0].fileno() >= 0
            watcher.checker.unwatch("a")
            watcher.checker.unwatch("a")
            watcher.checker.unwatch("never watched")
            await asyncio.sleep(0.05)
            assert len(watcher.sockets) == 1
            assert watcher.sockets[0].fileno() == -1
            assert watcher.checker.results() == {}
            assert watcher.changes == []

    with listening() as listener:
        run(main(where(listener)))


def test_close_from_within_changed(run: Run) -> None:
    async def main() -> None:
        told = []

        def changed(key: object, healthy: bool, reason: str) -> None:
            told.append(key)
            checker.close()

        checker = Checker(asyncio.get_running_loop(), quick(), changed)
        for port in range(1, 4):
            checker.watch(port, socket.AF_INET, ("127.0.0.1", port), "")
        await until(lambda: told)
        await asyncio.sleep(0.05)
        assert len(told) == 1

    run(main())


def test_close_is_for_good(run: Run) -> None:
    async def main() -> None:
        async with Watcher(quick()) as watcher:
            watcher.watch("127.0.0.1:1")
            watcher.checker.close()
            watcher.checker.close()
            watcher.watch("127.0.0.1:1")
            await asyncio.sleep(0.05)
            assert not watcher.sockets
            assert not watcher.checker.results()

    run(main())


def test_to_watch_again_is_to_begin_afresh(run: Run) -> None:
    async def main(address: str) -> None:
        async with Watcher(quick()) as watcher:
            watcher.watch("127.0.0.1:1")
            await until(lambda: watcher.changes)
            watcher.watch(address)
            assert watcher.result.healthy
            await until(lambda: watcher.result.good)
            assert watcher.result.bad == 0
            assert len(watcher.changes) == 1

    with listening() as listener:
        run(main(where(listener)))


def test_a_bug_in_changed_is_told_and_the_checks_go_on(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[Any] = []
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        checker = Checker(loop, quick(), lambda key, healthy, reason: print(1 / 0))
        checker.watch("a", socket.AF_INET, ("127.0.0.1", 1), "")
        await until(lambda: checker.results()["a"].bad >= 3)
        checker.close()
        assert [type(error) for error in told] == [ZeroDivisionError]

    run(main())


def test_many_upstreams_in_every_state_leave_no_socket(run: Run) -> None:
    async def main(addresses: list[str]) -> None:
        async with Watcher(http(timeout_s=0.03), tls=client_tls(verify=False)) as watcher:
            for key in range(60):
                watcher.watch(addresses[key % len(addresses)], key)
            for key in range(60):
                await asyncio.sleep(0.003)
                watcher.checker.unwatch(key)
            assert len(watcher.sockets) > 60

    with (
        listening() as silent,
        ScriptedServer(Peer.serve) as plain,
        ScriptedServer(lambda peer: peer.send(b"\x16\x03\x03\x40\x00" + b"x" * 20_000)) as garbage,
    ):
        run(main([where(silent), plain.address, garbage.address, "127.0.0.1:1"]))


def test_sockets_of_its_own_are_closed_too(run: Run) -> None:
    async def main(silent: tuple[str, int]) -> None:
        await asyncio.sleep(0)
        before = descriptors()
        checker = Checker(asyncio.get_running_loop(), quick(kind="http"), lambda *change: None)
        checker.watch("refused", socket.AF_INET, ("127.0.0.1", 1), "")
        checker.watch("silent", socket.AF_INET, silent, "")
        await until(lambda: checker.results()["refused"].bad > 3 and descriptors() > before)
        checker.close()
        await asyncio.sleep(0.01)
        assert descriptors() == before

    with listening() as silent:
        run(main(silent.getsockname()))


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
