"""However the bytes of a conversation are cut into chunks, the exchanges are the same; and nothing hostile raises."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.http.content import EXCHANGE_BYTES
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.stream.events import EndReason
from agent.stream.flows import Flows
from agent.stream.limits import FlowLimits
from tests.agent.http.dialogue import Dialogue, chunked, full, get, ok, post
from tests.agent.stream.conversation import Tcp


class Turn(NamedTuple):
    """What the client sends, and what the server answers when it has it."""

    asked: bytes
    answered: bytes


bodies = st.binary(max_size=40)
asked = st.one_of(
    st.builds(get, st.sampled_from(["/", "/a?b=c", "/a b", "*"])),
    st.builds(post, bodies),
    st.lists(bodies.filter(bool), max_size=3).map(
        lambda parts: b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*parts, trailer=b"A: b\r\n")
    ),
    st.just(b"\r\nHEAD /h HTTP/1.0\nHost: bare\n\n"),
)
answered = st.one_of(
    st.builds(ok, bodies, st.sampled_from([200, 404, 500])),
    st.lists(bodies.filter(bool), max_size=3).map(
        lambda parts: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*parts)
    ),
    st.builds(lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" + ok(body), bodies),
    st.just(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
    st.just(b"HTTP/1.0 204\n\n"),
)


def fitting(turn: Turn) -> Turn:
    """A response to HEAD has no body."""
    if not turn.asked.lstrip().startswith(b"HEAD "):
        return turn
    return turn._replace(answered=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")


turns = st.builds(Turn, asked, answered).map(fitting)
last = st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n\r\nuntil close", ok(b"12345")[:-2], b"HTTP/1.1 200 OK\r\nX"])


def cut(data: bytes, random: Random) -> list[bytes]:
    """Pieces of any size."""
    points = sorted({0, len(data), *(random.randrange(len(data) + 1) for _ in range(random.randrange(6)))})
    return [data[a:b] for a, b in pairwise(points)]


def play(conversation: list[Turn], tail: bytes, how: str, limits: HttpLimits, random: Random) -> Dialogue:
    """Speak it whole turns at a time, byte by byte, or in any pieces."""
    pieces = {"whole": lambda d: [d] if d else [], "bytes": lambda d: [bytes((b,)) for b in d]}
    split = pieces.get(how, lambda d: cut(d, random))
    d = Dialogue(limits)
    for turn in conversation:
        d.client(*split(turn.asked)).server(*split(turn.answered))
    if tail:
        d.client(*split(get("/last"))).server(*split(tail))
    return d.end(reason=EndReason.FIN)


@given(st.lists(turns, max_size=6), last, st.integers(0, 1 << 32), st.sampled_from([5, 1 << 20]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_segmentation_gives_the_same_exchanges(
    conversation: list[Turn], tail: bytes, seed: int, limit: int, hashed: bool
) -> None:
    limits = HttpLimits(body_limit_bytes=limit, hash_bodies=hashed)
    random = Random(seed)
    whole, *others = (play(conversation, tail, how, limits, random) for how in ("whole", "bytes", "any", "any"))
    expected = comparable(whole)
    assert len(expected) == len(conversation) + bool(tail)
    for other in others:
        assert comparable(other) == expected
        assert len(other.ready) == len(whole.ready)


def comparable(d: Dialogue) -> list[tuple[object, ...]]:
    """Hashes that were computed early equal those computed on demand; only beyond the limit do they matter."""
    out = []
    for index, request, response, *rest in full(d.over()):
        small = [
            m if m is None or m.body_bytes > len(m.body) else m._replace(body_sha1=None) for m in (request, response)
        ]
        out.append((index, *small, *rest))
    return out


@given(st.lists(turns, min_size=1, max_size=5), st.integers(0, 1 << 32))
@settings(max_examples=100, deadline=None)
def test_times_are_those_of_first_and_last_bytes(conversation: list[Turn], seed: int) -> None:
    """Byte by byte, with the time counting bytes, times can be computed from the lengths alone."""
    d = play(conversation, b"", "bytes", HttpLimits(), Random(seed))
    at = 0
    for exchange, turn in zip(sorted(d.over(), key=lambda e: e.index), conversation, strict=True):
        assert exchange.request is not None and exchange.response is not None
        start = len(turn.asked) - len(turn.asked.lstrip(b"\r\n"))
        assert (exchange.request.t_first_ns, exchange.request.t_last_ns) == (at + 1 + start, at + len(turn.asked))
        at += len(turn.asked)
        interim = turn.answered.find(b"HTTP/1.", 1) if b" 100 " in turn.answered else 0
        assert exchange.response.t_first_ns == at + 1 + interim
        assert exchange.response.t_last_ns == at + len(turn.answered)
        at += len(turn.answered)


@given(st.lists(turns, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_pipelined_equals_in_turns(conversation: list[Turn]) -> None:
    d = Dialogue().client(b"".join(t.asked for t in conversation)).server(b"".join(t.answered for t in conversation))
    in_turns = play(conversation, b"", "whole", HttpLimits(), Random(0))
    strip = [[(*e[:3], *e[4:]) for e in full(x.over())] for x in (d, in_turns)]  # 1xx go to the oldest open request
    assert strip[0] == strip[1]


FRAGMENTS = [
    b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 S\r\n", 
    b"Content-Length: 7\r\n",
    b"Transfer-Encoding: chunked\r\n", b"\r\n", b"\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", 
    b"x" * 30,
    b"Content-Length: 99999999999999999999\r\n", b"\x16\x03\x01", b"HTTP/1.1 100 C\r\n\r\n", b"Upgrade: x\r\n", b" ",
    b"\x00\xff",
    b"HTTP/1.1 204 N\r\n\r\n", b"GET /y HTTP/1.1\r\n\r\n",
]  # fmt: skip


@given(st.integers(0, 1 << 64))
@settings(max_examples=300, deadline=None)
def test_garbage_that_looks_like_http_is_data(seed: int) -> None:
    random = Random(seed)
    limits = HttpLimits(
        body_limit_bytes=20, head_limit_bytes=150, max_pipelined=3, total_kept_bytes=2000, hash_bodies=True
    )
    d = Dialogue(limits, from_start=random.random() < 0.7, known_client=random.random() < 0.7)
    for _ in range(60):
        piece = b"".join(random.choice(FRAGMENTS) for _ in range(random.randrange(1, 5)))
        side = random.randrange(2)
        if random.random() < 0.1:
            gaps = d.client_gap, d.server_gap, d.client_left_out, d.server_left_out
            random.choice(gaps)(random.randrange(1, 30))
        else:
            (d.client if side else d.server)(piece)
        assert d.pairing.budget.kept_bytes <= 2000 + EXCHANGE_BYTES + 150 + len(piece) + 20
    d.over()


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_through_both_layers(seed: int) -> None:
    random = Random(seed)
    flows, pairing = Flows(FlowLimits(half_buffer_bytes=5000)), Pairing(HttpLimits(total_kept_bytes=5000))
    tcp = Tcp(random.getrandbits(32), random.getrandbits(32))
    finished = 0
    for _ in range(500):
        data = random.randbytes(random.randrange(40)) if random.random() < 0.3 else random.choice(FRAGMENTS)
        segment = tcp.make(
            random.randrange(2), random.randrange(200), data, random.randrange(1 << 40), random.randrange(200),
            random.choice((0, 0, 0, 0, 1, 2, 4)),
        )  # fmt: skip
        finished += len(pairing.feed(flows.feed([segment]))[1])
    finished += len(pairing.feed(flows.finish())[1])
    assert finished == pairing.seen and pairing.budget.kept_bytes == 0
