"""Targets are fetched side by side, each with its limits; the real node_exporter and Prometheus are read, as well."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent.monitor.exposition import Gap
from agent.monitor.scrape import BODY_LIMIT_BYTES, Get, Scraper, Usages
from agent.resources_config import Resources, Target

REQUESTS = "requests_total"


class FakeTarget:
    """Answers every connection with what `answer` gives for the path: bytes, in pieces with pauses between."""

    def __init__(self, answer: Callable[[str], Iterator[bytes | float]], tls: Any = None) -> None:
        self._answer, self._tls = answer, tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[str] = []
        self.over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                path = connection.recv(65536).split(b" ")[1].decode()
                self.asked.append(path)
                for piece in self._answer(path):
                    if isinstance(piece, float):
                        self.over.wait(piece)
                    else:
                        connection.sendall(piece)
        except (OSError, IndexError):
            pass

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def target(self) -> Target:
        return Target(self._tls is not None, "127.0.0.1", self.port, "/metrics")


Serve = Callable[..., FakeTarget]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[FakeTarget] = []

    def start(answer: Callable[[str], Iterator[bytes | float]], tls: Any = None) -> FakeTarget:
        servers.append(FakeTarget(answer, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ok(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def always(*pieces: bytes | float) -> Callable[[str], Iterator[bytes | float]]:
    return lambda _: iter(pieces)


def why(found: bytes | Gap) -> str:
    assert isinstance(found, Gap) and found.why.isprintable()
    return found.why


def get(target: Target, timeout_s: float = 1.0) -> bytes | Gap:
    return Get().fetch(target, timeout_s)


def test_a_body_is_fetched(serve: Serve) -> None:
    server = serve(always(ok(b"x 1\n")))
    assert get(server.target._replace(path="/a?b=c")) == b"x 1\n"
    assert server.asked == ["/a?b=c"]


def test_chunks_and_a_body_until_the_end_of_the_connection(serve: Serve) -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx 1\n\r\n0\r\n\r\n"
    assert get(serve(always(chunks)).target) == b"x 1\n"
    assert get(serve(always(b"HTTP/1.0 200 OK\r\n\r\nx 1\n")).target) == b"x 1\n"


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    other = serve(always(ok(b"x 1\n")))
    there = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{other.port}/\r\nContent-Length: 0\r\n\r\n".encode()
    assert "status 302" in why(get(serve(always(there)).target))
    assert other.asked == []


def test_a_proxy_of_the_environment_is_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(always(ok(b"no\n")))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    assert get(serve(always(ok(b"x 1\n"))).target) == b"x 1\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (60.0,),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"x", 0.1] * 100),
        (b"HTTP/1.1 200 OK\r\n", *[b"x", 0.1] * 100),  # a head without end
        (b"HTTP/1.1 200 OK\r\n\r\n", *[b"x 1\n", 0.1] * 100),
    ],
)
def test_what_is_slow_is_cut_off(serve: Serve, pieces: tuple[bytes | float, ...]) -> None:
    began = time.monotonic()
    assert why(get(serve(always(*pieces)).target, 0.4)) == "no whole answer within 0.4 s"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "answer, says",
    [
        (b"", "no answer"),
        (b"garbage\r\n\r\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx 1\n", "cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx 1\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx 1\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n", "no answer"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", "no answer"),
        (b"HTTP/1.1 \x1b[2J\r\n\r\n", "no answer"),
        (ok(b"no", "500 Oh"), "status 500"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BODY_LIMIT_BYTES + 1), "more than 8 MiB"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + b"x" * (BODY_LIMIT_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_answer_is_a_gap(serve: Serve, answer: bytes, says: str) -> None:
    assert says in why(get(serve(always(answer)).target, 5.0))


def test_nobody_there_and_no_such_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "no answer" in why(get(Target(False, "127.0.0.1", port, "/")))
    assert "no answer" in why(get(Target(False, "no-such-name.invalid", 80, "/"), 5))
    assert "no answer" in why(get(Target(False, "a" * 100, 80, "/")))  # too long for a label


def test_https_is_checked(serve: Serve, tmp_path: Path) -> None:
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = serve(always(ok(b"x 1\n")), context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    assert Get(str(tmp_path / "ca.pem")).fetch(server.target, 5) == b"x 1\n"
    assert "CERTIFICATE_VERIFY_FAILED" in why(get(server.target, 5))
    assert "No such file" in why(Get(str(tmp_path / "none.pem")).fetch(server.target, 5))
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        late = Target(True, "127.0.0.1", silent.getsockname()[1], "/")
        assert "no whole answer" in why(get(late, 0.3))


# The whole, with targets that are made up


class Pools:
    """Two of production and one of a shadow, without a network: what each says is set, time is set."""

    def __init__(self, **changes: Any) -> None:
        self.now = 0.0
        self.bodies: dict[str, bytes | Gap] = {}
        self.fetched: list[str] = []
        production = {"targets": ["p1:1", "p2:1"], **changes.pop("production", {})}
        made = {"production": production, "shadows": {"candidate": {"targets": ["s:1"]}}, "warm_up_s": 0, **changes}
        self.scraper = Scraper(Resources.model_validate(made), self.fetch, lambda: self.now)

    def fetch(self, target: Target, timeout_s: float, statuses: tuple[int, ...]) -> bytes | Gap:
        self.fetched.append(target.host)
        return self.bodies[target.host]

    def look(self, requests: dict[str, float], **hosts: float | None) -> Usages:
        """Each host with so many seconds of CPU used."""
        for host, cpu in hosts.items():
            body = f"process_cpu_seconds_total {cpu}\nprocess_resident_memory_bytes 1000\nrequests_total {cpu}00\n"
            self.bodies[host] = Gap("down") if cpu is None else body.encode()
        self.now += 5
        return self.scraper.look(requests)


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.scraper.close()


def test_two_looks_give_figures_of_both_sides(pools: Pools) -> None:
    first = pools.look({"production": 0, "candidate": 0}, p1=10, p2=20, s=5)
    assert first.measures == {"candidate": []}
    found = pools.look({"production": 100, "candidate": 100}, p1=11, p2=21, s=7)
    production, shadow = found.usages["production"], found.usages["candidate"]
    assert (production.cpu_cores, production.requests_per_s, production.memory_bytes) == (0.4, 20, 2000)
    assert (shadow.cpu_cores, shadow.cpu_seconds_per_request) == (0.4, 0.02)
    assert production.estimated and not shadow.estimated
    assert found.measures == {"candidate": [("cpu", 0.0)]}
    written = json.loads(json.dumps(found.as_json()))
    assert written["shadows"]["candidate"]["measures"] == {"cpu": 0.0}
    assert written["shadows"]["candidate"]["reasons"] == {"memory": "the step goes on"}
    assert written["production"]["cpu_cores"] == 0.4


def test_a_target_that_is_down_is_a_gap_of_its_pool_alone(pools: Pools) -> None:
    pools.look({"production": 0, "candidate": 0}, p1=10, p2=20, s=5)
    found = pools.look({"production": 100, "candidate": 100}, p1=11, p2=None, s=7)
    assert found.usages["production"].missing == (("p2:1", "down"),)
    assert found.usages["production"].cpu_cores is None and found.usages["production"].memory_bytes is None
    assert found.usages["candidate"].cpu_cores == 0.4
    assert found.measures == {"candidate": []}
    assert "production's figures" in found.reasons["candidate"]["cpu"]


def test_requests_that_nobody_counted_are_missing(pools: Pools) -> None:
    pools.look({}, p1=10, p2=20, s=5)
    found = pools.look({"production": math.nan}, p1=11, p2=21, s=7)
    assert [usage.missing for usage in found.usages.values()] == [(("requests", "not counted"),)] * 2


def test_production_counts_its_requests_itself() -> None:
    pools = Pools(production={"requests": {"target": "p1:1/metrics", "metric": REQUESTS}})
    try:
        pools.look({"candidate": 0}, p1=10, p2=20, s=5)
        pools.fetched.clear()
        found = pools.look({"candidate": 100}, p1=11, p2=21, s=7)
        assert found.usages["production"].requests_per_s == 20 and not found.usages["production"].estimated
        assert sorted(pools.fetched) == ["p1", "p2", "s"]  # p1 once, for both
        assert pools.look({}, p1=None, p2=21, s=7).usages["production"].requests_per_s is None
    finally:
        pools.scraper.close()


def test_memory_of_a_leaking_shadow_grows(pools: Pools) -> None:
    found = []
    pools.look({}, p1=1, p2=1, s=1)
    for n in range(60):
        pools.bodies["s"] = f"process_resident_memory_bytes {1000 + 20 * n}\n".encode()
        found += [value for metric, value in pools.look({}).measures["candidate"] if metric == "memory"]
    assert len(found) > 5 and all(0.01 < value < 0.2 for value in found)


def test_a_fetch_that_hangs_is_waited_for_once() -> None:
    waits, asked = threading.Event(), []

    def fetch(target: Target, timeout_s: float, statuses: tuple[int, ...]) -> bytes | Gap:
        asked.append(target.host)
        if target.host == "s":
            waits.wait(20)
        return b"process_cpu_seconds_total 1\n"

    made = {"production": {"targets": ["p:1"]}, "shadows": {"candidate": {"targets": ["s:1"]}}, "timeout_s": 0.1}
    scraper = Scraper(Resources.model_validate(made), fetch)
    try:
        for _ in range(3):
            began = time.monotonic()
            found = scraper.look({})
            assert time.monotonic() - began < 5
            assert found.usages["candidate"].missing[0] == ("s:1", "no answer yet")
        assert asked.count("s") == 1 and asked.count("p") == 3
        waits.set()
        ends = time.monotonic() + 10
        while scraper.look({}).usages["candidate"].missing[0][1] == "no answer yet":
            assert time.monotonic() < ends
    finally:
        waits.set()
        scraper.close()


# The real programs


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def until(url: str, good: Callable[[bytes], bool] = bool, limit_s: float = 15) -> None:
    """Wait for an answer; what was started is still on its way."""
    ends = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if good(response.read()):
                    return
        except OSError:
            pass
        assert time.monotonic() < ends, f"{url} does not answer as it should"
        time.sleep(0.1)


@pytest.fixture
def run() -> Iterator[Callable[..., None]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    yield start
    for each in running:
        each.kill()
        each.wait()


@pytest.fixture
def node_exporter(run: Callable[..., None]) -> str:
    address = f"127.0.0.1:{free_port()}"
    run(program("prometheus-node-exporter"), f"--web.listen-address={address}")
    until(f"http://{address}/metrics")
    return address


def test_the_real_node_exporter(node_exporter: str) -> None:
    made = {"production": {"targets": [node_exporter]}, "interval_s": 0.5}
    scraper = Scraper(Resources.model_validate(made))
    try:
        first = scraper.look({"production": 0}).usages["production"]
        ends = time.monotonic() + 1
        while time.monotonic() < ends:  # one busy core
            pass
        found = scraper.look({"production": 100}).usages["production"]
    finally:
        scraper.close()
    assert first.missing == ((node_exporter, "read once so far"), ("requests", "counted once so far"))
    assert found.missing == () and found.restarts == 0
    assert found.cpu_cores is not None and 0.3 < found.cpu_cores < 300
    assert found.requests_per_s is not None and 5 < found.requests_per_s < 101
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(memory["MemTotal"].split()[0]) * 1024
    used = total - int(memory["MemAvailable"].split()[0]) * 1024
    assert found.memory_bytes == pytest.approx(used, abs=0.1 * total)


def test_the_real_prometheus(node_exporter: str, run: Callable[..., None], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    jobs = (
        f"scrape_configs: [{{job_name: node, scrape_interval: 1s, static_configs: [{{targets: ['{node_exporter}']}}]}}]"
    )
    (tmp_path / "p.yml").write_text(jobs)
    run(
        program("prometheus"),
        f"--config.file={tmp_path}/p.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={address}",
    )
    until(f"http://{address}/-/ready")
    until(f"http://{address}/api/v1/query?query=rate(node_cpu_seconds_total[5s])", lambda body: b'"value"' in body)
    busy = 'sum(rate(node_cpu_seconds_total{mode!~"idle|iowait|steal"}[5s]))'
    memory = "sum(node_memory_MemTotal_bytes - node_memory_MemAvailable_bytes)"
    made: dict[str, Any] = {
        "prometheus": f"http://{address}",
        "production": {"cpu": busy, "memory": memory, "requests": "vector(50)"},
        "shadows": {"candidate": {"cpu": busy, "memory": "sum(nothing)"}, "broken": {"cpu": "sum(", "memory": "m[5m]"}},
        "least_requests": 1,
    }
    scraper = Scraper(Resources.model_validate(made))
    try:
        scraper.look({"candidate": 0})
        time.sleep(0.5)
        found = scraper.look({"candidate": 100})
    finally:
        scraper.close()
    production, shadow, broken = (found.usages[name] for name in ("production", "candidate", "broken"))
    assert production.missing == () and production.requests_per_s == 50
    assert production.cpu_cores == shadow.cpu_cores and production.cpu_cores is not None
    assert production.memory_bytes is not None and production.memory_bytes > 1e7
    assert shadow.missing == (("prometheus", "memory: the query finds nothing"),)
    assert shadow.requests_per_s is not None and found.reasons["broken"]["cpu"]
    assert (
        "cpu: the query failed" in broken.missing[0][1] and "memory: the query gives a matrix" in broken.missing[0][1]
    )
    if production.cpu_cores > 0:
        assert dict(found.measures["candidate"])["cpu"] == pytest.approx(math.log(50 / shadow.requests_per_s))
