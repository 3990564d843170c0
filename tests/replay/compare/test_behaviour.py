"""Whole comparisons of broken candidates: each is named by its report, in text, in JSON and in the verdict.

The broken thing is one of many in each case: half of the requests, or all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay.account import Account
from replay.compare import Report, as_json, compare, render
from replay.compare.behaviour import COLUMNS, BehaviourTally
from replay.compare.read import open_recording
from replay.exchange import Answer, Dropped, Exchange, Fate, Outcome
from replay.schema import SCHEMA, VERSION_KEY
from tests.replay.compare.recorded import SECOND, open_recorder, record, rows, timed
from tests.replay.examples import MS, T0, failed_outcome, make_exchange, make_request, make_response

FRONT = "127.0.0.1:39123"
WEB = ("10.0.0.1:8080", "10.0.0.2:8080")
MODERN = "TLSv1.3 TLS_AES_256_GCM_SHA384"
EXPIRED = "certificate verify failed: certificate has expired"
MISMATCH = "certificate verify failed: Hostname mismatch, certificate is not valid for 'shop.example'."
V2_COLUMNS = ("shadow_queue_ns", "shadow_connect_ns", "shadow_tls", "shadow_tls_not_after_s")

Pair = tuple[Exchange, Outcome]
Break = Callable[[Exchange, Outcome], Outcome]


def passed_on(exchange: Exchange, outcome: Outcome) -> Outcome:
    """As HAProxy tells it."""
    upstream = WEB[outcome.t_sent_ns // (50 * MS) % 2]
    return outcome._replace(upstream=upstream, queue_ns=0, connect_ns=MS)


def own(status: int, queue_ns: int = -1, connect_ns: int = -1) -> Break:
    """An answer of HAProxy itself."""
    return lambda _, outcome: outcome._replace(
        upstream=FRONT, status=status, queue_ns=queue_ns, connect_ns=connect_ns, body=b"no", body_bytes=2
    )


def failed(answer: Answer, detail: str) -> Break:
    return lambda _, outcome: failed_outcome(answer, outcome.t_sent_ns)._replace(upstream=FRONT, detail=detail)


def secured(days_left: int) -> Break:
    end_s = T0 // 1_000_000_000 + 60 + days_left * 86_400
    return lambda _, outcome: passed_on(_, outcome)._replace(tls=MODERN, tls_not_after_s=end_s)


def candidate(directory: Path, broken: Break, every: int, target: str = "/api/items/3", **extra: Any) -> Report:
    """1200 requests in a minute; of each `every` the first goes wrong."""
    writer = open_recorder(directory)
    account = Account()
    for n in range(1200):
        wrong = n % every == 0
        exchange, outcome = timed(50 * n, target if wrong else "/")
        writer.add(exchange, Fate.REPLAYED, "", (broken if wrong else passed_on)(exchange, outcome))
        account.seen += 1
        account.replayed += 1
    writer.close(SECOND, account, extra)
    return compare(directory)


def text_of(report: Report, width: int = 140) -> str:
    """On one line, as words fall."""
    return " ".join(render(report, width).split())


@pytest.mark.parametrize("reason", [EXPIRED, MISMATCH])
@pytest.mark.parametrize("every", [1, 2])
def test_a_wrong_certificate(tmp_path: Path, reason: str, every: int) -> None:
    report = candidate(tmp_path, failed(Answer.TLS, reason), every)
    count = 1200 // every
    share = 100 // every
    words = (
        f"{share}{'' if every == 1 else '.0'} % of the replayed requests got no whole answer: tls {count} ({reason})"
    )
    assert words in report.verdict
    assert report.verdict.endswith("too few pairs (0 of 100))") is (every == 1)
    assert f"failed: {reason}: {count}" in text_of(report)
    assert as_json(report)["tls"]["failures"] == {reason: count}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_reason_can_be_read_at_any_width(tmp_path: Path, width: int) -> None:
    assert EXPIRED in text_of(candidate(tmp_path, failed(Answer.TLS, EXPIRED), 2), width)


def test_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    report = candidate(tmp_path, secured(8), 2)
    (warning,) = report.cautions
    assert warning.startswith("the shadow's certificate for shop.example ends 2025-06-23 15:07:40 UTC, 8 days left")
    assert "WARNING: certificate ends 2025-06-23 15:07:40 UTC, 8 days left at the last request" in text_of(report)
    assert f"{MODERN}: 600 requests" in text_of(report)


def test_a_certificate_that_lasts(tmp_path: Path) -> None:
    report = candidate(tmp_path, secured(63), 1)
    assert report.cautions == ()
    assert "certificate ends 2025-08-17 15:07:40 UTC, 63 days left at the last request (shop.example" in text_of(report)
    assert "WARNING" not in text_of(report)


def test_all_health_checks_failing_for_a_part(tmp_path: Path) -> None:
    """One backend of several: the recording shows by itself that a program balances."""
    report = candidate(tmp_path, own(503), 2)
    assert report.verdict.startswith(
        "50.0 % of 1200 responses differ, among them 200 -> 503: 600 by the balancer itself; "
        "the balancer itself answered 503 to 600 requests (no upstream named, as when all health checks fail); "
    )
    assert "times include 600 errors where production had none: errors may be quick" in report.cautions
    assert f"{FRONT} (the balancer itself) 600 50.0 % 0 600" in text_of(report)
    assert "200 -> 503 600 50.0 % the balancer itself GET /api/items/3" in text_of(report)


def test_all_health_checks_failing_for_all(tmp_path: Path) -> None:
    """Nothing was passed on, so only who ran the program knows whose address that is."""
    known = candidate(tmp_path / "a", own(503), 1, balancer={"program": "haproxy", "addresses": [FRONT]})
    assert "answered 503 to 1200 requests (no upstream named, as when all health checks fail)" in known.verdict
    unknown = candidate(tmp_path / "b", own(503), 1)
    assert "200 -> 503: 1200;" in unknown.verdict
    assert f"{FRONT} is an address of this host: if a balancer program listens there" in unknown.cautions[-1]
    embedded = candidate(tmp_path / "c", own(503), 1, balancer={"program": "", "addresses": []})
    assert not any(FRONT in caution for caution in embedded.cautions)


def test_an_upstream_that_does_not_answer(tmp_path: Path) -> None:
    report = candidate(tmp_path, own(504, 0, MS), 10)
    assert "the balancer itself answered 504 to 120 requests (no whole answer from an upstream)" in report.verdict
    report = candidate(tmp_path / "refused", own(503, 0), 10)
    assert "the balancer itself answered 503 to 120 requests (no connection to an upstream)" in report.verdict


@pytest.mark.parametrize("status", [403, 404])
def test_a_wrong_acl(tmp_path: Path, status: int) -> None:
    """Denied by the balancer itself; the other half of the requests is not touched."""
    report = candidate(tmp_path, own(status), 4, target="/admin/users?token=secret")
    assert f"200 -> {status}: 300 by the balancer itself" in report.verdict
    assert f"200 -> {status} 300 25.0 % the balancer itself GET /admin/users?..." in text_of(report)
    (change,) = as_json(report)["changes"]
    assert (change["production"], change["shadow"], change["requests"], change["worse"]) == (200, status, 300, True)
    assert "secret" not in render(report) + json.dumps(as_json(report))


def test_a_wrong_acl_that_sends_to_the_wrong_backend(tmp_path: Path) -> None:
    report = candidate(tmp_path, lambda _, outcome: outcome._replace(upstream="10.0.0.9:80", status=404), 4, "/admin/1")
    assert "among them 200 -> 404: 300;" in report.verdict
    assert "200 -> 404 300 25.0 % 10.0.0.9:80 GET /admin/1" in text_of(report)


def test_several_reasons_of_one_kind(tmp_path: Path) -> None:
    details = iter([*["refused"] * 60, *["no route to host"] * 40, *["network is down"] * 20])
    report = candidate(tmp_path, lambda e, o: failed(Answer.CONNECT, next(details))(e, o), 10)
    assert "connect 120 (refused 60, no route to host 40 and 1 more)" in report.verdict


def test_nothing_wrong_is_no_reason_to_say_more(tmp_path: Path) -> None:
    report = candidate(tmp_path, passed_on, 1)
    assert report.verdict == "no clear difference in speed: 1.00x [1.00, 1.00]; 0 % of 1200 responses differ"
    text = text_of(report)
    assert "Upstreams of the shadow" in text
    for title in ("Failures and changed", "answered itself", "TLS to the shadow", "the balancer itself"):
        assert title not in text


def test_dropped_requests_are_named_when_nothing_was_replayed(tmp_path: Path) -> None:
    """All health checks failing, and the panic threshold at 0: the embedded engine has no upstream to give."""
    writer = open_recorder(tmp_path)
    for _ in range(3):
        writer.add(make_exchange(make_request(), make_response()), Fate.DROPPED, Dropped.NO_UPSTREAM)
    writer.close(SECOND, Account())
    words = "nothing was replayed, so there is nothing to compare (dropped: no upstream 3)"
    assert compare(tmp_path).verdict == words


def test_json_is_json_and_complete(tmp_path: Path) -> None:
    data = json.loads(json.dumps(as_json(candidate(tmp_path, own(503), 2)), allow_nan=False))
    upstreams = data["balancing"]["upstreams"]
    assert {each["upstream"]: each["balancer_itself"] for each in upstreams} == {WEB[1]: False, FRONT: True}
    assert data["balancing"]["own_answers"] == [
        {"status": 503, "stage": "no upstream", "requests": 600, "worse": 600},
    ]
    assert data["tls"] == {"agreed": {}, "first_certificate_to_end": None, "failures": {}}
    assert (data["failures"], data["other_changes"]) == ([], 0)


def test_a_recording_of_the_first_schema_is_compared(tmp_path: Path) -> None:
    """It has no times of a balancer and no TLS; upstreams and failures it has."""
    pairs = [timed(50 * n, status=500 if n % 10 == 0 else 200) for n in range(100)]
    pairs += [(timed(0)[0], failed_outcome(Answer.CONNECT)._replace(detail="connection refused"))]
    record(tmp_path / "new", pairs)
    (batch,) = open_recording(tmp_path / "new").batches(SCHEMA.names)
    old = pa.schema([field for field in SCHEMA if field.name not in V2_COLUMNS], metadata={VERSION_KEY: b"1"})
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_batches([batch]).select(old.names).cast(old), tmp_path / "old" / "a.parquet")
    report = compare(tmp_path / "old")
    (upstream,) = report.behaviour.balancing.upstreams
    assert (upstream.name, upstream.requests, upstream.server_errors) == ("10.0.0.1:8080", 101, 10)
    assert report.behaviour.failures.of("connect") == {"connection refused": 1}
    assert not report.behaviour.tls
    assert report.verdict == compare(tmp_path / "new").verdict
    render(report)


def test_only_replayed_rows_are_looked_at() -> None:
    tally = BehaviourTally()
    replayed = {"fate": "replayed", "answer": "ok", "upstream": "a", "status": 200, "shadow_status": 200}
    batches = [rows(COLUMNS, replayed, replayed | {"fate": "skipped"}, {}), rows(COLUMNS), rows(COLUMNS, {})]
    assert list(tally.watch(batches)) == batches
    assert [(each.name, each.requests) for each in tally.report().balancing.upstreams] == [("a", 1)]


def test_nothing_at_all() -> None:
    behaviour = BehaviourTally().report()
    assert behaviour.balancing.upstreams == () and behaviour.failures.failures == () and not behaviour.tls
