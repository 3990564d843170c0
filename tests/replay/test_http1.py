"""HTTP/1.x syntax: lines, heads, framing, and the chunked coding in any cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.http1 import (
    CHUNK_LINE_LIMIT_BYTES,
    TRAILER_LIMIT_BYTES,
    Body,
    ChunkedDecoder,
    asks_for_tunnel,
    chunk_size,
    framing,
    head_end,
    header_values,
    parse_response_head,
    request_line,
    status_line,
)


@pytest.mark.parametrize(
    ("data", "start", "end"),
    [
        (b"GET / HTTP/1.1\r\n\r\nbody", 0, 18),
        (b"a\n\nb", 0, 3),
        (b"a\r\nb\n\r\nc", 0, 7),
        (b"a\n\n\r\n", 0, 3),
        (b"\n\n\r\n", 0, 2),
        (b"a\r\n\r\nb\n\n", 0, 5),
        (b"a\r\n\r\nb\n\n", 5, 8),
        (b"a\r\n\r", 0, -1),
        (b"", 0, -1),
    ],
)
def test_head_end(data: bytes, start: int, end: int) -> None:
    assert head_end(data, start) == head_end(bytearray(data), start) == end


@given(st.text(alphabet="a\r\n", max_size=12))
@settings(max_examples=300)
def test_head_end_does_not_depend_on_how_much_is_there(text: str) -> None:
    data = text.encode()
    ends = [head_end(data[:n]) for n in range(len(data) + 1)]
    assert {end for end in ends if end >= 0} == ({head_end(data)} if head_end(data) >= 0 else set())


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"GET / HTTP/1.1\r\n", ("GET", "/", 11)),
        (b"GET / HTTP/1.0\n", ("GET", "/", 10)),
        (b"PURGE /x HTTP/1.1\r\n", ("PURGE", "/x", 11)),
        (b"get / http/1.1\r\n", ("get", "/", 11)),
        (b"GET / HTTP/1.9\r\n", ("GET", "/", 11)),
        (b"GET /a b HTTP/1.1\r\n", ("GET", "/a b", 11)),
        (b"GET   /a   HTTP/1.1  \r\n", ("GET", "/a", 11)),
        (b"OPTIONS * HTTP/1.1\r\n", ("OPTIONS", "*", 11)),
        (b"GET /\xff HTTP/1.1\r\n", ("GET", "/\xff", 11)),
        (b"GET /\r\n", None),
        (b"GET HTTP/1.1\r\n", None),
        (b"GET  HTTP/1.1\r\n", None),
        (b"G(T / HTTP/1.1\r\n", None),
        (b" / HTTP/1.1\r\n", None),
        (b"PRI * HTTP/2.0\r\n", None),
        (b"GET / HTTP/1.\r\n", None),
        (b"GET / HTTP/1.12\r\n", None),
        (b"\n", None),
    ],
)
def test_request_line(line: bytes, parsed: tuple[str, str, int] | None) -> None:
    assert request_line(line) == parsed


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"HTTP/1.1 200 OK\r\n", (200, 11)),
        (b"HTTP/1.0 404\r\n", (404, 10)),
        (b"HTTP/1.1 599 \n", (599, 11)),
        (b"HTTP/1.1 999 X\r\n", (999, 11)),
        (b"HTTP/1.1 099 X\r\n", None),
        (b"HTTP/1.1 20 X\r\n", None),
        (b"HTTP/1.1 2000 X\r\n", None),
        (b"HTTP/1.1  200\r\n", None),
        (b"HTTP/2 200 OK\r\n", None),
        (b"ICY 200 OK\r\n", None),
    ],
)
def test_status_line(line: bytes, parsed: tuple[int, int] | None) -> None:
    assert status_line(line) == parsed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"", (Body.NONE, 0)),
        (b"Content-Length: 5\r\n", (Body.LENGTH, 5)),
        (b"content-length:5\n", (Body.LENGTH, 5)),
        (b"Content-Length : 5\r\n", (Body.LENGTH, 5)),
        (b"Content-Length: 5, 5\r\nContent-Length: 5\r\n", (Body.LENGTH, 5)),
        (b"Content-Length: 000000000000000000000000000000005\r\n", (Body.LENGTH, 5)),
        (b"Content-Length:\r\n 5\r\n", (Body.LENGTH, 5)),
        (b"Content-Length-Not: 5\r\n", (Body.NONE, 0)),
        (b"X-Content-Length: 5\r\n", (Body.NONE, 0)),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", None),
        (b"Content-Length: -5\r\n", None),
        (b"Content-Length: +5\r\n", None),
        (b"Content-Length: 1_0\r\n", None),
        (b"Content-Length: 0x5\r\n", None),
        (b"Content-Length: \r\n", None),
        (b"Content-Length: " + b"9" * 30 + b"\r\n", None),
        (b"Content-Length: " + b"0" * 5000 + b"\r\n", None),
        (b"Transfer-Encoding: chunked\r\n", (Body.CHUNKED, 0)),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: Chunked\r\n", (Body.CHUNKED, 0)),
        (b"Transfer-Encoding:\r\n\tchunked\r\n", (Body.CHUNKED, 0)),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", (Body.CHUNKED, 0)),
        (b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n", (Body.LENGTH, 5)),
    ],
)
def test_framing(fields: bytes, expected: tuple[Body, int] | None) -> None:
    head = b"POST / HTTP/1.1\r\n" + fields + b"\r\n"
    assert framing(head.lower()) == expected


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        ("GET", b"Host: a\r\nUPGRADE: websocket\r\nConnection: Upgrade\r\n", True),
        ("GET", b"Host: a\nupgrade:h2c\n", True),
        ("CONNECT", b"Host: a\r\n", True),
        ("GET", b"X-Upgrade: a\r\nConnection: Upgrade\r\nUpgrade-Insecure-Requests: 1\r\n", False),
    ],
)
def test_requests_that_ask_for_a_tunnel(method: str, fields: bytes, expected: bool) -> None:
    head = method.encode() + b" / HTTP/1.1\r\n" + fields + b"\r\n"
    assert asks_for_tunnel(method, head.lower()) is expected


@pytest.mark.parametrize(
    ("version", "fields", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"connection: Foo, CLOSE\r\n", False),
        (b"1.1", b"Connection: not-close\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (b"1.1", b"Connection-Count: close\r\n", True),
    ],
)
def test_keep_alive(version: bytes, fields: bytes, keep_alive: bool) -> None:
    response = parse_response_head(b"HTTP/" + version + b" 200 OK\r\nContent-Length: 0\r\n" + fields + b"\r\n", "GET")
    assert response is not None and response.keep_alive is keep_alive


@pytest.mark.parametrize(
    ("head", "method", "body", "length", "tunnel"),
    [
        (b"200 OK\r\nContent-Length: 5\r\n", "GET", Body.LENGTH, 5, False),
        (b"200 OK\r\nContent-Length: 5\r\n", "HEAD", Body.NONE, 0, False),
        (b"200 OK\r\n", "GET", Body.CLOSE, 0, False),
        (b"204 No\r\nContent-Length: 5\r\n", "GET", Body.NONE, 0, False),
        (b"304 No\r\nTransfer-Encoding: chunked\r\n", "GET", Body.NONE, 0, False),
        (b"100 Go\r\n", "GET", Body.NONE, 0, False),
        (b"101 Up\r\n", "GET", Body.NONE, 0, True),
        (b"200 OK\r\nContent-Length: 5\r\n", "CONNECT", Body.NONE, 0, True),
        (b"403 No\r\nContent-Length: 5\r\n", "CONNECT", Body.LENGTH, 5, False),
    ],
)
def test_response_head(head: bytes, method: str, body: Body, length: int, tunnel: bool) -> None:
    parsed = parse_response_head(b"HTTP/1.1 " + head + b"\r\n", method)
    assert parsed is not None and (parsed.body, parsed.length, parsed.tunnel) == (body, length, tunnel)
    assert parsed.keep_alive is (body is not Body.CLOSE)


def test_response_head_that_is_none() -> None:
    assert parse_response_head(b"SSH-2.0\r\n\r\n", "GET") is None
    assert parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "GET") is None


def test_header_values() -> None:
    head = b"GET / HTTP/1.1\r\nA: 1\r\nB:  two \r\n words\r\na : 3\r\nAB: no\r\nA:\r\n\r\n"
    assert header_values(head, b"a") == [b"1", b"3", b""]
    assert header_values(head, b"b") == [b"two  words"]
    assert header_values(head, b"c") == []


@pytest.mark.parametrize(
    ("line", "size"),
    [
        (b"0", 0), (b"1a", 26), (b"FF", 255), (b" 5 ", 5), (b"5;name=value", 5), (b"5 ; x", 5), (b"", -1),
        (b"g", -1), (b"-1", -1), (b"+1", -1), (b"0x5", -1), (b"1 2", -1), (b"1" * 16, -1), (b";x", -1),
    ],
)  # fmt: skip
def test_chunk_size(line: bytes, size: int) -> None:
    assert chunk_size(line) == size


def decode(pieces: list[bytes]) -> tuple[bytes, bytes, ChunkedDecoder]:
    """Content, what was left over, and the decoder."""
    decoder, content, left = ChunkedDecoder(), b"", b""
    for piece in pieces:
        at, out = decoder.feed(piece)
        content += b"".join(out)
        left += piece[at:]
    return content, left, decoder


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.booleans(), st.booleans(), st.data())
@settings(max_examples=200)
def test_chunks_in_any_cut(parts: list[bytes], bare: bool, trailer: bool, data: st.DataObject) -> None:
    eol = b"\n" if bare else b"\r\n"
    coded = b"".join(b"%x;ext" % len(p) + eol + p + eol for p in parts) + b"0" + eol
    coded += (b"X: y" + eol) * trailer + eol
    cuts = sorted({0, len(coded), *data.draw(st.lists(st.integers(0, len(coded)), max_size=8))})
    pieces = [coded[a:b] for a, b in zip(cuts, [*cuts[1:], len(coded)], strict=True)]
    for split in (pieces, [coded], [bytes((b,)) for b in coded]):
        content, left, decoder = decode([*split, b"NEXT"])
        assert (content, left) == (b"".join(parts), b"NEXT") and decoder.done and not decoder.failed


@pytest.mark.parametrize(
    "coded",
    [
        b"x\r\n", b"\r\n", b"3\r\nabcd\r\n", b"3\r\nabcX\n", b"1" * (CHUNK_LINE_LIMIT_BYTES + 2),
        b"1;" + b"x" * CHUNK_LINE_LIMIT_BYTES + b"\r\n", b"0\r\n" + b"X: y\r\n" * (TRAILER_LIMIT_BYTES // 4 + 2),
    ],
)  # fmt: skip
def test_broken_chunks(coded: bytes) -> None:
    for split in ([coded], [bytes((b,)) for b in coded]):
        decoder = decode(split)[2]
        assert decoder.failed and not decoder.done


def test_missing_bytes_inside_a_chunk() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"a\r\n01")
    assert decoder.skip(5) and decoder.feed(b"789\r\n0\r\n\r\n")[1] == [b"789"] and decoder.done
    decoder = ChunkedDecoder()
    decoder.feed(b"a\r\n01")
    assert decoder.skip(8) and not decoder.feed(b"\r\n0\r\n\r\n")[1] and decoder.done


@pytest.mark.parametrize(("before", "length"), [(b"", 1), (b"a\r\n01", 9), (b"a\r\n0123456789", 1), (b"0\r\n", 2)])
def test_missing_bytes_elsewhere(before: bytes, length: int) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(before)
    assert not decoder.skip(length) and decoder.failed


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_are_data(data: bytes) -> None:
    head_end(data)
    for prefix in (b"", b"GET / HTTP/1.1\r\nContent-Length:", b"HTTP/1.1 200 OK\r\nTransfer-Encoding:"):
        request_line(prefix + data + b"\r\n\r\n")
        framing(prefix.lower() + data.lower())
        parse_response_head(prefix + data + b"\r\n\r\n", "GET")
        header_values(prefix + data, b"content-length")
    decode([data])
