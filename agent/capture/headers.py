"""Kernel headers for bcc: the running kernel's own, else the newest that is installed.

Only stable user-space structures are used, so headers of another version do. Debian splits headers in two trees and bcc
takes one, so they are put together as a farm of links in a temporary directory. Nothing changes on the host.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SOURCE_VARIABLE = "BCC_KERNEL_SOURCE"  # where bcc looks first


def own_headers() -> bool:
    """The running kernel has headers that bcc finds by itself."""
    return Path(f"/lib/modules/{os.uname().release}/build").is_dir() or Path("/sys/kernel/kheaders.tar.xz").exists()


def newest_installed() -> tuple[Path, Path] | None:
    """(build, source) trees of the newest headers under /usr/src, None without any."""
    found = [p for p in Path("/usr/src").glob("linux-headers-*") if (p / "include/generated").is_dir()]
    if not found:
        return None
    build = max(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    return build, _common(build) or build


def provide(directory: Path) -> str | None:
    """Make headers known to bcc in this process, put together in `directory`; what is missing, or None."""
    if own_headers() or SOURCE_VARIABLE in os.environ:
        return None
    trees = newest_installed()
    if trees is None:
        return "no kernel headers installed: apt-get install linux-headers-amd64"
    put_together(trees, directory)
    os.environ[SOURCE_VARIABLE] = str(directory)
    return None


def put_together(trees: tuple[Path, Path], directory: Path) -> None:
    """Links in `directory` so that `include` and `arch/*/include` hold what either tree has there."""
    for tree in trees:
        for include in (tree / "include", *tree.glob("arch/*/include")):
            target = directory / include.relative_to(tree)
            target.mkdir(parents=True, exist_ok=True)
            for entry in include.iterdir():
                if not (target / entry.name).exists():
                    (target / entry.name).symlink_to(entry)


def _common(build: Path) -> Path | None:
    """Debian's other half of a tree: linux-headers-6.1.0-9-common for linux-headers-6.1.0-9-cloud-amd64."""
    suffix = "-common-rt" if "-rt-" in build.name else "-common"
    name = build.name
    while "-" in name:
        name = name.rpartition("-")[0]
        if (common := build.with_name(name + suffix)).is_dir():
            return common
    return None
