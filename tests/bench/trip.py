"""(j): how long mirroring goes on after the outcome that decides a trip: to the switch, and to the last packet copied.

The shadow begins to fail, the agent trips, the shadow is mended, the agent is reset; again and again in one run. When
the deciding outcome came and when the switch was thrown stands in the audit; when the last packet was copied, in the
recording.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.bench.figures import Figure, Plan, Target, progress
from tests.bench.measured_agent import SHADOWTAP, MeasuredAgent, Setup
from vagrant.lab import Lab, Options

RATE = 500.0
TRIPS, TRIPS_QUICK = 15, 3
SECONDS_A_TRIP = 20.0  # at the longest
TARGET_MS = 10.0
TIMES = ("request_t_first_ns", "request_t_last_ns", "response_t_first_ns", "response_t_last_ns")


class _Enough(Exception):
    """The load was planned for the longest case."""


def measure(plan: Plan) -> list[Figure]:
    """Milliseconds from the deciding outcome."""
    trips = TRIPS_QUICK if plan.quick else TRIPS
    progress(f"(j) {trips} trips at {RATE:g} requests/s")
    options = Options(production="mood", shadow="mood", access_logs=False)
    with Lab(options) as lab, MeasuredAgent(lab, Setup(state=True)) as agent:
        targets = [f"/api/items/{n}" for n in range(1, 20)]
        entries: list[dict[str, Any]] = []
        with suppress(_Enough), lab.background(lab.rate, RATE, trips * SECONDS_A_TRIP, targets=targets):
            entries += [_trip(lab, agent.control) for _ in range(trips)]
            raise _Enough
        agent.end()
        copied = _times(agent.recordings)
    switched = [(entry["detail"]["switched_ns"] - entry["detail"]["decided_ns"]) / 1e6 for entry in entries]
    last = [(_last_before(copied, entry["at_ns"]) - entry["detail"]["decided_ns"]) / 1e6 for entry in entries]
    causes = sorted({entry["detail"]["cause"] for entry in entries})
    return [
        Figure("(j) deciding outcome to the switch", "ms", switched, None, {"causes": causes}),
        Figure("(j) deciding outcome to the last mirrored packet", "ms", last, Target("at most", TARGET_MS)),
    ]


def _trip(lab: Lab, socket: Path) -> dict[str, Any]:
    """Make the shadow fail until it is tripped, then let it go on; the audit's entry."""
    _await(lambda: _guard(lab, socket)["state"] == "active", "it is active")
    time.sleep(2.0)
    lab.mood("shadow", error=0.9)
    _await(lambda: _guard(lab, socket)["state"] == "tripped", "it is tripped")
    time.sleep(1.0)
    lab.mood("shadow", error=0.0)
    entries = _ask(lab, socket, "history", "--audit", "--json")["entries"]
    _ask(lab, socket, "reset")
    return next(entry for entry in entries if entry["action"] == "trip")


def _guard(lab: Lab, socket: Path) -> dict[str, Any]:
    found: dict[str, Any] = _ask(lab, socket, "status", "--json")["guards"]["candidate"]
    return found


def _ask(lab: Lab, socket: Path, *words: str) -> Any:
    output = lab.run_in("lb", [SHADOWTAP, *words, "--socket", socket]).stdout
    return json.loads(output) if "--json" in words else output


def _await(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS_A_TRIP
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {SECONDS_A_TRIP:g} s: {what}")
        time.sleep(0.5)  # asking keeps the agent from its work


def _times(recordings: Path) -> list[int]:
    """When each packet that carried a beginning or an end was captured, in order."""
    found: list[int] = []
    for path in recordings.glob("*.parquet"):
        table = pq.read_table(path, columns=list(TIMES))
        for name in TIMES:
            found += [value for value in table.column(name).to_pylist() if value]
    return sorted(found)


def _last_before(times: list[int], end_ns: int) -> int:
    """The last one before the audit's entry, which was written after the trip."""
    return max(each for each in times if each < end_ns)
