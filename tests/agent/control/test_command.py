"""What the commands share: text from strangers does nothing to a terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.command import TEXT_LIMIT_CHARS, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü", "plain ü"), ("a\n b\t", "a b"), ("\x1b[31mred", "\\x1b[31mred"), ("\u202eevil", "\\u202eevil"),
     (None, "None"), (5, "5")],
)  # fmt: skip
def test_a_text_becomes_a_line(text: object, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=3000))
def test_any_text_becomes_a_printable_line(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, 50) == printable(printable(text, 50))
    assert len(printable("x" * 3000)) == TEXT_LIMIT_CHARS


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    late = ("http.client", "ssl", "rich", "numpy", "pydantic", "agent.control.status_view")
    code = f"import sys, agent.control.commands; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
