"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.cli import _parser
from agent.select.exact import compile_criteria
from agent.select.language import parse, write
from tests.replay.examples import make_request

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.partition("## Criteria")[2].partition("## How it works")[0]
CRITERIA = re.findall(r"^\| `([^`]+)` \| .* \|$", SECTION, re.M)
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S))
COMMANDS = re.findall(r"^(?:sudo )?(?:\.venv/bin/)?shadowtap ([^#\n]+)", SHELL, re.M)


def test_the_table_of_criteria_is_found() -> None:
    assert len(CRITERIA) == 13


@pytest.mark.parametrize("text", CRITERIA)
def test_each_criterion_of_the_table_is_one(text: str) -> None:
    tree = parse(text)
    assert parse(write(tree)) == tree
    compile_criteria(tree, lambda address: frozenset())(make_request(), None)


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_understood(line: str) -> None:
    words = re.findall(r"'[^']*'|\S+", line)
    _parser().parse_args([word.strip("'") for word in words])
