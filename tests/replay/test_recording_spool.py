"""The spool: what was written is read back up to the last whole batch, wherever the file ends."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from replay import spool as spool_module
from replay.batch import encode
from replay.exchange import Fate
from replay.row import build_row
from replay.schema import SCHEMA
from replay.spool import Spool, SpoolReader
from tests.replay.examples import make_exchange, make_outcome, make_request, make_response


def batch(first: int, rows: int) -> pa.RecordBatch:
    """Rows whose index says which they are."""
    exchanges = [make_exchange(make_request(), make_response(), index=first + n) for n in range(rows)]
    made, refused = encode([build_row("s", 0, e, Fate.REPLAYED, "", make_outcome()) for e in exchanges], {})
    assert refused == 0
    return made


def indexes(path: Path) -> tuple[list[int], int]:
    reader = SpoolReader(path)
    found = [n for one in reader for n in one.column("index").to_pylist()]
    assert reader.rows == len(found)
    return found, reader.torn_bytes


def test_what_is_written_is_read_while_it_grows(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "one")
    assert indexes(spool.path) == ([], 0)
    spool.append(batch(0, 3))
    assert indexes(spool.path) == ([0, 1, 2], 0)
    spool.append(batch(3, 1))
    assert indexes(spool.path) == ([0, 1, 2, 3], 0)
    assert (spool.rows, spool.bytes) == (4, spool.path.stat().st_size)
    spool.close()
    spool.close()
    assert indexes(spool.path) == ([0, 1, 2, 3], 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.arrows"]


def test_it_is_an_arrow_stream_that_others_can_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "one")
    spool.append(batch(0, 3))
    spool.close()
    table = pa.ipc.open_stream(spool.path.read_bytes()).read_all()
    assert table.num_rows == 3
    assert table.schema.equals(SCHEMA, check_metadata=True)


def test_it_is_locked_while_it_is_open(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "one")
    with spool.path.open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        spool.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_it_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.arrows").write_bytes(b"somebody's rows")
    with pytest.raises(FileExistsError):
        Spool(tmp_path, "one")
    assert (tmp_path / "one.arrows").read_bytes() == b"somebody's rows"
    assert not (tmp_path / "one.new").exists()


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """Cut anywhere, a spool yields exactly the batches that lie before the cut and counts the rest."""
    spool = Spool(tmp_path, "one")
    ends = [spool.bytes]
    for n in range(3):
        spool.append(batch(2 * n, 2))
        ends.append(spool.bytes)
    spool.close()
    whole = spool.path.read_bytes()
    torn = tmp_path / "torn"
    near = {end + n for end in [*ends, len(whole)] for n in range(-24, 25)}
    for at in range(ends[0], len(whole) + 1):
        if at % 7 and at not in near:
            continue
        torn.write_bytes(whole[:at])
        batches = sum(end <= at for end in ends[1:])
        found, torn_bytes = indexes(torn)
        assert found == list(range(2 * batches)), at
        assert torn_bytes == (at - ends[batches] if at < len(whole) else 0), at


def test_without_a_whole_schema_it_is_no_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "one")
    spool.close()
    whole = spool.path.read_bytes()
    torn = tmp_path / "torn"
    for at in range(0, len(SCHEMA.serialize()), 13):
        torn.write_bytes(whole[:at])
        with pytest.raises(ValueError, match="no readable schema"):
            SpoolReader(torn)


def test_garbage_after_the_last_batch_is_counted(tmp_path: Path) -> None:
    for garbage in (b"\0" * 100, b"\xff" * 100, os.urandom(4096)):
        spool = Spool(tmp_path, "one")
        spool.append(batch(0, 2))
        end = spool.bytes
        spool.close()
        path = tmp_path / "torn"
        path.write_bytes(spool.path.read_bytes()[:end] + garbage)
        assert indexes(path) == ([0, 1], len(garbage))
        spool.path.unlink()


def test_a_write_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "one")
    spool.append(batch(0, 2))

    def half(fd: int, data: bytes) -> int:
        os.write(fd, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_module, "write_all", half)
    with pytest.raises(OSError, match="No space"):
        spool.append(batch(2, 2))
    spool.close()  # writing the mark of the end fails too
    monkeypatch.undo()
    assert indexes(spool.path) == ([0, 1], 0)


FILE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from replay.spool import Spool
from tests.replay.test_recording_spool import batch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]), "one")
resource.setrlimit(resource.RLIMIT_FSIZE, (spool.bytes + 20_000, resource.RLIM_INFINITY))
rows = 0
try:
    for n in range(1000):
        spool.append(batch(2 * n, 2))
        rows += 2
except OSError:
    spool.close()
    print(rows)
"""


def test_the_systems_own_limit_leaves_whole_batches(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    rows = int(done.stdout)
    assert 0 < rows < 2000
    assert indexes(tmp_path / "one.arrows") == (list(range(rows)), 0)
