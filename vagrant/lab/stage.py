"""What a scenario is played on: a lab with moods, an agent on its load balancer, steady traffic, and a stopwatch."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from vagrant.lab.demo import Agent
from vagrant.lab.lab import Lab
from vagrant.lab.network import LabError
from vagrant.lab.servers import METRICS_PORT

SHADOW = "candidate"
TARGETS = tuple(f"/api/items/{n}" for n in range(1, 9)) + tuple(f"/products/{n}.html" for n in range(1, 9))
LOOK_S = 0.25
ASK_S = 10.0
LOAD_CONNECTIONS = 40

Settings = dict[str, Any]


class _Enough(Exception):
    """The scenario is over before its traffic is."""


class Stage:
    """Made with `set_up`. `notes` are what happened, with the seconds since the start."""

    def __init__(self, lab: Lab, shadowtap: Sequence[str | Path], settings: Settings) -> None:
        self.lab = lab
        self.notes: list[tuple[float, str]] = []
        self._command = shadowtap
        self._socket = lab.directory / "control.sock"
        self._config = lab.directory / "scenario.yaml"
        self._config.write_text(yaml.safe_dump(merged(base_settings(lab), settings), sort_keys=False))
        self._agent = Agent(lab, [*shadowtap, "run", "-c", self._config])
        self._agent.await_ready()
        self._since_s = time.monotonic()

    @property
    def now_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._since_s

    def note(self, text: str) -> None:
        """Remember, and tell, that something happened."""
        self.notes.append((self.now_s, text))
        print(f"   {self.now_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    def ask(self, path: str) -> Any:
        """What the control API answers. Not by a command: starting one each time would keep the machine busy."""
        connection = http.client.HTTPConnection("localhost", timeout=ASK_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(ASK_S)
            connection.sock.connect(str(self._socket))
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        except OSError as error:
            raise LabError(f"the agent does not answer: {error}") from None
        finally:
            connection.close()

    def say(self, *words: str) -> str:
        """What a command prints for people."""
        done = self.lab.run_in("lb", [*self._command, *words, "--socket", self._socket], check=False)
        return str(done.stdout).strip()

    def status(self) -> Any:
        """All of it."""
        return self.ask("/v1/status")

    def guard(self) -> Any:
        """The shadow's."""
        return self.status()["guards"][SHADOW]

    def verdict(self) -> Any:
        """The present one; inconclusive before there is one."""
        return self.status()["verdicts"].get(SHADOW) or {"word": "inconclusive", "pairs": 0, "reason": ""}

    def until(self, condition: Callable[[], Any], seconds: float, what: str) -> float:
        """Wait for it; how long that took. LabError after so many seconds."""
        since_s = time.monotonic()
        while not condition():
            if time.monotonic() - since_s > seconds:
                raise LabError(f"not within {seconds:.0f} s: {what}; the agent says\n{self.say('status')}")
            time.sleep(LOOK_S)
        took_s = time.monotonic() - since_s
        self.note(f"{what} (after {took_s:.1f} s)")
        return took_s

    def stay(self, seconds: float, never: Callable[[], Any], what: str) -> None:
        """Watch for so long that something does not happen."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if never():
                raise LabError(f"it happened: {what}; the agent says\n{self.say('status')}")
            time.sleep(LOOK_S)
        self.note(f"{seconds:.0f} s without: {what}")

    @contextmanager
    def traffic(self, per_second: float, longest_s: float) -> Iterator[None]:
        """Steady requests while the block runs."""
        options = {"connections": LOAD_CONNECTIONS, "targets": TARGETS}
        with suppress(_Enough), self.lab.background(self.lab.rate, per_second, longest_s, **options):
            yield
            raise _Enough

    def end(self) -> str:
        """Stop the agent; its account."""
        return self._agent.stop()


@contextmanager
def set_up(shadowtap: Sequence[str | Path], settings: Callable[[Lab], Settings], lab: Lab) -> Iterator[Stage]:
    """A stage in a lab that is there already; the agent is ended with it."""
    stage = Stage(lab, shadowtap, settings(lab))
    try:
        yield stage
    finally:
        with suppress(LabError):
            stage.end()


def base_settings(lab: Lab) -> Settings:
    """Everything is mirrored, nothing outlives the lab."""
    directory = lab.directory / "agent"
    return {
        "capture": {"interface": "front", "ports": [80]},
        "shadows": {SHADOW: {"percentage": 100, "upstreams": [lab.shadow_upstream], "timeout_s": 2}},
        "control": {"socket": str(lab.directory / "control.sock")},
        "state": {"directory": str(directory)},
        "harm": None,
    }


def pool_targets(lab: Lab) -> Settings:
    """CPU and memory of both pools, from the servers' own metrics."""
    production = [f"{lab.address(name)}:{METRICS_PORT}" for name in ("prod1", "prod2")]
    return {
        "production": {"targets": production},
        "shadows": {SHADOW: {"targets": [f"{lab.address('shadow')}:{METRICS_PORT}"]}},
    }


def merged(base: Settings, changes: Settings) -> Settings:
    """Nested dicts, the second one's values first."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(base.get(key) or {}, value) if isinstance(value, dict) else value
    return out
