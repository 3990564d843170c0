"""The bytes that go out: the mark's place, and which requests end their connection."""

from __future__ import annotations

import pytest

from replay.exchange import Request
from replay.wire import asks_to_close, wire_bytes, wire_size
from tests.replay.harness import make_request


def request(head: bytes, body: bytes = b"", wire_body: bytes | None = None) -> Request:
    return Request("GET", "/", 11, head, body, len(body), wire_body, 0, 0)


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (b"GET / HTTP/1.1\r\nA: 1\r\n\r\n", b"GET / HTTP/1.1\r\nA: 1\r\nM: 1\r\n\r\n"),
        (b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nM: 1\r\n\r\n"),
        (b"GET / HTTP/1.1\nA: 1\n\n", b"GET / HTTP/1.1\nA: 1\nM: 1\n\n"),
        (b"GET / HTTP/1.1\nA: 1\n\r\n", b"GET / HTTP/1.1\nA: 1\nM: 1\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nA: 1\r\n 2\r\n\r\n", b"GET / HTTP/1.1\r\nA: 1\r\n 2\r\nM: 1\r\n\r\n"),
    ],
)
def test_the_mark_stands_before_the_blank_line(head: bytes, sent: bytes) -> None:
    assert wire_bytes(request(head, b"body"), b"M: 1") == sent + b"body"
    assert wire_bytes(request(head, b"body"), b"") == head + b"body"


def test_the_body_goes_with_its_coding() -> None:
    coded = request(b"GET / HTTP/1.1\r\n\r\n", b"abc", b"3\r\nabc\r\n0\r\n\r\n")
    assert wire_bytes(coded, b"").endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert wire_size(coded) == len(wire_bytes(coded, b""))


@pytest.mark.parametrize(
    ("headers", "version", "closes"),
    [
        (b"", 11, False),
        (b"", 10, True),
        (b"Connection: close\r\n", 11, True),
        (b"CONNECTION : x, CLOSE\r\n", 11, True),
        (b"connection: keep-alive\r\n", 11, False),
        (b"X-Connection: close\r\n", 11, False),
        (b"Connection: Keep-Alive\r\n", 10, False),
        (b"Connection: close\r\n", 10, True),
    ],
)
def test_requests_that_end_their_connection(headers: bytes, version: int, closes: bool) -> None:
    assert asks_to_close(make_request(headers=headers, version=version)) is closes
