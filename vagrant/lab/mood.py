"""A web server with moods: as slow, wrong, broken, leaking or busy as it is told to be while it runs.

    python -m vagrant.lab.mood --listen 127.0.0.1:8080 --control unix:/tmp/mood.sock --metrics-listen 127.0.0.1:9100

Bodies depend on the target only, so every instance gives the same. Each answer comes after a random service time
(lognormal, by route), which is waited for and costs no CPU. The control socket takes one line of JSON, an object with
the moods to change, and answers with one: the present mood and what was counted, or {"problem": ...}.

Runs by itself, without the package around it. Times of service come from a timerfd: uvloop's timers are whole
milliseconds, a fifth of the median.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import heapq
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import uvloop

BACKLOG = 16384
READ_LIMIT_BYTES = 1 << 20  # a request larger than this ends the connection
WAITING_LIMIT = 100_000  # answers that wait; a request beyond it ends its connection
LEAK_LIMIT_BYTES = 4 << 30  # beyond it nothing more is kept, lest the machine die of it
SIGMA = 0.5

_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
_REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Error"}


@dataclass(frozen=True, slots=True)
class Mood:
    """What the server is like. Shares are of requests, and drawn for each by itself."""

    median_ms: float = 5.0
    factor: float = 1.0  # of the service time
    wrong: float = 0.0  # share whose body is another one of the same length
    error: float = 0.0  # share answered with 500
    reset: float = 0.0  # share whose connection is reset instead
    hang: bool = False  # nothing is answered until it is false again; then all is
    stall_ms: float = 0.0  # all answers wait for so long ...
    stall_every_s: float = 10.0  # ... about so often, at random
    leak_bytes: int = 0  # kept of each request, for good
    burn_us: int = 0  # of CPU for each request
    noise: bool = False  # bodies hold a random number: they differ from themselves

    def changed(self, words: dict[str, Any]) -> Mood:
        """With some moods changed; ValueError says which one cannot be."""
        for name, value in words.items():
            if name not in self.__slots__:
                raise ValueError(f"no mood {name!r}: there are {', '.join(self.__slots__)}")
            kind = type(getattr(Mood(), name))
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{name}: {value!r} is not {_KINDS[kind]}")
            most = 1.0 if name in ("wrong", "error", "reset") else 1e9
            least = 1e-3 if name in ("median_ms", "factor", "stall_every_s") else 0.0
            if not least <= value <= most:
                raise ValueError(f"{name}: {value} is not between {least:g} and {most:g}")
        return dataclasses.replace(self, **words)


class Page(NamedTuple):
    """What a target gives. The body has two places of fixed length: a price and the visitor's number."""

    status: int
    kind: bytes
    body: bytes
    price: int
    factor: float  # of the service time


@functools.lru_cache(4096)
def page_of(target: str) -> Page:
    """The page of a target; the same on every instance."""
    path = target.partition("?")[0]
    mark = zlib.crc32(target.encode())
    price = 10_000 + mark % 90_000
    if re.fullmatch(r"/api/items/\d+", path):
        item = b'{"item": %d, "name": "Item %d", "price_cents": %%05d, "visitor": %%04d}' % (mark, mark % 1000)
        return Page(200, b"application/json", item, price, 0.8)
    if path == "/api/orders":
        return Page(201, b"application/json", b'{"order": "taken", "price_cents": %05d, "visitor": %04d}', price, 1.5)
    if path in ("/", "/search") or re.fullmatch(r"/products/\d+\.html", path):
        filler = b"lorem ipsum " * (50 + mark % 200)
        text = b"<!doctype html>\n<h1>%d</h1>\n<p>%s</p>\n<p>%%05d cents, visitor %%04d</p>\n" % (mark, filler)
        return Page(200, b"text/html", text, price, 2.0 if path == "/search" else 1.0)
    return Page(404, b"text/plain", b"nothing here for %05d, visitor %04d\n", 0, 0.5)


