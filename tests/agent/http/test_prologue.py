"""A PROXY header before the first request names the client, wherever it is cut; without one, nothing changes."""

from __future__ import annotations

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.http.limits import HttpLimits
from tests.agent.http.dialogue import Dialogue

GET = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
V1 = b"PROXY TCP4 8.8.8.8 192.0.2.80 5555 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n" + bytes((0x21, 0x11, 0, 12, 8, 8, 8, 8, 192, 0, 2, 80)) + b"\x15\xb3\x00\x50"
PEER = ipaddress.ip_address("10.0.0.1")
CLIENT = ipaddress.ip_address("8.8.8.8")


def dialogue(*, known_client: bool = True) -> Dialogue:
    return Dialogue(HttpLimits(proxy_protocol=True), known_client=known_client)


@pytest.mark.parametrize("known_client", [True, False])
@pytest.mark.parametrize("header", [V1, V2])
@given(cuts=st.lists(st.integers(0, 80), max_size=4))
def test_it_names_the_client_of_all_requests(header: bytes, known_client: bool, cuts: list[int]) -> None:
    d, data = dialogue(known_client=known_client), header + GET
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    d.client(*(data[start:end] for start, end in itertools.pairwise(at))).server(OK)
    d.client(GET).server(OK)
    exchanges = d.over()
    assert [e.forwarded for e in exchanges] == [CLIENT, CLIENT]
    assert [e.request.target for e in exchanges if e.request] == ["/1", "/1"]
    assert all(e.response is not None for e in exchanges)
    assert d.pairing.counters.proxy_headers == 1


def test_alone_in_its_segment_and_for_no_client() -> None:
    d = dialogue().client(V1).client(GET).server(OK)
    assert [e.forwarded for e in d.over()] == [CLIENT]
    d = dialogue().client(b"PROXY UNKNOWN\r\n" + GET).server(OK)
    assert [e.forwarded for e in d.over()] == [PEER]


def test_without_a_header_the_connection_is_read_as_ever() -> None:
    assert [e.forwarded for e in dialogue().client(GET).server(OK).over()] == [PEER]
    middle = Dialogue(HttpLimits(proxy_protocol=True), from_start=False)
    assert [e.forwarded for e in middle.client(GET).server(OK).over()] == [None], "its header was not seen"
    (exchange,) = dialogue().client(b"P", b"OST /1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n").server(OK).over()
    assert exchange.request is not None and exchange.request.method == "POST"
    assert dialogue().client(b"PROXY nonsense\r\n\r\n").over() == []
    assert [e.forwarded for e in Dialogue().client(V1 + GET).over()] == []


def test_a_hole_and_an_end_inside_the_header() -> None:
    (exchange,) = dialogue().client(V1[:9]).client_gap(30).client(GET).server(OK).over()
    assert exchange.forwarded is None
    assert dialogue().client(V1[:9]).over() == []
