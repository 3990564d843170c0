"""What queries and bodies say: anything at all is read or refused in one line; test_api.py has the cases."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.control.body import (
    NUMBER_MAX,
    before_of,
    limit_of,
    only_reason,
    ramp_action,
    ramp_spec,
    reason_of,
    rollback_spec,
    version_number,
)
from agent.control.request import Call, ControlError

KEYS = st.sampled_from(["reason", "version", "steps", "inconclusive", "action", "percentage", "hold_s", "x"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(body=st.none() | st.dictionaries(KEYS, anything, max_size=3), limit=st.text(), before=st.text())
def test_anything_is_read_or_refused_in_a_line(body: dict[str, Any] | None, limit: str, before: str) -> None:
    call = Call("POST", "/", body, "uid 0", {"limit": limit, "before": before})
    for read in (only_reason, rollback_spec, ramp_spec, ramp_action, limit_of, before_of):
        try:
            read(call)
        except ControlError as error:
            assert error.status == 400
            assert "\n" not in str(error)


@given(st.text(max_size=500))
def test_any_reason_becomes_a_printable_line(text: str) -> None:
    reason = reason_of({"reason": text})
    assert reason.isprintable()
    assert reason == " ".join(reason.split())
    assert bool(reason) == bool(text.strip(" \t\n\r"))


@given(st.integers(-5, 2**60))
def test_a_number_in_a_path(number: int) -> None:
    assert version_number(str(number)) == (number if 1 <= number <= NUMBER_MAX else None)
