"""The spool: an Arrow IPC stream that a living worker appends to; it survives its death up to the last whole batch.

A spool is created under another name, locked, given its schema, and only then linked to its own name: whoever sees a
`.arrows` file that is not locked knows that its writer is dead. The lock is flock's, so the kernel drops it with the
process, however that ends. What a torn batch left at the end is not read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc  # loads what `import pyarrow` alone may not

from replay.schema import SCHEMA

SPOOL_SUFFIX = ".arrows"
PARQUET_SUFFIX = ".parquet"  # what a spool becomes (replay.convert)
NEW_SUFFIX = ".new"
FILE_MODE = 0o640

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, "IPC Streaming Format"


class Spool:
    """An open spool. Every method may raise OSError, and leaves a file of whole batches when it does."""

    __slots__ = ("_fd", "bytes", "path", "rows")

    def __init__(self, directory: Path, stem: str) -> None:
        """Create `stem`.arrows, locked by this process; FileExistsError if there is one."""
        self.path = directory / (stem + SPOOL_SUFFIX)
        self.rows = 0
        new = directory / (stem + NEW_SUFFIX)
        self._fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.bytes = write_all(self._fd, SCHEMA.serialize())
            os.link(new, self.path)  # unlike a rename it never replaces a file
        except OSError:
            os.close(self._fd)
            raise
        finally:
            new.unlink(missing_ok=True)

    @property
    def deleted(self) -> bool:
        """Somebody deleted the file: what is in it is lost once it is closed."""
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:  # how NFS tells it
            return True

    def append(self, batch: pa.RecordBatch) -> None:
        """Write one batch; when that fails (disk full), what was written of it is taken back."""
        message = batch.serialize()
        try:
            self.bytes += write_all(self._fd, message)
        except OSError:
            os.ftruncate(self._fd, self.bytes)
            raise
        self.rows += batch.num_rows

    def close(self) -> None:
        """Mark the end and give up the lock: from here on the file belongs to whoever recovers."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            write_all(fd, _END_OF_STREAM)
        except OSError:
            os.ftruncate(fd, self.bytes)
        finally:
            os.close(fd)


def write_all(fd: int, data: bytes | pa.Buffer) -> int:
    """Write all of `data`; return its length."""
    view = memoryview(data).cast("B")
    at = 0
    while at < len(view):
        at += os.write(fd, view[at:])
    return at


class SpoolReader:
    """Reads a spool batch by batch, also one that is being written or was torn. Takes no lock and changes nothing.

    Iterate once; then `rows` counts the rows read and `torn_bytes` what lay behind the last whole batch.
    """

    __slots__ = ("_reader", "_size", "_source", "rows", "schema", "torn_bytes")

    def __init__(self, path: Path | str) -> None:
        """OSError if it cannot be opened; ValueError if not even the schema can be read."""
        self._source = pa.OSFile(str(path))
        self._size: int = self._source.size()
        self.rows = 0
        self.torn_bytes = 0
        try:
            self._reader = pa.ipc.MessageReader.open_stream(self._source)
            self.schema: pa.Schema = pa.ipc.read_schema(self._reader.read_next_message())
        except (pa.ArrowException, OSError, EOFError, StopIteration) as error:
            self._source.close()
            raise ValueError(f"{path}: no readable schema") from error

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        whole = self._source.tell()
        try:
            while True:
                batch = pa.ipc.read_record_batch(self._reader.read_next_message(), self.schema)
                batch.validate(full=True)
                whole = self._source.tell()
                self.rows += batch.num_rows
                yield batch
        except StopIteration:
            self._reader_ended(whole)
        except (pa.ArrowException, OSError, EOFError, MemoryError):
            self.torn_bytes = self._size - whole
        finally:
            self._source.close()

    def _reader_ended(self, whole: int) -> None:
        """Nothing follows, or a mark of the end does; what is behind that is not ours."""
        rest = self._size - whole
        if rest != len(_END_OF_STREAM):
            self.torn_bytes = max(rest, 0)
