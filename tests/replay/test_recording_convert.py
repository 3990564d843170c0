"""Spools become Parquet: once each, whatever dies in between, and never while their writer lives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay import convert
from replay.convert import BAD_SUFFIX, PART_SUFFIX, Recovered, drop_stale, recover
from replay.converter import start_converter
from replay.schema import SCHEMA, TORN_KEY, VERSION, VERSION_KEY, version_of
from replay.spool import Spool
from tests.replay.test_recording_spool import batch

EXPECTED = list(range(100))


def left_over(directory: Path, stem: str = "one", rows: int = 100) -> Path:
    """A spool as a killed process leaves it: no mark of the end, and unlocked."""
    spool = Spool(directory, stem)
    for first in range(0, rows, 10):
        spool.append(batch(first, 10))
    os.close(spool._fd)
    return spool.path


def rows_of(directory: Path) -> list[int]:
    found = [n for path in directory.glob("*.parquet") for n in pq.read_table(path)["index"].to_pylist()]
    return sorted(found)


def test_a_spool_becomes_parquet_with_the_same_rows_and_schema(tmp_path: Path) -> None:
    left_over(tmp_path)
    assert recover(tmp_path) == Recovered(files=1, rows=100)
    assert [p.name for p in tmp_path.iterdir()] == ["one.parquet"]
    table = pq.read_table(tmp_path / "one.parquet")
    assert table["index"].to_pylist() == EXPECTED
    assert table.schema.equals(SCHEMA)
    assert version_of(pq.read_schema(tmp_path / "one.parquet"), "") == VERSION
    assert recover(tmp_path) == Recovered()


def test_a_torn_tail_is_counted_and_told_in_the_file(tmp_path: Path) -> None:
    path = left_over(tmp_path)
    size = path.stat().st_size
    os.truncate(path, size - 11)
    done = recover(tmp_path)
    assert (done.rows, done.files) == (90, 1)
    assert 0 < done.torn_bytes < size / 8
    metadata = pq.read_metadata(tmp_path / "one.parquet").metadata
    assert metadata[TORN_KEY] == str(done.torn_bytes).encode()


def test_a_living_spool_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "one")
    spool.append(batch(0, 10))
    assert recover(tmp_path) == Recovered(living=1)
    spool.append(batch(10, 10))
    spool.close()
    assert recover(tmp_path) == Recovered(files=1, rows=20)


def test_an_empty_spool_leaves_nothing(tmp_path: Path) -> None:
    Spool(tmp_path, "one").close()
    assert recover(tmp_path) == Recovered()
    assert list(tmp_path.iterdir()) == []


def test_a_crash_after_the_rename_does_not_double_rows(tmp_path: Path) -> None:
    path = left_over(tmp_path)
    copy = path.read_bytes()
    recover(tmp_path)
    path.write_bytes(copy)
    assert recover(tmp_path) == Recovered()
    assert [p.name for p in tmp_path.iterdir()] == ["one.parquet"]
    assert rows_of(tmp_path) == EXPECTED


def test_a_crash_while_writing_leaves_the_spool(tmp_path: Path) -> None:
    left_over(tmp_path)
    (tmp_path / ("one" + PART_SUFFIX)).write_bytes(b"half a file")
    assert recover(tmp_path).rows == 100
    assert rows_of(tmp_path) == EXPECTED
    assert [p.name for p in tmp_path.iterdir()] == ["one.parquet"]


def test_a_full_disk_keeps_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left_over(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert.os, "fsync", full)
    assert recover(tmp_path) == Recovered(failed=1)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.undo()
    assert recover(tmp_path).rows == 100


def test_a_newer_version_is_left_for_a_newer_shadowtap(tmp_path: Path) -> None:
    schema = SCHEMA.with_metadata({VERSION_KEY: b"%d" % (VERSION + 1)})
    path = tmp_path / "one.arrows"
    path.write_bytes(schema.serialize().to_pybytes())
    assert recover(tmp_path) == Recovered(failed=1)
    assert path.exists()


def test_what_is_no_spool_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "one.arrows").write_bytes(b"\0\0garbage")
    assert recover(tmp_path) == Recovered(failed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["one" + BAD_SUFFIX]
    assert recover(tmp_path) == Recovered()


def test_rows_of_an_older_version_keep_their_schema(tmp_path: Path) -> None:
    older = pa.schema([("index", pa.int32())], metadata={VERSION_KEY: b"0"})
    made = pa.record_batch([pa.array([1, 2], pa.int32())], schema=older)
    (tmp_path / "one.arrows").write_bytes(older.serialize().to_pybytes() + made.serialize().to_pybytes())
    assert recover(tmp_path).rows == 2
    assert pq.read_schema(tmp_path / "one.parquet").equals(older)


def test_two_recoveries_at_once_convert_each_spool_once(tmp_path: Path) -> None:
    for n in range(20):
        left_over(tmp_path, f"spool{n}", rows=10)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(recover, [tmp_path] * 4))
    assert sum(one.rows for one in done) == 200
    assert sum(one.failed for one in done) == 0
    assert rows_of(tmp_path) == sorted(list(range(10)) * 20)
    assert not list(tmp_path.glob("*.arrows"))


def test_killed_at_any_moment_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    """SIGKILL during conversion, at several moments, then once without."""
    for n in range(6):
        left_over(tmp_path, f"spool{n}")
    rng = random.Random(5)
    script = "import sys; from pathlib import Path; from replay.convert import recover; print(flush=True); "
    script += "recover(Path(sys.argv[1]))"
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # pyarrow is loaded, it begins
        time.sleep(rng.uniform(0, 0.04))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    recover(tmp_path)
    assert rows_of(tmp_path) == sorted(EXPECTED * 6)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".parquet"] * 6


def test_names_that_never_came_to_hold_a_row_are_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "old.new").touch()
    now = time.time()
    drop_stale(tmp_path, now)
    assert (tmp_path / "old.new").exists()
    drop_stale(tmp_path, now + 2 * convert.STALE_NEW_SECONDS)
    assert not (tmp_path / "old.new").exists()


def test_as_a_process(tmp_path: Path) -> None:
    left_over(tmp_path)
    child = start_converter(tmp_path)
    assert child.wait(60) == 0
    assert rows_of(tmp_path) == EXPECTED
    (tmp_path / "bad.arrows").touch()
    assert start_converter(tmp_path).wait(60) == 1


def test_as_a_process_in_a_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    left_over(tmp_path)
    assert start_converter(Path(tmp_path.name)).wait(60) == 0
    assert rows_of(tmp_path) == EXPECTED


def test_the_lean_import_leaves_numpy_out_and_usable() -> None:
    script = (
        "from replay.lean import lean_arrow; import sys; lean_arrow(); lean_arrow()\n"
        "import pyarrow, replay.recording; assert not {'numpy', 'pyarrow.parquet'} & set(sys.modules)\n"
        "import numpy; assert numpy.arange(3).sum() == 3\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
