"""Turns spools whose writer is gone into Parquet files: after rotation, at the end of a run, and after a crash.

There is one way for all three, so the one after a crash is used every day: lock the spool, write Parquet under another
name, fsync, rename, fsync the directory, delete the spool. A crash between the steps leaves either the spool, or both
files, and then the Parquet file is whole and the spool is deleted next time. `python -m replay.convert DIR` runs it in
a process of its own at the lowest priority: writing Parquet takes 15 MB that a worker would not give back, and a thread
of low priority would hold the worker's interpreter lock while production has the CPU.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from replay.lean import lean_arrow

if __name__ == "__main__":
    lean_arrow()

import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import RecordingError
from replay.schema import TORN_KEY, version_of
from replay.spool import NEW_SUFFIX, PARQUET_SUFFIX, SPOOL_SUFFIX, SpoolReader

PART_SUFFIX = ".part"  # a Parquet file being written
BAD_SUFFIX = ".unreadable"  # a spool without a readable schema, kept for a person
ROW_GROUP_ROWS = 32_768
ROW_GROUP_BYTES = 16 * 1024 * 1024
STALE_NEW_SECONDS = 3600.0


class Recovered(NamedTuple):
    """What one pass over a directory did."""

    files: int = 0  # Parquet files made
    rows: int = 0
    torn_bytes: int = 0
    living: int = 0  # spools left alone because a process holds them
    failed: int = 0  # spools left alone because they could not be read or the Parquet file could not be written


def recover(directory: Path) -> Recovered:
    """Convert every spool in `directory` that no living process holds. Several may run at once."""
    done = Recovered()
    for path in sorted(directory.glob("*" + SPOOL_SUFFIX)):
        one = _recover_one(path)
        done = Recovered(*(a + b for a, b in zip(done, one, strict=True)))
    return done


def _recover_one(path: Path) -> Recovered:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Recovered()  # somebody else has just converted it
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:
            return Recovered()  # converted between our open and our lock
        return _convert(path)
    except BlockingIOError:
        return Recovered(living=1)
    except (OSError, pa.ArrowException, RecordingError):
        return Recovered(failed=1)
    finally:
        os.close(fd)


def _convert(path: Path) -> Recovered:
    """Convert a spool that this process has locked."""
    final = path.with_suffix(PARQUET_SUFFIX)
    if final.exists():  # a crash came between rename and delete
        path.unlink()
        return Recovered()
    try:
        reader = SpoolReader(path)
    except ValueError:
        path.rename(path.with_suffix(BAD_SUFFIX))
        return Recovered(failed=1)
    version_of(reader.schema, str(path))
    part = path.with_suffix(PART_SUFFIX)
    try:
        _write_parquet(reader, part)
        if reader.rows:
            part.rename(final)
            sync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)
    path.unlink()
    return Recovered(int(reader.rows > 0), reader.rows, reader.torn_bytes)


def _write_parquet(reader: SpoolReader, part: Path) -> None:
    with part.open("wb") as file:
        os.fchmod(file.fileno(), 0o640)
        writer = pq.ParquetWriter(file, reader.schema, compression="zstd", **_encodings(reader.schema))
        group: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in reader:
            group.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
            if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group, rows, size = [], 0, 0
        if group:
            writer.write_table(pa.Table.from_batches(group))
        writer.add_key_value_metadata({TORN_KEY: str(reader.torn_bytes).encode()})
        writer.close()
        file.flush()
        os.fsync(file.fileno())


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Times as differences, which is a third of the size; everything else by dictionary."""
    times = [name for name in schema.names if name.endswith("_ns")]
    return {
        "use_dictionary": [name for name in schema.names if name not in times],
        "column_encoding": dict.fromkeys(times, "DELTA_BINARY_PACKED"),
    }


def sync_directory(directory: Path) -> None:
    """Make a rename durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def drop_stale(directory: Path, now_seconds: float) -> None:
    """Delete what a crash left of files that never came to hold a row."""
    for path in directory.glob("*" + NEW_SUFFIX):
        try:
            if now_seconds - path.stat().st_mtime > STALE_NEW_SECONDS:
                path.unlink()
        except OSError:
            continue


def main(arguments: list[str]) -> int:
    """Exit status 1 when a spool had to be left that no process holds."""
    os.nice(19)
    pa.set_cpu_count(1)
    directory = Path(arguments[0])
    drop_stale(directory, time.time())
    done = recover(directory)
    print(" ".join(f"{name}={value}" for name, value in done._asdict().items()))
    return 1 if done.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
