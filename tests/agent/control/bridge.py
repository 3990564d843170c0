"""TCP in front of a Unix socket, for clients that speak HTTP over TCP only."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bridged(path: Path) -> Iterator[str]:
    """The URL at which the server that listens at `path` can be reached meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, path))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
            thread.join()


def _accept(listener: socket.socket, path: Path) -> None:
    """One connection after the other: the clients of a test ask one by one."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            server.connect(str(path))
            _carry(client, server)


def _carry(client: socket.socket, server: socket.socket) -> None:
    """Both ways, until the server has said all."""
    while True:
        for end in select.select([client, server], [], [], 5)[0]:
            data = end.recv(65536)
            if end is server and not data:
                return
            if data:
                (server if end is client else client).sendall(data)
            else:
                server.shutdown(socket.SHUT_WR)
