"""Goes over a recording once and keeps what the report needs: counts by route and kind, and the latencies of pairs.

Counting is Arrow's own grouping; latencies are kept as 32-bit floats, 24 bytes a pair. Beyond a limit only every second
pair is kept, then every fourth and so on, so memory is bounded however long the recording is; counts stay exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from replay.compare.routes import PLACEHOLDER, Routes

PAIR_LIMIT = 4_000_000

COLUMNS = [
    "shadow", "fate", "reason", "method", "target", "status", "response_complete", "content_encoding", "answer",
    "shadow_status", "shadow_content_encoding", "body_equal", "request_t_last_ns", "response_t_first_ns",
    "response_t_last_ns", "shadow_t_sent_ns", "shadow_t_first_ns", "shadow_t_last_ns",
]  # fmt: skip

_PLAIN_ID = r"/(?:\d+|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(/|$)"

EQUAL, DIFFERENT, NOT_COMPARABLE = "equal", "different", "not comparable"

_KEYS = ["route", "fate", "reason", "answer", "status", "shadow_status", "body"]


class Kind(NamedTuple):
    """What rows that are counted together have in common; None where a row has none."""

    route: int
    fate: str
    reason: str | None
    answer: str | None
    status: int | None
    shadow_status: int | None
    body: str | None  # None unless both sides gave a whole response


class Pairs(NamedTuple):
    """Latencies of replayed requests in ms, from the request's last byte (production) or from its sending (shadow).

    Not-a-number: not known. Infinity: the shadow had not answered in time.
    """

    route: NDArray[np.int32]
    at_s: NDArray[np.float64]  # when the request came, seconds since the recording's first pair
    production_first: NDArray[np.float32]
    production_total: NDArray[np.float32]
    shadow_first: NDArray[np.float32]
    shadow_total: NDArray[np.float32]


class Tally:
    """Feed it batches of COLUMNS, then take `kinds`, `pairs` and the spans of time."""

    def __init__(self, pair_limit: int = PAIR_LIMIT) -> None:
        self.routes = Routes()
        self.kinds: Counter[Kind] = Counter()
        self.shadows: Counter[str] = Counter()
        self.every = 1  # one pair in so many is kept
        self.span_s = 0.0  # of production's requests that were replayed
        self.shadow_span_s = 0.0
        self._limit = pair_limit
        self._parts: list[Pairs] = []
        self._kept = 0
        self._seen = 0
        self._spans = [(2**63 - 1, 0), (2**63 - 1, 0)]

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch."""
        if batch.num_rows == 0:
            return
        route = self._route_numbers(batch)
        table = pa.Table.from_batches([batch]).append_column("route", pa.array(route))
        table = table.append_column("body", _body(table))
        groups = table.group_by(_KEYS).aggregate([([], "count_all")]).to_pydict()
        for values in zip(*(groups[key] for key in _KEYS), groups["count_all"], strict=True):
            self.kinds[Kind(*values[:-1])] += values[-1]
        for name in pc.value_counts(batch.column("shadow")).to_pylist():
            self.shadows[name["values"] or ""] += name["counts"]
        self._add_pairs(table, route)

    def pairs(self) -> Pairs:
        """All pairs kept, in the order they were fed."""
        parts = self._parts or [_no_pairs()]
        merged = Pairs._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
        if len(merged.at_s):
            merged = merged._replace(at_s=merged.at_s - merged.at_s.min())
        return merged

    def _route_numbers(self, batch: pa.RecordBatch) -> NDArray[np.int32]:
        methods = batch.column("method").dictionary_encode()
        targets = _shorter(batch.column("target")).dictionary_encode()
        names, paths = methods.dictionary.to_pylist(), targets.dictionary.to_pylist()
        width = len(paths) + 1
        code = _codes(methods) * width + _codes(targets)
        distinct, inverse = np.unique(code, return_inverse=True)
        numbers = [self._route(names, paths, int(one), width) for one in distinct]
        return np.array(numbers, dtype=np.int32)[inverse]

    def _route(self, names: list[str], paths: list[str], code: int, width: int) -> int:
        method, path = divmod(code, width)
        if method == len(names) or path == len(paths):
            return 0
        return self.routes.number(names[method], paths[path])

    def _add_pairs(self, table: pa.Table, route: NDArray[np.int32]) -> None:
        timed_out = _equal(table, "answer", "timeout")
        mask = (_equal(table, "answer", "ok") | timed_out) & _there(table, "response_t_first_ns")
        mask &= _there(table, "request_t_last_ns") & _there(table, "shadow_t_sent_ns")
        if not mask.any():
            return
        times = {name: _times(table, name)[mask] for name in COLUMNS if name.endswith("_ns")}
        self._note_spans(times["request_t_last_ns"], times["shadow_t_sent_ns"])
        at = times["request_t_last_ns"].astype(np.float64) / 1e9
        complete = table["response_complete"].fill_null(False).to_numpy()[mask]
        late = timed_out[mask]
        part = Pairs(
            route[mask],
            at,
            _ms(times["request_t_last_ns"], times["response_t_first_ns"]),
            np.where(complete, _ms(times["request_t_last_ns"], times["response_t_last_ns"]), np.float32("nan")),
            _late(_ms(times["shadow_t_sent_ns"], times["shadow_t_first_ns"]), late & (times["shadow_t_first_ns"] == 0)),
            _late(_ms(times["shadow_t_sent_ns"], times["shadow_t_last_ns"]), late),
        )
        self._keep(part)

    def _note_spans(self, *columns: NDArray[np.int64]) -> None:
        self._spans = [
            (min(low, int(values.min())), max(high, int(values.max())))
            for (low, high), values in zip(self._spans, columns, strict=True)
        ]
        self.span_s, self.shadow_span_s = ((high - low) / 1e9 for low, high in self._spans)

    def _keep(self, part: Pairs) -> None:
        """Keep every `every`th pair; thin out what is kept when it is too much."""
        first = -self._seen % self.every
        self._seen += len(part.route)
        thin = Pairs._make(column[first :: self.every] for column in part)
        self._parts.append(thin)
        self._kept += len(thin.route)
        while self._kept > self._limit:
            merged = Pairs._make(np.concatenate(columns)[::2] for columns in zip(*self._parts, strict=True))
            self._parts, self._kept, self.every = [merged], len(merged.route), self.every * 2


