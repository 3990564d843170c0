"""`shadowtap ramp`: steps as typed, what is sent for them, and the ramp as it is shown."""

from __future__ import annotations

from typing import Any

import pytest

from agent.control.command import CommandError
from agent.control.ramp_commands import lines, parse_steps
from agent.control.request import ControlError
from tests.agent.control.command_line import Terminal, parser


def step(percentage: float, hold_s: float) -> dict[str, float]:
    return {"percentage": percentage, "hold_s": hold_s}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1%:5m,5%:5m,25%:10m,100%:10m", [step(1, 300), step(5, 300), step(25, 600), step(100, 600)]),
        ("0.5:90", [step(0.5, 90)]),
        (" 1 % : 1.5 h , 2%:1d", [step(1, 5400), step(2, 86_400)]),
        ("1%:5min,2%:30s", [step(1, 300), step(2, 30)]),
    ],
)
def test_steps(text: str, steps: list[dict[str, float]]) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "is no step: give PERCENTAGE:TIME,..., like 1%:5m,5%:5m")
          for text in ("", "5%", "5%:", ":5m", "5%:5w", "-5%:5m", "5%:5m,", "5%%:5m", "\u0665%:5m", "1e1%:5m")),
        ("0%:5m", "0%:5m: give a percentage above 0, up to 100"),
        ("101%:5m", "give a percentage above 0"),
        ("1%:0.5s", "give a time from 1s to 30d"),
        ("1%:31d", "give a time from 1s to 30d"),
        ("9" * 400 + "%:5m", "give a percentage"),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_meant(text: str, says: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_steps(text)
    assert says in str(caught.value)


def test_a_ramp_from_start_to_end(terminal: Terminal) -> None:
    assert terminal("ramp", "candidate") == (
        "candidate: no ramp; start one like `shadowtap ramp candidate --steps 1%:5m,5%:5m,25%:10m,100%:10m`\n"
    )
    assert terminal("ramp", "candidate", "--steps", "1%:5m,100%:1h", "--inconclusive", "3").splitlines() == [
        "candidate: ramp running, without a verdict on after 3 further hold times",
        "  now        1 %  for 5 min, held 0 s",
        "           100 %  for 1 h",
    ]
    assert terminal("ramp", "candidate", "--pause").startswith("candidate: ramp paused")
    assert terminal("ramp", "candidate", "--resume").startswith("candidate: ramp running")
    assert terminal("ramp", "candidate", "--abort").splitlines()[1] == "  ended      1 %  for 5 min"
    assert [call[0] for call in terminal.desk.calls] == ["start_ramp"] + ["steer_ramp"] * 3
    assert terminal.desk.calls[0][2] == {"steps": [step(1, 300), step(100, 3600)], "inconclusive": 3}


def test_what_the_agent_refuses(terminal: Terminal) -> None:
    with pytest.raises(ControlError, match="shadow other has no ramp"):
        terminal("ramp", "other", "--pause")
    with pytest.raises(ControlError, match="inconclusive: give a whole number"):
        terminal("ramp", "other", "--steps", "1%:5m", "--inconclusive", "-1")


def test_options_that_do_not_go_together(terminal: Terminal) -> None:
    with pytest.raises(CommandError, match="--inconclusive is for a ramp that starts"):
        terminal("ramp", "candidate", "--inconclusive", "1")
    for options in (["--pause", "--resume"], ["--steps", "1%:5m", "--abort"], ["--inconclusive", "x"]):
        with pytest.raises(SystemExit):
            parser().parse_args(["ramp", *options])


@pytest.mark.parametrize(
    ("state", "marks"),
    [("running", ["done", "now", ""]), ("paused", ["done", "now", ""]), ("failed", ["done", "ended", ""]),
     ("done", ["done", "done", "done"])],
)  # fmt: skip
def test_each_step_says_how_far_it_is(state: str, marks: list[str]) -> None:
    ramp: dict[str, Any] = {"state": state, "step": 2, "steps": [step(1, 60)] * 3, "held_s": 5.0, "reason": "\x1b[1m"}
    first, *shown = lines("x", ramp)
    assert first == f"x: ramp {state}: \\x1b[1m"
    assert [line[:7].strip() for line in shown] == marks
