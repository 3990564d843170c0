"""The recorder: every row arrives, limits hold, and neither a kill nor a full disk harms more than it must."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import recording, runfile
from replay.account import Account
from replay.compare.read import open_recording
from replay.convert import recover
from replay.errors import RecordingError
from replay.exchange import Answer, Dropped, Exchange, Fate, Incomplete, Outcome, Skipped
from replay.recording import BATCH_ROWS, RETRY_NS, Recorder, RecordingSettings, new_run_id
from replay.retention import delete_oldest
from replay.runfile import read_run_file
from tests.replay.examples import failed_outcome, make_exchange, make_outcome, make_request, make_response

SECOND = 1_000_000_000


class Clock:
    """A monotonic clock that stands still until told."""

    def __init__(self) -> None:
        self.ns = 5_000 * SECOND

    def __call__(self) -> int:
        return self.ns

    def pass_by(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND)


def make_recorder(directory: Path, worker: int = 0, clock: Clock | None = None, **limits: Any) -> Recorder:
    recording_settings = RecordingSettings(**limits)
    monotonic_ns = clock or Clock()
    return Recorder(
        directory, recording_settings, run="run", worker=worker, shadow="default", now_ns=0, monotonic_ns=monotonic_ns
    )


def add(recorder: Recorder, first: int, count: int) -> None:
    for n in range(first, first + count):
        recorder.add(make_exchange(make_request(), make_response(), index=n), Fate.REPLAYED, "", make_outcome())


def indexes(directory: Path) -> list[int]:
    """What `compare` would read, from Parquet and spools alike."""
    found = open_recording(directory).batches(["index"])
    return sorted(n for batch in found for n in batch.column("index").to_pylist())


def files(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob("*" + suffix))


def test_rows_are_in_the_spool_after_a_flush_and_in_parquet_after_close(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path / "made" / "here")
    directory = tmp_path / "made" / "here"
    add(recorder, 0, 10)
    assert indexes(directory) == []
    recorder.flush(SECOND)
    assert indexes(directory) == list(range(10))
    add(recorder, 10, 5)
    recorder.close(2 * SECOND, Account(seen=15, replayed=15))
    assert [len(files(directory, s)) for s in (".parquet", ".arrows", ".run.json")] == [0, 1, 1]
    assert indexes(directory) == list(range(15))
    assert recorder.convert(60)
    assert indexes(directory) == list(range(15))
    assert [len(files(directory, s)) for s in (".parquet", ".arrows", ".run.json")] == [1, 0, 1]
    assert (recorder.counters.rows, recorder.counters.rows_written, recorder.problem) == (15, 15, "")


def test_a_full_batch_does_not_wait_for_the_flush(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    add(recorder, 0, BATCH_ROWS + 1)
    assert len(indexes(tmp_path)) == BATCH_ROWS
    recorder.close(SECOND, Account())
    assert len(indexes(tmp_path)) == BATCH_ROWS + 1


def test_rotation_by_time_and_by_size(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make_recorder(tmp_path, clock=clock, rotate_seconds=10, rotate_bytes=100_000)
    add(recorder, 0, 3)
    recorder.flush(SECOND)
    clock.pass_by(9)
    recorder.flush(10 * SECOND)
    assert recorder.counters.spools == 1
    clock.pass_by(1)
    recorder.flush(11 * SECOND)
    add(recorder, 3, 1000)
    recorder.flush(12 * SECOND)
    add(recorder, 1003, 1)
    recorder.flush(13 * SECOND)
    assert recorder.counters.spools == 3
    recorder.close(14 * SECOND, Account())
    assert recorder.convert(60)
    assert recorder.counters.converter_failures == 0
    assert len(files(tmp_path, ".parquet")) == 3
    assert indexes(tmp_path) == list(range(1004))


def test_the_converter_works_beside_the_recorder(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make_recorder(tmp_path, clock=clock, rotate_seconds=1)
    add(recorder, 0, 3)
    recorder.flush(SECOND)
    clock.pass_by(1)
    recorder.flush(2 * SECOND)
    assert recorder._converter is not None
    recorder._converter.wait(60)
    add(recorder, 3, 3)
    recorder.flush(3 * SECOND)
    assert [len(files(tmp_path, s)) for s in (".parquet", ".arrows")] == [1, 1]
    assert indexes(tmp_path) == list(range(6))
    recorder.close(3 * SECOND, Account())


def test_the_run_file_is_there_at_once_and_follows(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, worker=4)
    (path,) = files(tmp_path, ".run.json")
    assert read_run_file(path).state == "running"
    account = Account(seen=5, replayed=3)
    account.incomplete[Incomplete.GAP] += 1
    account.answers[Answer.OK] += 3
    recorder.flush(SECOND, account, {"lost": {"ring": 7}})
    kept = read_run_file(path)
    assert (kept.account, kept.extra, kept.updated_ns) == (account, {"lost": {"ring": 7}}, SECOND)
    assert kept.account.in_flight == 1
    recorder.close(2 * SECOND, account, {"lost": {"ring": 8}})
    kept = read_run_file(path)
    assert (kept.state, kept.extra, kept.worker, kept.run) == ("ended", {"lost": {"ring": 8}}, 4, "run")
    assert kept.recording["rows"] == 0
    assert json.loads(path.read_text())["account"]["in_flight"] == 1


def test_a_worker_that_starts_again_writes_beside_the_dead_one(tmp_path: Path) -> None:
    first = make_recorder(tmp_path)
    add(first, 0, 5)
    first.flush(SECOND, Account(seen=5, replayed=5))
    assert first._spool is not None
    os.close(first._spool._fd)  # as if killed
    second = make_recorder(tmp_path)
    add(second, 5, 5)
    second.close(SECOND, Account(seen=5, replayed=5))
    assert second.convert(60)
    assert indexes(tmp_path) == list(range(10))
    assert len(files(tmp_path, ".parquet")) == 2
    assert len(files(tmp_path, ".run.json")) == 2


def test_exemplars_are_few_and_only_of_rows_that_differ(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, exemplars=2, exemplar_bytes=10)
    request = make_request(headers=b"Cookie: secret\r\n")
    for n in range(6):
        outcome = make_outcome(body=b"another, longer body") if n % 2 else make_outcome()
        recorder.add(make_exchange(request, make_response(), index=n), Fate.REPLAYED, "", outcome)
    recorder.close(SECOND, Account())
    assert recorder.convert(60)
    (path,) = files(tmp_path, ".parquet")
    rows = pq.read_table(path).to_pylist()
    assert [row["index"] for row in rows if row["shadow_body"] is not None] == [1, 3]
    assert rows[1]["shadow_body"] == b"another, l"
    assert rows[1]["response_body"] == b"body"
    assert rows[1]["request_head"] == b"GET / HTTP"
    assert recorder.counters.exemplars == 2


def test_a_value_that_fits_no_column_costs_its_row_only(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    good = make_exchange(make_request(), make_response())
    for detail in ("fine", "\ud800", "fine too"):
        recorder.add(good, Fate.REPLAYED, "", make_outcome(detail=detail, body=b"other"))
    huge = make_response()._replace(body_bytes=2**70)
    recorder.add(make_exchange(make_request(), huge), Fate.SKIPPED, Skipped.METHOD)
    recorder.close(SECOND, Account())
    assert recorder.convert(60)
    counters = recorder.counters
    assert (counters.rows_refused, counters.rows_lost, counters.rows_written, counters.rows) == (2, 2, 2, 4)
    (path,) = files(tmp_path, ".parquet")
    rows = pq.read_table(path).to_pylist()
    assert [(row["detail"], row["shadow_body"]) for row in rows] == [("fine", b"other"), ("fine too", b"other")]


def test_only_rows_that_fit_no_column(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    recorder.add(make_exchange(make_request(), make_response()), Fate.REPLAYED, "", make_outcome(detail="\ud800"))
    recorder.close(SECOND, Account())
    counters = recorder.counters
    assert (counters.rows_refused, counters.rows_lost, counters.rows_written) == (1, 1, 0)


def test_a_full_disk_is_counted_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    recorder = make_recorder(tmp_path, clock=clock)
    add(recorder, 0, 2)
    recorder.flush(SECOND)
    real = recording.Spool.append

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording.Spool, "append", full)
    for n in range(3):
        add(recorder, 0, 10)
        clock.pass_by(1)
        recorder.flush((2 + n) * SECOND, Account())
    assert recorder.counters.rows_lost == 30
    assert recorder.counters.write_errors == 1
    assert "No space left" in recorder.problem
    monkeypatch.setattr(recording.Spool, "append", real)
    add(recorder, 2, 2)
    clock.pass_by(RETRY_NS / SECOND)
    recorder.flush(3 * SECOND)
    assert recorder.problem == ""
    recorder.close(4 * SECOND, Account())
    assert indexes(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("step_s", [-86_400, 86_400])
def test_a_step_of_the_wall_clock_changes_neither_rotation_nor_retry(
    tmp_path: Path, step_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, now_ns = Clock(), 100_000 * SECOND
    recorder = make_recorder(tmp_path, clock=clock, rotate_seconds=10)
    add(recorder, 0, 1)
    recorder.flush(now_ns)
    now_ns += step_s * SECOND
    clock.pass_by(9)
    recorder.flush(now_ns)
    assert recorder._spool is not None
    clock.pass_by(1)
    recorder.flush(now_ns)
    assert recorder._spool is None

    with monkeypatch.context() as patch:
        patch.setattr(recording, "Spool", no_space)
        add(recorder, 1, 1)
        recorder.flush(now_ns)
    now_ns += step_s * SECOND
    add(recorder, 2, 1)
    recorder.flush(now_ns)
    assert recorder.counters.rows_lost == 2
    clock.pass_by(RETRY_NS / SECOND)
    add(recorder, 3, 1)
    recorder.flush(now_ns)
    assert (recorder.counters.rows_lost, recorder.problem) == (2, "")
    recorder.close(now_ns, Account())


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def vanish(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def test_rows_of_a_spool_that_was_deleted_are_lost(tmp_path: Path) -> None:
    clock, directory = Clock(), tmp_path / "gone"
    recorder = make_recorder(directory, clock=clock)
    add(recorder, 0, 5)
    recorder.flush(SECOND)
    vanish(directory)
    add(recorder, 5, 5)
    recorder.flush(2 * SECOND, Account())
    assert (recorder.counters.rows_written, recorder.counters.rows_lost) == (0, 10)
    assert "deleted" in recorder.problem and str(directory) in recorder.problem
    clock.pass_by(RETRY_NS / SECOND)
    add(recorder, 10, 5)
    recorder.flush(3 * SECOND, Account())
    assert (recorder.counters.rows_written, recorder.counters.rows_lost, recorder.problem) == (5, 10, "")
    recorder.close(4 * SECOND, Account())
    assert indexes(directory) == list(range(10, 15))
    assert files(directory, ".run.json")


def test_rows_of_a_spool_that_was_deleted_before_the_end_or_a_rotation(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    for worker, rotate_bytes in enumerate((1, 1 << 30)):
        recorder = make_recorder(directory, worker, rotate_bytes=1 << 30)
        add(recorder, 0, 5)
        recorder.flush(SECOND)
        vanish(directory)
        recorder._settings = RecordingSettings(rotate_bytes=rotate_bytes)
        if rotate_bytes == 1:
            recorder.flush(2 * SECOND)
        recorder.close(2 * SECOND, Account())
        assert (recorder.counters.rows_written, recorder.counters.rows_lost) == (0, 5)


def test_a_directory_that_vanishes_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    recorder = make_recorder(directory)
    vanish(directory)
    add(recorder, 0, 5)
    recorder.flush(SECOND, Account())
    assert (recorder.counters.rows_lost, recorder.counters.write_errors) == (0, 0)
    recorder.close(2 * SECOND, Account())
    assert indexes(directory) == list(range(5))


def test_a_directory_that_cannot_be_made_again_harms_nobody(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    recorder = make_recorder(directory)
    vanish(directory)
    directory.touch()
    add(recorder, 0, 5)
    recorder.flush(SECOND, Account())
    assert recorder.counters.rows_lost == 5
    assert recorder.counters.write_errors == 2  # the spool and the run file
    recorder.close(2 * SECOND, Account())
    assert recorder.convert(60)


def test_a_relative_directory_becomes_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorder = make_recorder(Path("recordings"))
    add(recorder, 0, 5)
    monkeypatch.chdir("/")
    recorder.close(SECOND, Account())
    assert recorder.convert(60)
    assert [len(files(tmp_path / "recordings", s)) for s in (".parquet", ".arrows")] == [1, 0]


def test_a_converter_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def slow(_: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[-1]

    monkeypatch.setattr(recording, "start_converter", slow)
    for running_already in (False, True):
        recorder = make_recorder(tmp_path, worker=running_already)
        add(recorder, 0, 1)
        recorder.close(SECOND, Account())
        if running_already:
            recorder._convert()
        assert not recorder.convert(0.01)
        assert recorder.counters.converter_failures == 1
    assert len(started) == 2 and all(child.returncode is not None for child in started)


def test_a_directory_that_cannot_be_made_is_bad_set_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match="choose one this user can write"):
        make_recorder(tmp_path / "file")


def test_the_oldest_files_go_when_the_directory_is_full(tmp_path: Path) -> None:
    for n in range(5):
        path = tmp_path / f"{n}.parquet"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (n, n))
    (tmp_path / "living.arrows").write_bytes(b"x" * 1000)
    kept = delete_oldest(tmp_path, 3500, tmp_path / "living.arrows")
    assert (kept.files_deleted, kept.bytes_deleted, kept.other_bytes) == (3, 3000, 2000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.parquet", "4.parquet", "living.arrows"]
    assert delete_oldest(tmp_path / "missing", 0, None).files_deleted == 0


def test_the_recorder_keeps_the_limit(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path, rotate_bytes=1, directory_bytes=40_000)
    for n in range(4):
        add(recorder, n, 1)
        recorder.flush(n * SECOND)
        if recorder._converter is not None:
            recorder._converter.wait(60)
    recorder.close(9 * SECOND, Account())
    assert recorder.convert(60)
    assert recorder.counters.files_deleted >= 1
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 60_000
    assert indexes(tmp_path)[-1] == 3


def test_spools_that_nobody_can_convert_stop_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(_: Path) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(recording, "start_converter", no_process)
    clock = Clock()
    recorder = make_recorder(tmp_path, clock=clock, rotate_bytes=1, directory_bytes=20_000)
    for n in range(10):
        clock.pass_by(0.5)
        add(recorder, n, 1)
        recorder.flush(n * SECOND)
    assert recorder.counters.rows_lost > 0
    assert "not converted" in recorder.problem
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 40_000
    monkeypatch.undo()
    recover(tmp_path)
    clock.pass_by(RETRY_NS / SECOND)
    recorder.flush(30 * SECOND)
    add(recorder, 99, 1)
    recorder.close(31 * SECOND, Account())
    assert 99 in indexes(tmp_path)


KILLED = """
import itertools, sys
from pathlib import Path
from replay.account import Account
from tests.replay.test_recording import add, make_recorder
recorder = make_recorder(Path(sys.argv[1]), worker=int(sys.argv[2]), rotate_bytes=200_000)
for n in itertools.count(1):
    add(recorder, 100 * (n - 1), 100)
    recorder.flush(n, Account(seen=100 * n, replayed=100 * n))
    print(100 * n, flush=True)
