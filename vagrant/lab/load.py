"""Load on the lab: which program makes which kind, and what its output says.

wrk saturates, h2load keeps a rate or an exact number of requests, `visits` makes an exact number of connections.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vagrant.lab.network import LabError

SPARE_SECONDS = 60.0  # how much longer than planned a load may take before it is given up

_H2LOAD_COUNTS = re.compile(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded")
_H2LOAD_STATUSES = re.compile(r"status codes: (.*)")
_H2LOAD_TIME = re.compile(r"finished in ([\d.]+)(us|ms|s|m)\b")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What a load came to. `requests` were answered; `failed` were not, or never started."""

    requests: int
    failed: int
    seconds: float
    statuses: dict[str, int] = field(default_factory=dict)
    p50_us: int = 0
    p90_us: int = 0
    p99_us: int = 0
    max_us: int = 0

    @property
    def per_second(self) -> float:
        """Answered requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0


def wrk_argv(url: str, script: Path, seconds: float, connections: int, threads: int, args: Sequence[str]) -> list[str]:
    """As fast as the connections allow, or as the script's `delay` says."""
    argv = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "--timeout", "10s"]
    return [*argv, "-s", str(script), url, "--", *args]


def h2load_argv(
    urls: Path, log: Path, count: int, connections: int, per_second: float | None, threads: int = 1
) -> list[str]:
    """Exactly `count` requests, in turn over the URLs of a file, evenly spaced if a rate is given."""
    argv = ["h2load", "--h1", "-t", str(threads), "-c", str(connections), "-n", str(count), "-m", "1"]
    if per_second is not None:
        # Connections that begin together ask together ever after: spread their beginnings over one interval.
        at_once, period_ms = max(1, round(per_second / 1000)), max(1, int(1000 / per_second))
        argv += [f"--rps={per_second / connections:.6f}", "-r", str(at_once), f"--rate-period={period_ms}ms"]
    return [*argv, f"--log-file={log}", "-i", str(urls)]


def parse_wrk(output: str) -> Load:
    """Read what templates/summary.lua printed. wrk tells only whether a status was below 400."""
    for line in output.splitlines():
        if line.startswith("RESULT "):
            result = json.loads(line.removeprefix("RESULT "))
            bad = result.pop("bad_statuses")
            statuses = {"below 400": result["requests"] - bad, "400 and above": bad}
            return Load(statuses={name: count for name, count in statuses.items() if count}, **result)
    raise LabError(f"wrk printed no result: {_last_line(output)}")


def parse_h2load(output: str, log: str) -> Load:
    """Read h2load's summary, and the percentiles from its log, of which a line is: start, status, microseconds."""
    counts, seconds = _H2LOAD_COUNTS.search(output), _H2LOAD_TIME.search(output)
    statuses = _H2LOAD_STATUSES.search(output)
    if counts is None or seconds is None or statuses is None:
        raise LabError(f"h2load printed no result: {_last_line(output)}")
    rows = (line.split("\t") for line in log.splitlines())
    p50_us, p90_us, p99_us, max_us = percentiles(sorted(int(row[2]) for row in rows if row[1] != "-1"))
    answered = sum(found := [int(number) for number in re.findall(r"(\d+) \dxx", statuses[1])])
    return Load(
        requests=answered,
        failed=int(counts[1]) - answered,
        seconds=float(seconds[1]) * _SECONDS[seconds[2]],
        statuses={f"{at}xx": number for at, number in enumerate(found, start=2) if number},
        p50_us=p50_us,
        p90_us=p90_us,
        p99_us=p99_us,
        max_us=max_us,
    )


def parse_visits(output: str) -> Load:
    """Read the line of JSON that `vagrant.lab.visits` prints."""
    result: dict[str, Any] = json.loads(_last_line(output))
    p50_us, p90_us, p99_us, max_us = percentiles(sorted(result.pop("times_us")))
    return Load(**result, p50_us=p50_us, p90_us=p90_us, p99_us=p99_us, max_us=max_us)


def percentiles(times_us: list[int]) -> tuple[int, int, int, int]:
    """p50, p90, p99 and maximum of a sorted list, each a value that occurs in it; zeros of an empty one."""
    if not times_us:
        return 0, 0, 0, 0
    p50, p90, p99 = (times_us[math.ceil(share * len(times_us)) - 1] for share in (0.5, 0.9, 0.99))
    return p50, p90, p99, times_us[-1]


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no output"
