"""`shadowtap history` and `rollback`."""

from __future__ import annotations

import pytest

from agent.control.command import CommandError
from agent.control.request import ControlError
from tests.agent.control.command_line import Terminal, parser


def test_the_versions_with_what_changed(terminal: Terminal) -> None:
    terminal.desk.versions[0]["reason"] = "a\x1b[1m"
    assert terminal("history", "--limit", "2").splitlines() == [
        "*    3  2026-01-01 00:00:00Z  uid 1000 (ann): a\\x1b[1m",
        "        shadows.candidate.percentage: 2.0 -> 3.0",
        "     2  2026-01-01 00:00:00Z  uid 1000 (ann): try 2",
        "        bad for candidate: latency",
        "        shadows.candidate.percentage: 1.0 -> 2.0",
    ]
    terminal.desk.versions = []
    assert terminal("history") == "no version is kept\n"


def test_one_version_with_its_configuration(terminal: Terminal) -> None:
    lines = terminal("history", "1").splitlines()
    assert lines[0].startswith("     1  2026-01-01 00:00:00Z  uid 1000 (ann): try 1")
    assert '      "percentage": 5' in lines
    with pytest.raises(ControlError, match="no version 9"):
        terminal("history", "9")


def test_the_audit(terminal: Terminal) -> None:
    assert terminal("history", "--audit").splitlines() == [
        "2026-01-01 00:00:00Z uid 0 (root) trip candidate: looks wrong",
        "2026-01-01 00:00:00Z agent start",
    ]
    terminal.desk.entries = []
    assert terminal("history", "--audit") == "nothing was done yet\n"
    with pytest.raises(CommandError, match="give it without VERSION"):
        terminal("history", "--audit", "3")


def test_a_rollback(terminal: Terminal) -> None:
    assert terminal("rollback", "--reason", "slow").splitlines() == [
        "version 4 is in force, with what version 2 said",
        "  shadows.candidate.percentage: 5.0 -> 1.0",
    ]
    terminal("rollback", "1")
    assert [call[:3] for call in terminal.desk.calls] == [("rollback", None, "slow"), ("rollback", 1, "")]
    with pytest.raises(ControlError, match="no version 9"):
        terminal("rollback", "9")


@pytest.mark.parametrize(
    "argv",
    [["history", "x"], ["history", "0"], ["history", "-1"], ["history", "--limit", "0"], ["history", "--limit", "1001"],
     ["rollback", "1.5"], ["rollback", "\u0665"], ["rollback", "9" * 20]],
)  # fmt: skip
def test_numbers_that_are_wrong(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(argv)
    assert "error" in capsys.readouterr().err
