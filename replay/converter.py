"""Starts the process that converts spools. Not in `replay.convert`, which loads 5 MB that only that process needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def start_converter(directory: Path) -> subprocess.Popen[bytes]:
    """Run `recover` in a process of its own; OSError if it cannot be started. The caller waits for it or polls it."""
    return subprocess.Popen(
        [sys.executable, "-m", "replay.convert", str(directory.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",  # `-m` looks for modules in the working directory first; nobody but root writes here
    )
