#!/usr/bin/python3
"""Stands in for shadowtap, so that the demo can be tested by itself: says it is ready, waits, prints an account."""

import signal
import sys
from pathlib import Path


def run(config: Path) -> None:
    print("config:", config.read_text().splitlines()[0], file=sys.stderr)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("ready", file=sys.stderr, flush=True)
    signal.sigwait({signal.SIGTERM})
    print("seen 17")


if sys.argv[1] == "run":
    if Path(__file__).with_name("broken").exists():
        sys.exit("shadowtap: no interface front: choose one that exists")
    run(Path(sys.argv[3]))
elif sys.argv[1] == "status":
    print("state ACTIVE")
else:
    print("GET /products/{}.html  200 -> 500")
