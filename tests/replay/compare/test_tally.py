"""Counting and collecting, against rows counted by hand."""

from __future__ import annotations

import math
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.compare.routes import template
from replay.compare.tally import COLUMNS, DIFFERENT, EQUAL, NOT_COMPARABLE, Kind, _shorter, feed
from replay.schema import SCHEMA
from tests.replay.examples import MS, T0

PLAIN = {
    "shadow": "default",
    "fate": "replayed",
    "method": "GET",
    "target": "/a",
    "status": 200,
    "response_complete": True,
    "answer": "ok",
    "shadow_status": 200,
    "body_equal": True,
    "request_t_last_ns": T0,
    "response_t_first_ns": T0 + 2 * MS,
    "response_t_last_ns": T0 + 4 * MS,
    "shadow_t_sent_ns": T0 + 10 * MS,
    "shadow_t_first_ns": T0 + 13 * MS,
    "shadow_t_last_ns": T0 + 16 * MS,
}


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    columns = [pa.array([(PLAIN | row).get(name) for row in rows], SCHEMA.field(name).type) for name in COLUMNS]
    return pa.RecordBatch.from_arrays(columns, names=COLUMNS)


def body_of(**row: Any) -> str | None:
    (kind,) = feed([batch(row)]).kinds
    return kind.body


def test_rows_of_one_kind_are_counted_together_over_batches() -> None:
    rows = [PLAIN, PLAIN, PLAIN | {"shadow_status": 500, "body_equal": False}]
    tally = feed([batch(*rows), batch(*rows), batch()])
    assert tally.kinds == {
        Kind(1, "replayed", None, "ok", 200, 200, EQUAL): 4,
        Kind(1, "replayed", None, "ok", 200, 500, DIFFERENT): 2,
    }
    assert tally.shadows == {"default": 6}


def test_other_fates_have_no_body_and_no_times() -> None:
    tally = feed(
        [batch({"fate": "skipped", "reason": "method", "answer": None, "shadow_status": None, "target": "/b"})]
    )
    assert tally.kinds == {Kind(1, "skipped", "method", None, 200, None, None): 1}
    assert len(tally.pairs().at_s) == 0


def test_a_row_without_request_belongs_to_no_route() -> None:
    tally = feed([batch(PLAIN, {"method": None, "target": None}, {"target": "/c/1"}, {"target": "/c/2"})])
    assert sorted(kind.route for kind in tally.kinds) == [0, 1, 2]
    assert tally.routes.names == ["other", "GET /a", "GET /c/{id}"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"body_equal": True}, EQUAL),
        ({"body_equal": False}, DIFFERENT),
        ({"body_equal": None}, NOT_COMPARABLE),
        ({"body_equal": False, "content_encoding": "gzip"}, NOT_COMPARABLE),
        ({"body_equal": False, "content_encoding": "gzip", "shadow_content_encoding": "gzip"}, DIFFERENT),
        ({"body_equal": True, "content_encoding": "gzip"}, EQUAL),
        ({"body_equal": True, "response_complete": False}, None),
        ({"body_equal": None, "answer": "reset"}, None),
        ({"response_complete": None, "status": None}, None),
    ],
)
def test_bodies(row: dict[str, Any], expected: str | None) -> None:
    assert body_of(**row) == expected


def pair(**row: Any) -> list[float]:
    found = feed([batch(row)]).pairs()
    return [float(column[0]) for column in found[2:]] if len(found.at_s) else []


def test_times_are_counted_from_the_requests_end_and_from_the_sending() -> None:
    assert pair() == [2.0, 4.0, 3.0, 6.0]


def test_a_timeout_is_later_than_anything() -> None:
    assert pair(answer="timeout", shadow_t_last_ns=None) == [2.0, 4.0, 3.0, math.inf]
    assert pair(answer="timeout", shadow_t_first_ns=None, shadow_t_last_ns=None) == [2.0, 4.0, math.inf, math.inf]


def test_an_incomplete_response_has_a_first_byte_only() -> None:
    first, last, *_ = pair(response_complete=False)
    assert first == 2.0 and math.isnan(last)


def test_an_answer_before_the_requests_end_has_no_latency() -> None:
    first, last, *_ = pair(response_t_first_ns=T0 - 1)
    assert math.isnan(first) and last == 4.0


@pytest.mark.parametrize("row", [{"answer": "connect"}, {"response_t_first_ns": None}, {"shadow_t_sent_ns": None}])
def test_rows_that_are_no_pairs(row: dict[str, Any]) -> None:
    assert pair(**row) == []


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["/", "/", "?", "#", "12", "a", ".", "-", "\n", str(UUID(int=5)), "http://h", "{id}"])),
    st.text(max_size=20),
)
def test_shorter_targets_have_the_same_templates(parts: list[str], tail: str) -> None:
    target = "/" + "".join(parts) + tail
    (short,) = _shorter(pa.array([target])).to_pylist()
    assert template(short) == template(target)


def test_numbers_in_paths_are_gone_before_anything_is_counted() -> None:
    targets = pa.array(["/a/1/2/3/b?c=1", f"/{UUID(int=1)}", "/1.png", "/2024-01-01"])
    assert _shorter(targets).to_pylist() == ["/a/{id}/{id}/{id}/b", "/{id}", "/1.png", "/2024-01-01"]


def test_the_spans_tell_the_speed() -> None:
    rows = [{"request_t_last_ns": T0 + n * 2 * MS, "shadow_t_sent_ns": T0 + n * MS} for n in range(5)]
    tally = feed([batch(*rows[:2]), batch(*rows[2:])])
    assert (tally.span_s, tally.shadow_span_s) == (pytest.approx(0.008), pytest.approx(0.004))


def test_beyond_the_limit_pairs_are_thinned_evenly_and_counts_are_not() -> None:
    rows = [{"request_t_last_ns": T0 + n * MS, "response_t_first_ns": T0 + n * MS + MS} for n in range(1000)]
    tally = feed([batch(*rows[at : at + 70]) for at in range(0, 1000, 70)], pair_limit=100)
    kept = tally.pairs()
    assert sum(tally.kinds.values()) == 1000
    assert tally.every == 16
    assert 50 <= len(kept.at_s) <= 100
    steps = np.diff(kept.at_s) * 1000
    assert steps.min() >= 15.9 and steps.max() < 33
