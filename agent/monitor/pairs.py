"""What workers tell the watch process of every request: one record each, many records in a datagram.

    datagram   {"worker": 0, "unsent": 0, "known_ns": 0}\\n  record  record  ...
    record     fixed fields (RECORD), then "GET /the/target?as=sent", at most TEXT_LIMIT_BYTES of it

A *pair* is a request that both sides answered or failed to answer; of a *lost* one that is not known, through no fault
of the shadow. All times are integer nanoseconds:

    production_ns   last byte of the request to last byte of production's answer
    shadow_ns       first byte sent to the shadow to last byte of its answer: its service time
    response_ns     last byte of its answer less the intended time, which is the request's last byte and the constant
                    delay of agent.spacing: what a client would have waited
    lag_ns          when it was sent, less the intended time; below 0 when it went with those of its step

An answer later than the shadow's time limit is an error of that side and counts as the limit, in the same way on both
sides. So does a request to which a side gave no whole answer, be it that it ended the connection or that it still said
nothing after the limit; without the shadow's, `response_ns` is then the limit and the lag. Of what a client gave up
nothing is told.

`unsent` counts the records that a worker could not send so far. What became of every request that came before
`known_ns` (Unix time) has been told; where nothing else happens, a datagram says that alone. A worker that is behind in
reading packets knows nothing of what came since.

Datagrams come from processes that read anybody's traffic: `unpack` raises nothing but ValueError. The route is found by
the reader, who has the time.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import NamedTuple

from replay.exchange import Answer, Dropped, Incomplete

LIMIT_BYTES = 60_000  # of a datagram
HEADER_LIMIT_BYTES = 200
TEXT_LIMIT_BYTES = 255
TARGET_SHOWN_CHARS = 120
NAMES_KEPT = 8192

# flags, kind of record, place, status, shadow_status, word, connection, position, at_ns, production_ns, shadow_ns,
# response_ns, lag_ns, length of the text
RECORD = struct.Struct("<BBHHHBQIqqqqqB")

PAIR, LOST = 0, 1

PRODUCTION_ERROR, SHADOW_ERROR, UNREACHABLE = 1, 2, 4
COMPARED, DIFFERENT, ECHOED, NOISY = 8, 16, 32, 64
ALL_FLAGS = 127

UNANSWERED = "unanswered"
REFUSED = (Dropped.BACKOFF, Dropped.NO_UPSTREAM)  # a client of the shadow's balancer would have got a 503
ANSWERS: tuple[str, ...] = (*Answer, *REFUSED)
LOST_WORDS: tuple[tuple[str, str], ...] = (
    (UNANSWERED, ""),
    *(("dropped", each) for each in Dropped),
    *(("incomplete", each) for each in Incomplete),
)
ANSWER_NUMBERS = {str(word): number for number, word in enumerate(ANSWERS)}
LOST_NUMBERS = {(reason, str(detail)): number for number, (reason, detail) in enumerate(LOST_WORDS)}


class PairRecord(NamedTuple):
    """A request and what became of it on both sides; see the module for the times."""

    place: int  # of the shadow, in the order
    at_ns: int  # first byte of the request, Unix time
    route: str
    production_ns: int
    shadow_ns: int
    response_ns: int
    lag_ns: int
    production_error: bool
    shadow_error: bool
    different: bool | None
    noisy: (
        bool | None
    )  # two answers of the shadow to it differ; None when it was asked once, or they cannot be compared
    unreachable: bool
    status: int  # 0 without an answer
    shadow_status: int  # likewise
    answer: str  # one of ANSWERS
    connection: int
    position: int  # within the connection: the exchange's index
    target: str  # the beginning of it, printable


class LostRecord(NamedTuple):
    """A request meant for the shadow of which there is no pair."""

    place: int
    at_ns: int
    route: str
    reason: str  # "dropped", "incomplete" or "unanswered"
    detail: str  # e.g. "queue_full"
    production_ns: int  # 0 when unknown
    status: int  # production's; 0 when unknown
    connection: int
    position: int
    target: str


class Batch(NamedTuple):
    """One datagram."""

    worker: int
    unsent: int
    known_ns: int
    pairs: list[PairRecord]
    lost: list[LostRecord]


def pack_datagram(worker: int, unsent: int, known_ns: int, records: bytearray) -> bytes:
    """`records` are `RECORD.pack(...)` and text, one behind the other, LIMIT_BYTES - HEADER_LIMIT_BYTES at most."""
    return b'{"worker": %d, "unsent": %d, "known_ns": %d}\n' % (worker, unsent, known_ns) + records


def pack_text(method: str, target: str) -> bytes:
    """The text of a record."""
    return f"{method} {target}"[:TEXT_LIMIT_BYTES].encode("latin-1", "replace")


def unpack(datagram: bytes) -> Batch:
    """Read a datagram; ValueError when it is none of ours."""
    end = datagram.find(b"\n", 0, HEADER_LIMIT_BYTES)
    if end < 0 or len(datagram) > LIMIT_BYTES:
        raise ValueError("no header, or too long")
    batch = Batch(*_header(datagram[:end]), [], [])
    at, size = end + 1, len(datagram)
    try:
        while at < size:
            fields = RECORD.unpack_from(datagram, at)
            at += RECORD.size
            text = datagram[at : at + fields[-1]]
            at += fields[-1]
            if fields[1] == PAIR:
                batch.pairs.append(_pair(fields, text))
            else:
                batch.lost.append(_lost(fields, text))
    except (struct.error, IndexError) as error:
        raise ValueError(f"a record is damaged: {error}") from None
    if at != size:
        raise ValueError("the last record is cut")
    return batch


def _header(data: bytes) -> tuple[int, int, int]:
    try:
        header = json.loads(data)
        numbers = header["worker"], header["unsent"], header["known_ns"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("the header is damaged") from None
    if any(number.__class__ is not int or not 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("the header's numbers are none")
    return numbers


def _pair(fields: tuple[int, ...], text: bytes) -> PairRecord:
    (flags, _, place, status, shadow_status, word, connection, position, *times, _) = fields
    at_ns, production_ns, shadow_ns, response_ns, lag_ns = times
    if min(at_ns, production_ns, shadow_ns, response_ns) < 0:
        raise ValueError("a time is negative")
    route, target = _names(text)
    production_error, shadow_error, different, noisy, unreachable = _FLAGS[flags]
    return PairRecord(
        place, at_ns, route, production_ns, shadow_ns, response_ns, lag_ns, production_error, shadow_error, different,
        noisy, unreachable, status, shadow_status, ANSWERS[word], connection, position, target,
    )  # fmt: skip


def _lost(fields: tuple[int, ...], text: bytes) -> LostRecord:
    _, kind, place, status, _, word, connection, position, at_ns, production_ns, *_ = fields
    if kind != LOST or min(at_ns, production_ns) < 0:
        raise ValueError("a kind is unknown, or a time is negative")
    route, target = _names(text)
    reason, detail = LOST_WORDS[word]
    return LostRecord(place, at_ns, route, reason, detail, production_ns, status, connection, position, target)


def _of_flags(flags: int) -> tuple[bool, bool, bool | None, bool | None, bool]:
    return (
        bool(flags & PRODUCTION_ERROR),
        bool(flags & SHADOW_ERROR),
        bool(flags & DIFFERENT) if flags & COMPARED else None,
        bool(flags & NOISY) if flags & ECHOED else None,
        bool(flags & UNREACHABLE),
    )


_FLAGS = tuple(map(_of_flags, range(ALL_FLAGS + 1)))


@lru_cache(NAMES_KEPT)
def _names(text: bytes) -> tuple[str, str]:
    """Route, and target as it is shown, of a record's text."""
    from replay.compare.routes import OTHER, printable, template  # its package loads numpy, which workers do without

    method, space, target = text.decode("latin-1").partition(" ")
    if not space:
        return OTHER, ""
    # Not its cached form: what comes here once is cached here, and a target may be anything.
    return printable(f"{method} {template.__wrapped__(target)}"), printable(target[:TARGET_SHOWN_CHARS])
