"""The server that answers everything alike, and late: on loopback, whole and in pieces."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vagrant.lab.counters import OriginCounter

ROOT = Path(__file__).resolve().parents[2]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@contextlib.contextmanager
def origin(directory: Path, delay_ms: int = 0) -> Iterator[Path]:
    """A running origin; the sockets are `web` and `status` in the directory."""
    argv = [sys.executable, "-m", "vagrant.lab.origin", "--listen", f"unix:{directory / 'web'}"]
    argv += ["--status", str(directory / "status"), "--delay-ms", str(delay_ms), "--body-bytes", "5"]
    process = subprocess.Popen(argv, cwd=ROOT)
    try:
        while not (directory / "status").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield directory
    finally:
        process.terminate()
        assert process.wait(10) == 0


def talk(directory: Path, *pieces: bytes, answers: int = 1) -> bytes:
    """Send pieces apart; what comes back until there are so many answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(directory / "web"))
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02 if len(pieces) > 1 else 0)
        got = b""
        while got.count(b"HTTP/1.1 ") < answers or not got.endswith((b"x", b"\r\n\r\n")):
            piece = connection.recv(65536)
            if not piece:
                break
            got += piece
        return got


def test_every_request_gets_the_same_answer(tmp_path: Path) -> None:
    with origin(tmp_path) as directory:
        assert talk(directory, GET).endswith(b"\r\nContent-Length: 5\r\n\r\nxxxxx")
        assert talk(directory, GET.replace(b"GET", b"HEAD")).endswith(b"\r\nContent-Length: 5\r\n\r\n")
        assert OriginCounter(tmp_path / "status").requests() == 2


def test_pipelined_requests_are_all_answered(tmp_path: Path) -> None:
    with origin(tmp_path, delay_ms=20) as directory:
        assert talk(directory, GET * 20, answers=20).count(b"xxxxx") == 20
        assert OriginCounter(tmp_path / "status").requests() == 20


def test_a_request_in_pieces(tmp_path: Path) -> None:
    with origin(tmp_path) as directory:
        assert talk(directory, GET[:9], GET[9:-2], GET[-2:]).count(b"xxxxx") == 1


def test_a_body_is_passed_over_even_if_it_looks_like_a_request(tmp_path: Path) -> None:
    post = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(GET)
    with origin(tmp_path) as directory:
        assert talk(directory, post, GET[:5], GET[5:] + GET, answers=2).count(b"xxxxx") == 2
        assert OriginCounter(tmp_path / "status").requests() == 2


def test_answers_wait(tmp_path: Path) -> None:
    with origin(tmp_path, delay_ms=100) as directory:
        started = time.monotonic()
        talk(directory, GET)
        assert time.monotonic() - started >= 0.098


def test_an_endless_head_ends_the_connection(tmp_path: Path) -> None:
    with origin(tmp_path) as directory, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(directory / "web"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                connection.sendall(b"a" * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
