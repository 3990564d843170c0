"""Reading responses: every kind, in any segmentation, and never an exception on what strangers send."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from replay.http1 import HEAD_LIMIT_BYTES
from replay.response import INTERIM_LIMIT, Progress, ResponseReader

LIMIT = 1000
CASES = [
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"", 200, b"hello", 5),
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", 200, b"", 0),
    ("GET", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", b"", 200, b"ok", 2),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", 200, b"", 0),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", 204, b"", 0),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"", 304, b"", 0),
    ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"", 200, b"x", 1),
    (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nA: b\r\n\r\n",
        b"",
        200,
        b"abcde",
        5,
    ),
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 1500\r\n\r\n" + b"y" * 1500, b"", 200, b"y" * LIMIT, 1500),
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 200 OK\r\n", 200, b"ok", 2),
    ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"junk", 200, b"a", 1),
]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({c % len(data) for c in cuts} - {0}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def read(pieces: list[bytes], method: str = "GET", limit: int = LIMIT) -> tuple[ResponseReader, Progress, int]:
    """Feed the pieces at times 1, 2, ... until the reader has enough; also how many pieces it took."""
    reader = ResponseReader(limit)
    reader.begin(method)
    progress, taken = Progress.MORE, 0
    for taken, piece in enumerate(pieces, 1):
        progress = reader.feed(piece, taken)
        if progress is not Progress.MORE:
            break
    return reader, progress, taken


@settings(max_examples=300)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 2000), max_size=12))
def test_any_segmentation_gives_the_same(case: tuple[str, bytes, bytes, int, bytes, int], cuts: list[int]) -> None:
    method, message, after, status, body, body_bytes = case
    pieces = pieces_of(message + after, cuts)
    reader, progress, taken = read(pieces, method)
    assert progress is Progress.WHOLE
    assert (reader.status, reader.body, reader.body_bytes) == (status, body, body_bytes)
    assert reader.head in message
    assert reader.excess_bytes == sum(map(len, pieces[:taken])) - len(message)
    assert reader.t_last_ns == taken
    start = message.rfind(b"HTTP/1.")
    offset = 0
    for number, piece in enumerate(pieces, 1):
        if offset <= start < offset + len(piece):
            # A piece that also ends the 1xx before it, or the head's first piece: that is when the first byte came.
            assert reader.t_first_ns == number
        offset += len(piece)


def test_byte_by_byte() -> None:
    for method, message, _, status, body, body_bytes in CASES:
        reader, progress, taken = read([bytes([b]) for b in message], method)
        assert (progress, taken) == (Progress.WHOLE, len(message))
        assert (reader.status, reader.body, reader.body_bytes) == (status, body, body_bytes)


def test_the_reader_is_used_again() -> None:
    reader = ResponseReader(LIMIT)
    for method, message, _, status, body, _ in CASES * 2:
        reader.begin(method)
        half = len(message) // 2
        reader.feed(message[:half], 1)
        assert reader.feed(message[half:], 2) is Progress.WHOLE
        assert (reader.status, reader.body) == (status, body)


def test_until_close() -> None:
    reader, progress, _ = read([b"HTTP/1.1 200 OK\r\n\r\n", b"abc", b"def"])
    assert progress is Progress.MORE
    assert reader.end() is Progress.WHOLE
    assert (reader.body, reader.keep_alive) == (b"abcdef", False)


def test_an_end_that_comes_too_early_leaves_what_there_is() -> None:
    reader, _, _ = read([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
    assert reader.end() is Progress.MORE
    reader.close()
    assert (reader.status, reader.body, reader.body_bytes) == (200, b"abc", 3)


def test_a_tunnel_is_whole_after_its_head() -> None:
    for method, line in (("CONNECT", b"HTTP/1.1 200 OK\r\n\r\n"), ("GET", b"HTTP/1.1 101 Switching\r\n\r\n")):
        reader, progress, _ = read([line + b"\x16\x03\x01"], method)
        assert (progress, reader.tunnel, reader.excess_bytes) == (Progress.WHOLE, True, 0)


def test_limits() -> None:
    line = b"X-More: " + b"x" * 1000 + b"\r\n"
    reader, progress, taken = read([b"HTTP/1.1 200 OK\r\n", *[line] * 1000])
    assert progress is Progress.GARBAGE
    assert taken <= HEAD_LIMIT_BYTES // len(line) + 3
    _, progress, _ = read([b"HTTP/1.1 200 OK\r\n" + line * 70 + b"\r\n"])
    assert progress is Progress.GARBAGE
    reader, progress, taken = read([b"HTTP/1.1 103 Hints\r\n\r\n"] * 1000)
    assert (progress, taken) == (Progress.GARBAGE, INTERIM_LIMIT + 1)
    assert reader.detail


def test_garbage_is_known_by_its_first_bytes() -> None:
    for first in (b"\x00", b"SSH-2.0", b"HTTP/2 200\r\n", b"<html>"):
        assert read([first])[1] is Progress.GARBAGE
    assert read([b"HTT"])[1] is Progress.MORE


_PARTS = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 ", b"100 Continue", b"\r\n", b"\n", b"\r\n\r\n", b"Content-Length: ", b"5",
        b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"ffffffffff\r\n", b"3\r\nabc\r\n", b"-1", b" ",
    ]),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(_PARTS, min_size=1, max_size=20).map(b"".join).filter(bool), st.lists(st.integers(0, 400), max_size=6))
def test_anything_is_read_without_an_exception_and_the_same_in_pieces(data: bytes, cuts: list[int]) -> None:
    whole, progress, _ = read([data], limit=50)
    parts, progress_in_parts, _ = read(pieces_of(data, cuts), limit=50)
    assert progress_in_parts == progress
    assert len(whole.body) <= 50
    if progress is not Progress.GARBAGE:
        whole.end(), parts.end()
        assert (whole.status, whole.body, whole.body_bytes) == (parts.status, parts.body, parts.body_bytes)
