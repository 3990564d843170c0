"""The figures of the whole agent: `python -m tests.bench.run [--only a,b] [--repeats N] [--quick]`, or `make bench`.

Writes out/bench.json, prints the same on stdout, and progress and a table on stderr. Needs root, and a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import cpu, delivery, engines, filters, kernel_cost, make_pcap, memory, offline, production, trip
from tests.bench.figures import Figure, Plan, Target, progress

OUTPUT = Path(__file__).resolve().parents[2] / "out" / "bench.json"
OFFLINE_REQUESTS, OFFLINE_REQUESTS_QUICK = 200_000, 20_000
TARGET_OFFLINE = 60_000


def offline_exchanges(plan: Plan) -> list[Figure]:
    """(e): exchanges per CPU second from a capture file."""
    requests = OFFLINE_REQUESTS_QUICK if plan.quick else OFFLINE_REQUESTS
    progress(f"(e) offline, {requests} requests")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.pcap"
        make_pcap.write(path, requests, per_connection=100)
        result: dict[str, Any] = offline.measure(path, plan.repeats)
    runs = [float(run) for run in result.pop("runs")]
    return [Figure("(e) offline", "exch./CPU s", runs, Target("at least", TARGET_OFFLINE), result)]


SCENARIOS: dict[str, Callable[[Plan], list[Figure]]] = {
    "a": kernel_cost.measure,
    "b": cpu.measure,
    "c": delivery.measure,
    "d": production.measure,
    "e": offline_exchanges,
    "f": memory.measure,
    "g": production.measure_slow_shadow,
    "h": filters.measure,
    "i": engines.measure,
    "j": trip.measure,
}


def main() -> None:
    """Exit status 1 when a scenario failed; a missed target is no failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, for example a,e")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short runs: to see that it works, not for the figures")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    plan = Plan(max(1, options.repeats if not options.quick else min(options.repeats, 1)), options.quick)
    report, figures = run(names, plan)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    print_table(report, figures)
    sys.exit(1 if report["errors"] else 0)


def run(names: list[str], plan: Plan) -> tuple[dict[str, Any], list[Figure]]:
    """All scenarios asked for; what one of them raises does not end the others."""
    began = time.time()
    figures: list[Figure] = []
    errors: dict[str, str] = {}
    scenarios: dict[str, Any] = {}
    for name in names:
        before, at = os.getloadavg()[0], time.monotonic()
        try:
            mine = SCENARIOS[name](plan)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            progress(f"({name}) failed: {errors[name]}")
            continue
        figures += mine
        scenarios[name] = {
            "load_average_before": round(before, 2),
            "seconds": round(time.monotonic() - at, 1),
            "figures": [figure.as_json() for figure in mine],
        }
    report = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "quick": plan.quick,
        "repeats": plan.repeats,
        "machine": machine(),
        "met": not errors and all(figure.met is not False for figure in figures),
        "missed": [figure.name for figure in figures if figure.met is False],
        "errors": errors,
        "scenarios": scenarios,
    }
    return report, figures


def machine() -> dict[str, Any]:
    """Where it was measured."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpus": os.cpu_count(),
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def print_table(report: dict[str, Any], figures: list[Figure]) -> None:
    """For people, on stderr."""
    lines = ["", f"  {'figure':<58}{'median':>11} {'unit':<12}{'repeats':>23}  {'target':<16}"]
    lines += [figure.line() for figure in figures]
    lines += [f"  ({name}) failed: {error}" for name, error in report["errors"].items()]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
