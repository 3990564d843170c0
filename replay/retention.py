"""Keeps a recording directory below its limit by deleting the oldest Parquet files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from replay.spool import PARQUET_SUFFIX


class Kept(NamedTuple):
    """What was deleted, and what is left beside the caller's own spool."""

    files_deleted: int
    bytes_deleted: int
    other_bytes: int


def delete_oldest(directory: Path, limit_bytes: int, current: Path | None) -> Kept:
    """Delete whole Parquet files, oldest first, until the directory is within its limit. Spools are never deleted.

    Several workers may do it at once: a file that another one deleted is not counted twice. An unreadable directory
    counts as empty, since there is nothing to delete.
    """
    finished: list[tuple[int, str, int]] = []
    total = own = 0
    for path, status in _files(directory):
        total += status.st_size
        if current is not None and path == str(current):
            own = status.st_size
        elif path.endswith(PARQUET_SUFFIX):
            finished.append((status.st_mtime_ns, path, status.st_size))
    finished.sort()
    files = size = 0
    for _, path, length in finished:
        if total <= limit_bytes:
            break
        total -= length
        try:
            Path(path).unlink()
        except OSError:
            continue
        files += 1
        size += length
    return Kept(files, size, total - own)


def _files(directory: Path) -> list[tuple[str, os.stat_result]]:
    out = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        out.append((entry.path, entry.stat(follow_symlinks=False)))
                except OSError:
                    continue
    except OSError:
        return out
    return out
