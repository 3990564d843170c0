"""The whole way from a capture file to JSON lines, and the account at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import TCP

from agent.capture.pcap import PcapSource
from agent.export import as_line
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.stream.flows import Flows
from replay.exchange import Exchange
from tests.agent.capture.frames import PAYLOAD, T_NS, ether, ip4, pcap, tcp
from tests.bench import make_pcap

ROOT = Path(__file__).resolve().parents[2]


def exchanges(path: Path, buffer_bytes: int = 1 << 17) -> list[Exchange]:
    """All exchanges of a capture."""
    pairing, ready, finished = Pairing(HttpLimits(hash_bodies=True)), [], []
    with PcapSource(path, buffer_bytes) as source:
        for some_ready, some_finished in read_exchanges(source, Flows(), pairing):
            ready += some_ready
            finished += some_finished
    assert len(finished) == pairing.seen and pairing.budget.kept_bytes == 0
    assert {id(e) for e in ready} == {id(e) for e in finished if e.incomplete is None}
    return finished


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offline") / "bench.pcap"
    make_pcap.write(path, requests=1000, per_connection=5)
    return path


def test_made_capture(capture: Path) -> None:
    found = exchanges(capture)
    assert len(found) == 1000 and {e.connection for e in found} == set(range(1, 201))
    for exchange in found:
        assert exchange.request is not None and exchange.response is not None
        assert exchange.request.head == make_pcap.request_head(exchange.connection, exchange.index)
        assert exchange.response.head + exchange.response.body == make_pcap.response_bytes(exchange.index)
        assert exchange.ttfb_ns == make_pcap.STEP_NS and exchange.server == "192.0.2.80:80"


def test_batches_do_not_matter(capture: Path) -> None:
    lines = sorted(as_line(e) for e in exchanges(capture))
    assert sorted(as_line(e) for e in exchanges(capture, buffer_bytes=5000)) == lines


def test_pure_acks_do_not_matter(capture: Path, tmp_path: Path) -> None:
    """What the live source leaves out changes nothing."""
    data, at = capture.read_bytes(), 24
    kept = [data[:24]]
    while at < len(data):
        end = at + 16 + int.from_bytes(data[at + 8 : at + 12], "little")
        if end - at > 16 + 54 or data[at + 16 + 47] & 7:
            kept.append(data[at:end])
        at = end
    without = tmp_path / "without.pcap"
    without.write_bytes(b"".join(kept))
    assert without.stat().st_size < capture.stat().st_size
    assert sorted(map(as_line, exchanges(without))) == sorted(map(as_line, exchanges(capture)))


def test_line_of_an_exchange(tmp_path: Path) -> None:
    response = b"HTTP/1.0 404 No\r\nContent-Length: 2\r\n\r\nhi"
    answer = TCP(sport=80, dport=40_000, seq=2000, ack=1000 + len(PAYLOAD), flags="PA") / response
    frames = [ether() / ip4(), ether() / ip4(answer, ttl=3)]
    frames[1]["IP"].src, frames[1]["IP"].dst = "192.0.2.80", "10.0.0.1"
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap(frames))
    (exchange,) = exchanges(path)
    line = as_line(exchange)
    empty, hi = "da39a3ee5e6b4b0d3255bfef95601890afd80709", "c22b5f9178342609428d6f51b2c5af4c0bde6a42"
    times = {"t_first_ns": T_NS, "t_last_ns": T_NS}
    assert "\n" not in line
    assert json.loads(line) == {
        "client": "10.0.0.1:40000", "server": "192.0.2.80:80", "connection": 1, "index": 0,
        "request": {"method": "GET", "uri": "/", "version": "1.1", "host": None, "body_len": 0, "body_sha1": empty,
                    "complete": True, **times},
        "response": {"status": 404, "version": "1.0", "body_len": 2, "body_sha1": hi, "complete": True, **times},
        "ttfb_ns": 0, "interim": [], "upgraded": False, "incomplete": None,
        "ended_by": None,
    }  # fmt: skip


def test_line_of_an_incomplete_request(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(pcap([ether() / ip4(tcp(PAYLOAD[:-2] + b"X: "))]))
    (exchange,) = exchanges(path)
    row = json.loads(as_line(exchange))
    assert (row["request"], row["response"], row["incomplete"]) == (None, None, "end")


def test_corpus_script_without_a_corpus(tmp_path: Path) -> None:
    command = [sys.executable, "tests/corpus/run.py", "--corpus", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "no corpus at" in done.stdout


def test_bench_script(capture: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.offline", str(capture), "--repeat", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["exchanges"] == 1000 and set(result["us_per_exchange"]) == {"pcap", "stream", "http"}
