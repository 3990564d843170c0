"""The commands as typed, against the real API on a real socket with a fake desk behind it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from agent.control.api import Api
from agent.control.commands import add_parsers
from tests.agent.control.fake_desk import FakeDesk, FakeSteering
from tests.agent.control.loop import serving


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="shadowtap")
    add_parsers(made.add_subparsers(required=True))
    return made


class Terminal:
    """Runs commands and gives what they print."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = directory / "s"
        self.steering = FakeSteering()
        self.desk = FakeDesk(self.steering)
        self._capsys = capsys

    def __call__(self, *argv: str) -> str:
        arguments = parser().parse_args([argv[0], "--socket", str(self.path), *argv[1:]])
        with serving(self.path, handle=Api(self.steering, self.desk, lambda line: None)):
            assert arguments.run(arguments) == 0
        return self._capsys.readouterr().out
