"""A service's loop around a control server: turn by turn for what must be exact, in a thread for blocking clients."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.control.request import Call, Reply
from agent.control.server import ControlServer

NOBODY = 65534


class Handler:
    """Answers what it was called with, or raises `error`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.error: Exception | None = None
        self.reply: Reply | None = None

    def __call__(self, call: Call) -> Reply:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self.reply or Reply({"method": call.method, "path": call.path, "body": call.body})


class Loop:
    """One selector with one server, turned by hand."""

    def __init__(self, path: Path, handle: Callable[[Call], Reply] | None = None, **options: Any) -> None:
        self.path = path
        self.handler = Handler()
        self.selector = selectors.DefaultSelector()
        self.server = ControlServer(path, self.selector, handle or self.handler, **options)

    def turn(self, turns: int = 1) -> int:
        """Serve what is ready; how many keys were."""
        found = 0
        for _ in range(turns):
            for key, _ in self.selector.select(0):
                assert self.server.take(key)
                found += 1
        return found

    def connect(self, data: bytes = b"") -> socket.socket:
        """A client that has sent `data`."""
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(5)
        end.connect(str(self.path))
        end.sendall(data)
        return end

    def talk(self, data: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to `data`, sent at once."""
        with self.connect(data) as end:
            self.turn(2)
            return parsed(received(end))

    def open(self) -> int:
        """How many connections it has."""
        return sum(key.data is not self.server for key in self.selector.get_map().values())

    def close(self) -> None:
        self.server.close()
        self.selector.close()


def received(end: socket.socket) -> bytes:
    """All until the end."""
    return b"".join(iter(lambda: end.recv(65536), b""))


def parsed(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON body, after a look at what every answer must have."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].startswith("HTTP/1.1 ")
    assert f"Content-Length: {len(body)}" in lines
    assert {"Connection: close", "Content-Type: application/json"} <= set(lines)
    return int(lines[0].split()[1]), json.loads(body)


def request(method: str, path: str, body: object = None, headers: str = "") -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n".encode() + data


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[Loop]:
    """The loop runs in a thread, as the service's would."""
    loop = Loop(path, **options)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            for key, _ in loop.selector.select(0.01):
                loop.server.take(key)
            loop.server.expire(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loop
    finally:
        stop.set()
        thread.join()
        loop.close()


@contextlib.contextmanager
def without_privilege() -> Iterator[None]:
    """Where the tests run as root, be nobody meanwhile: root may do everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
