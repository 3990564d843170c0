"""Kernel headers for bcc: the running kernel's own, else the newest that is installed.

Only stable user-space structures are used, so headers of another version do. bcc looks for them in
/lib/modules/RELEASE/{build,source} alone, and Debian splits them in two trees; so where the running kernel has none,
the loader sees a /lib/modules of its own, in a mount namespace of its own. Nothing changes on the host.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def own_headers() -> bool:
    """The running kernel has headers that bcc finds by itself."""
    return Path(f"/lib/modules/{os.uname().release}/build").is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists()


def newest_installed() -> tuple[Path, Path] | None:
    """(build, source) trees of the newest headers under /usr/src, None without any."""
    found = [p for p in Path("/usr/src").glob("linux-headers-*") if (p / "include").is_dir() and not _common(p)]
    if not found:
        return None
    build = max(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    version = re.match(r"linux-headers-[\d.]+-\d+", build.name)
    common = Path("/usr/src") / f"{version.group()}-common" if version else build
    return build, common if common.is_dir() else build


def provide() -> str | None:
    """Make headers visible to bcc in this process; what is missing, or None. Needs CAP_SYS_ADMIN for the fallback."""
    if own_headers():
        return None
    trees = newest_installed()
    if trees is None:
        return "no kernel headers installed: apt-get install linux-headers-amd64"
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount private /")
    modules = Path("/lib/modules")
    modules.mkdir(exist_ok=True)
    _check(_libc.mount(b"shadowtap", bytes(modules.resolve()), b"tmpfs", 0, None), "mount tmpfs on /lib/modules")
    release = modules / os.uname().release
    release.mkdir()
    for name, tree in zip(("build", "source"), trees, strict=True):
        (release / name).symlink_to(tree)
    return None


def _common(path: Path) -> bool:
    return path.name.endswith("-common") or path.name.endswith("-common-rt")


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
