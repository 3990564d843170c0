"""A whole comparison, worked by hand.

Recorded: 200 requests for /users/N, ten a second, of which the n-th takes 10 + n mod 10 ms in production and 1.3 times
that at the shadow; every tenth gets another body, every fiftieth a 500 instead of a 200. Between them 30 of /slow that
time out, and a few of the other fates.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay.account import Account
from replay.compare import Report, as_json, compare, render
from replay.compare import tally as tally_module
from replay.compare.routes import SHOWN_LIMIT
from replay.compare.tally import DIFFERENT, EQUAL
from replay.errors import RecordingError
from replay.exchange import Answer, Dropped, Exchange, Fate, Incomplete, Outcome, Skipped
from tests.replay.compare.recorded import SECOND, open_recorder, record, timed
from tests.replay.examples import failed_outcome, make_exchange, make_outcome, make_request, make_response


def users() -> list[tuple[Exchange, Outcome]]:
    out = []
    for n in range(200):
        answer: dict[str, Any] = {}
        if n % 10 == 3:
            answer = {"body": b"another"}
        if n % 50 == 7:
            answer = {"status": 500}
        ours = 10.0 + n % 10
        out.append(timed(100 * n, f"/users/{n}?x={n}", ours, 1.3 * ours, **answer))
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    directory = tmp_path_factory.mktemp("recording")
    recorder = open_recorder(directory)
    for exchange, outcome in users():
        recorder.add(exchange, Fate.REPLAYED, "", outcome)
    for n in range(30):
        exchange, _ = timed(600 * n, "/slow")
        recorder.add(exchange, Fate.REPLAYED, "", failed_outcome(Answer.TIMEOUT))
    recorder.add(make_exchange(make_request("/users/1"), make_response()), Fate.DROPPED, Dropped.QUEUE_FULL)
    recorder.add(make_exchange(make_request("/users/1", "POST"), make_response()), Fate.SKIPPED, Skipped.METHOD)
    recorder.add(make_exchange(make_request("/users/1"), None), Fate.INCOMPLETE, Incomplete.GAP)
    recorder.add(make_exchange(None, make_response()), Fate.INCOMPLETE, Incomplete.REQUEST_LOST)
    account = Account(seen=236, replayed=230)  # two more than have rows: one in flight, one row lost
    account.answers.update({"ok": 200, "timeout": 30})
    account.dropped["queue_full"] += 1
    account.skipped["method"] += 1
    account.incomplete.update({"gap": 2, "request_lost": 1})
    recorder.counters.rows_lost = 1
    extra = {"lost": {"ring": 12, "budget": 0}, "capture": {"segments": 5000, "tls": {"seen": 3}}}
    recorder.close(SECOND, account, extra)
    return compare(directory)


def test_the_account_of_the_rows(report: Report) -> None:
    assert report.all.counts.account.as_dict() == {
        "seen": 234,
        "replayed": 230,
        "incomplete": {"gap": 1, "request_lost": 1},
        "skipped": {"method": 1},
        "dropped": {"queue_full": 1},
        "in_flight": 0,
        "answers": {"ok": 200, "timeout": 30},
    }
    assert report.seen.account.seen == 236


def test_the_routes(report: Report) -> None:
    assert [(r.route, r.counts.account.seen) for r in report.routes] == [
        ("GET /users/{id}", 202),
        ("GET /slow", 30),
        ("POST /users/{id}", 1),
        ("other", 1),
    ]


def test_statuses_bodies_and_differences(report: Report) -> None:
    """n = 3, 13, ... are 20 other bodies; n = 7, 57, 107, 157 are four other statuses."""
    route = report.routes[0].counts
    assert route.statuses == {(200, 200): 196, (200, 500): 4}
    assert route.bodies == {EQUAL: 180, DIFFERENT: 20}
    assert (route.compared, route.differing) == (200, 24)
    assert report.all.counts.statuses == {(200, 200): 196, (200, 500): 4, (200, None): 30}
    assert report.all.counts.failed == {"timeout": 30}


def test_the_times_of_a_route(report: Report) -> None:
    """Twenty times each of 10 to 19 ms: the 101st of 200 is 15, the 181st is 19, and for p99 200 are too few."""
    total = report.routes[0].total
    assert total.production == (200, 15.0, 19.0, None)
    assert total.shadow[1:3] == (pytest.approx(19.5), pytest.approx(24.7))
    assert report.routes[0].first_byte.production == (200, 7.5, 9.5, None)


def test_the_ratio_of_a_route(report: Report) -> None:
    """Blocks last as long as 50 pairs take, 5 s, so 20 s are four blocks: too short for an interval."""
    ratio = report.routes[0].total.ratio
    assert (ratio.pairs, ratio.value, ratio.why) == (200, None, "too short: 4 of 10 blocks of 5.0 s")


def test_timeouts_in_all(report: Report) -> None:
    """200 answers and 30 timeouts: position 0.9 * 229 = 206.1 lies among those."""
    assert report.all.total.shadow.p90 == math.inf
    assert report.all.total.production.n == 230


def test_the_words(report: Report) -> None:
    assert report.verdict == (
        "12.0 % of 200 responses differ, among them 200 -> 500: 4; "
        "13.0 % of the replayed requests got no whole answer: timeout 30; "
        "too little data to compare the speed (too short: 5 of 10 blocks of 4.3 s)"
    )
    assert report.cautions == (
        "lost before requests could be counted: ring 12",
        "1.3 % of 234 requests seen could not be used (gap 1, request lost 1, queue full 1): above 1 %, "
        "so the rest may be a biased part",
        "1 requests had no fate yet when the account was last written",
        "1 of 235 requests in the account have no row (rows lost 1)",
        "bodies are compared byte for byte: times and ids in them count as differences",
        "times include 4 errors where production had none: errors may be quick",
    )
    assert report.seen.counters == {"capture.segments": 5000, "capture.tls.seen": 3}


def test_as_json_is_json_and_complete(report: Report) -> None:
    data = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert data["verdict"] == report.verdict
    assert data["account"]["in_flight"] == 1
    assert data["all"]["statuses"][0] == {"production": 200, "shadow": 200, "count": 196}
    assert data["routes"][0]["bodies"] == {"equal": 180, "different": 20, "not_comparable": 0}
    assert data["all"]["total"]["shadow_ms"]["p90"] is None
    assert data["routes"][0]["total"]["ratio"]["why"].startswith("too short")


def test_as_text(report: Report) -> None:
    text = render(report, 140)
    assert "\x1b" not in text
    for words in ("GET /users/{id}", "180 / 20 / 0", "7.50 -> 9.75", "timeout", "too few", "Changed statuses"):
        assert words in text
    assert f"Verdict: {report.verdict[:60]}" in text
    assert all(len(line) <= 140 for line in text.splitlines())
    assert "seen               234" in text
    assert "in flight          1" in text
    render(report, 40)


def fast(n: int, factor: float, rng: np.random.Generator) -> list[tuple[Exchange, Outcome]]:
    out = []
    for at in range(n):
        ours, noise = 10 * np.exp(rng.normal(0, 0.5)), np.exp(rng.normal(0, 0.2))
        out.append(timed(at * 5, "/", float(ours), float(ours * noise * factor)))
    return out


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.3, "shadow is slower: 1.3"), (0.7, "shadow is faster: 0.7"), (1.0, "no clear difference in speed: 1.0")],
)
def test_the_verdict_on_speed(tmp_path: Path, factor: float, words: str) -> None:
    record(tmp_path, fast(4000, factor, np.random.default_rng(1)))
    report = compare(tmp_path)
    ratio = report.all.total.ratio
    assert report.verdict.startswith(words)
    assert report.verdict.endswith("; 0 % of 4000 responses differ")
    assert ratio.low is not None and ratio.high is not None
    assert ratio.low < factor < ratio.high
    assert report.cautions == ()
    assert compare(tmp_path) == report


def test_nothing_replayed(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path)
    recorder.flush(SECOND, Account())
    report = compare(tmp_path)
    assert report.verdict == "nothing was replayed, so there is nothing to compare"
    assert "1 of 1 workers have not ended in order" in report.cautions[0]
    assert "Verdict: nothing" in render(report)
    as_json(report)
    recorder.close(SECOND, Account())


def test_several_workers_are_one_recording(tmp_path: Path) -> None:
    record(tmp_path, users()[:100], worker=0)
    record(tmp_path, users()[100:], worker=1)
    report = compare(tmp_path)
    assert (report.seen.workers, report.seen.rows, report.seen.account.seen) == (2, 200, 200)
    assert report.routes[0].total.production.p50 == 15.0
    assert not [words for words in report.cautions if "no row" in words]


def test_what_the_kernel_lost_is_counted_once_a_run(tmp_path: Path) -> None:
    """Its counters go on when a worker starts again, and only worker 0 is told them."""
    for run, worker, lost in (("a", 0, 100), ("a", 0, 200), ("a", 1, None), ("b", 0, 30)):
        told = {} if lost is None else {"ring_full": lost, "cut": {"deep": 1}}
        extra = {"lost": told, "capture": {"segments": lost or 0}, "workers": 1}
        open_recorder(tmp_path, worker, run=run).close(SECOND, Account(), extra)
    seen = compare(tmp_path).seen
    assert seen.lost == {"ring_full": 230, "cut.deep": 2}
    assert seen.counters == {"capture.segments": 230, "workers": 4}
    assert seen.runs == ("a", "b")


def test_several_shadows_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path, users()[:5], shadow="a")
    record(tmp_path, users()[:5], shadow="b")
    with pytest.raises(RecordingError, match=r"several shadows \(a, b\)"):
        compare(tmp_path)


def test_many_routes_end_in_other(tmp_path: Path) -> None:
    pairs = [timed(n, "/" + "x" * (n % 100 + 1)) for n in range(500)]
    record(tmp_path, pairs + [timed(n, "/often") for n in range(20)])
    report = compare(tmp_path)
    assert len(report.routes) == SHOWN_LIMIT + 1
    assert (report.routes[0].route, report.routes[-1].route) == ("GET /often", "other")
    assert sum(r.counts.account.seen for r in report.routes) == 520
    assert sum(r.total.production.n for r in report.routes) == 520


def test_a_sped_up_replay_is_told(tmp_path: Path) -> None:
    pairs = []
    for n in range(100):
        exchange, _ = timed(100 * n)
        sent = 1_750_000_100_000_000_000 + n * 10_000_000
        pairs.append((exchange, make_outcome(sent_ns=sent, first_ns=sent + 1, last_ns=sent + 2)))
    record(tmp_path, pairs)
    report = compare(tmp_path)
    assert report.seen.speed == pytest.approx(10)
    assert "10.0 times faster than they were captured" in report.cautions[-1]


def test_thinned_pairs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, users())
    monkeypatch.setattr(tally_module.feed, "__defaults__", (100,))
    report = compare(tmp_path)
    assert report.seen.every == 2
    assert report.all.counts.account.seen == 200
    assert "times are from one pair in 2; counts are complete" in report.cautions
