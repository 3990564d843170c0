"""The provisioning script: what it asks for, what it says where it cannot, and that it does nothing twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATE = ("requirements.lock", "pyproject.toml", "vagrant/provision.sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment is made already, and whose machine has stand-ins for Debian's tools."""
    made = tmp_path / "checkout"
    (made / "vagrant").mkdir(parents=True)
    (made / ".venv/bin").mkdir(parents=True)
    for name in STATE:
        shutil.copy(ROOT / name, made / name)
    (made / ".venv/bin/shadowtap").write_text("")
    (made / ".venv/bin/shadowtap").chmod(0o755)
    lines = [f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {name}\n" for name in STATE]
    (made / ".venv/.provisioned").write_text("".join(lines))
    return made


def provision(checkout: Path, tools: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run it with small shell scripts in front of the real commands."""
    folder = checkout.parent / "tools"
    folder.mkdir()
    for name, script in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    argv = ["bash", str(checkout / "vagrant/provision.sh")]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_nothing_to_do_says_nothing(checkout: Path) -> None:
    done = provision(checkout, {"dpkg-query": "echo installed", "apt-get": "exit 9", "dpkg": "echo amd64"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_root_the_missing_packages_are_named(checkout: Path) -> None:
    missing_wrk = 'for last; do :; done; [ "$last" = wrk ] && exit 1; echo installed'
    tools = {"dpkg-query": missing_wrk, "apt-get": "exit 9", "dpkg": "echo amd64", "id": "echo 1000"}
    done = provision(checkout, tools)
    assert done.returncode == 0
    assert done.stdout == "setup: missing: wrk. Install them as root: apt-get install wrk\n"


def test_a_failing_apt_is_one_line_and_an_error(checkout: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: /usr/sbin/policy-rc.d cannot be written")
    tools = {"dpkg-query": "exit 1", "apt-get": "exit 9", "dpkg": "echo arm64", "id": "echo 0"}
    had_policy = Path("/usr/sbin/policy-rc.d").exists()
    done = provision(checkout, tools)
    assert done.returncode == 1
    assert "could not install python3 python3-venv python3-bpfcc linux-headers-arm64" in done.stderr
    assert Path("/usr/sbin/policy-rc.d").exists() == had_policy


def test_the_lock_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["dev"] + extras["aws"]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines_of_lock()}
    assert [name for name in map(plain, asked) if name not in pinned] == []


def lines_of_lock() -> list[str]:
    return (ROOT / "requirements.lock").read_text().split()


def plain(requirement: str) -> str:
    """The name in a requirement such as "moto[server]>=5.0"."""
    return requirement.partition(">")[0].partition("=")[0].partition("[")[0].strip().lower().replace("_", "-")
