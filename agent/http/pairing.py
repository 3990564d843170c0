"""From the stream of all connections to exchanges. Without I/O and without a clock."""

from __future__ import annotations

from collections.abc import Iterable

from agent.capture.segment import source_address
from agent.http.connection import GONE, Connection
from agent.http.content import EXCHANGE_BYTES, Budget, kept_of
from agent.http.limits import HttpCounters, HttpLimits
from agent.http.prologue import Prologue
from agent.http.reader import Reader
from agent.http.requests import HTTP2_PREFACE, looks_like_request
from agent.http.responses import looks_like_response
from agent.select.client_address import Address, parse_proxy_header, unmapped
from agent.stream.events import Chunk, End, Event, Gap
from agent.stream.flow import Half
from replay.exchange import Exchange

_TLS_RECORDS = (b"\x16\x03", b"\x17\x03", b"\x15\x03", b"\x14\x03")


class Pairing:
    """Pairs requests with their responses on every connection of one `Flows`.

    `seen` counts the requests whose request line was recognised, and final responses without a request. Each of them
    is in `finished` exactly once, at the latest after the End events that `Flows.finish` returns.
    """

    __slots__ = ("_finished", "_finished_count", "budget", "counters", "limits", "ready", "seen")

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.counters = HttpCounters()
        self.budget = Budget(self.limits, self.counters)
        self.seen = 0
        self.ready: list[Exchange] = []
        self._finished: list[Exchange] = []
        self._finished_count = 0

    @property
    def open_exchanges(self) -> int:
        """Seen and not finished."""
        return self.seen - self._finished_count - len(self._finished)

    def feed(self, events: Iterable[Event]) -> tuple[list[Exchange], list[Exchange]]:
        """Take events; returns (ready, finished): exchanges whose request has become whole, and those that are over.

        `ready` comes first: an exchange in both was handed over in this call for the first time in `ready`. Nothing
        grows old here by itself: `Flows.expire` and `Flows.finish` end connections, and their events say so.
        """
        for event in events:
            half = event[0]
            reader = half.reader
            if event.__class__ is Chunk:
                if reader is None:
                    self.begin(half, event[3], event[2])
                else:
                    reader.feed(event[3], event[2])
            elif event.__class__ is Gap:
                if reader is None:
                    half.from_start = event[4]  # else what comes first is no first message: as if joined in the middle
                    half.flow.pending += event[5]
                elif event[4]:
                    reader.left_out(event[3])
                    if event[5]:
                        reader.connection.expect_foreign()
                else:
                    reader.gap(event[3])
            elif event.__class__ is End:
                if reader is not None:
                    reader.connection.end_half(half, event[3], event[4])
                half.reader = GONE
        return self._take()

    def finish_exchange(self, exchange: Exchange) -> None:
        """For connections: nothing more will be added to `exchange`."""
        request = exchange.request
        self.budget.kept_bytes -= EXCHANGE_BYTES if request is None else EXCHANGE_BYTES + kept_of(request)
        self._finished.append(exchange)

    def _take(self) -> tuple[list[Exchange], list[Exchange]]:
        ready, finished = self.ready, self._finished
        self.ready, self._finished = [], []
        self._finished_count += len(finished)
        return ready, finished

    def begin(self, half: Half, data: bytes, t_ns: int, forwarded: Address | None = None) -> None:
        """The first bytes of a half, behind its PROXY header if it has one, which named `forwarded`."""
        if not data or half.flow.muted:
            return
        may_be_client = half.flow.client in (None, half) and self.limits.proxy_protocol
        if may_be_client and forwarded is None and parse_proxy_header(data) is not None:
            half.flow.client = half
            half.reader = Prologue(self, half)
            half.reader.feed(data, t_ns)
            return
        if may_be_client and forwarded is None and half.from_start:
            forwarded = unmapped(source_address(half.key))  # without a header: one with it would have been copied
        reader = self._meet(half, data, forwarded)
        if reader is not None:
            reader.feed(data, t_ns)

    def _meet(self, half: Half, data: bytes, forwarded: Address | None) -> Reader | None:
        """Find out whether a connection is HTTP/1.x, and who is the client."""
        flow = half.flow
        if data[:2] in _TLS_RECORDS:
            self.counters.tls += 1
            flow.mute()
            return None
        if flow.client is None:
            flow.client = _sniff(half, data)
        if flow.client is None:
            self.counters.undecided_bytes += len(data)
            return None
        if half is flow.client and data.startswith(HTTP2_PREFACE):
            self.counters.http2 += 1
            flow.mute()
            return None
        self.counters.connections += 1
        Connection(self, flow.client, forwarded)
        reader: Reader = half.reader
        return reader


def _sniff(half: Half, data: bytes) -> Half | None:
    """The half that sends requests, if `data`, sent by `half`, shows it."""
    if looks_like_response(data):
        return half.peer
    return half if looks_like_request(data) else None
