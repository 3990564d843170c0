"""Parts of a connection that the source left out on purpose are no losses: nothing waits for them, nothing counts them
as missing, and the exchanges on both sides of them stay whole and paired."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.layout import RESUMED_FLAG
from agent.capture.segment import FIN, RST, Segment
from agent.http.pairing import Pairing
from agent.stream.events import Chunk, End, Event, Gap
from agent.stream.flows import Flows
from agent.stream.left_out import COPY_BYTES
from agent.stream.limits import SECOND_NS
from agent.stream.reassembly import WINDOW_BYTES
from replay.exchange import Exchange
from tests.agent.http.dialogue import brief, chunked, get, ok, post
from tests.agent.stream.conversation import CLIENT_KEY, MS, SERVER_KEY, Tcp, check_order, text

R = RESUMED_FLAG
PORTS = frozenset({80})
SEQUENCE = st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0xFFFFFF00, 0xFFFFFFFF))


@pytest.fixture
def flows() -> Flows:
    return Flows(server_ports=PORTS)


@pytest.fixture
def tcp() -> Tcp:
    return Tcp()


def run(flows: Flows, *segments: Segment) -> list[Event]:
    """Feed the segments one by one."""
    out = [event for segment in segments for event in flows.feed([segment])]
    check_order(out)
    return out


def both(events: list[Event]) -> tuple[list[bytes | int | str], list[bytes | int | str]]:
    """What came of the client and of the server."""
    return text(events, CLIENT_KEY), text(events, SERVER_KEY)


def first(tcp: Tcp) -> list[Segment]:
    """One exchange, 3 bytes asked and 6 answered, nothing left out."""
    return [*tcp.handshake(), tcp.make(0, 0, b"ask", 2, ack=0), tcp.make(1, 0, b"answer", 3, ack=3)]


def later(tcp: Tcp) -> list[Segment]:
    """The exchange after one of 100 and 200 bytes that was left out."""
    return [tcp.make(0, 103, b"ask3", 9, ack=206, flags=R), tcp.make(1, 206, b"answer3", 10, ack=107, flags=R)]


def test_a_connection_goes_on_at_once(flows: Flows, tcp: Tcp) -> None:
    events = run(flows, *first(tcp), *later(tcp), tcp.make(0, 107, b"ask4", 11, ack=213))
    assert both(events) == ([b"ask", 100, b"ask3ask4"], [b"answer", 200, b"answer3"])
    assert all(e.left_out and e.t_ns == 9 for e in events if isinstance(e, Gap))
    assert (flows.counters.left_out, flows.counters.left_out_bytes) == (2, 300)
    assert flows.counters.gaps == flows.counters.out_of_order == flows.counters.midstream == 0


def test_what_follows_takes_the_fast_path_again(flows: Flows, tcp: Tcp) -> None:
    run(flows, *first(tcp), *later(tcp))
    chunks = flows.counters.chunks
    run(flows, tcp.make(0, 107, b"ask4", 11, ack=213), tcp.make(1, 213, b"answer4", 12, ack=111))
    assert flows.counters.chunks == chunks


@pytest.mark.parametrize("seen", [True, False])
def test_the_answer_may_come_out_of_the_ring_first(flows: Flows, tcp: Tcp, seen: bool) -> None:
    """It waits for its request, on a connection that is known as on one that is not."""
    ask, answer = later(tcp)
    before = run(flows, *first(tcp)) if seen else []
    assert run(flows, answer, tcp.make(1, 213, b"more", 10, ack=107)) == []
    events = run(flows, ask)
    assert [(e.half.key, e.data) for e in events if isinstance(e, Chunk)] == [
        (CLIENT_KEY, b"ask3"), (SERVER_KEY, b"answer3"), (SERVER_KEY, b"more"),
    ]  # fmt: skip
    check_order(before + events)
    assert flows.buffered_bytes == 0 and flows.counters.gaps == flows.counters.midstream == 0
    assert all(half.from_start for half in events[0].half.flow.halves)


def test_a_flow_first_seen_behind_what_was_left_out_begins_there(flows: Flows, tcp: Tcp) -> None:
    events = run(flows, *later(tcp))
    assert both(events) == ([b"ask3"], [b"answer3"])
    flow = events[0].half.flow
    assert flow.client is not None and flow.client.key == CLIENT_KEY and all(half.from_start for half in flow.halves)
    assert flows.counters.left_out == flows.counters.midstream == 0


def test_without_known_ports_the_first_to_come_is_the_client(tcp: Tcp) -> None:
    events = run(Flows(), *later(tcp))
    assert both(events) == ([b"ask3"], [b"answer3"])


@pytest.mark.parametrize("flag", [R, 0])
def test_copies_bring_nothing(flows: Flows, tcp: Tcp, flag: int) -> None:
    again = [s._replace(flags=s.flags & ~R | flag) for s in later(tcp)]
    events = run(flows, *first(tcp), *later(tcp), *again, *first(tcp)[2:], *again)
    assert both(events) == ([b"ask", 100, b"ask3"], [b"answer", 200, b"answer3"])
    assert flows.counters.flows == 1 and flows.counters.retransmitted == 6


def test_what_is_held_is_handed_on_first(flows: Flows, tcp: Tcp) -> None:
    """The hole in the answer is a loss, the one behind it is not."""
    events = run(flows, *first(tcp), tcp.make(1, 10, b"rest", 5, ack=3), *later(tcp))
    assert text(events, SERVER_KEY) == [b"answer", 4, b"rest", 192, b"answer3"]
    assert [e.left_out for e in events if isinstance(e, Gap) and e.half.key == SERVER_KEY] == [False, True]
    assert (flows.counters.gaps, flows.counters.gap_bytes) == (1, 4)


def test_what_is_held_behind_it_stays(flows: Flows, tcp: Tcp) -> None:
    ask, answer = later(tcp)
    events = run(flows, *first(tcp), tcp.make(0, 107, b"body", 9, ack=206), ask, answer)
    assert text(events, CLIENT_KEY) == [b"ask", 100, b"ask3body"] and flows.counters.gaps == 0


def test_a_half_that_was_not_joined_yet_joins_before(flows: Flows, tcp: Tcp) -> None:
    events = run(flows, tcp.make(0, 0, b"ask", 2, ack=0), tcp.make(1, 0, b"answer", 3, ack=3), *later(tcp))
    assert both(events) == ([b"ask", 100, b"ask3"], [b"answer", 200, b"answer3"])
    assert [e.half.key for e in events if isinstance(e, Chunk)] == [CLIENT_KEY, SERVER_KEY] * 2
    assert flows.counters.midstream == 2 and flows.counters.gaps == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_fin_behind_what_was_left_out_ends_the_flow(flows: Flows, tcp: Tcp, order: tuple[int, int]) -> None:
    ends = [tcp.make(0, 103, b"", 5, 206, FIN | R), tcp.make(1, 206, b"", 6, 103, FIN | R)]
    later_end = order[1]
    ends[later_end] = ends[later_end]._replace(ack=ends[later_end].ack + 1)  # it acknowledges the FIN as well
    events = run(flows, *first(tcp), *(ends[n] for n in order))
    assert both(events) == ([b"ask", 100, "fin"], [b"answer", 200, "fin"])
    assert flows.open_flows == 0 and flows.counters.gaps == 0


@pytest.mark.parametrize("side", [0, 1])
def test_rst_behind_what_was_left_out_is_believed(flows: Flows, tcp: Tcp, side: int) -> None:
    events = run(flows, *first(tcp), tcp.make(side, 100 << 20, b"", 5, flags=RST | R))
    assert both(events) == ([b"ask", "rst"], [b"answer", "rst"])
    assert flows.counters.resets == 1 and flows.open_flows == 0


@pytest.mark.parametrize("flag", [FIN, RST])
def test_the_end_alone_opens_nothing(flows: Flows, tcp: Tcp, flag: int) -> None:
    assert run(flows, tcp.make(0, 5, b"", 5, ack=7, flags=flag | R)) == []
    assert flows.counters.unopened == 1 and flows.open_flows == 0


@pytest.mark.parametrize("away", [-(COPY_BYTES + 1), -1000, WINDOW_BYTES + 1, 1 << 31])
@pytest.mark.parametrize("side", [0, 1])
def test_port_reuse_without_a_syn(flows: Flows, tcp: Tcp, away: int, side: int) -> None:
    """Where either direction cannot have gone on so, it is another connection."""
    isn = [1000 + 3, 9000 + 6]
    isn[side] += away
    new = Tcp(isn[0], isn[1])
    ask, answer = new.make(0, 0, b"new", 9, ack=0, flags=R), new.make(1, 0, b"yes", 9, ack=3, flags=R)
    events = run(flows, *first(tcp), ask, answer)
    assert both(events) == ([b"ask", "reused", b"new"], [b"answer", "reused", b"yes"])
    assert flows.counters.reused == 1 and flows.counters.flows == 2


def test_port_reuse_after_the_end(flows: Flows, tcp: Tcp) -> None:
    over = [tcp.fin(0, 3, 4, ack=6), tcp.fin(1, 6, 5, ack=4)]
    events = run(flows, *first(tcp), *over, *later(tcp))
    assert text(events, CLIENT_KEY) == [b"ask", "fin", b"ask3"] and flows.counters.flows == 2
    (half_open := Flows(server_ports=PORTS)).feed([*first(tcp), over[0]])
    assert text(run(half_open, *later(tcp)), CLIENT_KEY) == [b"ask3"] and half_open.counters.reused == 1


def test_a_syn_ends_a_flow_that_began_without_one(flows: Flows, tcp: Tcp) -> None:
    new = Tcp(client_isn=5_000_000, server_isn=7_000_000)
    syn, syn_ack = (s._replace(flags=s.flags | R) for s in new.handshake())
    events = run(flows, *later(tcp), syn, syn_ack, new.make(0, 0, b"new", 12, ack=0))
    assert text(events, CLIENT_KEY) == [b"ask3", "reused", b"new"]
    assert flows.counters.left_out == flows.counters.gaps == 0


def test_a_muted_flow_stays_muted(flows: Flows, tcp: Tcp) -> None:
    run(flows, *first(tcp))[0].half.flow.mute()
    assert run(flows, *later(tcp)) == [] and flows.counters.muted == 2
    events = run(flows, tcp.make(0, 500, b"", 11, 213, FIN | R), tcp.make(1, 600, b"", 12, 501, FIN | R))
    assert [type(e) for e in events] == [End, End] and flows.counters.left_out == 0


def test_the_answer_to_a_resumed_request_that_was_lost_comes_after_the_slack(flows: Flows, tcp: Tcp) -> None:
    answer = later(tcp)[1]
    assert run(flows, *first(tcp), answer)[2:] == []
    events = flows.expire(SECOND_NS)
    assert text(events, SERVER_KEY) == [200, b"answer3"] and flows.counters.gaps == 0
    ask = tcp.make(0, 207, b"ask5", SECOND_NS, ack=313, flags=R)
    events = run(flows, ask, tcp.make(1, 313, b"answer5", SECOND_NS, ack=211, flags=R))
    assert both(events) == ([204, b"ask5"], [100, b"answer5"])


# Whole conversations.


@dataclass
class Talk:
    """What the kernel program copies of one connection, in the order of the ring. Exchanges of (asked, answered)."""

    said: list[tuple[bytes, bytes]]
    left_out: list[bool]
    random: Random
    tcp: Tcp
    begun: bool  # the SYN was copied
    disorder: bool
    lossy: bool = False
    whole: set[int] = field(default_factory=set)  # exchanges of which every segment was copied
    at: list[int] = field(default_factory=list)  # where both streams end

    def segments(self) -> list[Segment]:
        """As the tap makes them: RESUMED_FLAG until a segment with it was copied."""
        resumed = [True, True]
        out = self._handshake(resumed)
        sent = self._sent()
        self.whole = {n for n, _ in sent if not self.left_out[n]}
        for number, segment in sent:
            side = int(segment.key == self.tcp.keys[1])
            if self.left_out[number]:
                resumed = [True, True]
            elif self.lossy and self.random.random() < 0.1:
                self.whole.discard(number)
                resumed[side] = False  # what is missing now was not all left out
            else:
                out.append(segment._replace(flags=segment.flags | R * resumed[side]))
                resumed[side] = False
        return self._repeated(out) + self._over(resumed)

    def _handshake(self, resumed: list[bool]) -> list[Segment]:
        if not self.begun:
            return []
        resumed[:] = False, False
        return [s._replace(flags=s.flags | R) for s in self.tcp.handshake()]

    def _sent(self) -> list[tuple[int, Segment]]:
        """All that both ends send, with the numbers of the exchanges."""
        at = [0, 0]
        sent: list[tuple[int, Segment]] = []
        for number, messages in enumerate(self.said):
            for side, message in enumerate(messages):
                for piece in pieces(message, self.random):
                    segment = self.tcp.make(side, at[side], piece, len(sent) * MS, ack=at[1 - side])
                    sent.append((number, segment))
                    at[side] += len(piece)
        self.at = at
        return self._disordered(sent) if self.disorder else sent

    def _disordered(self, sent: list[tuple[int, Segment]]) -> list[tuple[int, Segment]]:
        """Where the direction changes, two processors may put what they copy into the ring in the wrong order."""
        n = 0
        while n + 1 < len(sent):
            (number, segment), (next_number, follower) = sent[n : n + 2]
            together = self.left_out[number] == self.left_out[next_number] and segment.key != follower.key
            if together and self.random.random() < 0.5:
                sent[n : n + 2] = sent[n + 1], sent[n]
                n += 1
            n += 1
        return sent

    def _repeated(self, sent: list[Segment]) -> list[Segment]:
        """Some come again, a little later, with the flag (captured twice) or without (sent twice)."""
        out = list(sent)
        for segment in sent:
            if self.random.random() < 0.2:
                at = out.index(segment) + 1 + self.random.randrange(4)
                flag = R if self.random.random() < 0.5 else 0
                out.insert(at, segment._replace(flags=segment.flags & ~R | segment.flags & flag))
        return out

    def _over(self, resumed: list[bool]) -> list[Segment]:
        """FIN by either end first, or RST by either, or nothing."""
        ever = self.begun or bool(self.whole)
        how = self.random.choice(["fin", "rst", "none"]) if ever and not self.lossy else "none"
        side, late = self.random.randrange(2), len(self.said) * 100 * MS
        ends = [R * resumed[side], R * resumed[1 - side]]
        at, peer_at = self.at[side], self.at[1 - side]
        if how == "none":
            return []
        if how == "rst":
            return [self.tcp.make(side, at, b"", late, peer_at, RST | ends[0])]
        return [
            self.tcp.make(side, at, b"", late, peer_at, FIN | ends[0]),
            self.tcp.make(1 - side, peer_at, b"", late, at + 1, FIN | ends[1]),
        ]


def pieces(message: bytes, random: Random) -> list[bytes]:
    """Cut at any places."""
    points = sorted({0, len(message), *(random.randrange(1, len(message)) for _ in range(random.randrange(4)))})
    return [message[a:b] for a, b in pairwise(points)]


def exchange(number: int, random: Random) -> tuple[bytes, bytes]:
    """A request and its response, recognisable by the number."""
    target, body = f"/{number}", b"%d " % number + random.randbytes(random.randrange(40))
    asked = random.choice([get(target), post(body, target), post(b"HTTP/1.1 200 OK\r\n\r\n", target)])
    answered = random.choice([
        ok(body), ok(body, 404), ok(b"GET / HTTP/1.1\r\n\r\n"), b"HTTP/1.1 304 N\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body), b"HTTP/1.1 100 C\r\n\r\n" + ok(body),
    ])  # fmt: skip
    return asked, answered


def understood(said: list[tuple[bytes, bytes]]) -> list[tuple[object, ...]]:
    """What comes of a conversation of which nothing is left out."""
    at, tcp, segments = [0, 0], Tcp(), Tcp().handshake()
    for each in said:
        for side, message in enumerate(each):
            segments.append(tcp.make(side, at[side], message, 1, ack=at[1 - side]))
            at[side] += len(message)
    return brief(Pairing().feed(Flows().feed(segments))[1])


def heard(flows: Flows, pairing: Pairing, segments: list[Segment], batch: int) -> tuple[list[Event], list[Exchange]]:
    """What both layers make of segments, without time passing."""
    events: list[Event] = []
    finished: list[Exchange] = []
    for at in range(0, len(segments), batch):
        some = flows.feed(segments[at : at + batch])
        events += some
        finished += pairing.feed(some)[1]
    check_order(events)
    return events, finished


talks = st.tuples(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 1 << 64), SEQUENCE)


@given(talks, st.booleans(), st.booleans(), st.integers(1, 5), st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_exchanges_are_those_not_left_out(
    talk: tuple[list[bool], int, int], begun: bool, disorder: bool, batch: int, known_port: bool
) -> None:
    left_out, seed, isn = talk
    random = Random(seed)
    said = [exchange(n, random) for n in range(len(left_out))]
    segments = Talk(said, left_out, random, Tcp(isn, isn ^ 0x5555FFFF), begun, disorder).segments()
    known_port = known_port or not begun  # the SYN or the port says which half is the client
    flows, pairing = Flows(server_ports=PORTS if known_port else frozenset()), Pairing()
    _, finished = heard(flows, pairing, segments, batch)
    assert brief(finished) == understood([s for s, out in zip(said, left_out, strict=True) if not out])
    assert all(e.incomplete is None and e.response is not None and e.response.complete for e in finished)
    counters = flows.counters
    assert counters.gaps == counters.midstream == counters.slack_used == counters.hole_timeout == counters.reused == 0
    assert flows.buffered_bytes == 0 and flows.counters.flows == bool(segments)
    ended = bool(segments and segments[-1].flags & (FIN | RST))
    assert flows.open_flows == (bool(segments) and not ended)
    assert pairing.seen == len(finished) and pairing.counters.orphans == pairing.counters.unanswered == 0


@given(talks, st.booleans(), st.integers(1, 5))
@settings(max_examples=400, deadline=None)
def test_with_losses_besides_it_still_finds_its_way(talk: tuple[list[bool], int, int], begun: bool, batch: int) -> None:
    """The last exchange, all there behind something left out, comes out whole; and the account closes."""
    left_out, seed, isn = talk
    random = Random(seed)
    left_out = [*left_out, True, False]
    said = [exchange(n, random) for n in range(len(left_out))]
    talked = Talk(said, left_out, random, Tcp(isn, isn ^ 0x5555FFFF), begun, False, lossy=True)
    segments = talked.segments()
    flows, pairing = Flows(server_ports=PORTS), Pairing()
    events, finished = heard(flows, pairing, segments, batch)
    rest = flows.expire(100 * SECOND_NS) + flows.finish()
    finished += pairing.feed(rest)[1]
    check_order(events + rest)
    assert pairing.seen == len(finished) and pairing.budget.kept_bytes == 0 and flows.buffered_bytes == 0
    if len(said) - 1 in talked.whole:
        assert understood(said[-1:])[0] in brief(finished)
