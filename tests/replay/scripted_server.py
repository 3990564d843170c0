"""A server that does what a script says, each connection in a thread of its own, and records exactly what it got."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

Script = Callable[["Peer"], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number  # of the connection, from 0
        self._buffer = b""
        self._until_close = False

    def request(self) -> bytes:
        """The next request with its body; b"" when the client has closed."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if not self._more():
                return b""
        length = _LENGTH.search(self._buffer[:end])
        whole = end + 4 + (int(length[1]) if length else 0)
        while len(self._buffer) < whole:
            if not self._more():
                return b""
        request, self._buffer = self._buffer[:whole], self._buffer[whole:]
        self.server.requests.append(request)
        return request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def pause(self, seconds: float = 0.02) -> None:
        time.sleep(seconds)

    def reset(self) -> None:
        """RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def hold(self) -> None:
        """Keep the connection open, and answer nothing more, until the client closes or the test ends."""
        while self._more():
            pass

    def serve(self, response: bytes = OK) -> None:
        """Answer every request with the same."""
        while self.request():
            self.send(response)

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        self.server.received_bytes += len(data)
        return bool(data)


class ScriptedServer:
    """Context manager; `address` is "127.0.0.1:port"."""

    def __init__(self, script: Script, receive_buffer: int | None = None) -> None:
        self._script = script
        self.requests: list[bytes] = []
        self.received_bytes = 0
        self.accepted = 0
        self.errors: list[BaseException] = []
        self._listener = socket.socket()
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)
        if exc[0] is None and self.errors:
            raise self.errors[0]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(sock)
            self._start(self._run, Peer(self, sock, self.accepted))
            self.accepted += 1

    def _run(self, peer: Peer) -> None:
        try:
            self._script(peer)
        except OSError:
            pass  # the client went away, or the test is over
        except BaseException as error:
            self.errors.append(error)
        finally:
            with contextlib.suppress(OSError):
                peer.sock.close()
