"""Connections of which a stretch was never copied: an answer is given only to the request that it answers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.segment import Segment
from agent.http.pairing import Pairing
from agent.stream.flows import Flows
from agent.stream.limits import SECOND_NS
from replay.exchange import Exchange
from tests.agent.http.dialogue import Dialogue, brief, chunked, get, ok, post
from tests.agent.stream.conversation import MS, Tcp, check_order

PORTS = frozenset({80})
FIRST, LAST = ("GET", "/0", b""), ("GET", "/3", b"")


def turn(number: int, random: Random | None = None) -> tuple[bytes, bytes]:
    """A request and its answer, which says the number in its status line."""
    body = b"%d" % number
    if random is None:
        return get(f"/{number}"), ok(body)
    target = f"/{number}"
    sent = random.randbytes(random.randrange(30))
    asked = random.choice([
        get(target), post(sent, target),
        f"PUT {target} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunked(b"ab", b"cde"),
    ])  # fmt: skip
    head = b"HTTP/1.1 200 %d\r\n" % number
    answered = random.choice([
        head + b"Content-Length: 0\r\n\r\n", head + b"Content-Length: 9\r\n\r\nnine byte",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"cde"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"Content-Length: 1\r\n\r\n.",
    ])  # fmt: skip
    return asked, answered


def sent(turns: list[tuple[bytes, bytes]], tcp: Tcp, cut: str, random: Random) -> list[tuple[int, Segment]]:
    """All segments of a connection kept alive, each with the number of its turn; one turn follows the other."""
    at, out = [0, 0], []
    for number, messages in enumerate(turns):
        for side, message in enumerate(messages):
            while message:
                size = {"whole": len(message), "bytes": 1, "any": random.randrange(1, len(message) + 1)}[cut]
                segment = tcp.make(side, at[side], message[:size], (len(out) + 2) * MS, ack=at[1 - side])
                out.append((number, segment))
                at[side] += size
                message = message[size:]
    return out


def paired(segments: list[Segment], batch: int = 1) -> list[Exchange]:
    """What both layers make of them, in order of index, once all waiting is over."""
    flows, pairing = Flows(server_ports=PORTS), Pairing()
    events, finished = [], []
    for at in range(0, len(segments), batch):
        some = flows.feed(segments[at : at + batch])
        events += some
        finished += pairing.feed(some)[1]
    rest = flows.expire(segments[-1].t_ns + 100 * SECOND_NS) + flows.finish()
    finished += pairing.feed(rest)[1]
    check_order(events + rest)
    assert pairing.seen == len(finished) and pairing.budget.kept_bytes == 0 and flows.buffered_bytes == 0
    return sorted(finished, key=lambda e: e.index)


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("0q 3q 3a", [(FIRST, None), (LAST, (200, b"3"))]),  # copying went on before a request
        ("0q 3a", [(FIRST, None), (None, (200, b"3"), "request_lost")]),  # or between it and its answer
        ("0q 3a 3q", [(FIRST, None), (LAST, (200, b"3"))]),  # the ring has them in the wrong order
        ("0q 2a 3q 3a", [(FIRST, None), (None, (200, b"2"), "request_lost"), (LAST, (200, b"3"))]),
        ("0q 1q 3a", [(FIRST, None), (("GET", "/1", b""), None), (None, (200, b"3"), "request_lost")]),
        ("0q 1q 1a 3a", [(FIRST, None), (("GET", "/1", b""), (200, b"1")), (None, (200, b"3"), "request_lost")]),
    ],
)  # fmt: skip
def test_an_old_request_does_not_get_the_answer_of_a_later_one(
    seen: str, expected: list[tuple[object, ...]], batch: int
) -> None:
    """Request (q) and answer (a) of each turn by number; of turn 0 the request was copied, and the answer was not."""
    tcp, random = Tcp(), Random(0)
    named = {}
    for n, (number, segment) in enumerate(sent([turn(n) for n in range(4)], tcp, "whole", random)):
        named[f"{number}{'qa'[n % 2]}"] = segment
    assert brief(paired([*tcp.handshake(), *(named[name] for name in seen.split())], batch)) == expected


def test_an_answer_behind_holes_in_both_halves_belongs_to_nobody() -> None:
    d = Dialogue().client(get("/0")).client_gap(50).server_gap(50).server(ok(b"3"))
    assert brief(d.over()) == [(FIRST, None), (None, (200, b"3"), "request_lost")]
    assert (d.pairing.counters.unanswered, d.pairing.counters.orphans) == (1, 1)


def test_a_hole_of_the_client_alone_leaves_the_order_as_it_is() -> None:
    d = Dialogue().client(get("/0")).client_gap(50).server(ok(b"0"), ok(b"1")).client(get("/3")).server(ok(b"3"))
    assert brief(d.over()) == [(FIRST, (200, b"0")), (None, (200, b"1"), "request_lost"), (LAST, (200, b"3"))]


def test_an_early_answer_behind_a_hole_is_that_of_the_request_that_is_coming_in() -> None:
    d = Dialogue().client(get("/0"), post(b"12345", "/1")[:-3]).server_gap(50).server(ok(b"no", 413)).client(b"345")
    assert brief(d.over()) == [(FIRST, None), (("POST", "/1", b"12345"), (413, b"no"))]


def test_an_interim_response_behind_a_hole_is_that_of_the_latest_request() -> None:
    d = Dialogue().client(get("/0"), get("/3")).server_gap(50).server(b"HTTP/1.1 103 Early\r\n\r\n", ok(b"3"))
    assert [(e.interim, e.response is None) for e in sorted(d.over(), key=lambda e: e.index)] == [
        ((), True), ((103,), False),
    ]  # fmt: skip


cuts = st.sampled_from(["whole", "bytes", "any"])


def check_pairs(exchanges: list[Exchange]) -> None:
    """No request has the answer of another one."""
    for exchange in exchanges:
        if exchange.request is not None and exchange.response is not None:
            status_line = exchange.response.head.split(b"\r\n")[0].decode()
            assert exchange.request.target == "/" + status_line.split()[2]


def whole_turns(turns: list[tuple[bytes, bytes]], exchanges: list[Exchange]) -> set[int]:
    """Of the exchanges that are there as a whole, the numbers."""
    return {
        int(e.request.target[1:])
        for e in exchanges
        if e.incomplete is None and e.request is not None and e.response is not None and e.response.complete
    }


@given(st.integers(2, 7), st.integers(0, 1 << 64), st.integers(0, 0xFFFFFFFF), cuts, st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_behind_a_pause_nothing_is_paired_wrongly(count: int, seed: int, isn: int, cut: str, batch: int) -> None:
    """A stretch of both directions is missing: what lies wholly before it, or behind it, is paired as ever."""
    random, tcp = Random(seed), Tcp(isn, isn ^ 0x5555FFFF)
    turns = [turn(n, random) for n in range(count)]
    said = sent(turns, tcp, cut, random)
    start = random.randrange(len(said))
    stop = random.randrange(start, len(said))
    kept = said[:start] + said[stop:]
    exchanges = paired([*tcp.handshake(), *(segment for _, segment in kept)], batch)
    check_pairs(exchanges)
    touched = {number for number, _ in said[start:stop]}
    expected = {n for n in range(count) if n not in touched}
    if cut != "whole" and touched:  # a head in pieces is not found again behind what is missing
        expected = set(range(min(touched)))
    assert whole_turns(turns, exchanges) >= expected


@given(st.integers(2, 7), st.integers(0, 1 << 64), cuts, st.integers(1, 9), st.floats(0, 0.6), st.integers(0, 40))
@settings(max_examples=500, deadline=None)
def test_whatever_is_lost_and_in_any_order_nothing_is_paired_wrongly(
    count: int, seed: int, cut: str, batch: int, lost: float, reach: int
) -> None:
    """`reach`: how many places a segment may come too late; more than the slack makes it one that was lost."""
    random, tcp = Random(seed), Tcp()
    said = sent([turn(n, random) for n in range(count)], tcp, cut, random)
    kept = [(n + random.randrange(reach + 1), n, s) for n, (_, s) in enumerate(said) if random.random() >= lost]
    check_pairs(paired([*tcp.handshake(), *(segment for *_, segment in sorted(kept, key=lambda k: k[:2]))], batch))


@given(st.integers(2, 6), st.integers(0, 1 << 64), cuts, st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_any_order_within_the_slack_loses_nothing(count: int, seed: int, cut: str, batch: int) -> None:
    random, tcp = Random(seed), Tcp()
    turns = [turn(n, random) for n in range(count)]
    said = [segment for _, segment in sent(turns, tcp, cut, random)]
    late = sorted(range(len(said)), key=lambda n: n + random.randrange(4))
    exchanges = paired([*tcp.handshake(), *(said[n] for n in late)], batch)
    check_pairs(exchanges)
    assert whole_turns(turns, exchanges) == set(range(count))
