"""`shadowtap run` in the lab's load balancer, as a test starts it, watches it and ends it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families

from agent.control.client import ask
from agent.select import sampling
from replay.account import Account
from replay.compare import as_json, compare
from vagrant.lab import Lab, Options

SHADOWTAP = Path(sys.executable).parent / "shadowtap"
START_S = 120.0
END_S = 60.0
METRICS_PORT = 9464
MOODS = Options(production="mood", shadow="mood", access_logs=False)
TARGETS = tuple(f"/api/items/{n}" for n in range(1, 9))
STEADY_S = 300.0  # longer than any test needs it

Settings = dict[str, Any]


def until(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Poll; the first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return value


def merged(base: Settings, changes: Settings) -> Settings:
    """Nested dicts, the second one's values first."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(base.get(key) or {}, value) if isinstance(value, dict) else value
    return out


@dataclass(slots=True)
class Ended:
    """What an agent left when it had ended."""

    status: int
    account: Account
    kernel: Counter[str]
    output: str
    errors: str
    recording: Path

    def report(self) -> Settings:
        """The recording, compared."""
        return as_json(compare(self.recording))

    def rows(self) -> list[Settings]:
        """Every recorded request."""
        return [row for path in sorted(self.recording.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@dataclass(slots=True)
class Metrics:
    """One scrape."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def get(self, name: str, **labels: str) -> float:
        """One sample of ours; 0 when there is none."""
        return self.samples.get((f"shadowtap_{name}", frozenset(labels.items())), 0.0)

    def by(self, name: str, label: str) -> dict[str, int]:
        """All samples of one of ours that are not 0, by one label."""
        found = {dict(labels)[label]: int(v) for (n, labels), v in self.samples.items() if n == f"shadowtap_{name}"}
        return {key: value for key, value in found.items() if value}


class Agent:
    """One run. Entering waits until it is ready; leaving kills whatever is left of it."""

    _count = 0

    def __init__(self, lab: Lab, settings: Settings | None = None, *, wait: bool = True) -> None:
        Agent._count += 1
        self.lab = lab
        self.config = lab.directory / f"agent-{Agent._count}.yaml"
        self.settings = merged(base_settings(lab, lab.directory / f"recording-{Agent._count}"), settings or {})
        self.recording = Path(self.settings["recording"]["directory"])
        self.config.write_text(json.dumps(self.settings))
        self.errors: list[str] = []
        self._wait = wait
        self._log_at = len(lab.log("haproxy"))
        self._requests_before = lab.production_requests()
        self._shadow_before = lab.shadow_requests()

    def __enter__(self) -> Agent:
        self.process: subprocess.Popen[str] = self.lab.popen_in(
            "lb",
            [SHADOWTAP, "run", "-c", self.config],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._output: list[str] = []
        self._readers = [
            threading.Thread(target=_read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self._output), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()
        if self._wait:
            self.await_line("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [self.pid, *self.children().values()] if self.process.poll() is None else []
        if left:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(5)
        until(lambda: not any(alive(pid) for pid in left), what="the agent's processes end with it")

    # Looking at it

    @property
    def pid(self) -> int:
        """The service's."""
        return self.process.pid

    def await_line(self, text: str, seconds: float = START_S) -> str:
        """Wait until the agent says something on stderr."""

        def said() -> str | None:
            if self.process.poll() is not None:
                for reader in self._readers:
                    reader.join(5)
            found = next((line for line in list(self.errors) if text in line), None)
            if found is None and self.process.poll() is not None:
                raise AssertionError(f"the agent ended with {self.process.returncode}: {self.errors}")
            return found

        return str(until(said, seconds, f"the agent says {text!r}; it said {self.errors}"))

    def children(self) -> dict[str, int]:
        """Process ids by what they are: loader, keeper, worker0, worker1 (in the order of their start) ..."""
        found: dict[str, int] = {}
        for pid, command in sorted(_children(self.pid)):
            for word in ("loader", "keeper", "worker"):
                if f"agent.{word}" in command or f"agent.capture.{word}" in command:
                    found[word if word != "worker" else f"worker{sum(k.startswith('worker') for k in found)}"] = pid
        return found

    def metrics(self) -> Metrics:
        """Scrape."""
        with self.lab.inside("lb"):
            connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=10)
            connection.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        families = text_string_to_metric_families(text)
        return Metrics({(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples})

    def production(self) -> int:
        """Requests that HAProxy took since this agent was made."""
        return self.lab.production_requests() - self._requests_before

    def shadow(self) -> int:
        """Requests that the shadow was asked since."""
        return self.lab.shadow_requests() - self._shadow_before

    def logged(self) -> Counter[str]:
        """Requests by client address and port, from HAProxy's log since."""
        text = self.lab.log("haproxy")[self._log_at :]
        return Counter(line.split(" ", 1)[0] for line in text.splitlines() if "<BADREQ>" not in line)

    def await_seen(self, count: int) -> Metrics:
        """Wait until the agent reports so many requests with nothing in flight."""

        def there() -> Metrics | None:
            now = self.metrics()
            seen = now.get("requests_seen_total", shadow="candidate")
            return now if seen >= count and not now.by("requests_in_flight", "shadow") else None

        found: Metrics = until(there, what=f"{count} requests are seen and none is in flight")
        return found

    def control(self, *words: str) -> str:
        """A command over the control socket, as a user types it; what it prints."""
        argv = [SHADOWTAP, *words, "--socket", self.settings["control"]["socket"]]
        return str(self.lab.run_in("lb", argv).stdout)

    def refused(self, *words: str) -> str:
        """The one line that is said of a command which is refused."""
        argv = [SHADOWTAP, *words, "--socket", self.settings["control"]["socket"]]
        done = self.lab.run_in("lb", argv, check=False)
        assert (done.returncode, done.stdout) == (2, ""), done
        (line,) = done.stderr.splitlines()
        return str(line)

    def ask(self, path: str) -> Any:
        """What the control API answers to a GET."""
        return ask(Path(self.settings["control"]["socket"]), "GET", path)

    def status(self) -> Any:
        """`shadowtap status --json`."""
        return json.loads(self.control("status", "--json"))

    def guard(self) -> Any:
        """The shadow's: "state", "cause" and the like."""
        return self.ask("/v1/status")["guards"]["candidate"]

    def await_state(self, state: str, seconds: float = 30.0) -> None:
        """Wait until the guard is in it."""
        until(lambda: self.guard()["state"] == state, seconds, f"the shadow is {state}; {self.guard()}")

    def watch_pid(self) -> int | None:
        """The watch process; None while there is none."""
        found = [pid for pid, command in _children(self.pid) if "agent.monitor.watch_start" in command]
        return found[0] if found else None

    def await_metric(self, name: str, value: float, **labels: str) -> None:
        """Wait until a metric has this value."""
        until(lambda: self.metrics().get(name, **labels) == value, what=f"{name} is {value}")

    # Ending it

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Tell it to end and wait."""
        self.process.send_signal(number)
        return self.await_end()

    def await_end(self) -> Ended:
        """Wait for its end."""
        status = self.process.wait(END_S)
        for reader in self._readers:
            reader.join(5)
        account, kernel = read_account("".join(self._output))
        return Ended(status, account, kernel, "".join(self._output), "".join(self.errors), self.recording)


def base_settings(lab: Lab, recording: Path) -> Settings:
    """Everything to the shadow of the lab."""
    return {
        "capture": {"interface": "front", "ports": [80]},
        "shadows": {"candidate": {"percentage": 100, "upstreams": [lab.shadow_upstream]}},
        "recording": {"directory": str(recording)},
        "control": {"socket": str(recording) + ".sock"},
        "state": {"directory": str(recording) + ".state"},
    }


@contextmanager
def running(lab: Lab, settings: Settings | None = None) -> Iterator[Agent]:
    """An agent that is ready."""
    with Agent(lab, settings) as agent:
        yield agent


class _Enough(Exception):
    """The block is over before its traffic is."""


@contextmanager
def steady(lab: Lab, per_second: float = 200.0) -> Iterator[None]:
    """So many requests a second while the block runs."""
    options = {"connections": 20, "targets": TARGETS}
    with suppress(_Enough), lab.background(lab.rate, per_second, STEADY_S, **options):
        yield
        raise _Enough


@contextmanager
def hung_shadow(lab: Lab) -> Iterator[None]:
    """The shadow accepts and never answers."""
    lab.hang_shadow()
    try:
        yield
    finally:
        lab.unhang_shadow()


def _read(stream: Any, lines: list[str]) -> None:
    with suppress(ValueError):
        lines.extend(iter(stream.readline, ""))


def _children(parent: int) -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        with suppress(OSError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def alive(pid: int) -> bool:
    """The process is there, and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_account(text: str) -> tuple[Account, Counter[str]]:
    """The account and the kernel's counters as `run` prints them."""
    account, kernel = Account(), Counter[str]()
    for line in text.splitlines():
        match = re.match(r" *(\w[\w ]*?) +(\d+)(?:   \((.*)\))?$", line)
        if match is None:
            continue
        name, value, reasons = match[1], int(match[2]), match[3]
        parts = (part.rsplit(" ", 1) for part in reasons.split(", ")) if reasons else ()
        split = Counter({reason: int(count) for reason, count in parts})
        if name in ("seen", "replayed"):
            setattr(account, name, value)
            if name == "replayed":
                account.answers = split
        elif name in ("incomplete", "skipped", "dropped"):
            setattr(account, name, split)
            assert split.total() == value, line
        elif name == "in flight":
            assert value == account.in_flight, text
        else:
            kernel[name] = value
    return account, kernel


def key_of(client: str, server: str) -> bytes:
    """The key of a connection's segments, from "address:port" as exchanges and HAProxy's log write it."""
    (a, p), (b, q) = (end.rsplit(":", 1) for end in (client, server))
    ends = [ipaddress.ip_address(x.strip("[]")).packed for x in (a, b)]
    return ends[0] + ends[1] + int(p).to_bytes(2, "big") + int(q).to_bytes(2, "big")


def is_sampled(client: str, server: str, ppm: int, seed: int = 0) -> bool:
    """Whether the agent takes the connection."""
    return sampling.sampled(sampling.flow_hash(key_of(client, server), seed), ppm)
