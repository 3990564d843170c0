"""`shadowtap doctor`: each thing that may be lacking, and what is said about it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent import doctor
from agent.capture import headers, kernel
from agent.doctor import Finding, examine, render
from agent.errors import LoadError


@pytest.mark.root
def test_this_host_has_everything_and_the_program_loads() -> None:
    findings = examine()
    assert [finding.name for finding in findings if not finding.ok] == []
    assert findings[-1] == Finding("kernel program", True, "compiles, passes the verifier, loads")
    assert render(findings).endswith("this host has all that `shadowtap run` needs")


def finding(name: str) -> Finding:
    return next(found for check in doctor._CHECKS if (found := check()).name == name)


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "kernel_release", lambda: (5, 10))
    assert not finding("kernel").ok
    assert finding("attaching").ok
    assert "clsact" in finding("attaching").detail


def test_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "own_headers", lambda: False)
    monkeypatch.setattr(headers, "newest_installed", lambda: None)
    assert not finding("kernel headers").ok
    assert "apt-get install linux-headers" in finding("kernel headers").remedy
    monkeypatch.setattr(headers, "newest_installed", lambda: (Path("/usr/src/linux-headers-9"), Path("/x")))
    assert finding("kernel headers").detail.startswith("linux-headers-9 stands in for ")
    monkeypatch.setattr(headers, "own_headers", lambda: True)
    assert finding("kernel headers").detail.startswith("of ")


def test_no_bcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOADER_INTERPRETER", "/nonexistent/python3")
    assert not finding("bcc").ok
    monkeypatch.setattr(doctor, "LOADER_INTERPRETER", "/bin/false")
    assert finding("bcc") == Finding("bcc", False, "/bin/false cannot import it", "apt-get install python3-bpfcc")

    def slow(argv: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(argv, 60)

    monkeypatch.setattr(subprocess, "run", slow)
    assert "timed out" in finding("bcc").detail


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in finding("privilege").remedy
    assert finding("ring buffer").ok
    monkeypatch.setattr(kernel, "kernel_release", lambda: (5, 4))
    assert not finding("ring buffer").ok


def test_a_kernel_that_refuses_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size_bytes: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "create_ring", refuse)
    assert finding("ring buffer").detail == "cannot be made: Operation not permitted"


def test_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.privileges, "USERS", ("no-such-user",))
    assert not finding("user").ok
    assert "adduser" in finding("user").remedy


def test_the_load_is_tried_only_when_nothing_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(order: object) -> None:
        raise LoadError("it does not pass")

    monkeypatch.setattr(doctor.Tap, "load", fail)
    monkeypatch.setattr(doctor, "_CHECKS", (lambda: Finding("a", True, "fine"),))
    assert [(f.name, f.ok, f.detail) for f in examine()] == [
        ("a", True, "fine"), ("kernel program", False, "it does not pass"),
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "_CHECKS", (lambda: Finding("a", False, "none", "get one"),))
    assert [f.name for f in examine()] == ["a"]


def test_a_fault_is_shown_with_what_to_do() -> None:
    text = render([Finding("kernel", True, "6.18"), Finding("bcc", False, "none", "apt-get install python3-bpfcc")])
    assert text.splitlines() == [
        "ok       kernel  6.18",
        "LACKING  bcc     none",
        "                 -> apt-get install python3-bpfcc",
        "1 lacking",
    ]
