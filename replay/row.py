"""Makes one recording row out of an exchange and the shadow's outcome. Pure, and called once for every request seen.

The order of the values is that of `schema._COLUMNS`. Text from strangers is cut at named limits here, so that a batch
of rows has a bound in bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from replay.exchange import Answer, Exchange, Outcome, Request, Response
from replay.http1 import header_values
from replay.sameness import HASH_LIMIT_BYTES, known_sha1, sha1_of

TARGET_LIMIT_CHARS = 2048
FIELD_LIMIT_CHARS = 256  # of any other text

_NO_REQUEST = (None,) * 6
_NO_RESPONSE = (None,) * 6
_NO_FIELDS = (None,) * 3
_NO_OUTCOME = (None,) * 18
_HOST, _TYPE, _ENCODING, _LOCATION = b"\nhost:", b"\ncontent-type:", b"\ncontent-encoding:", b"\nlocation:"
_SECRET = re.compile(rb"(?im)^((?:proxy-)?authorization|cookie|set-cookie)([ \t]*:)[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*")

Row = tuple[Any, ...]


def build_row(shadow: str, worker: int, exchange: Exchange, fate: str, reason: str, outcome: Outcome | None) -> Row:
    """One row, without the exemplar columns."""
    request, response = exchange.request, exchange.response
    ours, theirs, equal = _bodies(response, outcome)
    fields = _NO_FIELDS if response is None else _fields(response.head)
    if outcome is None:
        their_columns = _NO_OUTCOME
    else:
        # Both sides often answer with the same head, byte for byte: within the same second, from the same program.
        same = response is not None and response.head == outcome.head
        their_columns = _outcome(outcome, theirs, fields if same else _fields(outcome.head), equal)
    # Adding tuples is cheaper than unpacking them into one.
    return (
        (shadow, worker, exchange.connection, exchange.index, exchange.client, exchange.server, fate, reason or None)
        + (_NO_REQUEST if request is None else _request(request))
        + (_NO_RESPONSE if response is None else _response(response, ours))
        + fields
        + their_columns
    )


def differs(row: Row, exchange: Exchange, outcome: Outcome | None) -> bool:
    """Whether a person may want to see both answers: unequal bodies, unequal statuses, or what is not HTTP."""
    if outcome is None or exchange.response is None:
        return False
    if outcome.answer is not Answer.OK:
        return outcome.answer is Answer.GARBAGE
    return row[-1] is False or outcome.status != exchange.response.status


def exemplar(exchange: Exchange, outcome: Outcome, limit: int) -> Row:
    """The exemplar columns of one row: heads (without credentials and cookies) and bodies, up to `limit` bytes."""
    request, response = exchange.request, exchange.response
    return (
        None if request is None else redact(request.head)[:limit],
        None if response is None else redact(response.head)[:limit],
        None if response is None else response.body[:limit],
        redact(outcome.head)[:limit],
        outcome.body[:limit],
    )


def redact(head: bytes) -> bytes:
    """The head with the values of credentials and cookies left out."""
    return _SECRET.sub(rb"\1\2 (left out)", head)


def _request(request: Request) -> Row:
    # One unpacking costs less than reading each field by its name.
    method, target, _, head, _, body_bytes, _, t_first, t_last, _, _ = request
    host = field(head, head.lower(), _HOST)
    return method[:FIELD_LIMIT_CHARS], target[:TARGET_LIMIT_CHARS], host, body_bytes, t_first, t_last


def _response(response: Response, sha1: str | None) -> Row:
    status, _, _, _, body_bytes, t_first, t_last, complete, _ = response
    return status, complete, body_bytes, sha1, t_first, t_last


def _outcome(outcome: Outcome, sha1: str | None, fields: Row, equal: bool | None) -> Row:
    answer, upstream, status, _, _, body_bytes, queued, sent, first, last, detail, waited, connected, tls, ends = (
        outcome
    )
    return (
        answer,
        upstream,
        status or None,
        body_bytes if status else None,
        sha1,
        queued or None,
        sent or None,
        first or None,
        last or None,
        *fields,
        detail[:FIELD_LIMIT_CHARS] or None,
        None if waited < 0 else waited,
        None if connected < 0 else connected,
        tls or None,
        ends or None,
        equal,
    )


def _fields(head: bytes) -> Row:
    """Content-Type, Content-Encoding and Location of a response; looking first is cheaper than calling."""
    lower = head.lower()
    return (
        field(head, lower, _TYPE),
        None if lower.find(_ENCODING) < 0 else field(head, lower, _ENCODING),
        None if lower.find(_LOCATION) < 0 else field(head, lower, _LOCATION),
    )


def field(head: bytes, lower: bytes, prefix: bytes) -> str | None:
    """The first value of a header, or None; `lower` is the head in lower case, `prefix` a newline, the name, a colon.

    Much faster than `header_values` for the usual line; what that one sees and this one does not is a space before
    the colon, which no server sends.
    """
    at = lower.find(prefix)
    if at < 0:
        return None
    end = head.find(b"\n", at + 1)
    if end < 0:
        end = len(head)
    elif head.startswith((b" ", b"\t"), end + 1):  # the value goes on
        return _text(header_values(head, prefix[1:-1])[0])
    return _text(head[at + len(prefix) : end])


@lru_cache(1024)
def _text(value: bytes) -> str:
    """A field's value as text; the same few come again and again."""
    return value.strip().decode("latin-1")[:FIELD_LIMIT_CHARS]


def _bodies(response: Response | None, outcome: Outcome | None) -> tuple[str | None, str | None, bool | None]:
    """Hash of production's body, hash of the shadow's, and whether they are equal; None for what cannot be known."""
    theirs = None if outcome is None or outcome.answer is not Answer.OK else outcome.body
    if outcome is None or theirs is None:
        return None if response is None else known_sha1(response), None, None
    their_bytes = outcome.body_bytes
    their_whole = len(theirs) == their_bytes <= HASH_LIMIT_BYTES
    if response is None or not response.complete:
        return None, sha1_of(theirs) if their_whole else None, None
    sha1 = known_sha1(response)
    body = response.body
    if response.body_bytes != their_bytes:
        return sha1, sha1_of(theirs) if their_whole else None, False
    if len(body) == their_bytes == len(theirs):
        if body == theirs:
            return sha1, sha1, True
        return sha1, sha1_of(theirs) if their_whole else None, False
    their_sha1 = sha1_of(theirs) if their_whole else None
    return sha1, their_sha1, None if sha1 is None or their_sha1 is None else sha1 == their_sha1
