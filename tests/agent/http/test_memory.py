"""What Pairing really holds stays near the limit of what it says to hold, however small the pieces are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from agent.capture.segment import reverse
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.stream.events import Chunk, End, EndReason
from agent.stream.flow import Flow

LIMIT_BYTES = 1 << 20
T_NS = 1_700_000_000_000_000_000
UPLOAD = b"POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 N\r\n\r\n"


def fresh(data: bytes) -> bytes:
    """A copy, as the bytes of each captured segment are."""
    return bytes(bytearray(data))


class Crowd:
    """Connections that have each had one exchange, and how much memory was taken since then."""

    def __init__(self, connections: int, limits: HttpLimits | None = None) -> None:
        self.pairing = Pairing(limits or HttpLimits(total_kept_bytes=LIMIT_BYTES))
        self.flows = [self._connect(number) for number in range(connections)]
        self.most = 0
        self._before = tracemalloc.get_traced_memory()[0]

    def _connect(self, number: int) -> Flow:
        key = bytes((10, 0, 0, 1, 192, 0, 2, 80)) + (number + 1).to_bytes(2, "big") + (80).to_bytes(2, "big")
        flow = Flow(number, key, reverse(key))
        flow.client = flow.halves[0]
        for half in flow.halves:
            half.from_start = True
        self.pairing.feed([Chunk(flow.halves[0], 0, T_NS, GET), Chunk(flow.halves[1], 0, T_NS, NO_CONTENT)])
        return flow

    def say(self, flow: Flow, side: int, data: bytes) -> None:
        """One chunk; what comes of it is not kept."""
        self.pairing.feed([Chunk(flow.halves[side], 0, T_NS + self.most, fresh(data))])
        self.most = max(self.most, tracemalloc.get_traced_memory()[0] - self._before)

    def end(self) -> None:
        """End all connections; nothing is counted as kept any more."""
        for flow in self.flows:
            self.pairing.feed([End(half, 0, T_NS, EndReason.FINISH) for half in flow.halves])
        assert self.pairing.open_exchanges == 0 and self.pairing.budget.kept_bytes == 0


@pytest.fixture(autouse=True)
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def uploads(crowd: Crowd) -> None:
    """Chunks of two bytes, many in a segment."""
    for flow in crowd.flows:
        crowd.say(flow, 0, UPLOAD)
        for _ in range(100):
            crowd.say(flow, 0, b"2\r\nxx\r\n" * 100)


def crumbs(crowd: Crowd) -> None:
    """A body of known length, a few bytes in a segment."""
    for flow in crowd.flows:
        crowd.say(flow, 0, b"PUT / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        for _ in range(1500):
            crowd.say(flow, 0, b"abc")


def pipelined(crowd: Crowd) -> None:
    """Requests as short as they can be, unanswered."""
    for flow in crowd.flows:
        for _ in range(4):
            crowd.say(flow, 0, b"GET / HTTP/1.0\n\n" * 32)


def half_heads(crowd: Crowd) -> None:
    """The first line is there, then a header comes byte by byte."""
    for flow in crowd.flows:
        crowd.say(flow, 0, b"GET / HTTP/1.1\r\nHos")
        crowd.say(flow, 0, b"t")


def long_half_heads(crowd: Crowd) -> None:
    for flow in crowd.flows:
        crowd.say(flow, 0, b"GET / HTTP/1.1\r\nCookie: " + b"x" * 30_000)


def heads_of_unfinished_requests(crowd: Crowd) -> None:
    """The head is whole; the body never comes."""
    for flow in crowd.flows:
        crowd.say(flow, 0, b"PUT / HTTP/1.1\r\nContent-Length: 9\r\nCookie: " + b"x" * 30_000 + b"\r\n\r\n")


def heads_of_unfinished_responses(crowd: Crowd) -> None:
    for flow in crowd.flows:
        crowd.say(flow, 0, GET)
        crowd.say(flow, 1, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX: " + b"x" * 30_000 + b"\r\n\r\n")


def early_answers(crowd: Crowd) -> None:
    """The response is whole, its request never is."""
    for flow in crowd.flows:
        crowd.say(flow, 0, b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        crowd.say(flow, 1, b"HTTP/1.1 413 X\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000)


def sent_as_they_were(crowd: Crowd) -> None:
    """Whole chunked requests that wait for an answer: their coded bodies are kept too."""
    for flow in crowd.flows:
        crowd.say(flow, 0, UPLOAD + b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("play", "connections"),
    [
        (uploads, 12), (crumbs, 4), (pipelined, 60), (half_heads, 4000), (long_half_heads, 200), (early_answers, 200),
        (heads_of_unfinished_requests, 200), (heads_of_unfinished_responses, 200), (sent_as_they_were, 200),
    ],
)  # fmt: skip
def test_memory_stays_near_the_limit(play: Callable[[Crowd], None], connections: int) -> None:
    crowd = Crowd(connections)
    play(crowd)
    assert crowd.most <= 2 * LIMIT_BYTES
    crowd.end()


@pytest.mark.parametrize("play", [uploads, crumbs, pipelined, half_heads, sent_as_they_were, early_answers])
def test_what_is_kept_is_counted_at_about_its_cost(play: Callable[[Crowd], None]) -> None:
    """Far from the limit: neither much more than is counted, nor much less, so that the limit can be used."""
    crowd = Crowd(3, HttpLimits(total_kept_bytes=1 << 30))
    play(crowd)
    assert crowd.pairing.budget.kept_bytes / 2 <= crowd.most <= 2 * crowd.pairing.budget.kept_bytes + 4096
    crowd.end()


def test_a_connection_without_open_exchange_costs_little() -> None:
    """It is not in the budget: FlowLimits.max_flows limits it."""
    before = tracemalloc.get_traced_memory()[0]
    crowd = Crowd(500)
    assert tracemalloc.get_traced_memory()[0] - before < 500 * 2500
    crowd.end()
