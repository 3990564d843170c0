"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import config
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


BLOCKS = re.findall(r"^```yaml\n(.*?)^```", README, re.M | re.S)
SHADOWS = [
    text for block in BLOCKS for text in ([block] if block.startswith("balancer") else block.splitlines())
]  # the block of discoveries shows one a line


@pytest.mark.parametrize("text", SHADOWS)
def test_each_piece_of_configuration_is_valid(text: str) -> None:
    shadow = "\n".join(f"    {line}" for line in text.splitlines())
    config.parse(f"capture: {{interface: lo, ports: [80]}}\nshadows:\n  candidate:\n{shadow}\n", "README.md")


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_understood(line: str) -> None:
    words = re.findall(r"'[^']*'|\S+", line)
    _parser().parse_args([word.strip("'") for word in words])
