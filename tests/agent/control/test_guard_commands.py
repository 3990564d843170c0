"""`shadowtap trip` and `reset`."""

from __future__ import annotations

import os

import pytest

from agent.control.guard_commands import guard_line
from agent.control.request import ControlError
from tests.agent.control.command_line import Terminal, parser


def test_a_trip_and_a_reset(terminal: Terminal) -> None:
    assert terminal("trip", "candidate", "--reason", "looks wrong") == (
        "candidate: tripped (manual: looks wrong), off until `shadowtap reset candidate`\n"
    )
    assert terminal("reset", "candidate", "--reason", "fixed") == "candidate: active since 2026-01-01 00:00:00Z\n"
    (trip, reset) = terminal.desk.calls
    assert trip[:3] == ("trip", "candidate", "looks wrong")
    assert reset[:3] == ("reset", "candidate", "fixed")
    assert reset[3].startswith(f"uid {os.getuid()}")


def test_a_reset_of_what_is_not_tripped_is_refused(terminal: Terminal) -> None:
    with pytest.raises(ControlError, match="there is nothing to reset") as caught:
        terminal("reset", "other")
    assert caught.value.status == 409


def test_a_trip_needs_a_reason() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["trip", "candidate"])


def test_a_trip_that_will_end_says_when() -> None:
    guard = {"state": "tripped", "cause": "judge", "reason": "a\x1b[1m", "cooldown_left_s": 420.0, "permanent": False}
    assert guard_line("x", guard) == "x: tripped (judge: a\\x1b[1m), off until a probe in 7 min"
    assert guard_line("x", {}) == "x: ? since -"
