"""Exchanges per CPU second from a capture file, whole and by stage, as JSON: `python -m tests.bench.offline [FILE]`.

Without FILE a capture of 200 000 requests is made first. Stages are measured on their own, each on the whole input of
the stage before, a batch at a time, so their sum is about the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from agent.capture.pcap import PcapSource
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.stream.flows import Flows
from tests.bench import make_pcap

REQUESTS = 200_000


def whole(path: Path) -> tuple[int, float]:
    """Exchanges, and CPU seconds for all stages together."""
    start = time.process_time()
    count = 0
    with PcapSource(path) as source:
        for _, finished in read_exchanges(source, Flows(), Pairing()):
            count += len(finished)
    return count, time.process_time() - start


def stages(path: Path) -> dict[str, float]:
    """CPU seconds of each stage over the file."""
    spent = {"pcap": 0.0, "stream": 0.0, "http": 0.0}
    flows, pairing = Flows(), Pairing()
    clock = time.process_time
    with PcapSource(path) as source:
        batches = source.batches()
        while True:
            t0 = clock()
            segments = next(batches, None)
            t1 = clock()
            events = flows.feed(segments) if segments is not None else flows.finish()
            t2 = clock()
            pairing.feed(events)
            t3 = clock()
            for name, seconds in zip(spent, (t1 - t0, t2 - t1, t3 - t2), strict=True):
                spent[name] += seconds
            if segments is None:
                return spent


def measure(path: Path, repeat: int) -> dict[str, object]:
    """Medians over `repeat` runs."""
    runs = [whole(path) for _ in range(repeat)]
    split = [stages(path) for _ in range(repeat)]
    count = runs[0][0]
    return {
        "exchanges": count,
        "exchanges_per_cpu_second": round(statistics.median(n / seconds for n, seconds in runs)),
        "us_per_exchange": {
            name: round(statistics.median(s[name] for s in split) / count * 1e6, 2) for name in split[0]
        },
        "runs": [round(n / seconds) for n, seconds in runs],
        "file_bytes": path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.file is not None:
        print(json.dumps(measure(arguments.file, arguments.repeat)))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.pcap"
        make_pcap.write(path, REQUESTS, per_connection=100)
        print(json.dumps(measure(path, arguments.repeat)))


if __name__ == "__main__":
    main()
