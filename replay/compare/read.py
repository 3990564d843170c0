"""Reads a recording directory without changing it: Parquet files, spools of living or dead workers, and run files.

A spool may become a Parquet file while it is read. Both have the same stem, and each stem is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from replay.errors import RecordingError
from replay.runfile import RUN_SUFFIX, RunFile, read_run_file
from replay.schema import TORN_KEY, adapt, version_of
from replay.spool import PARQUET_SUFFIX, SPOOL_SUFFIX, SpoolReader

BATCH_ROWS = 65_536


@dataclass(slots=True)
class Recording:
    """A directory's rows, a batch at a time. The counts are complete once `batches` is exhausted."""

    directory: Path
    stems: list[str]
    run_files: list[RunFile]
    rows: int = 0
    torn_bytes: int = 0
    unreadable: list[str] = field(default_factory=list)  # names of files that were left out

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches of the named columns, in the order of time within each file; RecordingError for a newer schema."""
        for stem in self.stems:
            for batch in self._file(stem, columns):
                self.rows += batch.num_rows
                yield batch

    def _file(self, stem: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        parquet, spool = self.directory / (stem + PARQUET_SUFFIX), self.directory / (stem + SPOOL_SUFFIX)
        try:
            # Parquet twice: it may appear, and the spool vanish, between the first look and the second.
            for path in (parquet, spool, parquet):
                if path.exists():
                    try:
                        yield from self._parquet(path, columns) if path is parquet else self._spool(path, columns)
                        return
                    except FileNotFoundError:
                        continue
        except (OSError, pa.ArrowException, ValueError):
            self.unreadable.append(stem)
            return
        self.unreadable.append(stem)  # deleted, for the directory's limit, after it was listed

    def _parquet(self, path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            version_of(schema, str(path))
            self.torn_bytes += int((file.metadata.metadata or {}).get(TORN_KEY, b"0"))
            there = [name for name in columns if name in schema.names]
            for batch in file.iter_batches(BATCH_ROWS, columns=there):
                yield adapt(batch, columns)

    def _spool(self, path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
        reader = SpoolReader(path)
        version_of(reader.schema, str(path))
        for batch in reader:
            yield adapt(batch, columns)
        self.torn_bytes += reader.torn_bytes


def recordings_in(directory: Path) -> list[Path]:
    """The directory itself, or, where an agent recorded several shadows, the directories of each of them in it."""
    if not directory.is_dir() or _ours(directory):
        return [directory]
    return sorted(each for each in directory.iterdir() if each.is_dir() and _ours(each)) or [directory]


def _ours(directory: Path) -> bool:
    return any(path.name.endswith((PARQUET_SUFFIX, SPOOL_SUFFIX, RUN_SUFFIX)) for path in directory.iterdir())


def open_recording(directory: Path) -> Recording:
    """Find what there is; RecordingError when it is no directory or holds nothing of ours."""
    if not directory.is_dir():
        raise RecordingError(f"{directory}: not a directory; give the one that the agent records to")
    names = sorted(path.name for path in directory.iterdir())
    suffixes = (PARQUET_SUFFIX, SPOOL_SUFFIX)
    stems = dict.fromkeys(name.removesuffix(s) for name in names for s in suffixes if name.endswith(s))
    runs = [read_run_file(directory / name) for name in names if name.endswith(RUN_SUFFIX)]
    if not stems and not runs:
        raise RecordingError(f"{directory}: no recording here; give the directory that the agent records to")
    return Recording(directory, list(stems), runs)
