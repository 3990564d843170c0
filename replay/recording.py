"""Writes every request that was seen, with its fate and both answers, so that it survives the death of the worker.

    add() ──rows──► flush(), once a second ──► spool (Arrow IPC stream) ──rotation──► Parquet, by a short-lived process

Exchanges are collected and made into rows some hundreds at a time, and rows encoded a batch at a time: about 5 us a row
in all. One by one, between other work, making a row takes three times as long, since its code is never in the cache.
Nothing here raises once it has started. A disk that is full or gone costs rows, and those are counted; writing is tried
again after a while. Wall time is the caller's and only told to others; what is waited for here goes by the monotonic
clock, so that a step of the wall clock delays nothing.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replay.account import Account
from replay.batch import encode
from replay.converter import start_converter
from replay.errors import RecordingError
from replay.exchange import Exchange, Fate, Outcome
from replay.retention import delete_oldest
from replay.row import Row, build_row, differs, exemplar
from replay.runfile import RUN_SUFFIX, RunFile, new_run_id
from replay.settings import RecordingCounters, RecordingSettings
from replay.spool import SPOOL_SUFFIX, Spool

__all__ = ["Fate", "Recorder", "RecordingCounters", "RecordingSettings", "new_run_id"]

BATCH_ROWS = 1024  # rows in memory before they are written, whatever the time
PENDING_ROWS = 256  # exchanges that wait to be made into rows; a multiple of this is BATCH_ROWS
PENDING_BYTES = 1 << 20  # of bodies they may hold meanwhile
RETRY_NS = 10_000_000_000  # after a failed write
CONVERT_WAIT_S = 30.0  # for the last conversion
DIRECTORY_MODE = 0o750


class Recorder:
    """One worker's recording. `problem` is "" or what keeps it from writing, in one line."""

    def __init__(
        self,
        directory: Path,
        settings: RecordingSettings,
        *,
        run: str,
        worker: int,
        shadow: str,
        now_ns: int,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Open the directory, which is made if it is not there; RecordingError when it cannot be written.

        Spools that dead processes left are converted in the background.
        """
        self.counters = RecordingCounters()
        self.problem = ""
        self._directory = directory
        self._settings = settings
        self._shadow = shadow
        self._worker = worker
        # A worker that is started again within one run must not write to the files of the one that died.
        self._stem = f"{run}-w{worker:02d}-{os.urandom(3).hex()}"
        self._run_file = RunFile(run, worker, shadow, "running", now_ns, now_ns, Account())
        self._pending: list[tuple[Exchange, Fate, str, Outcome | None]] = []
        self._pending_bytes = 0
        self._rows: list[Row] = []
        self._exemplars: dict[int, Row] = {}  # by position in _rows
        self._exemplars_left = settings.exemplars
        self._spool: Spool | None = None
        self._clock = monotonic_ns
        self._spool_since_ns = self._limit_ns = monotonic_ns()
        self._retry_ns = 0  # nothing is written before this
        self._over_limit = False  # nothing is written either; _limit_ns is when that was last looked at
        self._now_ns = now_ns  # wall time, for the run file
        self._converter: subprocess.Popen[bytes] | None = None
        self._open_directory()

    def _open_directory(self) -> None:
        try:
            # The converter works in another directory, and so may our own process one day.
            self._directory = self._directory.absolute()
            self._directory.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
            self._run_file.write(self._run_path, durable=False)
            if any(self._directory.glob("*" + SPOOL_SUFFIX)):
                self._convert()
        except OSError as error:
            raise RecordingError(
                f"recording directory {self._directory}: {error.strerror}; choose one this user can write"
            ) from error

    @property
    def _run_path(self) -> Path:
        return self._directory / (self._stem + RUN_SUFFIX)

    def add(self, exchange: Exchange, fate: Fate, reason: str = "", outcome: Outcome | None = None) -> None:
        """Record one request, once its fate is final and production's response is finished. Never raises."""
        pending = self._pending
        pending.append((exchange, fate, reason, outcome))
        self.counters.rows += 1
        if exchange.request is not None:
            self._pending_bytes += len(exchange.request.body)
        if exchange.response is not None:
            self._pending_bytes += len(exchange.response.body)
        if outcome is not None:
            self._pending_bytes += len(outcome.body)
        if len(pending) >= PENDING_ROWS or self._pending_bytes >= PENDING_BYTES:
            self._make_rows()
            if len(self._rows) >= BATCH_ROWS:
                self._write_rows()

    def _make_rows(self) -> None:
        """The exchanges that waited become rows; from here on their bodies are not needed."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        rows, shadow, worker = self._rows, self._shadow, self._worker
        for exchange, fate, reason, outcome in pending:
            row = build_row(shadow, worker, exchange, fate, reason, outcome)
            if self._exemplars_left and outcome is not None and differs(row, exchange, outcome):
                self._exemplars_left -= 1
                self.counters.exemplars += 1
                self._exemplars[len(rows)] = exemplar(exchange, outcome, self._settings.exemplar_bytes)
            rows.append(row)

    def flush(self, now_ns: int, account: Account | None = None, extra: dict[str, Any] | None = None) -> None:
        """Write what is pending, rotate when it is time, and replace the run file if given an account. Never raises.

        Call it once a second. `extra` is JSON of the caller's. Numbers under "lost" are what was lost before the
        account could see it (ring records, for instance), those under "capture" any others of the capture's: both are
        totals of the whole run, so of what several recorders of a run tell, compare takes the largest.
        """
        self._now_ns = now_ns
        self._write_rows()
        self._check_spool()
        spool, clock_ns = self._spool, self._clock()
        if spool is not None and (
            spool.bytes >= self._settings.rotate_bytes
            or clock_ns - self._spool_since_ns >= self._settings.rotate_seconds * 1_000_000_000
        ):
            self._rotate()
        self._reap()
        if self._over_limit and clock_ns - self._limit_ns >= RETRY_NS:
            self._convert()
            self._keep_limit()
        if account is not None:
            self._write_run_file("running", account, extra)

    def close(self, now_ns: int, account: Account, extra: dict[str, Any] | None = None) -> None:
        """Write the rest and the final run file, which takes milliseconds; `convert` may follow. Never raises."""
        self._now_ns = now_ns
        self._retry_ns = 0
        self._write_rows()
        self._check_spool()
        self._close_spool()
        self._write_run_file("ended", account, extra)
        self._keep_limit()

    def convert(self, wait_s: float = CONVERT_WAIT_S) -> bool:
        """After `close`: make Parquet of what is left, and block until that is done, for `wait_s` in all. Never raises.

        False when it was not done: it is read by `compare` as it is, and converted at the next start.
        """
        failures, end_ns = self.counters.converter_failures, self._clock() + int(wait_s * 1e9)
        if self._await_converter(end_ns):  # one that began earlier found our spool in use
            failures = self.counters.converter_failures
            self._convert()
            self._await_converter(end_ns)
        return self.counters.converter_failures == failures

    def _write_rows(self) -> None:
        self._make_rows()
        rows, exemplars = self._rows, self._exemplars
        if not rows:
            return
        self._rows, self._exemplars = [], {}
        if self._over_limit or self._clock() < self._retry_ns:
            self.counters.rows_lost += len(rows)
            return
        batch, refused = encode(rows, exemplars)
        self.counters.rows_refused += refused
        self.counters.rows_lost += refused
        if batch is None:
            return
        try:
            if self._spool is None:
                self._open_spool()
            assert self._spool is not None
            self._spool.append(batch)
        except OSError as error:
            self.counters.rows_lost += batch.num_rows
            self._failed(error)
            return
        self.counters.rows_written += batch.num_rows
        self.problem = ""

    def _open_spool(self) -> None:
        self._directory.mkdir(exist_ok=True, mode=DIRECTORY_MODE)  # somebody may have removed it
        self._spool = Spool(self._directory, f"{self._stem}-{self.counters.spools:05d}")
        self._spool_since_ns = self._clock()
        self.counters.spools += 1

    def _check_spool(self) -> None:
        """Somebody may have deleted the spool; what is in it then, and what we might still write, is nowhere."""
        spool = self._spool
        if spool is not None and spool.deleted:
            self.counters.rows_written -= spool.rows
            self.counters.rows_lost += spool.rows
            self._failed(OSError(errno.ENOENT, "the spool was deleted"))

    def _close_spool(self) -> None:
        spool, self._spool = self._spool, None
        self._exemplars_left = self._settings.exemplars
        if spool is None:
            return
        try:
            spool.close()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Writing failed: say so once, give up the spool (what is in it is whole) and try again later."""
        self.counters.write_errors += 1
        self.problem = f"recording to {self._directory}: {error.strerror}; rows are lost, and counted, until it works"
        self._retry_ns = self._clock() + RETRY_NS
        self._close_spool()

    def _rotate(self) -> None:
        self._close_spool()
        self._reap()
        self._convert()

    def _convert(self) -> None:
        if self._converter is not None:
            return  # it runs still; the next rotation, or the next start, takes what it misses
        try:
            self._converter = start_converter(self._directory)
        except OSError:
            self.counters.converter_failures += 1
            self._keep_limit()

    def _reap(self) -> None:
        if self._converter is not None and self._converter.poll() is not None:
            self._converter_ended(self._converter.returncode)

    def _await_converter(self, end_ns: int) -> bool:
        """Wait for one that runs; it is ended, and the answer False, when it takes longer than until `end_ns`."""
        if self._converter is None:
            return True
        try:
            self._converter_ended(self._converter.wait((end_ns - self._clock()) / 1e9))
            return True
        except subprocess.TimeoutExpired:
            self._converter.kill()
            self._converter_ended(self._converter.wait())
            return False

    def _converter_ended(self, status: int) -> None:
        self._converter = None
        self.counters.converter_failures += status != 0
        self._keep_limit()

    def _write_run_file(self, state: str, account: Account, extra: dict[str, Any] | None) -> None:
        file = self._run_file
        file.state, file.updated_ns, file.account = state, self._now_ns, account
        file.recording, file.extra = asdict(self.counters), extra or {}
        try:
            file.write(self._run_path, durable=state != "running")
        except (OSError, ValueError, TypeError):
            self.counters.write_errors += 1

    def _keep_limit(self) -> None:
        """Delete old files; stop writing while spools that nobody converts hold the directory above its limit."""
        limit, self._limit_ns = self._settings.directory_bytes, self._clock()
        kept = delete_oldest(self._directory, limit, None if self._spool is None else self._spool.path)
        self.counters.files_deleted += kept.files_deleted
        self.counters.bytes_deleted += kept.bytes_deleted
        self._over_limit = kept.other_bytes > limit
        if self._over_limit:
            self.problem = f"recording to {self._directory}: its limit is reached by spools that are not converted yet"
