"""The control socket's place in the file system: made with its mode from the first moment, and taken over from a dead
agent, but not from a living one."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.errors import LoadError

BACKLOG = 64
PATH_LIMIT_BYTES = 107  # sun_path, unix(7)
_PASSWD = Path("/etc/passwd")


def listen(path: Path, mode: int, group: int | None) -> socket.socket:
    """A listening socket at `path`; LoadError says what is in the way."""
    if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
        raise LoadError(f"control socket {path}: longer than {PATH_LIMIT_BYTES} bytes: give a shorter path")
    try:
        with _claim(path.parent):
            _remove_stale(path)
            return _bound(path, mode, group)
    except OSError as error:
        raise LoadError(f"control socket {path}: {error.strerror or error}: {_advice(error, path)}") from None


def _advice(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT:
        return f"make the directory {path.parent}, or give another path"
    if error.errno == errno.EWOULDBLOCK:
        return "another agent is starting there: give each a path of its own"
    return f"let {local_user(os.geteuid()) or os.geteuid()} write to {path.parent}, or give another path"


@contextmanager
def _claim(directory: Path) -> Iterator[None]:
    """Keep other agents from the directory, or two that start at once may each take the other's socket for stale."""
    claimed = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(claimed)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise LoadError(f"control socket {path}: there is something else: remove it, or give another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener whose backlog is full must not hold up the start
        failure = probe.connect_ex(os.fspath(path))
    if failure in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise LoadError(f"control socket {path}: another agent listens there: stop it, or give each a path of its own")
    if failure != errno.ECONNREFUSED:
        raise OSError(failure, os.strerror(failure))
    path.unlink(missing_ok=True)


def _bound(path: Path, mode: int, group: int | None) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        if group is not None:
            os.chown(path, -1, group, follow_symlinks=False)  # others may write the directory, and put a link there
        listener.listen(BACKLOG)  # until now nobody could connect
    except OSError:
        listener.close()  # what it has bound refuses connections: the next start removes it
        raise
    return listener


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that took its place."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def local_user(uid: int) -> str:
    """Name of a user of this host, "" if it has none. Not by `pwd`: that may ask a directory service, and wait."""
    with suppress(OSError):
        for line in _PASSWD.read_text(errors="replace").splitlines():
            if line.split(":")[2:3] == [str(uid)]:
                return line.partition(":")[0]
    return ""
