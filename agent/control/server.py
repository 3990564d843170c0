"""The control socket: HTTP/1.1 with JSON on a Unix socket, served from the service's own loop, without a thread.

That loop renews the lease, so nothing a client does may hold it up: sockets never block, and what a client may send,
how long it may take and how many there may be is bounded. A connection carries one request:

    READING ── the request is whole, or can be none ──► WRITING ── all sent ──► DRAINING ── the client closes ──► closed

DRAINING reads on and forgets: closing a socket with unread bytes would reset it under a client that still sends, which
then never sees why it was refused. Whatever the state, a connection that is open for too long is closed.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path

from agent.control.request import (
    BODY_LIMIT_BYTES,
    HEAD_LIMIT_BYTES,
    Call,
    ControlError,
    Reply,
    Request,
    encoded,
)
from agent.control.socketfile import identity, listen, local_user
from replay.errors import ShadowtapError

CONNECTIONS_MAX = 16  # others wait in the listener's backlog
DEADLINE_S = 5.0  # for a connection from its first byte to its last
CROWDED_DEADLINE_S = 0.5  # when others may be waiting: whoever means it sends a request at once
ACCEPT_PAUSE_S = 1.0  # after the system had no descriptor or memory for a connection
_READ_BYTES = HEAD_LIMIT_BYTES + BODY_LIMIT_BYTES  # one read a turn


class _State(Enum):
    READING = 1
    WRITING = 2
    DRAINING = 3


class _Connection:
    def __init__(self, end: socket.socket, since_s: float) -> None:
        self.socket = end
        self.since_s = since_s
        self.state = _State.READING
        self.request = Request()
        self.unsent = memoryview(b"")


class ControlServer:
    """Listens at `path` and calls `handle` with each request, in the turn in which its last byte came.

    What `handle` raises as ControlError is the answer, another ShadowtapError is answered 400; anything else is our
    bug, answered 500 and raised from `take`. Root makes it before privileges are dropped, to give the socket to
    `group`; `close` can then remove it only where the user may write its directory, else the next start replaces it.
    """

    def __init__(
        self,
        path: Path,
        selector: selectors.BaseSelector,
        handle: Callable[[Call], Reply],
        *,
        mode: int = 0o660,
        group: int | None = None,
    ) -> None:
        self._path = path
        self._selector = selector
        self._handle = handle
        self._open: list[_Connection] = []
        self._paused = True
        self._resume_at_s = 0.0
        self._listener = listen(path, mode, group)
        self._file = identity(path)
        self._resume(time.monotonic())

    def take(self, key: selectors.SelectorKey) -> bool:
        """Serve what the selector found; False when it is not of this server."""
        if key.data is self:
            self._accept()
        elif isinstance(key.data, _Connection):
            self._go_on(key.data)
        else:
            return False
        return True

    def expire(self, now_s: float) -> None:
        """Close what is open for too long. Call it whenever the loop comes round, with time.monotonic()."""
        allowed_s = DEADLINE_S if len(self._open) < CONNECTIONS_MAX else CROWDED_DEADLINE_S
        for connection in [each for each in self._open if now_s - each.since_s > allowed_s]:
            self._close(connection)
        self._resume(now_s)

    def close(self) -> None:
        """Leave the selector, close every connection and remove the socket if it is still ours."""
        if self._listener.fileno() < 0:
            return
        self._pause(float("inf"))
        for connection in self._open.copy():
            self._close(connection)
        with suppress(OSError):  # gone, or not ours to remove: nobody listens there, so the next start replaces it
            if identity(self._path) == self._file:  # the listener is open still: its inode has not been given away
                self._path.unlink()
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(CONNECTIONS_MAX):
            if len(self._open) >= CONNECTIONS_MAX:
                self._pause(0.0)
                return
            try:
                end, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._pause(time.monotonic() + ACCEPT_PAUSE_S)
                return
            end.setblocking(False)
            connection = _Connection(end, time.monotonic())
            self._open.append(connection)
            self._selector.register(end, selectors.EVENT_READ, connection)
            self._go_on(connection)  # the request may be there already: answer it in this turn

    def _pause(self, until_s: float) -> None:
        """Look away from the listener: one that stays readable would wake the loop without end."""
        self._resume_at_s = max(self._resume_at_s, until_s)
        if not self._paused:
            self._paused = True
            self._selector.unregister(self._listener)

    def _resume(self, now_s: float) -> None:
        if self._paused and now_s >= self._resume_at_s and len(self._open) < CONNECTIONS_MAX:
            self._paused = False
            self._selector.register(self._listener, selectors.EVENT_READ, self)

    def _go_on(self, connection: _Connection) -> None:
        if connection not in self._open:
            return  # closed earlier in this turn
        if connection.state is _State.WRITING:
            self._write(connection)
        elif (data := _received(connection.socket)) is not None:
            if connection.state is _State.READING:
                self._read(connection, data)
            elif not data:
                self._close(connection)

    def _read(self, connection: _Connection, data: bytes) -> None:
        try:
            reply = self._reply(connection, data)
            if reply is not None:
                self._answer(connection, reply)
        except Exception:
            self._answer(connection, Reply({"error": "this is a bug of the agent: its log says more"}, 500))
            raise

    def _reply(self, connection: _Connection, data: bytes) -> Reply | None:
        """None while the request is not whole."""
        request = connection.request
        try:
            if not request.feed(data):
                return None
            peer = _peer(connection.socket)
            return self._handle(Call(request.method, request.path, request.body, peer, request.query))
        except ShadowtapError as error:
            status, allow = (error.status, error.allow) if isinstance(error, ControlError) else (400, ())
            return Reply({"error": "; ".join(str(error).splitlines())}, status, allow)

    def _answer(self, connection: _Connection, reply: Reply) -> None:
        if connection not in self._open:
            return  # `handle` has closed the server
        connection.unsent = memoryview(encoded(reply, with_body=connection.request.method != "HEAD"))
        connection.state = _State.WRITING
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
            if not connection.unsent:
                connection.socket.shutdown(socket.SHUT_WR)
                connection.state = _State.DRAINING
        except BlockingIOError:
            pass
        except OSError:  # the client has left
            self._close(connection)
            return
        wanted = selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ
        self._selector.modify(connection.socket, wanted, connection)

    def _close(self, connection: _Connection) -> None:
        self._open.remove(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._resume(time.monotonic())


def _received(end: socket.socket) -> bytes | None:
    """What has come; no bytes when nothing more will, None when nothing has yet."""
    try:
        return end.recv(_READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:  # reset
        return b""


def _peer(end: socket.socket) -> str:
    _, uid, _ = struct.unpack("iII", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    name = local_user(uid)
    return f"uid {uid} ({name})" if name else f"uid {uid}"
