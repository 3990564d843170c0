"""Giving up privilege for good: user, groups, capabilities, and the way back.

The processes that parse strangers' bytes keep nothing; the keeper keeps CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.errors import LoadError

CAP_NET_ADMIN = 12
USERS = ("shadowtap", "nobody")  # the first that exists
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 8, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_MAX = 63

_libc = ctypes.CDLL(None, use_errno=True)


def service_user(name: str | None = None) -> pwd.struct_passwd:
    """The account the agent runs under once it has started: the named one, else shadowtap, else nobody.

    Where that one cannot even read this installation (a checkout below /root or a private home), it is the owner of the
    directory that is in the way, without a single capability; `stand_in` says so.
    """
    for user in (name,) if name else USERS:
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            continue
        blocked = [directory for directory in _installation() if not _may_enter(found, directory)]
        return found if name or not blocked else pwd.getpwuid(blocked[0].stat().st_uid)
    raise LoadError(f"no user {name or ' or '.join(USERS)!r} on this host: create it (adduser --system) or set `user`")


def group_id(name: str) -> int:
    """Number of a group; LoadError if there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LoadError(f"no group {name!r} on this host: create it (addgroup --system) or name another") from None


def stand_in(user: pwd.struct_passwd) -> str:
    """A warning when `user` stands in for the accounts of their own that the agent should have; else ""."""
    if user.pw_name in USERS:
        return ""
    return (
        f"runs as {user.pw_name}, without capabilities, because {USERS[-1]} cannot read this installation: "
        "install where everybody can read, such as /opt, or name a `user`"
    )


def _installation() -> set[Path]:
    """Every directory on the way to the interpreter, its library and this package."""
    ends = [Path(sys.executable).parent, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parent]
    return {directory for end in ends for directory in (end, *end.parents)}


def _may_enter(user: pwd.struct_passwd, directory: Path) -> bool:
    found = directory.stat()
    if user.pw_uid == found.st_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    return bool(found.st_mode & (stat.S_IXGRP if user.pw_gid == found.st_gid else stat.S_IXOTH))


def may_write(user: pwd.struct_passwd, directory: Path) -> bool:
    """Whether `user`, without capabilities, may make files in the directory (going by the modes on the way)."""
    directory = directory.resolve()
    if not all(_may_enter(user, each) for each in (directory, *directory.parents)):
        return False
    found = directory.stat()
    if user.pw_uid == found.st_uid:
        return bool(found.st_mode & stat.S_IWUSR)
    return bool(found.st_mode & (stat.S_IWGRP if user.pw_gid == found.st_gid else stat.S_IWOTH))


def may_read(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether `user`, without capabilities, may read the file (going by the modes on the way)."""
    path = path.resolve()
    if not all(_may_enter(user, each) for each in path.parents):
        return False
    found = path.stat()
    if user.pw_uid == found.st_uid:
        return bool(found.st_mode & stat.S_IRUSR)
    return bool(found.st_mode & (stat.S_IRGRP if user.pw_gid == found.st_gid else stat.S_IROTH))


def drop(user: pwd.struct_passwd, keep: Sequence[int] = ()) -> None:
    """Become `user` with exactly the capabilities in `keep`, and make sure nothing can be gained again.

    Without root there is nothing to drop but the way back. Call it while the process has one thread: capabilities and
    the rest belong to a thread, and later ones inherit from theirs.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("privileges must be given up before the first thread is started")
    if os.geteuid() == 0 and effective_capabilities():
        for capability in range(_CAP_MAX + 1):
            if capability not in keep:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # EINVAL past the kernel's last: nothing to drop
        _prctl(_PR_SET_KEEPCAPS, 1 if keep else 0)
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        _set_capabilities(keep)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """SIGKILL this process when the one that started it ends, however it ends. (Cleared by `drop`: call it after.)"""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def effective_capabilities() -> int:
    """This process' effective capabilities as a bit set."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))


def _set_capabilities(keep: Sequence[int]) -> None:
    bits = sum(1 << c for c in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    _check(_libc.capset(header, data), "capset")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
