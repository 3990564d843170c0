"""The command line: what is accepted, errors in one line, and exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent import cli
from agent.errors import LoadError

COMMANDS = (
    "run", "check", "explain", "set", "enable", "disable", "status", "doctor", "replay", "compare", "pool", "balancer",
    "verdict", "ramp", "trip", "reset", "history", "rollback",
)  # fmt: skip
SHADOWTAP = Path(sys.executable).parent / "shadowtap"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: shadowtap")
    if not command:
        assert all(f"\n    {name} " in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert "".join(capsys.readouterr()).startswith("shadowtap ")


@pytest.mark.parametrize(
    "argv",
    [[], ["nonsense"], ["run"], ["check"], ["run", "-c"], ["replay"], ["compare"], ["doctor", "x"],
     ["replay", "x.pcap", "--percentage", "many"]],
)  # fmt: skip
def test_a_wrong_command_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert "usage: shadowtap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "-c", "{tmp}/none.yaml"], "No such file or directory: give a readable YAML file with -c"),
        (["check", "-c", "{tmp}/none.yaml"], "No such file or directory: give a readable YAML file with -c"),
        (["check", "-c", "{tmp}"], "Is a directory"),
        (["compare", "{tmp}/none"], "not a directory"),
        (["compare", "{tmp}"], "no recording here"),
    ],
)
def test_a_set_up_error_is_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(tmp=tmp_path) for word in argv]) == cli.USAGE_ERROR == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("shadowtap: ")
    assert str(tmp_path) in line
    assert says in line
    assert out == ""


def raising(error: BaseException) -> object:
    def run(config: object, path: Path) -> int:
        raise error

    return run


def test_how_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from agent import service

    path = tmp_path / "f.yaml"
    path.write_text("capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\n")
    argv = ["run", "-c", str(path)]
    monkeypatch.setattr(service, "run", lambda config, path: 1)
    assert cli.main(argv) == 1
    monkeypatch.setattr(service, "run", raising(LoadError("not here: go there")))
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == "shadowtap: not here: go there\n"
    monkeypatch.setattr(service, "run", raising(KeyboardInterrupt()))
    assert cli.main(argv) == 130
    monkeypatch.setattr(service, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # our bug keeps its traceback
        cli.main(argv)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [SHADOWTAP, "doctor"], stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 120)


@pytest.mark.root
def test_run_needs_root() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write("capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\n")
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        argv = [SHADOWTAP, "run", "-c", file.name]
        done = subprocess.run(argv, user="nobody", capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("shadowtap: `shadowtap run` needs root")
