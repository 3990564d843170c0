"""The demo tells its story, ends with one line where something is wrong, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from vagrant.lab import Lab
from vagrant.lab.demo import configuration
from vagrant.lab.network import prefixes

pytestmark = pytest.mark.root

STAND_IN = Path(__file__).with_name("stand_in.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shadowtap(tmp_path: Path) -> Path:
    path = shutil.copy(STAND_IN, tmp_path / "shadowtap")
    path.chmod(0o755)
    return path


def demo(shadowtap: Path, seconds: float = 1.0) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "vagrant.lab.demo", "--seconds", str(seconds), "--shadowtap", str(shadowtap)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_behind(process: subprocess.Popen[str]) -> list[str]:
    """Namespaces, files and processes of a demo that has ended."""
    begin = f"shadowtap-{process.pid}-"
    left = [prefix for prefix in prefixes() if prefix.startswith(begin)]
    left += [path.name for path in Path(tempfile.gettempdir()).glob(f"{begin}*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if begin.encode() in command:
                left.append(command.decode(errors="replace"))
    return left


def test_the_story_ends_with_account_and_comparison(shadowtap: Path) -> None:
    process = demo(shadowtap)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    order = [output.index(part) for part in ("Planted", "percentage: 50", "state ACTIVE", "seen 17", "200 -> 500")]
    assert order == sorted(order)
    assert left_behind(process) == []


def test_a_failing_agent_is_one_line(shadowtap: Path) -> None:
    shadowtap.with_name("broken").touch()
    process = demo(shadowtap)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert errors.startswith("demo: the agent ended before it was ready: shadowtap: no interface front")
    assert left_behind(process) == []


def test_a_missing_agent_is_one_line(tmp_path: Path) -> None:
    process = demo(tmp_path / "nothing")
    _, errors = process.communicate(timeout=60)
    assert errors == f"demo: {tmp_path / 'nothing'} is missing: run `make setup`\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("after_seconds", [0.35, 0.5, 0.7, 1.5])
def test_an_interrupt_at_any_time_leaves_nothing(shadowtap: Path, number: signal.Signals, after_seconds: float) -> None:
    process = demo(shadowtap, seconds=20)
    time.sleep(after_seconds)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Traceback" not in errors or not output, errors  # before main() nobody can catch it
    assert left_behind(process) == []


def test_the_configuration_is_what_the_agent_reads() -> None:
    written = yaml.safe_load(configuration(Lab(), Path("/somewhere")))
    assert written["capture"] == {"interface": "front", "ports": [80]}
    assert written["shadows"]["candidate"] == {"percentage": 50, "upstreams": ["10.77.2.21:80"]}
    assert written["recording"] == {"directory": "/somewhere"}
