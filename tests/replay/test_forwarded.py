"""X-Forwarded-For: when a line is added, and that the whole list then ends with the client."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.exchange import Request
from replay.forwarded import forwarded_line
from replay.http1 import header_values
from replay.wire import wire_bytes

CLIENT = "192.0.2.1:5555"
LINE = b"X-Forwarded-For: 192.0.2.1"


def head(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (b"GET /x-forwarded-for:1 HTTP/1.1", b"Host: shop", *lines, b""))


@pytest.mark.parametrize(
    ("client", "line"),
    [
        (CLIENT, LINE),
        ("192.0.2.1", LINE),
        ("[2001:db8::1]:5555", b"X-Forwarded-For: 2001:db8::1"),
        ("2001:DB8:0::1", b"X-Forwarded-For: 2001:db8::1"),
        ("[::ffff:192.0.2.1]:5555", LINE),
        ("", None),
        ("unknown", None),
        ("192.0.2.1:5555\r\nEvil: 1", None),
    ],
)
def test_the_line(client: str, line: bytes | None) -> None:
    assert forwarded_line(head(), client) == line


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Forwarded-For: 203.0.113.9"],
        [b"X-Forwarded-For: 192.0.2.1, 203.0.113.9"],
        [b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For: 203.0.113.9"],
        [b"X-Forwarded-For: 192.0.2.11"],
        [b"X-Forwarded-For: 9192.0.2.1"],
        [b"X-Forwarded-For: unknown"],
        [b"X-Forwarded-For: 192.0.2.1, unknown"],
        [b"X-Forwarded-For:"],
        [b"X-Forwarded-For: ,"],
        [b"X-Forwarded-Forward: 192.0.2.1"],
        [b"Other: X-Forwarded-For: 192.0.2.1"],
        [b"X-Forwarded-For: \xff\xfe"],
    ],
)
def test_a_list_that_does_not_end_with_the_client_gets_a_line(lines: list[bytes]) -> None:
    assert forwarded_line(head(*lines), CLIENT) == LINE


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Forwarded-For: 192.0.2.1"],
        [b"x-forwarded-for:192.0.2.1  "],
        [b"X-FORWARDED-FOR: 203.0.113.9, 192.0.2.1"],
        [b"X-Forwarded-For: 203.0.113.9,192.0.2.1, ,"],
        [b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-For: 192.0.2.1"],
        [b"X-Forwarded-For: 203.0.113.9,\r\n 192.0.2.1"],
        [b"X-Forwarded-For: 192.0.2.1:5555"],
        [b"X-Forwarded-For: ::ffff:192.0.2.1"],
        [b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For:"],
    ],
)
def test_a_list_that_ends_with_the_client_is_left_alone(lines: list[bytes]) -> None:
    assert forwarded_line(head(*lines), CLIENT) is None


@pytest.mark.parametrize("spelling", [b"2001:db8::1", b"[2001:DB8::1]", b"[2001:db8:0:0::1]:443"])
def test_an_ipv6_address_has_many_spellings(spelling: bytes) -> None:
    assert forwarded_line(head(b"X-Forwarded-For: " + spelling), "[2001:db8::1]:5555") is None


def test_bare_line_feeds() -> None:
    plain = b"GET / HTTP/1.1\nX-Forwarded-For: 192.0.2.1\n\n"
    assert forwarded_line(plain, CLIENT) is None
    assert forwarded_line(plain, "192.0.2.2:1") == b"X-Forwarded-For: 192.0.2.2"


@given(
    st.lists(st.lists(st.sampled_from(["192.0.2.1", "2001:db8::1", "203.0.113.9", "", "x"])), max_size=4),
    st.sampled_from([CLIENT, "[2001:db8::1]:5555"]),
)
def test_the_list_ends_with_the_client(lists: list[list[str]], client: str) -> None:
    fields = [f"X-Forwarded-For: {', '.join(entries)}".encode() for entries in lists]
    before = head(*fields)
    line = forwarded_line(before, client)
    sent = wire_bytes(Request("GET", "/", 11, before, b"", 0, None, 0, 0), line or b"")
    entries = [e.strip() for value in header_values(sent, b"x-forwarded-for") for e in value.split(b",") if e.strip()]
    assert entries[-1].decode() == client.rpartition(":")[0].strip("[]")
    assert forwarded_line(sent, client) is None
    assert line is None or sent.count(line) >= 1


@given(st.binary(max_size=200), st.ip_addresses(v=4))
def test_any_head_is_data(data: bytes, client: ipaddress.IPv4Address) -> None:
    line = f"X-Forwarded-For: {client}".encode()
    assert forwarded_line(head(b"X-Forwarded-For: " + data), f"{client}:1") in (line, None)
