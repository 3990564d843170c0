"""Turns collected rows into one Arrow record batch."""

from __future__ import annotations

import pyarrow as pa

from replay.row import Row
from replay.schema import COLUMN_TYPES, EXEMPLAR_TYPES, SCHEMA

_REFUSED = (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError)


def encode(rows: list[Row], exemplars: dict[int, Row]) -> tuple[pa.RecordBatch | None, int]:
    """The rows as one batch (None without any), and how many had a value that no column can hold and are left out."""
    try:
        return _encode(rows, exemplars), 0
    except _REFUSED:
        return _encode_each(rows, exemplars)


def _encode(rows: list[Row], exemplars: dict[int, Row]) -> pa.RecordBatch:
    arrays = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), COLUMN_TYPES, strict=True)]
    for at, kind in enumerate(EXEMPLAR_TYPES):
        if exemplars:
            kept = [exemplars[n][at] if n in exemplars else None for n in range(len(rows))]
            arrays.append(pa.array(kept, kind))
        else:
            arrays.append(pa.nulls(len(rows), kind))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _encode_each(rows: list[Row], exemplars: dict[int, Row]) -> tuple[pa.RecordBatch | None, int]:
    """Slow: find the rows that cannot be encoded."""
    good: list[Row] = []
    kept: dict[int, Row] = {}
    for at, row in enumerate(rows):
        try:
            _encode([row], {})
        except _REFUSED:
            continue
        if at in exemplars:
            kept[len(good)] = exemplars[at]
        good.append(row)
    return _encode(good, kept) if good else None, len(rows) - len(good)
