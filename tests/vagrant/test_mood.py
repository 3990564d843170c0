"""The server with moods: each mood shows, alone on loopback and in the lab, and can be taken back."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vagrant.lab import Lab, LabError, Options
from vagrant.lab.lab import MoodControl
from vagrant.lab.mood import Mood, page_of

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("/", "/search?q=1", "/api/items/7", "/products/3.html", "/api/orders", "/no")
FAST = {"median_ms": 0.1}

Answer = tuple[int, bytes]


class Running:
    """A server with moods, and a client of it."""

    def __init__(self, port: int, metrics_port: int, control: MoodControl, pid: int) -> None:
        self.port = port
        self.metrics_port = metrics_port
        self.change = control.change
        self.pid = pid

    def ask(self, *targets: str, method: str = "GET", body: bytes = b"", port: int | None = None) -> list[Answer]:
        """Requests on one connection, all sent at once; the answers in order."""
        requests = [
            f"{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            for target in targets
        ]
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=10) as connection:
            connection.sendall(b"".join(requests))
            with connection.makefile("rb") as stream:
                return [_answer(stream, method) for _ in targets]

    def seconds(self, *targets: str) -> float:
        """How long they take, one after the other."""
        started = time.monotonic()
        self.ask(*targets)
        return time.monotonic() - started


def _answer(stream: Any, method: str) -> Answer:
    line = stream.readline()
    length = 0
    while (header := stream.readline()) != b"\r\n":
        assert header, "the connection ended within an answer"
        name, _, value = header.partition(b":")
        length = int(value) if name == b"Content-Length" else length
    return int(line.split()[1]), b"" if method == "HEAD" else stream.read(length)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(directory: Path, *, seed: int = 1) -> Iterator[Running]:
    """As a script, from anywhere."""
    port, metrics_port, control = free_port(), free_port(), directory / f"mood-{seed}.sock"
    argv = [sys.executable, str(ROOT / "vagrant/lab/mood.py"), "--listen", f"127.0.0.1:{port}", "--seed", str(seed)]
    argv += ["--control", f"unix:{control}", "--metrics-listen", f"127.0.0.1:{metrics_port}"]
    process = subprocess.Popen(argv, cwd=directory)
    try:
        end = time.monotonic() + 20
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", port)) != 0:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
        yield Running(port, metrics_port, MoodControl(control), process.pid)
    finally:
        process.terminate()
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("mood")) as server:
        yield server


@pytest.fixture
def mood(shared: Running) -> Iterator[Running]:
    """A server in its first mood, but fast; back in it afterwards."""
    shared.change(**FAST)
    yield shared
    first = Mood()
    shared.change(**{name: getattr(first, name) for name in Mood.__slots__})


def test_answers_depend_on_the_target_only(mood: Running, tmp_path: Path) -> None:
    with serving(tmp_path, seed=2) as other:
        other.change(**FAST)
        answers = mood.ask(*TARGETS)
        assert [status for status, _ in answers] == [200, 200, 200, 200, 201, 404]
        assert other.ask(*TARGETS) == answers == mood.ask(*TARGETS)
    assert len({body for _, body in answers}) == len(TARGETS)


def test_methods_and_bodies(mood: Running) -> None:
    assert mood.ask("/", "/api/items/1", method="HEAD") == [(200, b""), (200, b"")]
    answers = mood.ask("/api/orders", "/api/orders", method="POST", body=b"GET / HTTP/1.1")
    assert [status for status, _ in answers] == [201, 201]
    assert mood.ask("/", method="BREW")[0][0] == 405


def test_many_requests_in_one_piece_are_answered_in_order(mood: Running) -> None:
    targets = [f"/api/items/{number}" for number in range(200)]
    pages = [page_of(target) for target in targets]
    assert mood.ask(*targets) == [(page.status, page.body % (page.price, 0)) for page in pages]
    assert [status for status, _ in mood.ask(*["/metrics"] * 3000, port=mood.metrics_port)] == [200] * 3000


def test_service_times(mood: Running) -> None:
    """Lognormal with the median asked for; two draws for the same target are not alike."""
    mood.change(median_ms=4)
    took = [mood.seconds("/") for _ in range(150)]
    assert 0.0035 < statistics.median(took) < 0.007  # the connection takes its time, more on a busy machine
    assert 0.25 < statistics.stdev(math.log(each) for each in took) < 0.75
    mood.change(factor=4)
    assert 0.013 < statistics.median(mood.seconds("/") for _ in range(60)) < 0.025


def test_a_seed_repeats_itself_and_none_does_not(tmp_path: Path) -> None:
    with serving(tmp_path, seed=5) as one, serving(tmp_path, seed=6) as other:
        numbers = [[body for _, body in _noisy(server).ask(*["/api/items/1"] * 3)] for server in (one, other)]
    with serving(tmp_path, seed=5) as again:
        assert [body for _, body in _noisy(again).ask(*["/api/items/1"] * 3)] == numbers[0] != numbers[1]


def _noisy(server: Running) -> Running:
    server.change(noise=True, **FAST)
    return server


def test_wrong_bodies_have_the_same_status_and_length(mood: Running) -> None:
    good = dict(zip(TARGETS, mood.ask(*TARGETS), strict=True))
    mood.change(wrong=1)
    bad = dict(zip(TARGETS, mood.ask(*TARGETS), strict=True))
    for target in TARGETS:
        assert (bad[target][0], len(bad[target][1])) == (good[target][0], len(good[target][1]))
        assert (bad[target] == good[target]) is (target == "/no")


def test_shares_are_shares(mood: Running) -> None:
    mood.change(error=0.3, wrong=0.5)
    answers = Counter(mood.ask(*["/api/items/1"] * 600))
    assert len(answers) == 3
    failed = sum(count for (status, _), count in answers.items() if status == 500)
    assert failed == pytest.approx(180, abs=50)


def test_noise_differs_from_itself_only(mood: Running) -> None:
    mood.change(noise=True)
    bodies = {body for _, body in mood.ask(*["/api/items/1"] * 30)}
    assert len(bodies) > 20
    assert len({re.sub(rb'"visitor": \d{4}', b"", body) for body in bodies}) == 1
    assert len({len(body) for body in bodies}) == 1


def test_resets(mood: Running) -> None:
    mood.change(reset=1)
    with pytest.raises(ConnectionResetError):
        mood.ask("/")
    mood.change(reset=0)
    assert mood.ask("/")[0][0] == 200


def test_a_hanging_server_answers_when_it_is_over(mood: Running) -> None:
    mood.change(hang=True)
    with socket.create_connection(("127.0.0.1", mood.port), timeout=0.2) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert mood.change()["waiting"] == 1
        mood.change(hang=False)
        connection.settimeout(10)
        assert connection.recv(1) == b"H"


def test_stalls_come_again_and_hold_all(mood: Running) -> None:
    before = mood.change(stall_ms=150, stall_every_s=0.4)["stalls"]
    took = []
    for _ in range(40):
        time.sleep(0.03)
        took.append(mood.seconds("/"))
    assert 0.1 < max(took) < 0.3
    assert statistics.median(took) < 0.1
    assert mood.change(stall_ms=0)["stalls"] - before >= 2
    time.sleep(0.2)
    assert max(mood.seconds("/") for _ in range(10)) < 0.1


def figures(mood: Running) -> dict[str, float]:
    text = mood.ask("/metrics", port=mood.metrics_port)[0][1].decode()
    return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}


def test_what_is_leaked_and_burnt_is_in_its_metrics(mood: Running) -> None:
    def growth() -> dict[str, float]:
        before = figures(mood)
        mood.ask(*["/"] * 200)
        return {name: value - before[name] for name, value in figures(mood).items()}

    calm = growth()
    assert calm["mood_requests_total"] == 200
    assert calm["process_resident_memory_bytes"] < 2e6
    mood.change(leak_bytes=100_000, burn_us=2000)
    changed = growth()
    assert changed["process_resident_memory_bytes"] == pytest.approx(20e6, rel=0.15)
    assert changed["process_cpu_seconds_total"] == pytest.approx(0.4, rel=0.3)
    assert abs(figures(mood)["process_start_time_seconds"] - time.time()) < 60
    mood.change(leak_bytes=0, burn_us=0)
    assert growth()["process_resident_memory_bytes"] < 2e6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"": 1}, "no mood ''"),
        ({"__class__": 1}, "no mood"),
        ({"wrong": 1.5}, "between 0 and 1"),
        ({"factor": 0}, "between"),
        ({"factor": float("nan")}, "between"),
        ({"hang": 1}, "true or false"),
        ({"error": True}, "a number"),
        ({"leak_bytes": 1.5}, "whole"),
        ({"median_ms": "5"}, "a number"),
    ],
)
def test_moods_that_cannot_be_are_told_and_change_nothing(words: dict[str, Any], said: str, mood: Running) -> None:
    with pytest.raises(ValueError, match=said):
        Mood().changed(words)
    with pytest.raises(LabError, match=said):
        mood.change(**{"error": 0.5, **words})
    assert mood.change()["mood"]["error"] == 0


def test_lines_that_are_no_moods_are_told(tmp_path: Path) -> None:
    with serving(tmp_path), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(tmp_path / "mood-1.sock"))
        connection.sendall(b"[]\nnonsense\n" + b"[" * 100_000 + b"\n{}\n")
        with connection.makefile("rb") as lines:
            answers = [lines.readline() for _ in range(4)]
    assert ["problem" in answer.decode() for answer in answers] == [True, True, True, False]


def test_an_endless_request_ends_its_connection(mood: Running) -> None:
    with socket.create_connection(("127.0.0.1", mood.port), timeout=10) as connection:
        with contextlib.suppress(OSError):
            for _ in range(40):
                connection.sendall(b"a" * 65536)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert mood.ask("/")[0][0] == 200


@pytest.mark.root
def test_the_lab_with_moods() -> None:
    with Lab(Options(production="mood", shadow="mood")) as lab:
        targets = [f"/api/items/{number}" for number in range(50)]
        load = lab.rate(300, 2, targets=targets)
        assert (load.requests, load.statuses) == (600, {"2xx": 600})
        assert 3000 < load.p50_us < 8000
        counts = lab.mood("production")
        assert sorted(each["answered"] for each in counts.values()) == [300, 300]
        assert lab.shadow_requests() == 0

        lab.mood("production", error=1.0)
        assert lab.get("/").status == lab.get("/").status == 500
        lab.mood("prod1", error=0.0)
        assert {lab.get("/").status, lab.get("/").status} == {200, 500}

        lab.mood("shadow", noise=True)
        for name in ("prod1", "prod2", "shadow"):
            url = f"http://{lab.address(name)}:9100/metrics"
            assert "process_cpu_seconds_total" in lab.run_in("lb", ["curl", "-s", url]).stdout
        lab.run_in("lb", ["curl", "-s", f"http://{lab.shadow_upstream}/"])
        assert lab.shadow_requests() == 1
        lab.stop_shadow()
        lab.start_shadow()
        assert lab.mood("shadow")["shadow"]["mood"]["noise"] is False
        with pytest.raises(LabError, match="no mood 'colour'"):
            lab.mood("shadow", colour=1)
        with pytest.raises(LabError, match="has no mood"):
            lab.mood("haproxy", error=1.0)
