"""The lab's network: six namespaces, and the veth pairs and the bridge between them.

    client ──front── lb ──back── wire (a bridge) ── prod1, prod2, shadow

Names begin with "shadowtap-<pid>-<number>-", so that a lab whose process died can be found and removed. The addresses
are private and exist only inside the namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NAMESPACES = ("client", "lb", "wire", "prod1", "prod2", "shadow")
ADDRESSES = {
    "client": "10.77.1.2",
    "lb": "10.77.1.1",
    "back": "10.77.2.1",
    "prod1": "10.77.2.11",
    "prod2": "10.77.2.12",
    "shadow": "10.77.2.21",
}
ADDRESSES6 = {"client": "fd77:1::2", "lb": "fd77:1::1"}

_DIRECTORY = Path("/run/netns")
_NAME = re.compile(r"(shadowtap-(\d+)-\d+)-\w+")
_CLONE_NEWNET = 0x40000000
_KILL_WAIT_SECONDS = 5.0

# Many short connections from one address must not run out of ports.
# An IPv6 address that nobody else can have needs no second of waiting for those who have it.
_SYSCTLS = {
    "ipv4/ip_local_port_range": "1024 65535",
    "ipv4/tcp_tw_reuse": "1",
    "core/somaxconn": "16384",
    "ipv6/conf/default/accept_dad": "0",
}


class LabError(Exception):
    """The lab cannot be built or used: one line with what is wrong and what to do."""


class Network:
    """The namespaces of one lab. `prefix` tells them from those of other labs."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def path(self, namespace: str) -> Path:
        """The file that stands for a namespace, for setns(2) and `nsenter --net=`."""
        if namespace not in NAMESPACES:
            raise LabError(f"no namespace {namespace!r} in the lab: there are {', '.join(NAMESPACES)}")
        return _DIRECTORY / f"{self.prefix}-{namespace}"

    def argv_in(self, namespace: str, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs `argv` in a namespace, and ends with the thread that started it.

        nsenter instead of `ip netns exec`: the latter mounts a new /sys, which hides /sys/fs/bpf.
        """
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path(namespace)}", "--"]
        return [*enter, *(str(word) for word in argv)]

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """The calling thread, and what it starts meanwhile, is in the namespace; sockets made there stay there."""
        with Path("/proc/thread-self/ns/net").open() as home, self.path(namespace).open() as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def build(self) -> None:
        """Make the namespaces and everything between them."""
        for namespace in NAMESPACES:
            _ip("netns", "add", self.path(namespace).name)
            self._tune(namespace)
        _ip("-batch", "-", lines=self._links())
        for namespace in NAMESPACES:
            _ip("-n", self.path(namespace).name, "-batch", "-", lines=_inner(namespace))

    def _links(self) -> list[str]:
        name = {namespace: self.path(namespace).name for namespace in NAMESPACES}
        lines = [f"link add front netns {name['lb']} type veth peer name eth0 netns {name['client']}"]
        lines.append(f"link add back netns {name['lb']} type veth peer name lb netns {name['wire']}")
        for server in ("prod1", "prod2", "shadow"):
            lines.append(f"link add eth0 netns {name[server]} type veth peer name {server} netns {name['wire']}")
        return lines

    def _tune(self, namespace: str) -> None:
        """Set the kernel's limits; a machine that does not allow it has a slower lab, not a broken one."""
        with self.inside(namespace):
            for key, value in _SYSCTLS.items():
                with contextlib.suppress(OSError):
                    Path("/proc/sys/net", key).write_text(value)

    def destroy(self) -> None:
        """Kill what still runs in the namespaces and remove them. May be called at any time, also twice."""
        remove(self.prefix)


def _inner(namespace: str) -> list[str]:
    """What `ip` is told inside one namespace."""
    lines = ["link set lo up"]
    if namespace == "wire":
        lines.append("link add bridge type bridge forward_delay 0 mcast_snooping 0")
        for port in ("lb", "prod1", "prod2", "shadow"):
            lines += [f"link set {port} master bridge", f"link set {port} up"]
        return [*lines, "link set bridge up"]
    interface = "front" if namespace == "lb" else "eth0"
    lines.append(f"addr add {ADDRESSES[namespace]}/24 dev {interface}")
    if namespace in ADDRESSES6:
        lines.append(f"addr add {ADDRESSES6[namespace]}/64 dev {interface} nodad")
    lines.append(f"link set {interface} up")
    if namespace == "lb":
        lines += [f"addr add {ADDRESSES['back']}/24 dev back", "link set back up"]
    return lines


def prefixes() -> list[str]:
    """The prefixes of all labs that have namespaces on this machine."""
    if not _DIRECTORY.is_dir():
        return []
    found = {m[1] for path in _DIRECTORY.iterdir() if (m := _NAME.fullmatch(path.name))}
    return sorted(found)


def stale_prefixes() -> list[str]:
    """Those whose process is gone."""
    return [prefix for prefix in prefixes() if not Path("/proc", prefix.split("-")[1]).exists()]


def remove(prefix: str) -> None:
    """Kill what runs in a lab's namespaces and remove them."""
    paths = [path for path in _DIRECTORY.glob(f"{prefix}-*") if _NAME.fullmatch(path.name)]
    _kill_inside(paths)
    for path in paths:
        subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)


def _kill_inside(paths: list[Path]) -> None:
    """Kill every process in the namespaces and wait until it is gone."""
    end = time.monotonic() + _KILL_WAIT_SECONDS
    while (found := _pids_inside(paths)) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _pids_inside(paths: list[Path]) -> list[int]:
    """Processes whose network namespace is one of these, without zombies and without ourselves."""
    inodes = {path.stat().st_ino for path in paths if path.exists()}
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if (process / "ns/net").stat().st_ino in inodes:
                found.append(int(process.name))
    return found


def _ip(*arguments: str, lines: Sequence[str] = ()) -> None:
    try:
        subprocess.run(["ip", *arguments], input="\n".join(lines), check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise LabError("ip is not installed: run `make setup` as root") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[0] if error.stderr.strip() else f"exit code {error.returncode}"
        raise LabError(f"ip {' '.join(arguments)}: {reason}: network namespaces need root (CAP_SYS_ADMIN)") from None


def _setns(descriptor: int) -> None:
    """setns(2); Python has it from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise LabError(f"cannot enter a network namespace: {os.strerror(error)}: run as root")