class Waiting:
    """Calls that are due later, to some microseconds; all can be held."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._held_until = 0.0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._timer, self._ring)

    def __len__(self) -> int:
        return len(self._heap)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call when so much time is over."""
        due = time.monotonic() + seconds
        heapq.heappush(self._heap, (due, next(self._numbers), call))
        if self._heap[0][0] == due:
            self._arm()

    def hold(self, until: float) -> None:
        """Nothing is called before a time of the monotonic clock, infinity included."""
        self._held_until = until
        self._arm()

    def _arm(self) -> None:
        due = max(self._heap[0][0], self._held_until) if self._heap else math.inf
        fraction, seconds = math.modf(due) if due < math.inf else (0.0, 0.0)  # zero disarms it
        when = (ctypes.c_long * 4)(0, 0, int(seconds), int(fraction * 1e9))
        self._libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, ctypes.byref(when), None)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer, 8)
        now = time.monotonic()
        while self._heap and max(self._heap[0][0], self._held_until) <= now:
            heapq.heappop(self._heap)[2]()
        self._arm()


class Request(NamedTuple):
    """What is looked at of a request."""

    method: str
    target: str
    close: bool


class Connection(asyncio.Protocol):
    """One client's connection: one request at a time, its body (with a length) read and passed over."""

    def __init__(self, take: Callable[[Connection, Request], None]) -> None:
        self._take = take
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._request: Request | None = None  # that is to be answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Answers to come go nowhere."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take the next request if there is one and none is being answered."""
        self._buffer += data
        self._next()
        if len(self._buffer) > READ_LIMIT_BYTES and self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        head = bytes(self._buffer[: max(end, 0)])
        length = re.search(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?:\r\n|$)", head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if self._request is not None or end < 0 or len(self._buffer) < whole:
            return
        del self._buffer[:whole]
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        close = re.search(rb"(?i)\r\nconnection:[ \t]*close", head) is not None
        self._request = Request(words[0], words[1] if len(words) == 3 else "", close)
        self._take(self, self._request)

    def reply(self, status: int, kind: bytes, body: bytes) -> None:
        """Answer the request that was taken last."""
        request, self._request = self._request, None
        if self._transport is None or request is None:
            return
        head = b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\n" % (status, _REASONS[status].encode(), kind)
        head += b"Connection: close\r\n" if request.close else b""
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head if request.method == "HEAD" else head + body)
        if request.close:
            self._transport.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._next)

    def reset(self) -> None:
        """End the connection with a RST, if it is one of TCP."""
        if self._transport is not None:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()


class Service:
    """What all connections share: the mood, the waiting answers, and what is counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int | None) -> None:
        self.mood = Mood()
        names = ("requests", "answered", "errors", "wrong", "resets", "stalls", "leaked_bytes")
        self.counts = Counter(dict.fromkeys(names, 0))
        self._loop = loop
        self._random = random.Random(seed)
        self._waiting = Waiting(loop)
        self._leaked: list[bytes] = []
        self._stalled_until = 0.0
        self._next_stall: asyncio.TimerHandle | None = None

    def change(self, words: dict[str, Any]) -> dict[str, Any]:
        """Change the mood; the present one with the counts. ValueError when it cannot be changed so."""
        self.mood = self.mood.changed(words)
        if "hang" in words:
            self._hold()
        if "stall_ms" in words or "stall_every_s" in words:
            if self._next_stall is not None:
                self._next_stall.cancel()
            self._plan_stall(0.0)
        return {"mood": dataclasses.asdict(self.mood), **self.counts, "waiting": len(self._waiting)}

    def take(self, connection: Connection, request: Request) -> None:
        """Work on a request, and answer it when its time is over."""
        mood, page = self.mood, page_of(request.target)
        self.counts["requests"] += 1
        if len(self._waiting) >= WAITING_LIMIT:
            connection.reset()
            return
        if mood.burn_us:
            _burn(mood.burn_us)
        if mood.leak_bytes and self.counts["leaked_bytes"] + mood.leak_bytes <= LEAK_LIMIT_BYTES:
            self._leaked.append(b"\x01" * mood.leak_bytes)  # written to, so that it is memory and not a promise
            self.counts["leaked_bytes"] += mood.leak_bytes
        seconds = mood.median_ms / 1000 * mood.factor * page.factor * math.exp(SIGMA * self._random.gauss(0.0, 1.0))
        self._waiting.after(seconds, lambda: self._answer(connection, request, page))

    def _answer(self, connection: Connection, request: Request, page: Page) -> None:
        """As the mood is now: of what waited for long, it may be another one than when the request came."""
        mood, by_chance = self.mood, self._random.random
        if by_chance() < mood.reset:
            self.counts["resets"] += 1
            connection.reset()
            return
        self.counts["answered"] += 1
        if request.method not in ("GET", "HEAD", "POST") or not request.target:
            connection.reply(405 if request.target else 400, b"text/plain", b"no\n")
        elif by_chance() < mood.error:
            self.counts["errors"] += 1
            connection.reply(500, b"text/plain", b"it is broken\n")
        else:
            wrong = page.status < 300 and by_chance() < mood.wrong
            self.counts["wrong"] += wrong
            price = 109_999 - page.price if wrong else page.price
            visitor = self._random.randrange(10_000) if mood.noise else 0
            connection.reply(page.status, page.kind, page.body % (price, visitor))

    def _hold(self) -> None:
        self._waiting.hold(math.inf if self.mood.hang else self._stalled_until)

    def _plan_stall(self, least: float) -> None:
        """The next stall: at half to one and a half times the interval; the first one at any time up to that."""
        every = self.mood.stall_every_s
        wait = self._random.uniform(least * every, 1.5 * every)
        self._next_stall = self._loop.call_later(wait, self._stall) if self.mood.stall_ms else None

    def _stall(self) -> None:
        self.counts["stalls"] += 1
        self._stalled_until = time.monotonic() + self.mood.stall_ms / 1000
        self._hold()
        self._plan_stall(0.5)

    def tell_metrics(self, connection: Connection, request: Request) -> None:
        """Answer with the process's figures and ours, as Prometheus reads them."""
        figures = {**_process_figures(), "mood_requests_total": float(self.counts["answered"])}
        lines = [
            f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name} {value!r}\n"
            for name, value in figures.items()
        ]
        connection.reply(200, b"text/plain; version=0.0.4; charset=utf-8", "".join(lines).encode())


