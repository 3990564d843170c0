"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent import config
from agent.cli import _parser
from agent.select.exact import compile_criteria
from agent.select.language import parse, write
from tests.replay.examples import make_request

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.partition("## Criteria")[2].partition("\n## ")[0]
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
AGENT = [block for block in BLOCKS if block.startswith("judge:")]
SHADOWS = [
    text
    for block in BLOCKS
    if block not in AGENT
    for text in ([block] if block.startswith("balancer") else block.splitlines())
]  # the block of discoveries shows one a line


@pytest.mark.parametrize("text", SHADOWS)
def test_each_piece_of_configuration_is_valid(text: str) -> None:
    shadow = "\n".join(f"    {line}" for line in text.splitlines())
    config.parse(f"capture: {{interface: lo, ports: [80]}}\nshadows:\n  candidate:\n{shadow}\n", "README.md")


@pytest.mark.parametrize("text", AGENT)
def test_each_piece_for_the_whole_agent_is_valid(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    head = "capture: {interface: lo, ports: [80]}\nshadows: {candidate: {}}\n"
    config.parse(head + text, "README.md")


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_understood(line: str) -> None:
    _parser().parse_args(shlex.split(line))
