"""Active health checks: one task for each watched upstream, which connects, asks, and tells when the opinion changes.

    pause ──► socket ──► connect ──► [PROXY header] ──► [TLS] ──► [GET, response] ──► good or bad ──► pause ...
                └── our own shortage, or our own stall: the check is *skipped*, it says nothing of the upstream

What is asked, when, and what the results mean is in `health.py`. The socket is our own, and TLS is done on its bytes,
so that one `close` ends everything at once, under either event loop. Nothing is raised out of a task: whatever an
upstream does is a reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Mapping

from replay.balancer.address import UNIX
from replay.balancer.health import CheckResult, Health, Sockaddr, evaluate, pause_s, request_bytes
from replay.balancer.settings import HOST, HealthCheck
from replay.proxy_header import LOCAL
from replay.response import Progress, ResponseReader
from replay.sockets import LOCAL_ERRORS, new_socket, reason_of
from replay.tls import TlsStream

READ_BYTES = 16 * 1024
ANSWER_LIMIT_BYTES = 256 * 1024  # of a response that are read; a longer one is judged by its beginning
STALL_S = 0.25  # a time limit that comes later than this tells of this process, not of the upstream


class Checker:
    """The health checks of one pool. Not thread-safe; `loop` is the running one, uvloop's or asyncio's own.

    `changed(key, healthy, reason)` is called from a task, never from within a method, nor after `unwatch` or `close`.
    `socket_factory` makes the sockets (from a process that may mark them, for example). `tls` is asked for its context
    at each check. OSError from either is a shortage. `mark` is a header line without its end, or empty.

    `server_name` is for SNI and verification. With HOST it is the host that the check is set to ask for; without one
    only the certificate's chain is verified, for the name is each request's own and an upstream's address is none.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        check: HealthCheck,
        changed: Callable[[object, bool, str], None],
        socket_factory: Callable[[socket.AddressFamily], socket.socket] | None = None,
        mark: bytes = b"",
        tls: Callable[[], ssl.SSLContext] | None = None,
        server_name: str = HOST,
        seed: int = 0,
        proxy_protocol: bool = False,
    ) -> None:
        self._loop = loop
        self._check = check
        self._changed = changed
        self._socket_factory = socket_factory or new_socket
        self._mark = mark
        self._tls = tls
        self._server_name = _bare(check.host) if server_name == HOST else server_name
        self._seed = seed
        self._before = LOCAL if proxy_protocol else b""
        self._watches: dict[object, _Watch] = {}
        self._closed = False

    def watch(self, key: object, family: socket.AddressFamily, sockaddr: Sockaddr, host: str) -> None:
        """Begin to check an upstream; afresh, if the key is known. `host` is for the Host header, as "name:port"."""
        if self._closed:
            return
        self.unwatch(key)
        if host.startswith(UNIX):
            host = "localhost"  # a path is no host
        watch = self._watches[key] = _Watch(key, family, sockaddr, self._check.host or host, self._check)
        watch.task = self._loop.create_task(self._run(watch))

    def unwatch(self, key: object) -> None:
        """Stop checking, also in the middle of a check; the socket is closed in the loop's next round."""
        watch = self._watches.pop(key, None)
        if watch is not None and watch.task is not None:
            watch.task.cancel()

    def close(self) -> None:
        """Unwatch all, for good. May be called again."""
        self._closed = True
        for key in tuple(self._watches):
            self.unwatch(key)

    def results(self) -> Mapping[object, CheckResult]:
        """By key, of those that are watched now."""
        return {key: watch.result() for key, watch in self._watches.items()}

    # One upstream's checks, one after the other

    async def _run(self, watch: _Watch) -> None:
        next_s = self._loop.time()
        while True:
            next_s += pause_s(self._check, self._seed, watch.sockaddr, watch.made)
            await asyncio.sleep(next_s - self._loop.time())
            next_s = self._loop.time()
            watch.made += 1
            try:
                await self._once(watch)
            except Exception as error:  # a bug, here or in `changed`: it keeps its traceback, and the checks go on
                self._loop.call_exception_handler({"message": "a health check failed by a bug", "exception": error})

    async def _once(self, watch: _Watch) -> None:
        health = watch.health
        try:
            reason = await self._ask(watch)
        except _Shortage as shortage:
            watch.skipped += 1
            watch.shortage = str(shortage)
            return
        if health.observe(not reason, reason):
            self._changed(watch.key, health.healthy, reason)

    async def _ask(self, watch: _Watch) -> str:
        """Make one check: why it is bad, "" when it is good."""
        try:
            line = _Line(self._loop, self._socket_factory(watch.family), self._before)
        except OSError as error:
            raise _Shortage(_reason(error)) from None
        limit = asyncio.timeout(self._check.timeout_s)
        try:
            async with limit:
                return await self._talk(line, watch)
        except OSError as error:  # TimeoutError is one
            if limit.expired():
                return self._too_late(line, limit.when())
            if error.errno in LOCAL_ERRORS:
                raise _Shortage(_reason(error)) from None
            return _reason(error)
        finally:
            line.close()

    async def _talk(self, line: _Line, watch: _Watch) -> str:
        context = self._context()
        await line.connect(watch.sockaddr)
        if context is not None:
            await line.secure(context, self._server_name)
            if line.failed:
                return line.failed
        if self._check.kind != "http":
            await line.send(b"")
            return ""
        with contextlib.suppress(ConnectionError):  # it may have said why before it closed
            await line.send(request_bytes(self._check.path, watch.host, self._mark))
        return await self._judge(line)

    async def _judge(self, line: _Line) -> str:
        """Read the response, at most ANSWER_LIMIT_BYTES of it."""
        line.step = "whole response"
        reader = ResponseReader(ANSWER_LIMIT_BYTES)
        reader.begin("GET")
        progress = Progress.MORE
        received_bytes = 0
        while progress is Progress.MORE and received_bytes < ANSWER_LIMIT_BYTES:
            data = await line.receive()
            if not data and reader.end() is Progress.MORE:
                return line.failed or ("closed inside the response" if reader.started else "closed without an answer")
            received_bytes += len(data)
            progress = reader.feed(data, 0) if data else Progress.WHOLE
        if progress is Progress.GARBAGE:
            return reader.detail
        if not reader.status:
            return f"no response in {ANSWER_LIMIT_BYTES} bytes"
        reader.close()
        return evaluate(self._check, reader.status, reader.body)

    def _context(self) -> ssl.SSLContext | None:
        try:
            return self._tls() if self._tls is not None else None
        except OSError as error:
            raise _Shortage(f"no TLS context: {_reason(error)}") from None

    def _too_late(self, line: _Line, limit_s: float | None) -> str:
        """The answer may have waited for us, and not we for the answer."""
        if limit_s is not None and self._loop.time() - limit_s > STALL_S:
            raise _Shortage("this process stalled")
        return f"no {line.step} within {self._check.timeout_s:g} s"


