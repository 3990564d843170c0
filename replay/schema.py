"""What a recording's rows are: the columns, their types, and the version that a file says it was written with.

One row is one request that was seen. The version stands in the metadata of every spool and Parquet file. A column may
be added in a new version; readers fill it with nulls for older files. A file of a newer version is refused, since its
columns may mean something else.
"""

from __future__ import annotations

import pyarrow as pa

from replay.errors import RecordingError

VERSION = 2
VERSION_KEY = b"shadowtap.schema_version"
TORN_KEY = b"shadowtap.torn_bytes"  # bytes of a spool's last, unfinished batch that could not be kept


_TEXT, _INT, _BYTES = pa.string(), pa.int64(), pa.binary()

_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("shadow", _TEXT),
    ("worker", pa.int16()),
    ("connection", _INT),
    ("index", pa.int32()),
    ("client", _TEXT),
    ("server", _TEXT),
    ("fate", _TEXT),
    ("reason", _TEXT),  # null when replayed
    ("method", _TEXT),  # the request's columns are null when only its response was captured
    ("target", _TEXT),
    ("host", _TEXT),
    ("request_body_bytes", _INT),
    ("request_t_first_ns", _INT),
    ("request_t_last_ns", _INT),
    ("status", pa.int16()),  # production's columns are null without a response
    ("response_complete", pa.bool_()),
    ("response_body_bytes", _INT),
    ("response_body_sha1", _TEXT),  # null when not known
    ("response_t_first_ns", _INT),
    ("response_t_last_ns", _INT),
    ("content_type", _TEXT),
    ("content_encoding", _TEXT),
    ("location", _TEXT),
    ("answer", _TEXT),  # the shadow's columns are null unless replayed
    ("upstream", _TEXT),
    ("shadow_status", pa.int16()),
    ("shadow_body_bytes", _INT),
    ("shadow_body_sha1", _TEXT),
    ("shadow_t_queued_ns", _INT),
    ("shadow_t_sent_ns", _INT),
    ("shadow_t_first_ns", _INT),
    ("shadow_t_last_ns", _INT),
    ("shadow_content_type", _TEXT),
    ("shadow_content_encoding", _TEXT),
    ("shadow_location", _TEXT),
    ("detail", _TEXT),
    ("shadow_queue_ns", _INT),  # in a balancer program's queue; null when it does not say
    ("shadow_connect_ns", _INT),  # what its connection to the upstream took
    ("shadow_tls", _TEXT),  # protocol and cipher; null without TLS
    ("shadow_tls_not_after_s", _INT),  # when the certificate ends, Unix time
    ("body_equal", pa.bool_()),  # null when it cannot be said
]

# Kept for a few rows that differ, so that a person can look at them; null everywhere else.
_EXEMPLAR_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("request_head", _BYTES),
    ("response_head", _BYTES),
    ("response_body", _BYTES),
    ("shadow_head", _BYTES),
    ("shadow_body", _BYTES),
]

COLUMN_TYPES = [kind for _, kind in _COLUMNS]
EXEMPLAR_TYPES = [kind for _, kind in _EXEMPLAR_COLUMNS]
SCHEMA = pa.schema(_COLUMNS + _EXEMPLAR_COLUMNS, metadata={VERSION_KEY: str(VERSION).encode()})


def version_of(schema: pa.Schema, source: str) -> int:
    """The version a file was written with; `source` names it in the RecordingError for one that cannot be read."""
    text = (schema.metadata or {}).get(VERSION_KEY, b"")
    if not text.isdigit():
        raise RecordingError(f"{source}: not a recording of shadowtap; point at a directory that `record` wrote")
    version = int(text)
    if version > VERSION:
        raise RecordingError(
            f"{source}: schema version {version}, this shadowtap reads up to {VERSION}; compare it with a newer one"
        )
    return version


def adapt(batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """The named columns of a batch of any readable version, in today's types; columns it lacks are null."""
    arrays = []
    for name in columns:
        kind = SCHEMA.field(name).type
        at = batch.schema.get_field_index(name)
        column = pa.nulls(batch.num_rows, kind) if at < 0 else batch.column(at)
        arrays.append(column if column.type.equals(kind) else column.cast(kind))
    return pa.RecordBatch.from_arrays(arrays, names=columns)
