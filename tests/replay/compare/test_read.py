"""Reading a recording directory that others write to."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay.compare.read import open_recording
from replay.convert import recover
from replay.errors import RecordingError
from replay.schema import SCHEMA, VERSION, VERSION_KEY
from replay.spool import Spool
from tests.replay.test_recording_spool import batch


def read(directory: Path, columns: list[str] | None = None) -> list[int | None]:
    found = open_recording(directory).batches(columns or ["index"])
    return sorted(n for one in found for n in one.column(0).to_pylist())


def spool(directory: Path, stem: str, first: int) -> Spool:
    made = Spool(directory, stem)
    made.append(batch(first, 10))
    return made


def test_parquet_living_and_dead_spools_are_read_together(tmp_path: Path) -> None:
    spool(tmp_path, "a", 0).close()
    recover(tmp_path)
    spool(tmp_path, "b", 10).close()
    living = spool(tmp_path, "c", 20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert read(tmp_path) == list(range(30))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    living.close()


def test_a_spool_beside_its_own_parquet_is_not_read_twice(tmp_path: Path) -> None:
    spool(tmp_path, "a", 0).close()
    copy = (tmp_path / "a.arrows").read_bytes()
    recover(tmp_path)
    (tmp_path / "a.arrows").write_bytes(copy)
    assert read(tmp_path) == list(range(10))


def test_a_spool_that_is_converted_after_it_was_listed(tmp_path: Path) -> None:
    spool(tmp_path, "a", 0).close()
    recording = open_recording(tmp_path)
    recover(tmp_path)
    assert sum(one.num_rows for one in recording.batches(["index"])) == 10
    assert recording.unreadable == []


def test_torn_bytes_are_told_from_spools_and_from_parquet(tmp_path: Path) -> None:
    path = spool(tmp_path, "a", 0).path
    path.write_bytes(path.read_bytes() + b"\1" * 99)
    for _ in range(2):
        recording = open_recording(tmp_path)
        assert sum(one.num_rows for one in recording.batches(["index"])) == 10
        assert recording.torn_bytes == 99
        recover(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    spool(tmp_path, "a", 0).close()
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "c.arrows").write_bytes(b"junk")
    recording = open_recording(tmp_path)
    assert sum(one.num_rows for one in recording.batches(["index"])) == 10
    assert recording.unreadable == ["b", "c"]


def test_a_file_that_was_deleted_for_the_limit_is_named(tmp_path: Path) -> None:
    spool(tmp_path, "a", 0).close()
    recording = open_recording(tmp_path)
    (tmp_path / "a.arrows").unlink()
    assert list(recording.batches(["index"])) == []
    assert recording.unreadable == ["a"]


@pytest.mark.parametrize("suffix", ["arrows", "parquet"])
def test_an_older_version_lacks_columns(tmp_path: Path, suffix: str) -> None:
    older = pa.schema([("index", pa.int64()), ("gone", pa.string())], metadata={VERSION_KEY: b"0"})
    made = pa.record_batch([pa.array([1, 2]), pa.array(["x", "y"])], schema=older)
    path = tmp_path / f"a.{suffix}"
    if suffix == "arrows":
        path.write_bytes(older.serialize().to_pybytes() + made.serialize().to_pybytes())
    else:
        pq.write_table(pa.Table.from_batches([made]), path)
    (found,) = open_recording(tmp_path).batches(["index", "fate"])
    assert found.to_pydict() == {"index": [1, 2], "fate": [None, None]}
    assert found.schema.field("index").type == SCHEMA.field("index").type


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({VERSION_KEY: b"%d" % (VERSION + 1)}, "with a newer one"), (None, "not a recording of shadowtap")],
)
def test_what_cannot_be_understood_is_an_error(tmp_path: Path, metadata: dict[bytes, bytes], message: str) -> None:
    table = pa.table({"index": pa.array([1], pa.int32())}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RecordingError, match=message):
        read(tmp_path)


def test_no_recording_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no recording here"):
        open_recording(tmp_path)
    with pytest.raises(RecordingError, match="not a directory"):
        open_recording(tmp_path / "missing")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}', '{"version": "x"}', "\x80"])
def test_a_broken_run_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordingError, match=r"a\.run\.json"):
        open_recording(tmp_path)
