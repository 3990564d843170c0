"""What the tests of the control socket share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.control.command_line import Terminal


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter, unlike tmp_path."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Where commands are typed; the first shadow is "candidate"."""
    return Terminal(tmp_path, capsys)