def _shorter(targets: pa.Array) -> pa.Array:
    """Targets that have the same templates and are far fewer: the query and the plainest identifiers are gone.

    Twice, since a match takes the slash that the next one would begin with.
    """
    targets = pc.replace_substring_regex(targets, r"(?s)[?#].*", "")
    for _ in range(2):
        targets = pc.replace_substring_regex(targets, _PLAIN_ID, "/" + PLACEHOLDER + r"\1")
    return targets


def _no_pairs() -> Pairs:
    ms = np.array([], dtype=np.float32)
    return Pairs(np.array([], dtype=np.int32), np.array([], dtype=np.float64), ms, ms, ms, ms)


def _body(table: pa.Table) -> pa.ChunkedArray:
    """Equal, different or not comparable, for rows with two whole responses; null for the others.

    Bodies that differ under different content codings may still have the same content, so those cannot be compared.
    """
    whole = pc.and_(pc.equal(table["answer"], "ok"), table["response_complete"])
    ours, theirs = (table[name].fill_null("") for name in ("content_encoding", "shadow_content_encoding"))
    recoded = pc.and_(pc.invert(table["body_equal"]), pc.not_equal(ours, theirs))
    unlike = pc.or_(pc.is_null(table["body_equal"]), recoded)
    word = pc.if_else(
        unlike.fill_null(True), NOT_COMPARABLE, pc.if_else(table["body_equal"].fill_null(False), EQUAL, DIFFERENT)
    )
    return pc.if_else(whole.fill_null(False), word, pa.scalar(None, pa.string()))


def _codes(column: pa.DictionaryArray) -> NDArray[np.int64]:
    """The codes of an encoded column; nulls get the number after the last."""
    filled: NDArray[np.int64] = column.indices.fill_null(len(column.dictionary)).to_numpy().astype(np.int64)
    return filled


def _equal(table: pa.Table, name: str, value: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.equal(table[name], value).fill_null(False).to_numpy()
    return found


def _there(table: pa.Table, name: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.is_valid(table[name]).to_numpy()
    return found


def _times(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Nanoseconds, 0 for null."""
    found: NDArray[np.int64] = table[name].fill_null(0).to_numpy()
    return found


def _ms(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
    """Milliseconds from one time to the other; not-a-number when a time is missing or they are in the wrong order (an
    answer that came before the request ended)."""
    good = (start > 0) & (end >= start)
    return np.where(good, (end - start) / 1e6, np.nan).astype(np.float32)


def _late(values: NDArray[np.float32], late: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(late, np.float32("inf"), values)


def feed(batches: Iterable[pa.RecordBatch], pair_limit: int = PAIR_LIMIT) -> Tally:
    """A tally of all batches."""
    tally = Tally(pair_limit)
    for batch in batches:
        tally.add(batch)
    return tally
