"""Reassembly against a reference that knows the byte streams and, byte by byte, which copy came first."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.segment import Segment
from agent.stream.events import Chunk, End, Event, Gap
from agent.stream.flows import Flows
from agent.stream.limits import SECOND_NS, FlowLimits
from tests.agent.stream.conversation import CLIENT_KEY, MS, SERVER_KEY, Tcp, check_order, of

PATIENT = FlowLimits(slack_ns=1 << 60, slack_segments=1 << 60, hole_ns=1 << 60)
SEQUENCE = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFF00, 0xFFFFFFFF))


class Copy(NamedTuple):
    """A segment as it is sent: the value of its bytes tells the copies apart."""

    side: int
    start: int
    data: bytes
    cut: int  # bytes that the capture left away


copies = st.builds(
    Copy, st.integers(0, 1), st.integers(0, 60), st.binary(min_size=1, max_size=25), st.sampled_from([0, 0, 0, 5])
)


def reference(sent: list[Copy], side: int) -> dict[int, tuple[int, int] | None]:
    """Offset to (byte, number of the segment that brought it); None where the first copy was cut there."""
    out: dict[int, tuple[int, int] | None] = {}
    for number, copy in enumerate(sent):
        if copy.side == side:
            for index in range(len(copy.data) + copy.cut):
                value = (copy.data[index], number) if index < len(copy.data) else None
                out.setdefault(copy.start + index, value)
    return out


def observed(events: list[Event], key: bytes) -> dict[int, tuple[int, int] | None]:
    """The same from what Flows says; gaps are None."""
    out: dict[int, tuple[int, int] | None] = {}
    for event in of(events, key):
        if isinstance(event, Chunk):
            out.update({event.offset + i: (byte, event.t_ns - 10) for i, byte in enumerate(event.data)})
        elif isinstance(event, Gap):
            out.update(dict.fromkeys(range(event.offset, event.offset + event.length)))
    return out


@given(st.lists(copies, max_size=25), SEQUENCE, SEQUENCE, st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_any_order_duplication_overlap_and_loss(sent: list[Copy], isn: int, peer_isn: int, batch: int) -> None:
    tcp = Tcp(isn, peer_isn)
    segments = [
        tcp.make(c.side, c.start, c.data, number + 10, ack=0, length=len(c.data) + c.cut)
        for number, c in enumerate(sent)
    ]
    flows = Flows(PATIENT)
    events = flows.feed(tcp.handshake())
    for index in range(0, len(segments), batch):
        events += flows.feed(segments[index : index + batch])
    events += flows.finish()
    check_order(events)
    for side, key in enumerate((CLIENT_KEY, SERVER_KEY)):
        expected = reference(sent, side)
        end = max(expected, default=-1) + 1
        assert observed(events, key) == {at: expected.get(at) for at in range(end)}
        ends = [e for e in of(events, key) if isinstance(e, End)]
        assert len(ends) == bool(sent)
    assert flows.buffered_bytes == 0 and flows.open_flows == 0


@given(st.binary(min_size=1, max_size=80), st.data(), SEQUENCE)
@settings(max_examples=200, deadline=None)
def test_shuffled_stream_comes_out_whole_with_and_without_syn(stream: bytes, data: st.DataObject, isn: int) -> None:
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=12))})
    pieces = [(a, stream[a:b]) for a, b in pairwise(cuts)]
    order = data.draw(st.permutations(pieces))
    tcp = Tcp(isn)
    segments = [tcp.make(0, at, piece, number + 10, ack=0) for number, (at, piece) in enumerate(order)]
    handshake = tcp.handshake()
    for start in ([], handshake, handshake[1:]):
        flows = Flows()
        events = [e for s in [*start, *segments, tcp.fin(0, len(stream), 99)] for e in flows.feed([s])]
        events += flows.finish()
        check_order(events)
        assert b"".join(e.data for e in of(events, CLIENT_KEY) if isinstance(e, Chunk)) == stream
        assert not any(isinstance(e, Gap) for e in events)


class Turn(NamedTuple):
    """A request or a response, how its bytes are cut into segments, and which of these the capture lost."""

    sizes: list[int]
    lost: list[bool]


turns = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        Turn,
        st.lists(st.integers(1, 9), min_size=n, max_size=n),
        st.lists(st.sampled_from([False, False, False, True]), min_size=n, max_size=n),
    )
)


def play(tcp: Tcp, conversation: list[Turn]) -> list[Segment]:
    """Turn by turn, each segment acknowledging all that the other side sent; lost ones are left out."""
    at, out = [0, 0], []
    for number, turn in enumerate(conversation):
        side = number % 2
        for size, lost in zip(turn.sizes, turn.lost, strict=True):
            data = bytes((number,)) * size
            t_ns = (number + 1) * 10 * MS
            if not lost:
                out.append(tcp.make(side, at[side], data, t_ns, ack=at[1 - side]))
            at[side] += size
    return out


@given(st.lists(turns, min_size=1, max_size=10), SEQUENCE, st.integers(0, 3), st.booleans())
@settings(max_examples=200, deadline=None)
def test_captured_bytes_come_out_in_the_order_of_the_conversation(
    conversation: list[Turn], isn: int, expire_every: int, begun: bool
) -> None:
    """Whatever the capture lost: no response before its request, no byte that was captured missing."""
    tcp = Tcp(isn, isn ^ 0xFFFFFFFF)
    flows = Flows()
    segments = play(tcp, conversation)
    events = flows.feed(tcp.handshake() if begun else [])
    for number, segment in enumerate(segments):
        events += flows.feed([segment])
        if expire_every and number % expire_every == 0:
            events += flows.expire(segment.t_ns)
    events += flows.finish()
    check_order(events)
    chunks = [e for e in events if isinstance(e, Chunk)]
    assert [e.data for e in chunks] == [s.payload for s in segments]
    assert [e.t_ns for e in chunks] == [s.t_ns for s in segments]
    assert flows.buffered_bytes == 0


@given(st.lists(turns, min_size=1, max_size=8), st.data(), SEQUENCE)
@settings(max_examples=150, deadline=None)
def test_small_disorder_changes_nothing(conversation: list[Turn], data: st.DataObject, isn: int) -> None:
    whole = [turn._replace(lost=[False] * len(turn.lost)) for turn in conversation]
    tcp = Tcp(isn)
    segments = play(tcp, whole)
    disordered = list(segments)
    for index in data.draw(st.lists(st.integers(0, max(len(segments) - 2, 0)), max_size=5)):
        disordered[index : index + 2] = reversed(disordered[index : index + 2])
    results = []
    for each in (segments, disordered):
        flows = Flows(FlowLimits(slack_ns=SECOND_NS))
        events = [e for s in [*tcp.handshake(), *each] for e in flows.feed([s])] + flows.finish()
        results.append([(e.half.key, e.t_ns, e.data) for e in events if isinstance(e, Chunk)])
    assert results[0] == results[1]


KEYS = [CLIENT_KEY, SERVER_KEY, CLIENT_KEY[:11] + b"\x51", CLIENT_KEY + b"\x00\x01"]


def hostile(random: Random) -> Segment:
    """Anything, but with sequence numbers that often meet."""
    payload = random.randbytes(random.choice((0, 0, 1, 5, 30)))
    number = (lambda: random.randrange(50)) if random.random() < 0.8 else (lambda: random.getrandbits(32))
    return Segment(
        random.randrange(100 * SECOND_NS), random.choice(KEYS), number(), number(), random.getrandbits(9),
        payload, len(payload) + random.choice((0, 0, 0, 31)),
    )  # fmt: skip


@given(st.integers(0, 1 << 64))
@settings(max_examples=300, deadline=None)
def test_hostile_segments_are_data(seed: int) -> None:
    random = Random(seed)
    segments = [hostile(random) for _ in range(80)]
    limits = FlowLimits(half_buffer_bytes=2000, total_buffer_bytes=3000, max_flows=2, max_embryonic=2, max_lingering=2)
    flows = Flows(limits)
    events: list[Event] = []
    for segment in segments:
        events += flows.feed([segment])
        if random.random() < 0.05:
            events += flows.expire(random.randrange(1000 * SECOND_NS))
        assert flows.buffered_bytes <= 4000
        assert flows.open_flows <= 4
        assert len(flows._table.by_key) <= 2 * (4 + 2)
    events += flows.finish()
    check_order(events)
    assert flows.buffered_bytes == 0 and flows.open_flows == 0
