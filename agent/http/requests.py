"""Reads the requests of a connection's client half."""

from __future__ import annotations

import re

from agent.http.content import Content
from agent.http.reader import BODY, CHUNKED, GIVEN_UP, LENGTH, NO_BODY, START, Reader
from agent.stream.events import EndReason
from replay.exchange import Incomplete, Request
from replay.http1 import framing, request_line

_new = tuple.__new__  # saves the call of a NamedTuple's Python-level constructor
_POSSIBLE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}( |\Z)")
_KNOWN_START = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE) (/|https?://)")
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n"


def looks_like_request(data: bytes) -> bool:
    """A segment begins with a request line, or with so much of one that it can hardly be anything else."""
    if b"\n" in data:
        return _POSSIBLE.match(data) is not None and request_line(data) is not None
    return _KNOWN_START.match(data) is not None


class RequestReader(Reader):
    """Besides what every reader keeps: the request line of the request whose body is being read."""

    __slots__ = ("_wire", "method", "target", "version")

    method: str
    target: str
    version: int
    _wire: Content | None

    @property
    def method_being_read(self) -> str:
        """Method of the request whose body is coming in, "" if there is none."""
        return self.method if self.state == BODY else ""

    def begins_message(self, data: bytes) -> bool:
        """See Reader."""
        return looks_like_request(data)

    def not_the_protocol(self) -> None:
        """See Reader."""
        self.budget.counters.not_http += 1
        self.connection.abandon()

    def possible_line(self, start: bytes) -> bool:
        """See Reader."""
        return _POSSIBLE.match(start) is not None

    def recognise_line(self, start: bytes) -> bool:
        """See Reader. From here on the request counts as seen."""
        if request_line(start) is None:
            return False
        self.connection.open_request()
        self.messages += 1
        return True

    def begin(self, head: bytes, data: bytes, after: int, t_ns: int) -> int:
        """See Reader."""
        line = request_line(head)
        if line is None:
            self.reject(head[:64])
            return len(data)
        lower = head.lower()
        framed = framing(lower)
        if framed is None:
            self._contradictory()
            return len(data)
        self.messages += 1
        self.lost = False
        kind, length = framed
        method, target, version = line
        if kind is NO_BODY or (kind is LENGTH and not length):
            request = _new(Request, (method, target, version, head, b"", 0, None, self.t_first_ns, t_ns, True, None))
        elif kind is LENGTH and after + length <= len(data) and length <= self.budget.limits.body_limit_bytes:
            body = data[after : after + length]
            after += length
            request = _new(
                Request, (method, target, version, head, body, length, None, self.t_first_ns, t_ns, True, None)
            )
        else:
            self.method, self.target, self.version = method, target, version
            self.head, self.t_last_ns = head, t_ns
            self._wire = Content(self.budget, 0, False) if kind is CHUNKED else None
            self.connection.open_request()
            self.begin_body(kind, length)
            return after
        self.state = START
        self.connection.take_request(request)
        return after

    def keep_wire(self, data: bytes, start: int, end: int) -> None:
        """See Reader."""
        if self._wire is not None:
            self._wire.add(data[start:end])

    def finished(self) -> None:
        """See Reader."""
        self._hand_over(None if self.complete else Incomplete.GAP)

    def body_given_up(self, reason: Incomplete) -> None:
        """See Reader."""
        self.budget.counters.malformed_requests += reason is Incomplete.MALFORMED
        self.complete = False
        self._hand_over(reason)

    def body_ended(self, reason: EndReason) -> None:
        """See Reader."""
        self.body_given_up(GIVEN_UP[reason])

    def head_given_up(self, reason: Incomplete) -> None:
        """See Reader."""
        self.connection.give_up_request(reason)

    def unrecognised(self) -> None:
        """See Reader."""
        self.budget.counters.malformed_requests += not self.lost
        self.lose()

    def _contradictory(self) -> None:
        """A head whose framing contradicts itself: what follows it cannot be told apart."""
        self.budget.counters.malformed_requests += 1
        self.messages += 1
        self.connection.open_request()
        self.connection.give_up_request(Incomplete.MALFORMED)
        self.lose()

    def _hand_over(self, incomplete: Incomplete | None) -> None:
        content, wire = self.content, self._wire
        assert content is not None
        wire_body = None
        if wire is not None:
            wire_body = wire.data() if wire.kept == wire.total else None
            wire.release()
            self._wire = None
        if incomplete is None and (content.kept < content.total or (wire is not None and wire_body is None)):
            incomplete = Incomplete.BODY_LIMIT
            self.budget.counters.body_limit += 1
        request = Request(
            self.method, self.target, self.version, self.head, content.data(), content.total, wire_body,
            self.t_first_ns, self.t_last_ns, self.complete, content.sha1(),
        )  # fmt: skip
        self.target = ""
        self.connection.finish_request(request, incomplete)
