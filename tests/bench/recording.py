"""Measures the recording: CPU time per row from `add` to the spool, resident memory, and the conversion. Prints JSON.

    python -m tests.bench.recording [--rows 200000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from replay.lean import lean_arrow

DISTINCT = 500  # exchanges, so that they themselves take little memory


def resident_kib() -> int:
    """Resident memory of this process now."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    before = resident_kib()
    lean_arrow()
    arrow = resident_kib()
    results = [measure(options.rows) for _ in range(options.repeats)]
    print(json.dumps(summary(results, options.rows) | {"rss_start_kib": before, "rss_arrow_kib": arrow}, indent=1))


def summary(results: list[dict[str, float]], rows: int) -> dict[str, Any]:
    """Medians over the repeats."""
    return {"rows": rows, "repeats": len(results)} | {
        name: round(statistics.median(r[name] for r in results), 3) for name in results[0]
    }


def measure(rows: int) -> dict[str, float]:
    """One recording of `rows` exchanges, flushed every 3500 of them as at 3500 requests a second."""
    from replay.account import Account
    from replay.recording import Fate, Recorder, RecordingSettings

    exchanges = [example(n) for n in range(DISTINCT)]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        recorder = Recorder(directory, RecordingSettings(), run="bench", worker=0, shadow="default", now_ns=0)
        add, flush_s, longest = recorder.add, 0.0, 0.0
        rss = resident_kib()
        start = time.process_time()  # what this process used, the system's share for writing included
        for n in range(rows):
            exchange, outcome = exchanges[n % DISTINCT]
            add(exchange, Fate.REPLAYED, "", outcome)
            if n % 3500 == 3499:
                at = time.perf_counter()
                recorder.flush(n)
                flush_s += time.perf_counter() - at
                longest = max(longest, time.perf_counter() - at)
        cpu = time.process_time() - start
        grown = resident_kib() - rss
        spool = sum(p.stat().st_size for p in directory.glob("*.arrows"))
        recorder.close(rows, Account())
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        at = time.perf_counter()
        recorder.convert(60.0)
        wall = time.perf_counter() - at
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        parquet = sum(p.stat().st_size for p in directory.glob("*.parquet"))
    return {
        "us_per_row": cpu / rows * 1e6,
        "longest_flush_ms": longest * 1e3,
        "rss_recording_kib": rss,
        "rss_growth_kib": grown,
        "spool_bytes_per_row": spool / rows,
        "parquet_bytes_per_row": parquet / rows,
        "convert_us_per_row": (after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime) / rows * 1e6,
        "convert_seconds": wall,
        "converter_rss_max_kib": after.ru_maxrss,
    }


def example(n: int) -> tuple[Any, Any]:
    """A usual exchange: a GET, 600 bytes of JSON, the same answer from the shadow in nineteen of twenty."""
    from replay.exchange import Answer, Exchange, Outcome, Request, Response

    at = 1_750_000_000_000_000_000 + n * 285_714
    head = (
        f"GET /api/items/{n % 500}?page={n} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\n"
        "Accept: application/json\r\nAccept-Encoding: gzip\r\nCookie: session=0123456789abcdef\r\n\r\n"
    ).encode()
    answer = (
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: 600\r\nConnection: keep-alive\r\nCache-Control: no-store\r\n\r\n"
    )
    body = (f'{{"id": {n}}}'.encode() * 60)[:600]
    theirs = body if n % 20 else body[:-1] + b"!"
    request = Request("GET", f"/api/items/{n % 500}?page={n}", 11, head, b"", 0, None, at, at + 10)
    response = Response(200, 11, answer, body, len(body), at + 900_000, at + 1_000_000)
    exchange = Exchange(f"192.0.2.{n % 250}:{10000 + n}", "198.51.100.1:80", n, 0, request, response)
    outcome = Outcome(
        Answer.OK, "10.0.0.1:8080", 200, answer, theirs, 600, at + 20_000, at + 60_000, at + 950_000, at + 980_000
    )
    return exchange, outcome


if __name__ == "__main__":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    main()
