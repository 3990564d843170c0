"""One load, captured by tcpdump and by the agent at the same time, gives the same exchanges with the same times."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.capture.pcap import PcapSource
from agent.export import as_json
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.stream.flows import Flows
from tests.e2e.agent_process import Agent, running, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root

MEDIAN_APART_NS = 100_000
BUFFERED_S = 1.3  # tcpdump is given packets when a second is over, or a block is full


@contextmanager
def dumped(lab: Lab, path: Path) -> Iterator[None]:
    """tcpdump on the agent's interface, whole packets, nanoseconds."""
    argv = ["tcpdump", "-i", "front", "-n", "-s", "0", "-B", "65536", "-U", "-Z", "root", "-w", path]
    argv += ["--time-stamp-precision=nano", "tcp port 80"]
    process = lab.popen_in("lb", argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "listening" in process.stderr.readline()
    until(path.exists, what="tcpdump has begun")
    yield
    last, since = -1, time.monotonic()
    while time.monotonic() - since < BUFFERED_S:
        if (size := path.stat().st_size) != last:
            last, since = size, time.monotonic()
        time.sleep(0.02)
    process.terminate()
    assert "\n0 packets dropped by kernel" in process.communicate(timeout=20)[1]


def every_kind_of_exchange(lab: Lab, agent: Agent) -> None:
    """The shop's mixture (GET, POST, 304, chunked, gzip, 100 KB, Connection: close), HEAD, and a large upload."""
    lab.mix(4, connections=12, rate=400)
    lab.visits(20, requests_each=5, method="HEAD")
    lab.get("/", method="PUT", body=bytes(range(256)) * 400)
    lab.get("/static/photo.bin")
    agent.await_seen(0)


def live(agent: Agent) -> list[dict[str, Any]]:
    return [
        {
            "key": (r["client"], r["server"], r["index"], r["method"], r["target"], r["host"], r["request_body_bytes"]),
            "answer": (r["status"], r["response_complete"], r["response_body_bytes"], r["response_body_sha1"]),
            "ttfb_ns": _between(r["request_t_last_ns"], r["response_t_first_ns"]),
            "at_ns": r["request_t_first_ns"],
        }
        for r in agent.stop().rows()
    ]


def _between(start_ns: int | None, end_ns: int | None) -> int | None:
    return None if start_ns is None or end_ns is None else end_ns - start_ns


def offline(path: Path) -> list[dict[str, Any]]:
    pairing = Pairing()
    with PcapSource(path) as source:
        batches = read_exchanges(source, Flows(server_ports=frozenset({80})), pairing)
        found = [as_json(exchange) for _, finished in batches for exchange in finished]
    assert len(found) == pairing.seen
    return [_offline(e, e["request"] or {}, e["response"] or {}) for e in found]


def _offline(e: dict[str, Any], request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    asked = (request.get("method"), request.get("uri"), request.get("host"), request.get("body_len"))
    answered = (response.get(name) for name in ("status", "complete", "body_len", "body_sha1"))
    return {
        "key": (e["client"], e["server"], e["index"], *asked),
        "answer": tuple(answered),
        "ttfb_ns": e["ttfb_ns"],
        "at_ns": request.get("t_first_ns"),
    }


@pytest.mark.parametrize("attach", ["tcx", "clsact"])
def test_the_same_exchanges_at_the_same_times(lab: Lab, attach: str) -> None:
    path = lab.directory / f"front-{attach}.pcap"
    with running(lab, {"capture": {"ring_kib": 65536, "attach": attach}}) as agent:
        with dumped(lab, path):
            every_kind_of_exchange(lab, agent)
        ours = live(agent)
        asked = agent.production()
    theirs = offline(path)
    assert len(ours) == len(theirs) == asked > 1000
    assert {(row["key"], row["answer"]) for row in ours} == {(row["key"], row["answer"]) for row in theirs}
    # wrk begins with a connection on which it asks nothing, and HAProxy answers 400: a response without a request.
    assert {row["key"][3] for row in ours} == {"GET", "POST", "HEAD", "PUT", None}
    assert {200, 201, 302, 304, 404} <= Counter(row["answer"][0] for row in ours).keys()
    assert any((row["answer"][2] or 0) >= 100_000 for row in ours)
    other = {row["key"]: row for row in theirs}
    pairs = [(row, other[row["key"]]) for row in ours if row["ttfb_ns"] is not None]
    assert statistics.median(abs(a["ttfb_ns"] - b["ttfb_ns"]) for a, b in pairs) < MEDIAN_APART_NS
    assert statistics.median(abs(a["at_ns"] - b["at_ns"]) for a, b in pairs) < MEDIAN_APART_NS
