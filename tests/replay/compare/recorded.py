"""Makes small recordings for the tests of the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from replay.account import Account
from replay.exchange import Exchange, Fate, Outcome
from replay.recording import Recorder, RecordingSettings
from replay.schema import SCHEMA
from tests.replay.examples import MS, T0, make_exchange, make_outcome, make_request, make_response

SECOND = 1_000_000_000


def open_recorder(directory: Path, worker: int = 0, shadow: str = "default", run: str = "run") -> Recorder:
    return Recorder(directory, RecordingSettings(), run=run, worker=worker, shadow=shadow, now_ns=0)


def timed(
    at_ms: float, target: str = "/", ours_ms: float = 10.0, theirs_ms: float = 10.0, **answer: Any
) -> tuple[Exchange, Outcome]:
    """A request that came `at_ms` after T0; the first byte takes half as long as the last one on both sides."""
    at = T0 + int(at_ms * MS)
    ours, theirs = int(ours_ms * MS), int(theirs_ms * MS)
    response = make_response(first_ns=at + ours // 2, last_ns=at + ours)
    outcome = make_outcome(sent_ns=at + MS, first_ns=at + MS + theirs // 2, last_ns=at + MS + theirs, **answer)
    return make_exchange(make_request(target, at_ns=at), response), outcome


def record(directory: Path, pairs: list[tuple[Exchange, Outcome]], **recorder: Any) -> Account:
    """Record replayed requests and end in order; the account that was kept with them."""
    writer = open_recorder(directory, **recorder)
    account = Account()
    for exchange, outcome in pairs:
        writer.add(exchange, Fate.REPLAYED, "", outcome)
        account.seen += 1
        account.replayed += 1
        account.answers[outcome.answer] += 1
    writer.close(SECOND, account)
    return account


def rows(columns: list[str], *given: dict[str, Any]) -> pa.RecordBatch:
    """Rows as they are read; what is not given is null."""
    arrays = [pa.array([row.get(name) for row in given], SCHEMA.field(name).type) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, names=columns)
