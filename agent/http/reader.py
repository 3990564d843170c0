"""Reads the messages of one half: what requests and responses have in common.

A reader is in one of these states; the bytes it gets decide the next one:

    START    at the first byte of a message
    HEAD     inside a head of which a part came; it is in `buffer`
    BODY     inside a body; `kind` says how its end is found
    LOST     somewhere in the stream: bytes are passed over until a segment begins like a message
    SILENT   nothing more is wanted (a tunnel, another protocol, the end)

A head never waits for more than `head_limit_bytes`, a body is never kept beyond its limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.http.content import Budget, Content
from agent.stream.events import EndReason
from replay.exchange import Incomplete
from replay.http1 import Body, ChunkedDecoder, head_end

if TYPE_CHECKING:
    from agent.http.connection import Connection

START, HEAD, BODY, LOST, SILENT = range(5)
NO_BODY, LENGTH, CHUNKED, CLOSE = Body.NONE, Body.LENGTH, Body.CHUNKED, Body.CLOSE

GIVEN_UP = {
    EndReason.FIN: Incomplete.CUT,
    EndReason.RST: Incomplete.CUT,
    EndReason.REUSED: Incomplete.CUT,
    EndReason.TIMEOUT: Incomplete.TIMEOUT,
    EndReason.EVICTED: Incomplete.EVICTED,
    EndReason.FINISH: Incomplete.END,
}


class Reader:
    """`feed`, `gap`, `left_out` and `end` take what the stream layer says of the half."""

    __slots__ = (
        "_buffer", "_checked", "_decoder", "_left", "budget", "complete", "connection", "content", "head", "kind",
        "lost", "messages", "state", "t_first_ns", "t_last_ns", "unbroken",
    )  # fmt: skip

    def __init__(self, connection: Connection, budget: Budget, from_start: bool) -> None:
        self.connection = connection
        self.budget = budget
        self.state = START if from_start else LOST
        self.lost = not from_start  # messages may be missing before the next one
        self.unbroken = from_start  # everything since the SYN was there, but for what was left out, and was understood
        self.messages = 0  # heads recognised so far
        self.kind = NO_BODY
        self.head = b""
        self.content: Content | None = None
        self.complete = True
        self.t_first_ns = 0
        self.t_last_ns = 0
        self._buffer = bytearray()
        self._checked = False  # the first line in the buffer was recognised
        self._left = 0
        self._decoder: ChunkedDecoder | None = None

    def gap(self, length: int) -> None:
        """`length` bytes are missing here."""
        self.unbroken = False
        if self.state == BODY:
            self._gap_in_body(length)
            return
        if self.state == HEAD:
            self.head_given_up(Incomplete.GAP)
        if self.state != SILENT:
            self.lose()

    def left_out(self, length: int) -> None:
        """`length` bytes, whole messages, were left out on purpose: the next byte begins a message."""
        if self.state in (HEAD, BODY):  # the rest of this one was lost besides
            self.gap(length)
            if self.state == BODY:
                self.body_given_up(Incomplete.GAP)
                self.lose()
        if self.state != SILENT:
            self.state = START
            self.lost = False
            self.connection.left_out(self)

    def end(self, reason: EndReason) -> None:
        """Nothing more comes."""
        if self.state == HEAD:
            self.head_given_up(GIVEN_UP[reason])
        elif self.state == BODY:
            self.body_ended(reason)
        self.silence()

    def evict(self) -> None:
        """Give up the message that is being read, because too much is kept."""
        self.budget.counters.kept_limit += 1
        if self.state == HEAD:
            self.head_given_up(Incomplete.EVICTED)
        elif self.state == BODY:
            self.body_given_up(Incomplete.EVICTED)
        self.lose()

    def silence(self) -> None:
        """Pass over whatever still comes."""
        self._clear_buffer()
        self._drop_content()
        self.state = SILENT

    def lose(self) -> None:
        """It is not known where the next message begins: look for it."""
        self._clear_buffer()
        self._drop_content()
        self.state = LOST
        self.lost = True
        self.unbroken = False

    def feed(self, data: bytes, t_ns: int) -> None:
        """The next bytes of the half. The common case comes first: a segment that begins with a whole head."""
        if self.state == START and data[0] > 32:
            end = head_end(data)
            if 0 < end <= self.budget.limits.head_limit_bytes:
                self.t_first_ns = t_ns
                at = self.begin(data if end == len(data) else data[:end], data, end, t_ns)
                if at < len(data):
                    self.proceed(data, at, t_ns)
                return
        self.proceed(data, 0, t_ns)

    def proceed(self, data: bytes, at: int, t_ns: int) -> None:
        """Take `data` from `at` on, whatever the state."""
        end = len(data)
        while at < end:
            if self.state == START:
                at = self._at_start(data, at, t_ns)
            elif self.state == BODY:
                at = self._in_body(data, at, t_ns)
            elif self.state == HEAD:
                at = self._in_head(data, at, t_ns)
            elif self.state == LOST and at == 0 and self.begins_message(data):
                self.budget.counters.resynchronised += 1
                self.state = START
            else:
                self.budget.counters.skipped_bytes += (end - at) * (self.state == LOST)
                return

    # What the two kinds of messages do differently.

    def begins_message(self, data: bytes) -> bool:
        """A segment's first bytes show the start of a message."""
        raise NotImplementedError

    def possible_line(self, start: bytes) -> bool:
        """The first bytes of a line, of which the end has not come, may become a first line."""
        raise NotImplementedError

    def recognise_line(self, start: bytes) -> bool:
        """`start` begins with a whole first line of a message."""
        raise NotImplementedError

    def begin(self, head: bytes, data: bytes, after: int, t_ns: int) -> int:
        """A head is whole, its body begins in `data` at `after`; returns where to go on. Sets the state."""
        raise NotImplementedError

    def unrecognised(self) -> None:
        """A message is malformed."""
        raise NotImplementedError

    def not_the_protocol(self) -> None:
        """The half does not speak HTTP/1.x at all."""
        raise NotImplementedError

    def head_given_up(self, reason: Incomplete) -> None:
        """The head in the buffer will not become whole."""
        raise NotImplementedError

    def body_given_up(self, reason: Incomplete) -> None:
        """The body will not become whole and its end is not known."""
        raise NotImplementedError

    def body_ended(self, reason: EndReason) -> None:
        """The half ended inside a body."""
        raise NotImplementedError

    def finished(self) -> None:
        """The message in `head` and `content` came to its end; `complete` says whether bytes are missing."""
        raise NotImplementedError

    # Heads.

    def _at_start(self, data: bytes, at: int, t_ns: int) -> int:
        while data[at] in b"\r\n":  # empty lines before a message (RFC 9112 section 2.2)
            at += 1
            if at == len(data):
                return at
        end = head_end(data, at)
        self.t_first_ns = t_ns
        if 0 <= end <= at + self.budget.limits.head_limit_bytes:
            return self.begin(data[at:end], data, end, t_ns)
        self.state = HEAD
        self._checked = False
        return self._in_head(data, at, t_ns)

    def _in_head(self, data: bytes, at: int, t_ns: int) -> int:
        buffer, size = self._buffer, len(self._buffer)
        buffer += data[at:] if at else data
        self.budget.kept_bytes += len(buffer) - size
        end = head_end(buffer, max(size - 3, 0))
        whole = 0 <= end <= self.budget.limits.head_limit_bytes
        if not self._checked and not self._check_line():
            return len(data)
        if whole:
            head = bytes(buffer[:end])
            self._clear_buffer()
            return self.begin(head, data, at + end - size, t_ns)
        if end >= 0 or len(buffer) > self.budget.limits.head_limit_bytes:
            self.budget.counters.head_limit += 1
            self.head_given_up(Incomplete.TOO_LARGE)
            self.lose()
        elif self.budget.full:
            self.evict()
        return len(data)

    def _check_line(self) -> bool:
        """False (and another state) when the buffer does not begin like a message."""
        newline = self._buffer.find(b"\n")
        if newline < 0:
            possible = self.possible_line(bytes(self._buffer[:64]))
        else:
            possible = self._checked = self.recognise_line(bytes(self._buffer[: newline + 1]))
        if not possible:
            start = bytes(self._buffer[:64])
            self._clear_buffer()
            self.reject(start)
        return possible

    def reject(self, start: bytes) -> None:
        """What should be a message is none; `start` is its beginning."""
        if self.messages or self.lost or self.possible_line(start):
            self.unrecognised()
        else:
            self.not_the_protocol()

    def _clear_buffer(self) -> None:
        if self._buffer:
            self.budget.kept_bytes -= len(self._buffer)
            self._buffer = bytearray()

    # Bodies.

    def begin_body(self, kind: Body, length: int) -> None:
        """The head was read; a body of this kind follows."""
        self.state = BODY
        self.kind = kind
        self.complete = True
        self.content = Content(self.budget, len(self.head), self.budget.limits.hash_bodies)
        self._left = length
        self._decoder = ChunkedDecoder() if kind is CHUNKED else None
        if self.budget.full:
            self.evict()

    def keep_wire(self, data: bytes, start: int, end: int) -> None:
        """Bytes of a chunked body as they were on the wire."""

    def _in_body(self, data: bytes, at: int, t_ns: int) -> int:
        assert self.content is not None
        self.t_last_ns = t_ns
        if self._decoder is not None:
            return self._in_chunks(self._decoder, self.content, data, at)
        stop = len(data) if self.kind is CLOSE else min(len(data), at + self._left)
        self.content.add(data[at:stop] if at or stop < len(data) else data)
        if self.kind is LENGTH:
            self._left -= stop - at
            if not self._left:
                self._end_message()
        return stop

    def _in_chunks(self, decoder: ChunkedDecoder, content: Content, data: bytes, at: int) -> int:
        stop, pieces = decoder.feed(data, at)
        if pieces:
            content.add(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self.keep_wire(data, at, stop)
        if decoder.done:
            self._end_message()
        elif decoder.failed:
            self.body_given_up(Incomplete.MALFORMED)
            self.lose()
        return stop

    def _gap_in_body(self, length: int) -> None:
        assert self.content is not None
        self.complete = False
        if self._decoder is not None:
            if self._decoder.skip(length):
                self.content.skip(length)
            else:
                self.body_given_up(Incomplete.GAP)
                self.lose()
            return
        missing = length if self.kind is CLOSE else min(length, self._left)
        self.content.skip(missing)
        if self.kind is LENGTH:
            self._left -= missing
            if not self._left:
                self._end_message()
            if missing < length and self.state != SILENT:
                self.lose()

    def _end_message(self) -> None:
        self.state = START
        self.finished()
        self._drop_content()

    def _drop_content(self) -> None:
        if self.content is not None:
            self.content.release()
            self.content = None
            self.head = b""