"""


def start_writer(directory: Path, worker: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, str(directory), str(worker)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    """Several workers share a directory; all are killed while they write, rotate and convert; then a new one starts."""
    writers = [start_writer(tmp_path, n) for n in range(3)]
    told = []
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(25):
            line = writer.stdout.readline()
        told.append(int(line))
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
    for n, writer in enumerate(writers):
        assert writer.stdout is not None
        told[n] = max([told[n], *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
    before = read_rows(tmp_path)
    recover(tmp_path)  # may run beside converters that outlive their parents
    last = make_recorder(tmp_path, worker=9)
    last.close(SECOND, Account())
    assert last.convert(60)
    recover(tmp_path)
    assert read_rows(tmp_path) == before
    for worker, at_least in enumerate(told):
        mine = [index for number, index in before if number == worker]
        assert sorted(mine) == list(range(len(mine)))
        assert at_least <= len(mine) <= at_least + 100
        (run_file,) = tmp_path.glob(f"run-w{worker:02d}-*.run.json")
        assert at_least - 100 <= read_run_file(run_file).account.seen <= at_least + 100


def read_rows(directory: Path) -> list[tuple[int, int]]:
    batches = open_recording(directory).batches(["worker", "index"])
    pairs = [zip(b.column("worker").to_pylist(), b.column("index").to_pylist(), strict=True) for b in batches]
    return sorted(pair for rows in pairs for pair in rows)


OUTCOMES = st.sampled_from([make_outcome(), make_outcome(500), *map(failed_outcome, [Answer.TIMEOUT, Answer.RESET])])
FATES = st.one_of(
    st.tuples(st.just(Fate.REPLAYED), st.just(""), OUTCOMES),
    st.tuples(st.just(Fate.INCOMPLETE), st.sampled_from(list(Incomplete)), st.none()),
    st.tuples(st.just(Fate.SKIPPED), st.sampled_from(list(Skipped)), st.none()),
    st.tuples(st.just(Fate.DROPPED), st.sampled_from(list(Dropped)), st.none()),
)
EXCHANGES = st.sampled_from(
    [
        make_exchange(make_request(), make_response()),
        make_exchange(make_request("/users/17?x=1", "POST"), None),
        make_exchange(None, make_response(404)),
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(EXCHANGES, FATES), max_size=40), st.integers(1, 15))
def test_the_rows_add_up_to_the_account(
    rows: list[tuple[Exchange, tuple[Fate, str, Outcome | None]]], flush_every: int
) -> None:
    from replay.compare import compare

    with tempfile.TemporaryDirectory() as name:
        recorder = make_recorder(Path(name))
        account = Account()
        for n, (exchange, (fate, reason, outcome)) in enumerate(rows):
            recorder.add(exchange, fate, reason, outcome)
            account.seen += 1
            if outcome is not None:
                account.replayed += 1
                account.answers[outcome.answer] += 1
            else:
                getattr(account, fate.value)[reason] += 1
            if n % flush_every == 0:
                recorder.flush(n * SECOND, account)
        recorder.close(SECOND, account)
        report = compare(Path(name))
        assert report.all.counts.account.as_dict() == account.as_dict() == report.seen.account.as_dict()
        by_route = Account()
        for route in report.routes:
            by_route.add(route.counts.account)
        assert by_route.as_dict() == account.as_dict()


def test_naming_a_run_loads_no_arrow() -> None:
    assert recording.new_run_id is runfile.new_run_id
    script = "import sys, replay.runfile; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_run_ids_sort_by_time_and_differ() -> None:
    first, second = new_run_id(1_700_000_000 * SECOND), new_run_id(1_700_000_001 * SECOND)
    assert first < second
    assert first.startswith("20231114T221320Z-")
    assert new_run_id(0) != new_run_id(0)
