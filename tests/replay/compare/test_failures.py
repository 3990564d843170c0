"""Groups of failures and of changed statuses."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.compare.failures import (
    COLUMNS,
    EXAMPLE_LIMIT_CHARS,
    GROUP_LIMIT,
    REASON_LIMIT_CHARS,
    Change,
    Failure,
    Failures,
    FailureTally,
    as_dict,
    by_whom,
)
from replay.compare.names import Names
from replay.exchange import Answer
from tests.replay.compare.recorded import rows

PLAIN = {"upstream": "a:1", "answer": "ok", "status": 200, "shadow_status": 200, "method": "GET", "target": "/"}
FAILED = PLAIN | {"answer": "connect", "shadow_status": None, "detail": "connection refused"}

Row = dict[str, Any]


def failures(*given: Row, size: int = 100_000) -> Failures:
    names = Names(100)
    tally = FailureTally(names)
    for at in range(0, len(given), size):
        batch = rows(["upstream", *COLUMNS], *given[at : at + size])
        tally.add(batch.select(COLUMNS), names.codes(batch.column("upstream")))
    return tally.report()


def reason(detail: str | None, answer: str = "reset") -> str:
    (failure,) = failures(FAILED | {"answer": answer, "detail": detail}).failures
    return failure.reason


def test_failures_are_grouped_by_answer_and_reason() -> None:
    given = [FAILED, FAILED | {"upstream": "b:1", "target": "/b"}, FAILED | {"upstream": "b:1"}, PLAIN]
    tls = FAILED | {"answer": "tls", "detail": "certificate verify failed: certificate has expired", "target": "/t?k=1"}
    got = failures(*given, tls)
    assert got.failures == (
        Failure("connect", "connection refused", 3, {"b:1": 2, "a:1": 1}, "GET /"),
        Failure("tls", "certificate verify failed: certificate has expired", 1, {"a:1": 1}, "GET /t?..."),
    )
    assert got.of("tls") == {"certificate verify failed: certificate has expired": 1}
    assert got.changes == ()


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("closed by the upstream after 4711 bytes of content", "closed by the upstream after N bytes of content"),
        ("1 2 3", "N N N"),
        ("certificate is not valid for '192.0.2.1'.", "certificate is not valid for '192.0.2.1'."),
        ("not an HTTP/1.x response", "not an HTTP/1.x response"),
        ("reset", ""),  # no more than the answer says
        (None, ""),
        ("\x1b[31mred", "?[31mred"),
    ],
)
def test_reasons(detail: str | None, expected: str) -> None:
    assert reason(detail) == expected


def test_long_reasons_are_cut_between_words() -> None:
    got = reason("word " * 60)
    assert got.endswith("word ...") and len(got) <= REASON_LIMIT_CHARS + 4
    assert reason("x" * 500) == "x" * REASON_LIMIT_CHARS + " ..."


def test_changed_statuses_with_an_example_and_who_answered() -> None:
    denied = PLAIN | {"shadow_status": 403, "target": "/admin/7?token=secret", "upstream": "b:1"}
    got = failures(PLAIN, denied, denied | {"target": "/later"}, PLAIN | {"status": 500}, PLAIN | {"status": None})
    assert got.changes == (
        Change(200, 403, 2, {"b:1": 2}, "GET /admin/7?..."),
        Change(500, 200, 1, {"a:1": 1}, "GET /"),
    )
    assert [each.worse for each in got.changes] == [True, False]


@pytest.mark.parametrize(
    ("ours", "theirs", "worse"),
    [(200, 404, True), (302, 503, True), (404, 500, True), (404, 403, False), (500, 503, False), (200, 301, False)],
)
def test_what_is_worse(ours: int, theirs: int, worse: bool) -> None:
    assert Change(ours, theirs, 1, {}, "").worse is worse


def test_examples_are_short_and_harmless() -> None:
    change = PLAIN | {"shadow_status": 500}
    assert failures(change | {"target": None, "method": None}).changes[0].example == ""
    assert failures(change | {"target": "/\x1b[2J"}).changes[0].example == "GET /?[2J"
    assert len(failures(change | {"target": "/" + "x" * 2000}).changes[0].example) == EXAMPLE_LIMIT_CHARS + 3


def test_what_does_not_fit_is_counted_together() -> None:
    """Reasons may name what strangers send; other kinds of failures are still told apart then."""
    strange = [FAILED | {"answer": "tls", "detail": f"'x{n}' is not a server name"} for n in range(GROUP_LIMIT + 50)]
    got = failures(*strange, FAILED)
    assert len(got.failures) == GROUP_LIMIT + 2
    assert got.failures[0].requests == 50 and (got.failures[0].answer, got.failures[0].reason) == ("tls", "other")
    assert got.of("connect") == {"other": 1}
    changes = [PLAIN | {"status": 100 + n % 500, "shadow_status": 700 + n // 500} for n in range(GROUP_LIMIT + 7)]
    assert failures(*changes).other_changes == 7


@pytest.mark.parametrize(
    ("upstreams", "expected"),
    [
        ({"a:1": 3}, "a:1"),
        ({"own": 3, "a:1": 2}, "the balancer itself, a:1"),
        ({"own": 3, "own2": 2}, "the balancer itself"),
        ({"a:1": 3, "b:1": 2, "c:1": 1, "d:1": 1}, "a:1, b:1 and 2 more"),
    ],
)
def test_by_whom(upstreams: dict[str, int], expected: str) -> None:
    assert by_whom(upstreams, {"own", "own2"}) == expected


def test_as_json() -> None:
    data = json.loads(json.dumps(as_dict(failures(FAILED, PLAIN | {"shadow_status": 404}))))
    assert data == {
        "failures": [
            {
                "answer": "connect",
                "reason": "connection refused",
                "requests": 1,
                "upstreams": {"a:1": 1},
                "example": "GET /",
            }
        ],
        "changes": [
            {
                "production": 200,
                "shadow": 404,
                "worse": True,
                "requests": 1,
                "upstreams": {"a:1": 1},
                "example": "GET /",
            }
        ],
        "other_changes": 0,
    }


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "upstream": st.sampled_from(["a:1", "b:1", None]),
            "answer": st.sampled_from([*map(str, Answer), "ok", "ok"]),
            "detail": st.none()
            | st.sampled_from(["refused", "after 12 bytes", "after 7 bytes"])
            | st.text(max_size=300),
            "status": st.sampled_from([None, 200, 404, 500]),
            "shadow_status": st.sampled_from([None, 200, 404, 500]),
            "method": st.sampled_from(["GET", None]),
            "target": st.none() | st.text(max_size=200),
        }
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 30))
def test_any_rows_are_all_counted_in_any_batches(given_rows: list[Row], size: int) -> None:
    got = failures(*given_rows, size=size)
    assert got == failures(*given_rows)
    assert sum(each.requests for each in got.failures) == sum(row["answer"] != "ok" for row in given_rows)
    for each in got.failures:
        assert each.reason.isprintable() and len(each.reason) <= REASON_LIMIT_CHARS + 4
    changed = Counter(
        (row["status"], row["shadow_status"])
        for row in given_rows
        if row["answer"] == "ok" and None not in (row["status"], row["shadow_status"])
        if row["status"] != row["shadow_status"]
    )
    assert {(each.production, each.shadow): each.requests for each in got.changes} == changed
    for group in (*got.failures, *got.changes):
        assert sum(group.upstreams.values()) == group.requests
        assert group.example.isprintable() and len(group.example) <= EXAMPLE_LIMIT_CHARS + 3
