"""Loads: what the programs print is read right, and the counts they promise are what production counted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vagrant.lab import Lab, LabError, Load
from vagrant.lab.load import h2load_argv, parse_h2load, parse_visits, parse_wrk, percentiles

WRK = """Running 3s test @ http://10.77.1.1
  1 threads and 20 connections
  3003 requests in 3.01s, 22.41MB read

RESULT {"requests": 3003, "seconds": 3.006, "failed": 2, "bad_statuses": 85, "p50_us": 343, "p90_us": 597, \
"p99_us": 970, "max_us": 4282}
"""
H2LOAD = """starting benchmark...
finished in {time}, 999.58 req/s, 2.13MB/s
requests: 10 total, 9 started, 8 done, 5 succeeded, 4 failed, 1 errored, 1 timeout
status codes: 5 2xx, 0 3xx, 1 4xx, 2 5xx
"""
ROWS = ((200, 30), (404, 10), (-1, 9), (200, 20))
LOG = "".join(f"1795446685974102\t{status}\t{micros}\n" for status, micros in ROWS)


def test_wrk_tells_only_good_and_bad_statuses() -> None:
    load = parse_wrk(WRK)
    assert load == Load(3003, 2, 3.006, {"below 400": 2918, "400 and above": 85}, 343, 597, 970, 4282)
    assert load.per_second == pytest.approx(999.0, abs=0.1)


def test_wrk_without_a_result_tells_its_last_words() -> None:
    with pytest.raises(LabError, match="unable to connect"):
        parse_wrk("unable to connect to 10.77.1.1:80 Connection refused\n")


@pytest.mark.parametrize(("text", "seconds"), [("500us", 0.0005), ("259.78ms", 0.25978), ("2s", 2.0), ("1.5m", 90.0)])
def test_h2load_times_in_every_unit(text: str, seconds: float) -> None:
    assert parse_h2load(H2LOAD.format(time=text), LOG).seconds == pytest.approx(seconds)


def test_h2load_counts_what_was_answered() -> None:
    load = parse_h2load(H2LOAD.format(time="1s"), LOG)
    assert (load.requests, load.failed) == (8, 2)
    assert load.statuses == {"2xx": 5, "4xx": 1, "5xx": 2}
    assert (load.p50_us, load.max_us) == (20, 30)


def test_h2load_without_a_result_is_told() -> None:
    with pytest.raises(LabError, match="no output"):
        parse_h2load("", "")


def test_connections_of_a_rate_begin_one_after_the_other() -> None:
    argv = h2load_argv(Path("urls"), Path("log"), 1000, 50, 1000.0)
    assert "--rps=20.000000" in argv
    assert argv[argv.index("-r") + 1] == "1"
    assert "--rate-period=1ms" in argv
    assert "-r" not in h2load_argv(Path("urls"), Path("log"), 1000, 50, None)


def test_visits_are_read() -> None:
    line = '{"requests": 2, "failed": 1, "seconds": 0.5, "statuses": {"2xx": 2}, "times_us": [9, 3]}'
    assert parse_visits(line) == Load(2, 1, 0.5, {"2xx": 2}, 3, 9, 9, 9)


def test_percentiles_are_values_that_occur() -> None:
    assert percentiles(list(range(1, 101))) == (50, 90, 99, 100)
    assert percentiles([5]) == (5, 5, 5, 5)
    assert percentiles([]) == (0, 0, 0, 0)


@pytest.mark.root
def test_requests_are_exact(lab: Lab) -> None:
    before = lab.production_requests()
    load = lab.requests(777, connections=7, targets=["/", "/api/items/5", "/no"])
    assert (load.requests, load.failed) == (777, 0)
    assert load.statuses == {"2xx": 518, "4xx": 259}
    assert lab.production_requests() - before == 777


@pytest.mark.root
def test_a_rate_is_kept(lab: Lab) -> None:
    before = lab.production_requests()
    load = lab.rate(400, 1.0, connections=20)
    assert (load.requests, load.failed) == (400, 0)
    assert lab.production_requests() - before == 400
    assert load.seconds > 0.7


@pytest.mark.root
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_visits_are_exact(lab: Lab, method: str) -> None:
    before = lab.production_requests()
    load = lab.visits(50, 3, concurrency=5, method=method, target="/news")
    assert (load.requests, load.failed, load.statuses) == (150, 0, {"2xx": 150})
    assert lab.production_requests() - before == 150


@pytest.mark.root
def test_saturation_is_counted_alike_on_both_sides(lab: Lab) -> None:
    before = lab.production_requests()
    load = lab.saturate(1, connections=8)
    assert load.failed == 0
    assert load.statuses == {"below 400": load.requests}
    uncounted = lab.production_requests() - before - load.requests
    # wrk's first connection asks nothing, and HAProxy counts the 400; the others were in flight at the end.
    assert 1 <= uncounted <= 1 + 8


@pytest.mark.root
def test_the_mixture_has_every_status(lab: Lab) -> None:
    before = lab.production_statuses()
    load = lab.mix(1, connections=20, rate=500)
    assert load.failed == 0
    after = lab.production_statuses()
    assert all(after[name] > before.get(name, 0) for name in ("2xx", "3xx", "4xx"))


@pytest.mark.root
def test_a_load_runs_beside_the_block(lab: Lab) -> None:
    with lab.background(lab.rate, 200, 0.5, connections=5) as load:
        assert not load.done()
        assert lab.get("/").status == 200
    assert load.result().requests == 100


@pytest.mark.root
def test_an_exception_ends_the_load_beside_it(lab: Lab) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError), lab.background(lab.saturate, 30):
        raise RuntimeError
    assert time.monotonic() - started < 20


@pytest.mark.root
def test_a_load_that_production_does_not_answer_has_failed() -> None:
    with Lab() as lab:
        lab._servers.stop("haproxy")
        assert lab.visits(4, 2).failed == 8
        with pytest.raises(LabError):
            lab.saturate(1)
