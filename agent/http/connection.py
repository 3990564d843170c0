"""Pairs the requests and responses of one connection, first in, first out, and decides when each exchange is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.capture.segment import source
from agent.http.content import EXCHANGE_BYTES, kept_of
from agent.http.reader import BODY, Reader
from agent.http.requests import RequestReader
from agent.http.responses import ResponseReader
from agent.select.client_address import Address
from agent.stream.events import EndReason
from agent.stream.flow import Half
from replay.exchange import Exchange, Incomplete, Request, Response

if TYPE_CHECKING:
    from agent.http.pairing import Pairing

GONE = object()  # in place of a half's reader once its End was seen


class Connection:
    """`open` holds the exchanges that wait for their response, the oldest first; the last of them may be `reading`,
    the one whose request is still coming in."""

    __slots__ = (
        "_abandoned", "_client", "_client_half", "_count", "_early_bytes", "_ended", "_ended_by", "_flow", "_forwarded",
        "_max_open", "_pairing", "_resumed_at", "_server", "open", "reading", "requests", "responses",
    )  # fmt: skip

    def __init__(self, pairing: Pairing, client: Half, forwarded: Address | None = None) -> None:
        """`forwarded` is the client that a PROXY header at the connection's start named."""
        self._pairing = pairing
        self._forwarded = forwarded
        self._flow = client.flow
        self._client_half = client
        self._client = source(client.key)
        self._server = source(client.peer.key)
        self._max_open = pairing.limits.max_pipelined
        self._count = 0  # exchanges so far
        self._abandoned = client.flow.pending  # requests given up, or never seen, whose responses will still come
        self._early_bytes = 0  # of the response of `reading`, which came before the request is whole; 0: it did not
        self._ended = False  # no response comes any more
        self._ended_by: str | None = None  # who closed or reset it first, as in Exchange; None: nobody yet
        self._resumed_at = -1  # responses seen when requests were last left out
        self.open: list[Exchange] = []  # at most max_pipelined, usually one; a deque would take 600 bytes more
        self.reading: Exchange | None = None
        self.requests = RequestReader(self, pairing.budget, client.from_start)
        self.responses = ResponseReader(self, pairing.budget, client.peer.from_start)
        if client.reader is not GONE:
            client.reader = self.requests
        if client.peer.reader is GONE:
            self._ended = True
            self._ended_by = "server" if self._owes() and not self.responses.may_miss_bytes else ""
        else:
            client.peer.reader = self.responses

    @property
    def resumed(self) -> bool:
        """Messages were left out on purpose, so what comes next may be the rest of one."""
        return self._flow.resumed

    # Called by the request reader.

    def take_request(self, request: Request) -> None:
        """A request that came as a whole."""
        pairing, exchange = self._pairing, self.reading
        budget = pairing.budget
        if exchange is None:
            exchange = Exchange(
                self._client, self._server, self._flow.number, self._count, request, forwarded=self._forwarded
            )
            self._count += 1
            pairing.seen += 1
            self.open.append(exchange)
            budget.kept_bytes += EXCHANGE_BYTES
        else:
            exchange.request = request
            self.reading = None
        pairing.counters.requests += 1
        budget.kept_bytes += kept_of(request)
        if budget.kept_bytes > budget.limits.total_kept_bytes:
            budget.counters.kept_limit += 1
            exchange.incomplete = Incomplete.EVICTED
        else:
            pairing.ready.append(exchange)
        if self._early_bytes or self._ended or len(self.open) > self._max_open or exchange.incomplete is not None:
            self._after_request(exchange)

    def open_request(self) -> None:
        """A request has begun and counts as seen; its response may come from now on."""
        if self.reading is None:
            self.reading = self._new_exchange()
            self.open.append(self.reading)

    def finish_request(self, request: Request, incomplete: Incomplete | None) -> None:
        """The body of the request that is being read has come to an end."""
        if incomplete is None:
            self.take_request(request)
            return
        exchange, self.reading = self.reading, None
        assert exchange is not None
        exchange.request = request
        exchange.incomplete = incomplete
        self._pairing.budget.kept_bytes += kept_of(request)
        self._after_request(exchange)

    def give_up_request(self, reason: Incomplete) -> None:
        """The head of the request that is being read will not become whole."""
        exchange, self.reading = self.reading, None
        if exchange is not None:
            exchange.incomplete = reason
            self._after_request(exchange)

    def _after_request(self, exchange: Exchange) -> None:
        """Nothing more is added to the request: see whether the exchange is over, or too many wait."""
        if self._early_bytes or self._ended:
            self._pairing.budget.kept_bytes -= self._early_bytes
            self._early_bytes = 0
            if exchange in self.open:
                self.open.remove(exchange)
            self._name_who_ended(exchange)
            self._pairing.finish_exchange(exchange)
        elif exchange.incomplete is Incomplete.EVICTED:
            self.open.remove(exchange)
            self._abandoned += 1
            self._pairing.finish_exchange(exchange)
        elif len(self.open) > self._max_open:
            self._pairing.counters.pipeline_limit += 1
            self._abandoned += 1
            self._pairing.finish_exchange(self.open.pop(0))

    def _new_exchange(self) -> Exchange:
        """One that is seen, and of which nothing more is known yet."""
        exchange = Exchange(self._client, self._server, self._flow.number, self._count, None, forwarded=self._forwarded)
        self._count += 1
        self._pairing.seen += 1
        self._pairing.budget.kept_bytes += EXCHANGE_BYTES
        return exchange

    # Called by the response reader.

    def match(self) -> tuple[Exchange | None, str]:
        """The exchange that the final response beginning now answers, and its method ("" if unknown)."""
        waiting = self.open
        if self._abandoned:
            self._abandoned -= 1
            return None, ""
        if self.responses.lost:
            self._skip_unanswered()
        if not waiting:
            return self._orphan(), ""
        exchange = waiting.pop(0)
        if exchange.request is not None:
            return exchange, exchange.request.method
        return exchange, self.requests.method_being_read if exchange is self.reading else ""

    def take_interim(self, status: int) -> None:
        """A 1xx response."""
        self._pairing.counters.interim += 1
        if self.responses.lost and not self._abandoned:
            self._skip_unanswered()
        if not self.open:
            return
        if len(self.open[0].interim) < self._pairing.limits.max_interim:
            self.open[0].interim += (status,)
        else:
            self._pairing.counters.interim_limit += 1

    def answer(self, exchange: Exchange | None, response: Response) -> None:
        """The response of an exchange is over."""
        if exchange is None:
            return
        exchange.response = response
        self._pairing.counters.responses += response.complete
        if exchange is self.reading:
            self._early_bytes = len(response.head) + len(response.body)
            self._pairing.budget.kept_bytes += self._early_bytes
            if self._pairing.budget.full:
                self.requests.evict()
        else:
            if self._ended:
                self._name_who_ended(exchange)
            self._pairing.finish_exchange(exchange)

    def _skip_unanswered(self) -> None:
        """Responses may be missing: the next one answers the latest request, those before it stay without.

        Where requests may be missing behind that one, too, nothing shows that it answers any that was seen.
        """
        self.responses.lost = False
        latest = 0 if self.requests.lost and self.reading is None else 1
        while len(self.open) > latest:
            self._unanswered(self.open.pop(0))

    def _orphan(self) -> Exchange:
        self._pairing.counters.orphans += 1
        orphan = self._new_exchange()
        lacks_ns = self._client_half.lacks_ns
        lost = not self.requests.unbroken or 0 < lacks_ns <= self.responses.t_first_ns
        orphan.incomplete = Incomplete.REQUEST_LOST if lost else Incomplete.UNASKED
        return orphan

    def _unanswered(self, exchange: Exchange) -> None:
        self._pairing.counters.unanswered += 1
        self._name_who_ended(exchange)
        self._pairing.finish_exchange(exchange)

    # What was left out, and the end.

    def left_out(self, reader: Reader) -> None:
        """Whole exchanges were left out here, and what was asked before them was answered before: it waits in vain.

        Where only responses are missing, and none came since requests were left out, what waits was asked after them.
        """
        if reader is self.requests:
            self._resumed_at = self.responses.messages
        elif self.responses.messages == self._resumed_at:
            return
        self._abandoned = 0
        self._give_up_waiting()

    def expect_foreign(self) -> None:
        """The next response belongs to a request that was left out."""
        self._abandoned = 1

    def end_half(self, half: Half, reason: EndReason, by_peer: bool) -> None:
        """A direction is over. Without responses to come, what waits for one is over too."""
        if self._ended_by is None and reason in (EndReason.FIN, EndReason.RST):
            by_client = (half is self._client_half) is not by_peer
            self._ended_by = "client" if by_client else "server" if self._owes() else ""
        if half.reader is self.responses:
            self._ended = True
            if self.responses.may_miss_bytes:
                self._ended_by = ""
        half.reader.end(reason)
        if half.reader is self.responses:
            self._give_up_waiting()

    def _owes(self) -> bool:
        """The server has a response to give, or the connection is new: it is not one kept alive that is idle."""
        kept_alive = self._count or self.resumed or not self.requests.unbroken
        return bool(self.open) or self.responses.state == BODY or not kept_alive

    def _name_who_ended(self, exchange: Exchange) -> None:
        if self._ended and (exchange.response is None or not exchange.response.complete):
            exchange.ended_by = self._ended_by or ""

    def _give_up_waiting(self) -> None:
        """No response comes to what was asked; only the request that is still coming in stays."""
        keep = self.open.pop() if self.open and self.open[-1] is self.reading else None
        while self.open:
            self._unanswered(self.open.pop(0))
        if keep is not None:
            self.open.append(keep)

    def abandon(self) -> None:
        """What follows is not HTTP/1.x: want no more of it."""
        self.requests.end(EndReason.FIN)
        self.responses.end(EndReason.FIN)
        self._flow.mute()
