"""The bytes that go out: the mark's place, and which requests end their connection."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.settings import HOST
from replay.exchange import Request
from replay.wire import added_lines, asks_to_close, parties, server_name, wire_bytes, wire_size
from tests.replay.harness import From, make_request


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


@pytest.mark.parametrize(
    ("origin", "client", "server"),
    [
        (None, "", ""),
        (From("198.51.100.1:5555", "192.0.2.1:80"), "198.51.100.1:5555", "192.0.2.1:80"),
        (From("192.0.2.9:1", "192.0.2.1:80", ipaddress.ip_address("198.51.100.7")), "198.51.100.7:0", "192.0.2.1:80"),
        (From("192.0.2.9:1", "192.0.2.1:80", ipaddress.ip_address("2001:db8::7")), "[2001:db8::7]:0", "192.0.2.1:80"),
    ],
)
def test_who_talks_to_whom(origin: From | None, client: str, server: str) -> None:
    assert parties(origin) == (client, server)


@pytest.mark.parametrize(
    ("mark", "lines"),
    [(b"M: 1", b"M: 1\r\nX-Forwarded-For: 198.51.100.1"), (b"", b"X-Forwarded-For: 198.51.100.1")],
)
def test_the_client_stands_behind_the_mark(mark: bytes, lines: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nA: 1\r\n\r\n"
    assert added_lines(head, mark, From()) == lines
    assert added_lines(head, mark, From("unix:")) == mark
    assert added_lines(head[:-2] + b"X-Forwarded-For: 198.51.100.1\r\n\r\n", mark, From()) == mark


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        (b"Host: Shop.Example\r\n", "shop.example"),
        (b"Host: shop.example:8443\r\n", "shop.example"),
        (b"Host: shop.example.\r\n", "shop.example"),
        (b"Host: [2001:db8::1]:443\r\n", "2001:db8::1"),
        (b"Host: 192.0.2.1:443\r\n", "192.0.2.1"),
        (b"Host: a.example\r\nHost: b.example\r\n", "a.example"),
        (b"Host:\r\n", ""),
        (b"", ""),
    ],
)
def test_the_host_is_the_name_to_ask_for(headers: bytes, name: str) -> None:
    assert server_name(HOST, make_request(headers=headers)) == name
    assert server_name("other.example", make_request(headers=headers)) == "other.example"
    assert server_name("", make_request(headers=headers)) == ""


@given(st.binary(max_size=40))
def test_any_host_gives_a_name(value: bytes) -> None:
    assert isinstance(server_name(HOST, make_request(headers=b"Host: " + value + b"\r\n")), str)
