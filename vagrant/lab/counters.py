"""What the lab's servers counted, asked over Unix sockets: those reach across namespaces and are not traffic."""

from __future__ import annotations

import csv
import socket
from pathlib import Path

_TIMEOUT_SECONDS = 5.0
_READ_BYTES = 1 << 16


class HAProxyCounters:
    """The balancer's own counters."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def clear(self) -> None:
        """Start again from zero."""
        _ask(self._path, b"clear counters all\n")

    def requests(self) -> int:
        """Requests that clients made."""
        return int(self._row("web", "FRONTEND")["req_tot"])

    def statuses(self) -> dict[str, int]:
        """Answers that clients got, by class of status; classes without any are left out."""
        row = self._row("web", "FRONTEND")
        counts = {f"{digit}xx": int(row[f"hrsp_{digit}xx"]) for digit in range(1, 6)}
        return {name: count for name, count in counts.items() if count}

    def failures(self) -> int:
        """Requests that went wrong on the balancer's way to production, whatever the client was told."""
        row = self._row("production", "BACKEND")
        return sum(int(row[name] or 0) for name in ("econ", "eresp", "srv_abrt", "dreq"))

    def _row(self, proxy: str, service: str) -> dict[str, str]:
        lines = _ask(self._path, b"show stat\n").decode().removeprefix("# ").splitlines()
        rows = csv.DictReader(line for line in lines if line)
        return next(row for row in rows if (row["pxname"], row["svname"]) == (proxy, service))


class NginxCounter:
    """Requests that one nginx was asked, without those that asked for the number, since `start`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = 0

    def start(self) -> None:
        """Count from here."""
        self._own = self._read()

    def requests(self) -> int:
        """Requests so far."""
        self._own += 1
        return self._read() - self._own

    def _read(self) -> int:
        answer = _ask(self._path, b"GET / HTTP/1.0\r\n\r\n").decode()
        return int(answer.partition("accepts handled requests")[2].split()[2])


class OriginCounter:
    """The same for `vagrant.lab.origin`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self) -> None:
        """It has counted from its start; raises OSError until it has one."""
        self.requests()

    def requests(self) -> int:
        """Requests so far."""
        return int(_ask(self._path, b""))


def _ask(path: Path, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        connection.connect(str(path))
        if question:
            connection.sendall(question)
        pieces = []
        while piece := connection.recv(_READ_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
