"""A web server that answers every request alike, after a wait: for shadows that are slow but never busy.

Runs by itself: `python -m vagrant.lab.origin --listen 127.0.0.1:8080 --delay-ms 100`. The wait costs no thread and no
timer of its own: since it is the same for all, answers leave in the order the requests came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import uvloop

BACKLOG = 16384
READ_LIMIT_BYTES = 1 << 20  # a head larger than this ends the connection


class Origin:
    """What all connections share: the answer, the waiting answers, and the count."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_seconds: float, body: bytes) -> None:
        self._loop = loop
        self._delay = delay_seconds
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._head, self._whole = head, head + body
        self._waiting: deque[tuple[float, asyncio.Transport, bytes]] = deque()
        self.answered = 0

    def answer(self, transport: asyncio.Transport, *, head_only: bool) -> None:
        """Answer now, or when the wait is over."""
        data = self._head if head_only else self._whole
        if not self._delay:
            self._send(transport, data)
            return
        self._waiting.append((self._loop.time() + self._delay, transport, data))
        if len(self._waiting) == 1:
            self._loop.call_later(self._delay, self._drain)

    def _drain(self) -> None:
        """Send what is due; uvloop's timers may be a millisecond early, so half of one counts as due."""
        now = self._loop.time() + 0.0005
        while self._waiting and self._waiting[0][0] <= now:
            _, transport, data = self._waiting.popleft()
            self._send(transport, data)
        if self._waiting:
            self._loop.call_later(max(0.001, self._waiting[0][0] - self._loop.time()), self._drain)

    def _send(self, transport: asyncio.Transport, data: bytes) -> None:
        self.answered += 1
        if not transport.is_closing():
            transport.write(data)


class Connection(asyncio.Protocol):
    """One client's connection; pipelining and bodies with a length are understood."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._skip = 0  # bytes of a request's body that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each head that is complete."""
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            end += self._body_bytes(data[:end])
            self._respond(head_only=data.startswith(b"HEAD "))
            self._skip = max(0, end - len(data))
            data = data[end:]
        self._buffer = data
        if len(data) > READ_LIMIT_BYTES and self._transport is not None:
            self._transport.abort()

    def _respond(self, *, head_only: bool) -> None:
        if self._transport is not None:
            self._origin.answer(self._transport, head_only=head_only)

    @staticmethod
    def _body_bytes(head: bytes) -> int:
        if head.startswith((b"GET ", b"HEAD ")):
            return 0
        _, found, rest = head.lower().partition(b"\r\ncontent-length:")
        digits = rest.partition(b"\r\n")[0].strip()
        return int(digits) if found and digits.isdigit() else 0


class Status(asyncio.Protocol):
    """Tells the number of answered requests to whoever connects."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write the number and hang up."""
        stream = cast(asyncio.Transport, transport)
        stream.write(b"%d\n" % self._origin.answered)
        stream.close()


async def serve(listen: str, delay_ms: float, body: bytes, status: str | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    origin = Origin(loop, delay_ms / 1000, body)
    servers = [await _listen(loop, listen, lambda: Connection(origin))]
    if status is not None:
        servers.append(await _listen(loop, f"unix:{status}", lambda: Status(origin)))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    for server in servers:  # uvloop closes a server that nothing refers to
        server.close()


async def _listen(
    loop: asyncio.AbstractEventLoop, listen: str, connected: Callable[[], asyncio.BaseProtocol]
) -> asyncio.AbstractServer:
    """Listen on host:port or unix:PATH."""
    if listen.startswith("unix:"):
        return await loop.create_unix_server(connected, _fresh(listen.removeprefix("unix:")), backlog=BACKLOG)
    host, _, port = listen.rpartition(":")
    return await loop.create_server(connected, host, int(port), backlog=BACKLOG)


def _fresh(path: str) -> str:
    """The path, without the socket a former server left there."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    return path


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port or unix:PATH")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--body-bytes", type=int, default=13)
    parser.add_argument("--status", help="unix socket that tells the number of answered requests")
    given = parser.parse_args()
    server: Coroutine[Any, Any, None] = serve(given.listen, given.delay_ms, b"x" * given.body_bytes, given.status)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(server)


if __name__ == "__main__":
    main()
