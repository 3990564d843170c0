"""What all tests share: who may run those that need root, the lab, and skips that count as failures."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from vagrant.lab import Lab

NO_SKIPS = "SHADOWTAP_NO_SKIPS"

_BCC = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY = 2


@functools.cache
def missing_for_root() -> str:
    """Why the tests marked `root` cannot run here, "" if they can."""
    if os.geteuid() != 0:
        return "not root"
    if not _BCC.exists():
        return "python3-bpfcc is not installed: run `make setup`"
    running = Path("/lib/modules", platform.release(), "build")
    if not running.exists() and not any(Path("/usr/src").glob("linux-headers-*")):
        return "no kernel headers are installed: run `make setup`"
    error = _try_bpf()
    return f"bpf(2) does not work here: {os.strerror(error)}" if error else ""


def _try_bpf() -> int:
    """Make the smallest map there is; errno if the kernel refuses."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 32)(_BPF_MAP_TYPE_ARRAY, 4, 4, 1)  # type, key size, value size, entries
    descriptor = libc.syscall(number, _BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if descriptor < 0:
        return ctypes.get_errno()
    os.close(descriptor)
    return 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `root` where it cannot run."""
    if item.get_closest_marker("root") is not None and (reason := missing_for_root()):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be skipped, a skipped test has failed."""
    report = yield
    return _failed_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    return _failed_if_skipped(report)


def _failed_if_skipped(report: Any) -> Any:
    if os.environ.get(NO_SKIPS) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason} (with {NO_SKIPS}=1 a skip is a failure)"
    return report


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with default options, shared by the tests of a module."""
    if reason := missing_for_root():
        pytest.skip(reason)
    with Lab() as made:
        yield made
