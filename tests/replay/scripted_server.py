"""A server that does what a script says, each connection in a thread of its own, and records exactly what it got."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

Script = Callable[["Peer"], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_OP_IGNORE_UNEXPECTED_EOF = 1 << 7  # in Python's ssl module from 3.12 on
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: ScriptedServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number  # of the connection, from 0
        self.proxy_header = b""  # the PROXY header at the connection's start, where the server expects one
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

    def secure(self, context: ssl.SSLContext) -> None:
        """From here on TLS; its end without close_notify is an error."""
        context.options &= ~_OP_IGNORE_UNEXPECTED_EOF
        self.sock = context.wrap_socket(self.sock, server_side=True, suppress_ragged_eofs=False)

    def take_proxy_header(self) -> None:
        """16 bytes that end with the length of the rest."""
        head = self.sock.recv(16, socket.MSG_WAITALL)
        (length,) = struct.unpack("!14xH", head)
        self.proxy_header = head + (self.sock.recv(length, socket.MSG_WAITALL) if length else b"")

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        self.server.received_bytes += len(data)
        return bool(data)


class ScriptedServer:
    """Context manager; `address` is where it listens: at `place`, a host or the path of a Unix socket. `tls` is what it
    speaks; with `proxied` every connection begins with a PROXY header."""

    def __init__(
        self,
        script: Script,
        receive_buffer: int | None = None,
        *,
        place: str | Path = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        proxied: bool = False,
    ) -> None:
        self._script = script
        self._tls = tls
        self._proxied = proxied
        self.requests: list[bytes] = []
        self.received_bytes = 0
        self.accepted = 0
        self.proxy_headers: list[bytes] = []  # in the order of the connections
        self.tls_errors: list[str] = []
        self.errors: list[BaseException] = []
        self._listener = self._listen(place, receive_buffer)
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in [self._listener, *(peer.sock for peer in self._peers)]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)
        if exc[0] is None and self.errors:
            raise self.errors[0]

    def _listen(self, place: str | Path, receive_buffer: int | None) -> socket.socket:
        if isinstance(place, Path):
            listener = socket.socket(socket.AF_UNIX)
        else:
            listener = socket.socket(socket.AF_INET6 if ":" in place else socket.AF_INET)
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind(str(place) if isinstance(place, Path) else (place, 0))
        listener.listen(128)
        if isinstance(place, Path):
            self.address = f"unix:{place}"
        else:
            host = f"[{place}]" if ":" in place else place
            self.address = f"{host}:{listener.getsockname()[1]}"
        return listener

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
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers.append(Peer(self, sock, self.accepted))
            self.accepted += 1
            self._start(self._run, self._peers[-1])

    def _run(self, peer: Peer) -> None:
        try:
            if self._proxied:
                peer.take_proxy_header()
                self.proxy_headers.append(peer.proxy_header)
            if self._tls is not None:
                peer.secure(self._tls)
            self._script(peer)
        except ssl.SSLError as error:
            self.tls_errors.append(error.reason or str(error))
        except OSError:
            pass  # the client went away, or the test is over
        except BaseException as error:
            self.errors.append(error)
        finally:
            with contextlib.suppress(OSError):
                peer.sock.close()
