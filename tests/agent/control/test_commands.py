"""The commands: what may be typed, what is sent for it, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from agent.control.client import DEFAULT_SOCKET, NoAnswerError
from agent.control.command import CommandError
from agent.control.commands import add_parsers, parse_words
from agent.control.request import Call, ControlError, Reply
from agent.control.shadow_line import shadow_line
from tests.agent.control.loop import serving

CANDIDATE = {
    "name": "candidate",
    "enabled": True,
    "percentage": 12.5,
    "criteria": "path:/api/*",
    "sample_by": "client",
}
OTHER = {"name": "other", "enabled": False, "percentage": 1.0, "criteria": "", "sample_by": "connection"}


class Agent:
    """What a handler of the service does, for the commands' sake."""

    def __init__(self, *shadows: dict[str, Any]) -> None:
        self.shadows = {shadow["name"]: dict(shadow) for shadow in shadows}
        self.sent: list[tuple[str, str, Any]] = []

    def __call__(self, call: Call) -> Reply:
        self.sent.append((call.method, call.path, call.body))
        if call.path == "/v1/shadows":
            return Reply({"shadows": list(self.shadows.values())})
        name = call.path.rpartition("/")[2]
        if name not in self.shadows:
            raise ControlError(404, f"no shadow is called {name}")
        self.shadows[name].update(call.body or {})
        return Reply(self.shadows[name])


COMMANDS = ["set", "enable", "disable", "pool", "status", "verdict", "ramp", "trip", "reset", "history", "rollback"]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="shadowtap")
    add_parsers(made.add_subparsers(required=True))
    return made


def run(agent: Agent, path: Path, *argv: str) -> int:
    with serving(path / "s", handle=agent):
        arguments = parser().parse_args([argv[0], "--socket", str(path / "s"), *argv[1:]])
        status: int = arguments.run(arguments)
        return status


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        (["candidate", "percentage=5"], "candidate", {"percentage": 5.0}),
        (["percentage=0.1%"], None, {"percentage": 0.1}),
        (["percentage=5 %"], None, {"percentage": 5.0}),
        (["percentage=.5"], None, {"percentage": 0.5}),
        (["percentage=1e-4"], None, {"percentage": 0.0001}),
        (["percentage=100.", "enabled=FALSE"], None, {"percentage": 100.0, "enabled": False}),
        (["x", "enabled=true", "sample_by=client"], "x", {"enabled": True, "sample_by": "client"}),
        (["criteria=header:A=b and not geo:US"], None, {"criteria": "header:A=b and not geo:US"}),
        (["criteria="], None, {"criteria": ""}),
    ],
)
def test_words(words: list[str], name: str | None, changes: dict[str, Any]) -> None:
    assert parse_words(words) == (name, changes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to change: give KEY=VALUE, of percentage, criteria, enabled, sample_by"),
        (["candidate"], "nothing to change"),
        (["candidate", "criteria=geo:US", "and", "path:/x"], "'and' is no KEY=VALUE: put a value with spaces in"),
        (["weight=5"], "'weight' cannot be set: there are percentage"),
        (["=5"], "'' cannot be set"),
        (["percentage=5", "percentage=6"], "percentage is given twice"),
        *((["percentage=" + text], "give a number from 0 to 100, like 5 or 0.1%")
          for text in ("", "%", "many", "101", "-1", "nan", "inf", "1e999", "1_0", "5%%", "0x5", "\u0665", "5e")),
        (["enabled=maybe"], "enabled=maybe: give true or false"),
        (["enabled="], "give true or false"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_sent(words: list[str], says: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_words(words)
    assert says in str(caught.value)


def test_set_sends_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Agent(CANDIDATE, OTHER)
    assert run(agent, tmp_path, "set", "candidate", "percentage=5%", "criteria=random") == 0
    assert agent.sent == [("PATCH", "/v1/shadows/candidate", {"percentage": 5.0, "criteria": "random"})]
    assert capsys.readouterr().out == "candidate: enabled, 5 % of the clients, criteria random\n"


@pytest.mark.parametrize(("command", "enabled"), [("enable", True), ("disable", False)])
def test_a_switch(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, enabled: bool) -> None:
    agent = Agent(CANDIDATE, OTHER)
    assert run(agent, tmp_path, command, "other") == 0
    assert agent.sent == [("PATCH", "/v1/shadows/other", {"enabled": enabled})]
    assert capsys.readouterr().out == f"other: {command}d, 1 % of the connections\n"


@pytest.mark.parametrize("words", [["disable"], ["set", "enabled=false"]])
def test_the_only_shadow_needs_no_name(tmp_path: Path, words: list[str]) -> None:
    agent = Agent(CANDIDATE)
    assert run(agent, tmp_path, *words) == 0
    assert agent.sent == [("GET", "/v1/shadows", None), ("PATCH", "/v1/shadows/candidate", {"enabled": False})]


@pytest.mark.parametrize(
    ("shadows", "says"),
    [((CANDIDATE, OTHER), "which shadow? give one of candidate, other"), ((), "the agent has no shadow")],
)
def test_a_name_that_is_needed(tmp_path: Path, shadows: tuple[dict[str, Any], ...], says: str) -> None:
    with pytest.raises(CommandError) as caught:
        run(Agent(*shadows), tmp_path, "disable")
    assert str(caught.value) == says


def test_names_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no shadow is called nobody"):
        run(Agent(CANDIDATE), tmp_path, "enable", "nobody")
    for name in ("a b", "../x", "a?b", ""):
        with pytest.raises(CommandError, match="is no name of a shadow"):
            run(Agent(CANDIDATE), tmp_path, "enable", name)


def test_a_change_takes_its_reason_along(tmp_path: Path) -> None:
    agent = Agent(CANDIDATE)
    run(agent, tmp_path, "set", "candidate", "percentage=5", "--reason", "looks good")
    run(agent, tmp_path, "disable", "candidate", "--reason", "at night")
    assert [body for _, _, body in agent.sent] == [
        {"percentage": 5.0, "reason": "looks good"},
        {"enabled": False, "reason": "at night"},
    ]


def test_what_an_agent_answers_does_nothing_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Agent({**CANDIDATE, "criteria": "path:/\x1b[2J"}), tmp_path, "enable")
    assert capsys.readouterr().out == "candidate: enabled, 12.5 % of the clients, criteria path:/\\x1b[2J\n"


def test_a_shadow_of_which_little_is_known() -> None:
    assert shadow_line({}) == "?: disabled"
    assert shadow_line({"name": "x", "enabled": True}) == "x: enabled"


def test_nobody_there(tmp_path: Path) -> None:
    arguments = parser().parse_args(["status", "--socket", str(tmp_path / "none")])
    with pytest.raises(NoAnswerError, match="no agent listens on"):
        arguments.run(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args([command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: shadowtap {command}")
    assert str(DEFAULT_SOCKET) in out
    assert "%%" not in out


def test_arguments() -> None:
    assert parser().parse_args(["disable"]).socket == DEFAULT_SOCKET
    with pytest.raises(SystemExit):
        parser().parse_args(["set"])
