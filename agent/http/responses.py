"""Reads the responses of a connection's server half and gives each to the exchange it answers."""

from __future__ import annotations

from agent.http.reader import BODY, CLOSE, LENGTH, NO_BODY, SILENT, START, Reader
from agent.stream.events import EndReason
from replay.exchange import Exchange, Incomplete, Response
from replay.http1 import response_framing, status_line

_new = tuple.__new__  # saves the call of a NamedTuple's Python-level constructor
_PREFIX = b"HTTP/1."


def looks_like_response(data: bytes) -> bool:
    """A segment begins with a status line, as far as it reaches."""
    return data.startswith(_PREFIX) and (len(data) < 13 or status_line(data) is not None)


class ResponseReader(Reader):
    """`exchange` is the one whose response is being read, None for a response that nobody waits for."""

    __slots__ = ("exchange", "status", "version")

    exchange: Exchange | None
    status: int
    version: int

    @property
    def may_miss_bytes(self) -> bool:
        """Of the response that is being read, or would come next, bytes may have come that were not seen."""
        return self.lost or self.state == SILENT or (self.state == BODY and not self.complete)

    def begins_message(self, data: bytes) -> bool:
        """See Reader."""
        return looks_like_response(data)

    def not_the_protocol(self) -> None:
        """See Reader. What was asked stays without an answer; if nothing was, neither side speaks HTTP."""
        self.budget.counters.not_http_server += 1
        if self.connection.resumed:
            self.lose()  # in the middle of an answer to something that was left out
        elif self.connection.requests.messages:
            self.silence()
        else:
            self.connection.abandon()

    def possible_line(self, start: bytes) -> bool:
        """See Reader."""
        return start.startswith(_PREFIX) or _PREFIX.startswith(start)

    def recognise_line(self, start: bytes) -> bool:
        """See Reader."""
        return status_line(start) is not None

    def begin(self, head: bytes, data: bytes, after: int, t_ns: int) -> int:
        """See Reader."""
        line = status_line(head)
        if line is None:
            self.reject(head[:64])
            return len(data)
        status, version = line
        self.messages += 1
        if status < 200 and status != 101:
            self.connection.take_interim(status)
            self.state = START
            return after
        exchange, method = self.connection.match()
        if status == 101 or (method == "CONNECT" and status < 300):
            self._tunnel(exchange, status, version, head, t_ns)
            return len(data)
        framed = response_framing(head.lower(), status, method)
        if framed is None:
            self._contradictory(exchange, status, version, head, t_ns)
            return len(data)
        kind, length = framed
        if kind is NO_BODY:
            body, length = b"", 0
        elif kind is LENGTH and after + length <= len(data) and length <= self.budget.limits.body_limit_bytes:
            body = data[after : after + length]
        else:
            self.exchange, self.status, self.version = exchange, status, version
            self.head, self.t_last_ns = head, t_ns
            self.begin_body(kind, length)
            return after
        self.state = START
        self.connection.answer(
            exchange, _new(Response, (status, version, head, body, length, self.t_first_ns, t_ns, True, None))
        )
        return after + length

    def finished(self) -> None:
        """See Reader."""
        content = self.content
        assert content is not None
        self.budget.counters.body_limit += content.kept < content.total and self.complete
        response = Response(
            self.status, self.version, self.head, content.data(), content.total, self.t_first_ns, self.t_last_ns,
            self.complete, content.sha1(),
        )  # fmt: skip
        exchange, self.exchange = self.exchange, None
        self.connection.answer(exchange, response)

    def body_given_up(self, reason: Incomplete) -> None:
        """See Reader."""
        self.budget.counters.malformed_responses += reason is Incomplete.MALFORMED
        self.complete = False
        self.finished()

    def body_ended(self, reason: EndReason) -> None:
        """See Reader."""
        if self.kind is not CLOSE or reason is not EndReason.FIN:
            self.complete = False
        self.finished()

    def head_given_up(self, reason: Incomplete) -> None:
        """See Reader. What was asked stays open: it ends with the connection, or a later response answers it."""

    def unrecognised(self) -> None:
        """See Reader."""
        self.budget.counters.malformed_responses += not self.lost
        self.lose()

    def _tunnel(self, exchange: Exchange | None, status: int, version: int, head: bytes, t_ns: int) -> None:
        response = Response(status, version, head, b"", 0, self.t_first_ns, t_ns)
        if exchange is not None:
            exchange.upgraded = True
        self.connection.answer(exchange, response)
        self.budget.counters.tunnels += 1
        self.connection.abandon()

    def _contradictory(self, exchange: Exchange | None, status: int, version: int, head: bytes, t_ns: int) -> None:
        self.budget.counters.malformed_responses += 1
        self.connection.answer(exchange, Response(status, version, head, b"", 0, self.t_first_ns, t_ns, False))
        self.lose()
