"""The live agent in a lab, with everything measured from outside: CPU time, memory, and the account it prints."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.bench import processes
from vagrant.lab import Lab

START_S = 60.0
STOP_S = 90.0
SETTLE_S = 0.3  # after the load: the last answers of the shadow
SHADOWTAP = Path(sys.executable).with_name("shadowtap")
_FATE = re.compile(r"^ *(seen|replayed|incomplete|skipped|dropped|in flight) +(\d+)(?: +\((.*)\))?$")
_COUNTER = re.compile(r"^  (\w+) +(\d+)$")


@dataclass(frozen=True, slots=True)
class Setup:
    """What of the agent's configuration the benchmarks vary."""

    percentage: float = 100.0
    replay: bool = True
    recording: bool = True
    criteria: str = "random"
    capture: dict[str, Any] = field(default_factory=dict)
    judge: bool = True
    state: bool = False  # kept on disk

    def config(self, lab: Lab, recordings: Path) -> dict[str, Any]:
        """The configuration file's content."""
        shadow: dict[str, Any] = {"percentage": self.percentage, "criteria": self.criteria}
        if self.replay:
            shadow["upstreams"] = [lab.shadow_upstream]
        config: dict[str, Any] = {
            "capture": {"interface": "front", "ports": [80], **self.capture},
            "shadows": {"candidate": shadow},
            "control": {"socket": f"{recordings}.sock"},
            "harm": None,  # it would pause mirroring in the middle of a run
            "state": {"directory": f"{recordings}.state"} if self.state else None,
        }
        if not self.judge:
            config["judge"] = None
        if self.recording:
            config["recording"] = {"directory": str(recordings)}
        return config


@dataclass(frozen=True, slots=True)
class Ending:
    """What the agent said at its end. `fates` are counts, `reasons` split them, `kernel` are the tap's counters."""

    fates: dict[str, int]
    reasons: dict[str, dict[str, int]]
    kernel: dict[str, int]

    @property
    def ok(self) -> int:
        """Requests that the shadow answered."""
        return self.reasons.get("replayed", {}).get("ok", 0)

    def lost(self) -> dict[str, int]:
        """Where requests were left, as `what.reason: how many`; records that the kernel could not copy come first."""
        out = {f"kernel.{name}": self.kernel.get(name, 0) for name in ("ring_full", "over_budget", "unreadable")}
        for fate in ("incomplete", "skipped", "dropped"):
            out |= {f"{fate}.{reason}": count for reason, count in self.reasons.get(fate, {}).items()}
        out |= {f"answered.{reason}": n for reason, n in self.reasons.get("replayed", {}).items() if reason != "ok"}
        return {name: count for name, count in out.items() if count}


def parse_ending(text: str) -> Ending:
    """Read the account that the agent prints."""
    fates: dict[str, int] = {}
    reasons: dict[str, dict[str, int]] = {}
    kernel: dict[str, int] = {}
    for line in text.splitlines():
        if found := _FATE.match(line):
            fates[found[1]] = int(found[2])
            pairs = [part.rsplit(" ", 1) for part in (found[3] or "").split(", ") if part]
            reasons[found[1]] = {name: int(count) for name, count in pairs}
        elif found := _COUNTER.match(line):
            kernel[found[1]] = int(found[2])
    return Ending(fates, reasons, kernel)


class MeasuredAgent:
    """A running agent; a context manager that ends it in order."""

    def __init__(self, lab: Lab, setup: Setup) -> None:
        self.recordings = recordings = lab.directory / f"recordings-{time.monotonic_ns()}"
        self.control = recordings.with_name(f"{recordings.name}.sock")
        config = lab.directory / "bench.yaml"
        config.write_text(json.dumps(setup.config(lab, recordings)))
        argv: list[str | Path] = [SHADOWTAP, "run", "-c", config]
        self._process = lab.popen_in("lb", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self._lab = lab
        self._ending: Ending | None = None
        self.conversion_s = 0.0  # CPU time from SIGTERM to the end: the recording becomes Parquet

    def __enter__(self) -> MeasuredAgent:
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if " ready: " not in line:
            self._process.kill()
            raise RuntimeError(f"the agent did not start: {line}{self._process.stderr.read()}")
        time.sleep(SETTLE_S)  # the first tick of everything
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        else:
            self._process.kill()
            self._process.communicate()

    def cpu_by_role_ns(self) -> dict[str, int]:
        """CPU time so far of service, keeper, workers."""
        out: dict[str, int] = {}
        for pid in processes.family(self.pid):
            name = processes.role(pid)
            out[name] = out.get(name, 0) + processes.cpu_ns(pid)
        return out

    def metric(self, name: str) -> float:
        """One value of its metrics, summed over the labels."""
        text = self._lab.run_in("lb", ["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
        lines = (line for line in text.splitlines() if re.match(rf"shadowtap_{name}[{{ ]", line))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def end(self) -> Ending:
        """SIGTERM, and what it printed; may be called twice."""
        if self._ending is None:
            before_ns = sum(map(processes.cpu_with_children_ns, processes.family(self.pid)))
            self._process.send_signal(signal.SIGTERM)
            self._await_end()
            self.conversion_s = (processes.cpu_with_children_ns(self.pid) - before_ns) / 1e9
            output, errors = self._process.communicate(timeout=STOP_S)
            self._ending = parse_ending(output)
            if self._process.returncode != 0 or "seen" not in self._ending.fates:
                raise RuntimeError(f"the agent ended with {self._process.returncode}: {errors}{output}")
        return self._ending

    def _await_end(self) -> None:
        """Until it is a zombie, whose times can still be read."""
        deadline = time.monotonic() + STOP_S
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the agent did not end within {STOP_S:.0f} s")
            time.sleep(0.01)
