"""`shadowtap doctor`: what this host lacks for the live agent, each with what to do about it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import privileges
from agent.capture import headers, kernel
from agent.capture.tap import LOADER_INTERPRETER, Tap, order_for
from replay.errors import ShadowtapError

_BCC_TIMEOUT_S = 60
_TEST_RING_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` is empty when it is well; a note may stand in `detail` all the same."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything; later checks do not depend on earlier ones, except that the last, a real load, needs all."""
    findings = [check() for check in _CHECKS]
    if all(finding.ok for finding in findings):
        findings.append(_load())
    return findings


def render(findings: list[Finding]) -> str:
    """A line a finding, and below a fault what to do."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok     ' if finding.ok else 'LACKING'}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"         {'':<{width}}  -> {finding.remedy}")
    lacking = sum(not finding.ok for finding in findings)
    lines.append(f"{lacking} lacking" if lacking else "this host has all that `shadowtap run` needs")
    return "\n".join(lines)


def _kernel() -> Finding:
    release = os.uname().release
    if kernel.kernel_release() >= kernel.MAP_UPDATE_UNPRIVILEGED_KERNEL:
        return Finding("kernel", True, release)
    return Finding("kernel", False, f"{release} is older than 5.19", "boot a newer kernel; Debian 12 has 6.1")


def _ring_buffer() -> Finding:
    if os.geteuid() != 0:
        ok = kernel.kernel_release() >= kernel.RINGBUF_KERNEL
        return Finding(
            "ring buffer", ok, "by kernel version" if ok else "not in this kernel", "" if ok else "kernel 5.8"
        )
    try:
        os.close(kernel.create_ring(_TEST_RING_BYTES))
    except OSError as error:
        return Finding(
            "ring buffer",
            False,
            f"cannot be made: {error.strerror}",
            "use a kernel of 5.8 or newer with CONFIG_BPF_SYSCALL, and do not confine bpf(2)",
        )
    return Finding("ring buffer", True, "can be made")


def _tcx() -> Finding:
    if kernel.kernel_release() >= kernel.TCX_KERNEL:
        return Finding("attaching", True, "TCX links")
    return Finding("attaching", True, "no TCX before kernel 6.6: clsact filters are used, which do as well")


def _headers() -> Finding:
    if headers.own_headers():
        return Finding("kernel headers", True, f"of {os.uname().release}")
    newest = headers.newest_installed()
    if newest is not None:
        return Finding("kernel headers", True, f"{newest[0].name} stands in for {os.uname().release}")
    return Finding(
        "kernel headers", False, "none installed", "apt-get install linux-headers-amd64 (any version will do)"
    )


def _bcc() -> Finding:
    remedy = "apt-get install python3-bpfcc"
    try:
        found = subprocess.run(
            [LOADER_INTERPRETER, "-c", "import bcc; print(bcc.__version__)"],
            capture_output=True,
            text=True,
            timeout=_BCC_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("bcc", False, f"{LOADER_INTERPRETER}: {error}", remedy)
    if found.returncode != 0:
        return Finding("bcc", False, f"{LOADER_INTERPRETER} cannot import it", remedy)
    return Finding("bcc", True, found.stdout.strip())


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("privilege", True, "root (given up once the program is loaded)")
    return Finding("privilege", False, "not root", "start it with sudo; loading a tc program needs it")


def _user() -> Finding:
    try:
        user = privileges.service_user(None)
    except ShadowtapError as error:
        return Finding("user", False, str(error), "adduser --system --no-create-home shadowtap")
    return Finding("user", True, f"the agent {privileges.stand_in(user) or f'runs as {user.pw_name}'}")


def _interfaces() -> Finding:
    names = sorted(path.name for path in Path("/sys/class/net").iterdir()) if Path("/sys/class/net").exists() else []
    return Finding("interfaces", bool(names), ", ".join(names) or "none", "" if names else "bring an interface up")


def _load() -> Finding:
    """The proof: compile and load the real program, attached to nothing."""
    try:
        Tap.load(order_for("lo", 1, _TEST_RING_BYTES, "clsact")).close()
    except ShadowtapError as error:
        return Finding("kernel program", False, str(error), "report this line, it should have loaded")
    return Finding("kernel program", True, "compiles, passes the verifier, loads")


_CHECKS: tuple[Callable[[], Finding], ...] = (
    _kernel,
    _ring_buffer,
    _tcx,
    _headers,
    _bcc,
    _root,
    _user,
    _interfaces,
)
