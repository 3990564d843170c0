"""Numbers for people, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control import wording
from agent.control.wording import (
    duration,
    floor,
    memory,
    milliseconds,
    odds,
    per_request,
    percent,
    rate,
    when,
)
from replay.judge.plan import Kind
from replay.judge.verdict import amount


@pytest.mark.parametrize(
    ("word", "value", "text"),
    [
        (milliseconds, 0, "0 ms"),
        (milliseconds, 5_123_456, "5.12 ms"),
        (milliseconds, 999_000_000, "999 ms"),
        (milliseconds, 1_234_567_890, "1.235 s"),
        (per_request, 0.00081, "0.81 ms"),
        (percent, 0, "0 %"),
        (percent, 0.00123, "0.12 %"),
        (percent, 0.25, "25.0 %"),
        (memory, 212 << 20, "212 MiB"),
        (memory, 3 << 30, "3.00 GiB"),
        (rate, 3.14159, "3.1"),
        (rate, 1234.5, "1234"),
        (duration, 0, "0 s"),
        (duration, 1.234, "1.23 s"),
        (duration, 59.4, "59 s"),
        (duration, 60, "1 min"),
        (duration, 185, "3 min 5 s"),
        (duration, 3600, "1 h"),
        (duration, 7530, "2 h 5 min"),
        (duration, 90_000, "1 d 1 h"),
        (duration, -3, "0 s"),
        (when, 1_767_225_600_123_000_000, "2026-01-01 00:00:00Z"),
        (odds, 3.0, "20.1 to 1"),
        (odds, 100.0, "more than 1e8 to 1"),
    ],
)
def test_a_number(word: Callable[[Any], str], value: Any, text: str) -> None:
    assert word(value) == text


WORDS = [getattr(wording, name) for name in ("milliseconds", "per_request", "percent", "memory", "rate", "duration",
                                            "when", "odds")]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("value", [None, "5", True, float("nan"), float("inf"), [], {}])
def test_what_is_no_number(word: Callable[[Any], str], value: Any) -> None:
    assert word(value) == "-"


@pytest.mark.parametrize("word", WORDS)
@given(value=st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_any_number_has_a_text(word: Callable[[Any], str], value: float) -> None:
    assert word(value)


@given(st.sampled_from(Kind), st.floats(-10, 100))
def test_floors_are_worded_as_the_judge_words_them(kind: Kind, value: float) -> None:
    assert floor(kind.value, value) == amount(kind, value)


def test_a_floor_that_is_none() -> None:
    assert floor("ratio", None) == floor(None, "x") == "-"
    assert floor("ratio", 1e300) == floor("ratio", 700.0)
