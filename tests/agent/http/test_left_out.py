"""Messages that the source left out on purpose, as the HTTP layer meets them: the next byte begins a message."""

from __future__ import annotations

import pytest

from agent.http.reader import START
from tests.agent.http.dialogue import Dialogue, brief, chunked, get, ok, post

SECOND = (("GET", "/2", b""), (200, b"2"))


def resumed(d: Dialogue, server_first: bool = True) -> Dialogue:
    """Something was left out in both directions."""
    if server_first:
        return d.server_left_out(200).client_left_out(100)
    return d.client_left_out(100).server_left_out(200)


@pytest.mark.parametrize("server_first", [True, False])
def test_the_next_messages_are_taken_byte_by_byte(server_first: bool) -> None:
    d = resumed(Dialogue().client(get()).server(ok(b"1")), server_first)
    for piece in get("/2"):
        d.client(bytes((piece,)))
    for piece in ok(b"2"):
        d.server(bytes((piece,)))
    assert brief(d.over()) == [(("GET", "/", b""), (200, b"1")), SECOND]
    assert d.pairing.counters.resynchronised == d.pairing.counters.unanswered == 0


def test_nothing_counts_as_lost() -> None:
    d = resumed(Dialogue().client(get()).server(ok(b"1")))
    d.server(ok(b"nobody asked"))
    assert brief(d.over())[1] == (None, (200, b"nobody asked"), "unasked")


def test_before_anything_else_it_is_no_join_in_the_middle() -> None:
    d = resumed(Dialogue()).client(b"G", get("/2")[1:]).server(b"H", ok(b"2")[1:])
    assert brief(d.over()) == [SECOND] and d.pairing.counters.resynchronised == 0


def test_behind_a_join_in_the_middle_a_message_begins() -> None:
    d = resumed(Dialogue(from_start=False).client(b"rest").server(b"rest"))
    assert brief(d.client(b"G", get("/2")[1:]).server(b"H", ok(b"2")[1:]).over()) == [SECOND]


@pytest.mark.parametrize("server_first", [True, False])
@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200"])
def test_what_still_waits_gets_no_answer(server_first: bool, begun: bytes) -> None:
    d = Dialogue().client(get("/0"), get("/1")).server(*([begun] if begun else []))
    resumed(d, server_first)
    assert len(d.finished) == 2
    d.client(get("/2"), get("/3")).server(ok(b"2"), ok(b"3"))
    assert brief(d.over())[:3] == [(("GET", "/0", b""), None), (("GET", "/1", b""), None), SECOND]
    assert d.pairing.counters.unanswered == 2


def test_a_hole_of_the_server_alone_keeps_what_was_asked_behind_it() -> None:
    """The request came before its acknowledgement covered all that was left out."""
    d = resumed(Dialogue().client(get("/0")).server(ok(b"0"))).client(get("/2")).server_left_out(50).server(ok(b"2"))
    assert brief(d.over())[1] == SECOND


def test_a_hole_of_the_server_alone_ends_what_was_asked_before() -> None:
    """The request behind it was lost: the next response is not that of an older one."""
    d = Dialogue().client(get("/0")).server_left_out(200).server(ok(b"2"))
    assert brief(d.over()) == [(("GET", "/0", b""), None), (None, (200, b"2"), "unasked")]


@pytest.mark.parametrize(
    "rest",
    [
        ok(b"12345")[:-2],
        b"HTTP/1.1 200 O\r\n\r\nuntil close",
        b"HTTP/1.1 200 O\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"12345")[:-9],
    ],
)
def test_the_rest_of_a_response_may_be_lost_besides(rest: bytes) -> None:
    d = resumed(Dialogue().client(get("/0")).server(rest)).client(get("/2")).server(ok(b"2"))
    cut, second = sorted(d.over(), key=lambda e: e.index)
    assert cut.response is not None and not cut.response.complete and brief([second]) == [SECOND]


@pytest.mark.parametrize(
    "rest",
    [
        post(b"12345")[:-2],
        post(b"12345")[:-9],
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"12345")[:-9],
    ],
)
def test_the_rest_of_a_request_may_be_lost_besides(rest: bytes) -> None:
    d = resumed(Dialogue().client(rest)).client(get("/2")).server(ok(b"2"))
    assert [e[2:] for e in brief(d.over())] == [("gap",), ()] and brief(d.finished)[1] == SECOND


def test_requests_given_up_have_had_their_answers() -> None:
    """Their number no longer says which responses to pass over."""
    d = Dialogue()
    d.pairing.limits = d.pairing.limits.__class__(max_pipelined=1)
    d.client(get("/0"), get("/1"))
    resumed(d).client(get("/2")).server(ok(b"2"))
    assert brief(d.over())[2] == SECOND


def test_a_silent_reader_stays_silent() -> None:
    d = Dialogue().client(get("/0")).server(b"\x00 not HTTP", b"more")
    resumed(d).client(get("/2")).server(ok(b"2"))
    assert [e[1] for e in brief(d.over())] == [None, None]


def test_state_after_a_hole() -> None:
    d = resumed(Dialogue().client(get("/0")).server(ok(b"0")))
    for half in d.flow.halves:
        assert half.reader.state == START and half.reader.unbroken and not half.reader.lost