class _Shortage(Exception):
    """The check says nothing of the upstream."""


class _Watch:
    """One watched upstream."""

    __slots__ = ("family", "health", "host", "key", "made", "shortage", "skipped", "sockaddr", "task")

    def __init__(
        self, key: object, family: socket.AddressFamily, sockaddr: Sockaddr, host: str, check: HealthCheck
    ) -> None:
        self.key = key
        self.family = family
        self.sockaddr = sockaddr
        self.host = host
        self.health = Health(check.rise, check.fall)
        self.made = 0  # checks begun
        self.skipped = 0
        self.shortage = ""
        self.task: asyncio.Task[None] | None = None

    def result(self) -> CheckResult:
        health = self.health
        return CheckResult(health.healthy, health.good, health.bad, self.skipped, health.last_reason, self.shortage)


class _Line:
    """One check's connection; owns the socket. `before` goes out in front of everything else."""

    __slots__ = ("_before", "_loop", "_socket", "_tls", "step")

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, before: bytes) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._before = before
        self._tls: TlsStream | None = None
        self.step = "connection"  # what it waits for

    @property
    def failed(self) -> str:
        """Why there is no TLS, or no more of it; else ""."""
        return self._tls.failed if self._tls is not None else ""

    async def connect(self, sockaddr: Sockaddr) -> None:
        await self._loop.sock_connect(self._socket, sockaddr)
        if self._socket.family == socket.AF_UNIX:
            self._socket.getpeername()  # a full listen queue looks like a connection to the loops

    async def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Begin TLS; `failed` says whether it did not begin."""
        self.step = "TLS handshake"
        tls = self._tls = TlsStream(context, name)
        await self._push(tls.begin())
        while not tls.ready and not tls.failed:
            tls.receive(await self._pull())
            if not tls.failed:  # the alert that tells the peer goes out in `close`
                await self._push(tls.pending())

    async def send(self, data: bytes) -> None:
        await self._push(self._tls.encrypt(data) if self._tls is not None else data)

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end."""
        tls = self._tls
        if tls is None:
            return await self._pull()
        while not tls.closed and not tls.failed:
            data = tls.receive(await self._pull())
            if data:
                return data
            await self._push(tls.pending())
        return b""

    def close(self) -> None:
        """Part in order, as far as that takes no waiting."""
        if self._tls is not None:
            with contextlib.suppress(OSError):
                self._socket.send(self._tls.close())
        self._socket.close()

    async def _push(self, data: bytes) -> None:
        data, self._before = self._before + data, b""
        if data:
            await self._loop.sock_sendall(self._socket, data)

    async def _pull(self) -> bytes:
        data = await self._loop.sock_recv(self._socket, READ_BYTES)
        await asyncio.sleep(0)  # else a peer that sends without a pause keeps the loop from its time limit
        return data


def _reason(error: OSError) -> str:
    """The system's words: asyncio puts its own into some errors."""
    return os.strerror(error.errno).lower() if error.errno else reason_of(error)


def _bare(host: str) -> str:
    """The host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
