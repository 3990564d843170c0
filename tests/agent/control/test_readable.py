"""Times for people, and numbers that JSON can hold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.readable import readable, rfc3339


@pytest.mark.parametrize(
    ("at_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_767_225_600_123_999_999, "2026-01-01T00:00:00.123Z"),
        (253_402_300_799 * 10**9, "9999-12-31T23:59:59.000Z"),
        (253_402_300_800 * 10**9, None),
        (-1, None),
        (10**400, None),
        (1.5, None),
        (True, None),
        ("now", None),
        (None, None),
    ],
)
def test_a_time(at_ns: Any, text: str | None) -> None:
    assert rfc3339(at_ns) == text


def test_a_time_that_is_there_already_stays() -> None:
    assert readable({"at_ns": 0, "at": "then"}) == {"at_ns": 0, "at": "then"}
    assert readable([{"at_ns": 0}, ({"ended_ns": None},)]) == [
        {"at_ns": 0, "at": "1970-01-01T00:00:00.000Z"},
        [{"ended_ns": None, "ended": None}],
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["at_ns", "at", "x", "since_ns"]), inner),
)


@given(anything)
def test_anything_can_be_sent(value: Any) -> None:
    json.dumps(readable(value), allow_nan=False)