def _burn(microseconds: int) -> None:
    end = time.thread_time_ns() + microseconds * 1000
    while time.thread_time_ns() < end:
        pass


def _process_figures() -> dict[str, float]:
    """By the names client libraries give them."""
    ticks, fields = os.sysconf("SC_CLK_TCK"), Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return {
        "process_cpu_seconds_total": (int(fields[11]) + int(fields[12])) / ticks,
        "process_resident_memory_bytes": float(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "process_start_time_seconds": int(booted.split()[1]) + int(fields[19]) / ticks,
    }


class Control(asyncio.Protocol):
    """Takes lines of JSON that change the mood, and answers each with one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Obey each line that is complete."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if self._transport is not None:
                self._transport.write(json.dumps(self._obey(line)).encode() + b"\n")
        if len(self._buffer) > READ_LIMIT_BYTES and self._transport is not None:
            self._transport.abort()

    def _obey(self, line: bytes) -> dict[str, Any]:
        try:
            words = json.loads(line)
            if not isinstance(words, dict):
                raise ValueError("a line must be a JSON object of moods")
            return self._service.change(words)
        except (ValueError, RecursionError) as error:
            return {"problem": str(error)}


async def serve(listen: str, control: str, metrics: str | None, seed: int | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    service = Service(loop, seed)
    servers = [await _listen(loop, control, lambda: Control(service))]
    if metrics is not None:
        servers.append(await _listen(loop, metrics, lambda: Connection(service.tell_metrics)))
    servers.append(await _listen(loop, listen, lambda: Connection(service.take)))  # last: then all is there
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    for server in servers:  # uvloop closes a server that nothing refers to
        server.close()


async def _listen(
    loop: asyncio.AbstractEventLoop, listen: str, connected: Callable[[], asyncio.BaseProtocol]
) -> asyncio.AbstractServer:
    """Listen on host:port or unix:PATH, also where a former server left its socket."""
    if listen.startswith("unix:"):
        path = listen.removeprefix("unix:")
        Path(path).unlink(missing_ok=True)
        return await loop.create_unix_server(connected, path, backlog=BACKLOG)
    host, _, port = listen.rpartition(":")
    return await loop.create_server(connected, host, int(port), backlog=BACKLOG)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", required=True, help="host:port or unix:PATH")
    parser.add_argument("--control", required=True, help="unix:PATH, where lines of JSON change the mood")
    parser.add_argument("--metrics-listen", help="host:port of /metrics")
    parser.add_argument("--seed", type=int, help="of the random numbers; another one at each start if not given")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(given.listen, given.control, given.metrics_listen, given.seed))


if __name__ == "__main__":
    main()
