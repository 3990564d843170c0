"""`shadowtap replay` as a user runs it: made captures, a real server on loopback, and the account that must close."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import cli
from agent.select import sampling
from replay.compare import as_json, compare
from tests.bench.make_pcap import write

REQUESTS, PER_CONNECTION = 600, 20
Replay = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capture") / "made.pcap"
    write(path, REQUESTS, PER_CONNECTION)
    return path


@pytest.fixture(scope="module")
def shadow() -> Iterator[str]:
    """Address of a server that answers everything with 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "vagrant.lab.origin", "--listen", f"127.0.0.1:{port}"])
    deadline = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)
    yield f"127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Replay:
    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        status = cli.main(["replay", *map(str, arguments), "--json"])
        out = capsys.readouterr().out
        return status, json.loads(out) if out else {}

    return run


def closes(account: dict[str, Any]) -> bool:
    fates = ("incomplete", "skipped", "dropped")
    return (
        account["seen"] == account["replayed"] + sum(sum(account[f].values()) for f in fates)
        and not account["in_flight"]
    )


def test_a_dry_run_sends_nothing_and_exports_every_exchange(replay: Replay, capture: Path, tmp_path: Path) -> None:
    status, result = replay(capture, "--dry-run", "--export", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert status == 0
    assert result["account"]["skipped"] == {"dry_run": REQUESTS}
    assert len(rows) == REQUESTS
    assert {row["response"]["status"] for row in rows} == {200}


def test_every_request_is_replayed_and_recorded(replay: Replay, capture: Path, shadow: str, tmp_path: Path) -> None:
    status, result = replay(capture, "--to", f"http://{shadow}", "--speed", "max", "--record", tmp_path / "rec")
    assert status == 0
    assert result["account"]["answers"] == {"ok": REQUESTS}
    assert closes(result["account"])
    report = as_json(compare(tmp_path / "rec"))
    assert report["account"]["seen"] == report["account"]["replayed"] == REQUESTS


def test_the_original_spacing_is_kept(replay: Replay, capture: Path, shadow: str) -> None:
    """The capture is about 36 ms long; ten times slower it takes ten times as long."""
    began = time.monotonic()
    _, result = replay(capture, "--to", shadow, "--speed", "0.1")
    assert result["account"]["answers"] == {"ok": REQUESTS}
    assert time.monotonic() - began > 0.3


def test_a_dead_shadow_costs_outcomes_and_no_more(replay: Replay, capture: Path) -> None:
    status, result = replay(capture, "--to", "127.0.0.1:1", "--speed", "max")
    assert status == 0
    assert set(result["account"]["answers"]) == {"connect"}
    assert result["account"]["replayed"] + result["account"]["dropped"]["backoff"] == REQUESTS
    assert closes(result["account"])


@pytest.mark.parametrize("percentage", [0, 10, 50])
def test_a_share_takes_the_connections_that_the_kernel_would(
    replay: Replay, capture: Path, tmp_path: Path, percentage: float
) -> None:
    _, everything = replay(capture, "--dry-run", "--export", tmp_path / "all.jsonl")
    replay(capture, "--dry-run", "--percentage", percentage, "--seed", 5, "--export", tmp_path / "some.jsonl")
    clients = [json.loads(line)["client"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    taken = [json.loads(line)["client"] for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    expected = {c for c in clients if sampling.sampled(sampling.flow_hash(_key(c), 5), percentage * 10_000)}
    assert set(taken) == expected
    assert sorted(taken) == sorted(client for client in clients if client in expected)
    assert everything["account"]["seen"] == REQUESTS


@pytest.mark.parametrize(
    ("criteria", "wanted"),
    [("method:GET", REQUESTS), ("not method:GET", 0), ("cidr:192.0.2.80", 0), ("random", REQUESTS)],
)
def test_criteria_choose_among_the_requests(replay: Replay, capture: Path, criteria: str, wanted: int) -> None:
    _, result = replay(capture, "--dry-run", "--criteria", criteria)
    account = result["account"]
    assert {"dry_run": wanted, "criteria": REQUESTS - wanted} == {"dry_run": 0, "criteria": 0, **account["skipped"]}
    assert closes(account)


def test_a_share_of_requests_takes_some_of_each_connection(replay: Replay, capture: Path) -> None:
    _, result = replay(capture, "--dry-run", "--percentage", 50, "--sample-by", "request")
    account = result["account"]
    assert account["seen"] == REQUESTS and closes(account)
    assert abs(account["skipped"]["unsampled"] - REQUESTS / 2) < 60
    _, again = replay(capture, "--dry-run", "--percentage", 50, "--sample-by", "request")
    assert again["account"] == account


def test_a_share_of_clients_is_one_of_all_their_connections(replay: Replay, capture: Path, tmp_path: Path) -> None:
    replay(capture, "--dry-run", "--export", tmp_path / "all.jsonl")
    rows = [json.loads(line)["client"].rpartition(":")[0] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    taken = sum(sampling.sampled(sampling.client_hash(client, 5), 500_000) for client in rows)
    _, result = replay(capture, "--dry-run", "--percentage", 50, "--sample-by", "client", "--seed", 5)
    assert result["account"]["skipped"].get("dry_run", 0) == taken


def _key(client: str) -> bytes:
    host, _, port = client.rpartition(":")
    address = bytes(map(int, host.split(".")))
    return address + bytes((192, 0, 2, 80)) + int(port).to_bytes(2, "big") + (80).to_bytes(2, "big")


def test_production_is_never_the_shadow(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(capture), "--to", "192.0.2.80:80", "--speed", "max"]) == cli.USAGE_ERROR
    error = capsys.readouterr().err
    assert "192.0.2.80:80 is production" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--dry-run"),
        (["--to", "http://h:1", "--dry-run"], "--dry-run"),
        (["--to", "https://h:1", "--to", "http://h:2"], "all as http"),
        (["--to", "http://h:1/path"], "path"),
        (["--to", "h:0"], "port"),
        (["--dry-run", "--speed", "fast"], "--speed fast"),
        (["--dry-run", "--speed=-1"], "--speed"),
        (["--dry-run", "--ports", "80,http"], "--ports"),
        (["--dry-run", "--percentage", "101"], "--percentage"),
        (["--dry-run", "--export", "/nowhere/x"], "--export"),
        (["--to", "h:1", "--timeout", "0"], "--timeout"),
        (["--to", "h:1", "--max-connections", "0"], "--max-connections"),
        (["--dry-run", "--body-limit=-1"], "--body-limit"),
        (["--dry-run", "--seed=-1"], "--seed"),
        (["--dry-run", "--criteria", "header:"], "--criteria: header needs something"),
        (["--dry-run", "--criteria", "geo:US"], "--geo-database FILE"),
        (["--dry-run", "--criteria", "geo:US", "--geo-database", "/nowhere/x"], "/nowhere/x: No such file"),
        (["--dry-run", "--sample-by", "header"], "--sample-by header: give header:NAME"),
    ],
)
def test_wrong_options_are_one_line(
    capture: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["replay", str(capture), *arguments])
    error = capsys.readouterr().err
    assert status == cli.USAGE_ERROR
    assert says in error
    assert error.count("\n") == 1
