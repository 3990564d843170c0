"""Captures in which the clock was set while connections were open: nothing is lost, and nothing waits for an hour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.capture.segment import Segment
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.stream.events import EndReason
from agent.stream.flows import Flows
from agent.stream.limits import SECOND_NS
from replay.exchange import Exchange
from tests.agent.stream.conversation import CLIENT_KEY, MS, SERVER_KEY, Tcp, check_order, text

HOUR_NS = 3600 * SECOND_NS
T_NS = 1_700_000_000 * SECOND_NS
ASK, ANSWER = b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 204 N\r\n\r\n"
both_ways = pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])


def keep_alive(rounds: int, at: int, step_ns: int) -> list[Segment]:
    """One connection, an exchange each 100 ms; the clock is set before the segment with number `at`."""
    tcp = Tcp()
    said = tcp.handshake()
    for n in range(rounds):
        said.append(tcp.make(0, n * len(ASK), ASK, ack=n * len(ANSWER)))
        said.append(tcp.make(1, n * len(ANSWER), ANSWER, ack=(n + 1) * len(ASK)))
    said += [tcp.fin(0, rounds * len(ASK), ack=rounds * len(ANSWER)), tcp.fin(1, rounds * len(ANSWER))]
    return [s._replace(t_ns=T_NS + n * 50 * MS + step_ns * (n >= at)) for n, s in enumerate(said)]


@both_ways
@pytest.mark.parametrize("at", range(26))
@pytest.mark.parametrize("order", ["as sent", "disorder"])
def test_a_step_loses_no_exchange(step_ns: int, at: int, order: str) -> None:
    segments = keep_alive(11, at, step_ns)
    if order == "disorder":
        segments[4:12] = [segments[n] for n in (5, 4, 7, 6, 9, 8, 11, 10)]
    flows, pairing = Flows(), Pairing()
    finished: list[Exchange] = []
    for segment in segments:
        finished += pairing.feed(flows.feed([segment]))[1]
        finished += pairing.feed(flows.expire(segment.t_ns))[1]
    assert [e.index for e in finished] == list(range(11)) == list(range(pairing.seen))
    assert all(e.request is not None and e.response is not None and e.incomplete is None for e in finished)
    assert flows.open_flows == 0 and flows.counters.timed_out == 0 and flows.counters.midstream == 0


@both_ways
def test_a_hole_does_not_wait_for_the_old_time(step_ns: int) -> None:
    """Neither one that was acknowledged, nor one that was not."""
    for ack in (9, 3):
        flows, tcp = Flows(), Tcp()
        events = flows.feed([
            *tcp.handshake(T_NS), tcp.make(0, 0, b"one", T_NS, ack=0), tcp.make(0, 6, b"two", T_NS, ack=0),
            tcp.make(1, 0, b"answer", T_NS, ack=ack),
        ])  # fmt: skip
        events += flows.feed([tcp.make(0, 9, b"more", T_NS + step_ns, ack=0)])
        events += flows.expire(T_NS + step_ns + SECOND_NS)
        assert text(events, CLIENT_KEY) == [b"one", 3, b"twomore"] and text(events, SERVER_KEY) == [b"answer"]
        check_order(events)
        assert flows.buffered_bytes == 0


def test_a_capture_file_is_expired_on_after_a_step_back() -> None:
    """A response waits for a request that was lost, and its connection says no more; another one goes on."""
    stuck, busy = Tcp(key=CLIENT_KEY[:8] + b"\x11\x11" + CLIENT_KEY[10:]), Tcp()
    source = Batches([
        [*stuck.handshake(T_NS), stuck.make(1, 0, ANSWER, T_NS, ack=len(ASK)), *busy.handshake(T_NS)],
        *([busy.make(0, n, b"x", T_NS - HOUR_NS + n * SECOND_NS, ack=0)] for n in range(5)),
    ])  # fmt: skip
    finished = [len(some) for _, some in read_exchanges(source, Flows(), Pairing())]
    assert sum(finished) == 1 and finished[-1] == 0


class Batches:
    """A capture in memory."""

    def __init__(self, batches: list[list[Segment]]) -> None:
        self._batches = batches
        self.now_ns = 0

    def batches(self) -> Iterator[list[Segment]]:
        """As a file gives them."""
        for batch in self._batches:
            self.now_ns = batch[-1].t_ns
            yield batch


def test_times_a_little_out_of_order_do_not_end_the_waiting() -> None:
    """Segments from several processors are not sorted by time."""
    flows, tcp = Flows(), Tcp()
    flows.feed([*tcp.handshake(T_NS), tcp.make(0, 3, b"two", T_NS, ack=0)])
    assert flows.feed([tcp.make(1, 0, b"answer", T_NS - 100 * MS, ack=6)]) == []
    assert flows.expire(T_NS - 150 * MS) == []
    events = flows.feed([tcp.make(0, 0, b"one", T_NS - 50 * MS, ack=0)])
    assert text(events, CLIENT_KEY) == [b"onetwo"] and text(events, SERVER_KEY) == [b"answer"]


@both_ways
def test_only_flows_that_are_silent_after_the_step_can_time_out(step_ns: int) -> None:
    """Forward, a step looks like silence; backward, what is silent is found out when its time has come again."""
    flows, busy, silent = Flows(), Tcp(), Tcp(key=CLIENT_KEY[:8] + b"\x11\x11" + CLIENT_KEY[10:])
    for tcp in (busy, silent):
        flows.feed([*tcp.handshake(T_NS), tcp.make(0, 0, b"one", T_NS, ack=0)])
    flows.feed([busy.make(0, 3, b"two", T_NS + step_ns, ack=0)])
    ended = flows.expire(T_NS + step_ns + SECOND_NS)
    if step_ns < 0:
        assert ended == []
        flows.feed([busy.make(0, 6, b"more", T_NS + 300 * SECOND_NS, ack=0)])
        ended = flows.expire(T_NS + 301 * SECOND_NS)
    assert {(e.half.key, e.reason) for e in ended} == {(key, EndReason.TIMEOUT) for key in silent.keys}
    assert flows.open_flows == 1
