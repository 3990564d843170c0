"""Outcomes: what a connection knew at the end, with a balancer program's word in the place of its own address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.change import HEADER
from replay.balancer.derive.haproxy_via import parse_via
from replay.balancer.derive.nginx_via import parse_nginx_via
from replay.balancer.upstream import Transport, Upstream, make_pool
from replay.exchange import Answer, Outcome
from replay.outcome import make_outcome, so_far
from replay.response import ResponseReader
from replay.tls import TlsInfo
from tests.replay.scripted_server import OK

NAME = HEADER.lower().encode()
SAID = b"X-Shadowtap-Upstream: app/web1 192.0.2.9:8080 3 12 40\r\n"
READERS = {"haproxy": parse_via, "nginx": parse_nginx_via}


def upstream(program: str = "haproxy") -> Upstream:
    transport = Transport(via_header=NAME, read_via=READERS[program]) if program else Transport()
    return make_pool(["127.0.0.1:9"], transport=transport)[0]


def read(*pieces: bytes) -> ResponseReader:
    reader = ResponseReader(1000)
    reader.begin("GET")
    for at_ns, piece in enumerate(pieces, 30):
        reader.feed(piece, at_ns)
    return reader


def outcome(reader: ResponseReader, program: str = "haproxy", tls: TlsInfo | None = None) -> Outcome:
    return make_outcome(upstream(program), reader, tls, 10, 20, Answer.OK, "a word")


def test_what_the_connection_knew() -> None:
    found = outcome(read(OK[:-1], OK[-1:]), program="")
    assert found == Outcome(Answer.OK, "127.0.0.1:9", 200, OK[:-2], b"ok", 2, 10, 20, 30, 31, "a word")
    assert (found.queue_ns, found.connect_ns, found.tls, found.tls_not_after_s) == (-1, -1, "", 0)


def test_a_program_says_where_it_went() -> None:
    found = outcome(read(OK.replace(b"\r\n", b"\r\n" + SAID, 1)))
    assert (found.upstream, found.queue_ns, found.connect_ns) == ("192.0.2.9:8080", 3_000_000, 12_000_000)
    assert (found.head, found.body) == (OK[:-2], b"ok")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"", "127.0.0.1:9"),
        (b"X-Shadowtap-Upstream: nonsense\r\n", "127.0.0.1:9"),
        (b"X-Shadowtap-Upstream: web/<NOSRV> : -1 -1 -1\r\n", "127.0.0.1:9"),
        (b"X-Shadowtap-Upstream: web/one unix:1 0 0 1\r\n", "one"),
    ],
)
def test_a_program_that_does_not_say_is_the_upstream_itself(line: bytes, name: str) -> None:
    found = outcome(read(OK.replace(b"\r\n", b"\r\n" + line, 1)))
    assert (found.upstream, found.head) == (name, OK[:-2])


def test_the_header_stays_where_no_program_was_asked_for_it() -> None:
    """It is the shadow's own, then, and part of what is compared."""
    found = outcome(read(OK.replace(b"\r\n", b"\r\n" + SAID, 1)), program="")
    assert SAID in found.head
    assert found.upstream == "127.0.0.1:9"


def test_tls_is_named() -> None:
    tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "shop.example", True, 1_900_000_000, "shop")
    found = outcome(read(OK), tls=tls)
    assert (found.tls, found.tls_not_after_s) == ("TLSv1.3 TLS_AES_256_GCM_SHA384", 1_900_000_000)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((), "before any response"),
        ((b"HTTP/1.1 20",), "inside the response head"),
        ((OK[:-1],), "after 1 bytes of content"),
    ],
)
def test_how_far_it_came(pieces: tuple[bytes, ...], words: str) -> None:
    assert so_far(read(*pieces)) == words


parts = st.sampled_from(
    [OK, OK[:-3], SAID, b"X-Shadowtap-Upstream:", b"HTTP/1.1 200 OK\r\n", b"\r\n", b" ", b"\xff", b";"]
)


@pytest.mark.parametrize("program", sorted(READERS))
@given(response=st.one_of(st.binary(max_size=60), st.lists(parts, max_size=8).map(b"".join)))
def test_whatever_was_answered_there_is_an_outcome(program: str, response: bytes) -> None:
    found = outcome(read(response) if response else read(), program)
    assert b"\n" + NAME + b":" not in found.head.lower()
    assert found.upstream
    assert len(found.head) <= len(response)
    assert so_far(read(response) if response else read())
