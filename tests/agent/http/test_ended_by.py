"""Who ended an exchange that has no whole response."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.segment import ACK, FIN, RST, Segment
from agent.export import as_json
from agent.http.connection import GONE
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.stream.events import End, EndReason
from agent.stream.flows import Flows
from agent.stream.limits import SECOND_NS
from replay.exchange import Exchange
from tests.agent.http.dialogue import Dialogue, chunked, get, ok, post
from tests.agent.stream.conversation import MS, Tcp

NAMES = ("client", "server")
HEAD = b"HTTP/1.1 200 OK\r\n"
UNFINISHED = [
    b"", b"HTTP/1.1 2", ok(b"12345")[:-1], HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"12345")[:-2],
    b"HTTP/1.1 100 Continue\r\n\r\n",
]  # fmt: skip


def ends(d: Dialogue) -> list[str]:
    """Of all exchanges, in order of index."""
    return [e.ended_by for e in sorted(d.over(), key=lambda e: e.index)]


def reset(d: Dialogue, by: int) -> Dialogue:
    """An RST from one side, as Flows tells of it."""
    for side, half in enumerate(d.flow.halves):
        if half.reader is not GONE:
            d.feed(End(half, 0, d.t_ns, EndReason.RST, side != by))
    return d


def said(d: Dialogue, answered: bytes) -> Dialogue:
    """The server says something, if not nothing."""
    return d.server(answered) if answered else d


@pytest.mark.parametrize("answered", UNFINISHED)
@pytest.mark.parametrize("first", [0, 1])
def test_who_closes_or_resets_first_ended_it(answered: bytes, first: int) -> None:
    closed = said(Dialogue().client(get()), answered).end(first, 1 - first)
    broken = reset(said(Dialogue().client(get()), answered), first)
    answered_by_rst = reset(said(Dialogue().client(get()), answered).end(first), 1 - first)
    for d in (closed, broken, answered_by_rst):
        assert ends(d) == [NAMES[first]]


@pytest.mark.parametrize("first", [0, 1])
def test_all_that_wait_are_ended_by_the_same(first: int) -> None:
    d = Dialogue().client(get("/0"), get("/1"), get("/2")).server(ok(), ok(b"12345")[:-1]).end(first, 1 - first)
    assert ends(d) == ["", NAMES[first], NAMES[first]]


@pytest.mark.parametrize("first", [0, 1])
def test_who_closes_after_the_whole_response_ended_nothing(first: int) -> None:
    assert ends(Dialogue().client(get()).server(ok(b"1")).end(first, 1 - first)) == [""]
    assert ends(reset(Dialogue().client(get()).server(ok(b"1")), first)) == [""]


def test_a_half_close_and_then_a_whole_response() -> None:
    assert ends(Dialogue().client(get()).end(0).server(ok(b"1")).end(1)) == [""]


def test_a_body_until_close_is_ended_by_a_reset_alone() -> None:
    begun = b"HTTP/1.0 200 OK\r\n\r\nab"
    assert ends(Dialogue().client(get()).server(begun).end(1, 0)) == [""]
    for by in (0, 1):
        assert ends(reset(Dialogue().client(get()).server(begun), by)) == [NAMES[by]]


def test_a_request_that_is_cut() -> None:
    for by in (0, 1):
        assert ends(Dialogue().client(post(b"12345")[:-1]).end(by, 1 - by)) == [NAMES[by]]
        assert ends(reset(Dialogue().client(post(b"12345")[:-1]).server(ok(b"123")[:-1]), by)) == [NAMES[by]]
    assert ends(Dialogue().client(post(b"12345")[:-1]).server(ok(b"", 413)).end(1, 0)) == [""]


@pytest.mark.parametrize("reason", [EndReason.TIMEOUT, EndReason.EVICTED, EndReason.REUSED, EndReason.FINISH])
def test_nobody_is_known_to_have_ended_what_just_stops(reason: EndReason) -> None:
    for answered in UNFINISHED:
        assert ends(said(Dialogue().client(get()), answered).end(reason=reason)) == [""]


@pytest.mark.parametrize("first", [0, 1])
def test_bytes_missing_from_the_capture_are_nobodys_fault(first: int) -> None:
    for d in (
        Dialogue().client(get()).server_gap(50),
        Dialogue().client(get()).server(b"HTTP/1.1 2").server_gap(50),
        Dialogue().client(get()).server(ok(b"1" * 9)[:-8]).server_gap(3),
        Dialogue().client(get()).server(b"HTTP/1.0 200 OK\r\n\r\nab").server_gap(3),
        Dialogue().client(get(), get()).server(ok(b"1" * 9)[:-8]).server_gap(50),
        Dialogue().client(get()).server(b"\0 not HTTP"),
    ):
        assert set(ends(d.end(first, 1 - first))) == {""}


def test_a_request_that_crosses_the_close_of_an_idle_connection() -> None:
    """Whoever sent it sends it again; a server that closes a new connection at once does answer for it."""
    assert ends(Dialogue().client(get("/0")).server(ok()).end(1).client(get("/1"))) == ["", ""]
    assert ends(reset(Dialogue().client(get("/0")).server(ok()), 1)) == [""]
    tcp = Tcp()
    for begun, expected in ((tcp.handshake(), "server"), ([], "")):
        (exchange,) = paired([*begun, tcp.fin(1, 0, 3), tcp.make(0, 0, get(), 4, ack=0), tcp.rst(1, 1, 5)])
        assert exchange.ended_by == expected


def test_what_limits_give_up_was_ended_by_nobody() -> None:
    d = Dialogue(HttpLimits(max_pipelined=1)).client(get("/0"), get("/1"))
    assert ends(d.end(1, 0)) == ["", "server"]


def test_it_is_exported() -> None:
    lost = Dialogue().client(get()).end(1, 0).over()[0]
    whole = Dialogue().client(get()).server(ok()).over()[0]
    assert (as_json(lost)["ended_by"], as_json(whole)["ended_by"]) == ("server", None)


# Through both layers.


def paired(segments: list[Segment], batch: int = 1) -> list[Exchange]:
    """What comes of segments."""
    flows, pairing = Flows(server_ports=frozenset({80})), Pairing()
    finished: list[Exchange] = []
    for at in range(0, len(segments), batch):
        finished += pairing.feed(flows.feed(segments[at : at + batch]))[1]
    finished += pairing.feed(flows.expire(segments[-1].t_ns + 100 * SECOND_NS) + flows.finish())[1]
    return sorted(finished, key=lambda e: e.index)


@given(
    st.sampled_from(UNFINISHED), st.integers(0, 1), st.sampled_from([FIN, RST, RST | ACK]), st.booleans(),
    st.sampled_from([1, 7, 1000]), st.integers(0, 1 << 32), st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_in_any_order_of_segments(
    answered: bytes, first: int, how: int, other_follows: bool, size: int, seed: int, batch: int
) -> None:
    """Whole and byte by byte, in the order of the wire and in disorder; an RST overtakes nothing."""
    random, tcp, asked = Random(seed), Tcp(), get("/last")
    messages = [(0, 0, get(), 0), (1, 0, ok(), len(get())), (0, len(get()), asked, len(ok()))]
    at = [len(get()) + len(asked), len(ok())]
    messages.append((1, at[1], answered, at[0]))
    at[1] += len(answered)
    segments = [
        tcp.make(side, offset + n, message[n : n + size], 10, ack=ack)
        for side, offset, message, ack in messages
        for n in range(0, len(message), size)
    ]
    closing = [tcp.make(first, at[first], b"", 20, ack=at[1 - first], flags=how)]
    if other_follows:
        closing.append(tcp.make(1 - first, at[1 - first], b"", 21, ack=at[first] + 1, flags=FIN))
    segments = [*disorder(segments, random), *closing] if how & RST else disorder([*segments, *closing], random)
    exchanges = paired([*tcp.handshake(), *segments], batch)
    assert [e.ended_by for e in exchanges] == ["", NAMES[first]]


def disorder(segments: list[Segment], random: Random) -> list[Segment]:
    """Each at most three places late."""
    return [segments[n] for n in sorted(range(len(segments)), key=lambda n: n + random.randrange(4))]


@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("side", [0, 1])
def test_an_answer_that_was_not_copied_is_not_held_against_the_server(side: int, how: int) -> None:
    tcp, asked = Tcp(), len(get())
    at, ack = ((asked, 900), (900, asked))[side]
    closing = tcp.make(side, at, b"", 9 * MS, ack=ack, flags=how)
    (exchange,) = paired([*tcp.handshake(), tcp.make(0, 0, get(), 2, ack=0), closing])
    assert exchange.response is None and exchange.ended_by in ("", "client")
    assert exchange.ended_by == "" or (side, how) == (0, RST)
