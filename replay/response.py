"""Reads one response from a shadow connection, without I/O: bytes with their receive times in, a state out.

    HEAD ──1xx──► HEAD ──head──► LENGTH | CHUNKED | CLOSE | nothing ──► WHOLE
      └───────────────── anything that cannot be followed ────────────► GARBAGE

A response that comes whole in one piece, which is nearly every one, takes the short way through `feed`.
"""

from __future__ import annotations

from enum import IntEnum

from replay.http1 import HEAD_LIMIT_BYTES, Body, ChunkedDecoder, head_end, parse_response_head

INTERIM_LIMIT = 32  # 1xx responses before a final one

_PREFIX = b"HTTP/1."


class Progress(IntEnum):
    """What the bytes so far amount to."""

    MORE = 0
    WHOLE = 1
    GARBAGE = 2


class ResponseReader:
    """One response at a time; `begin` makes it ready for the next.

    `t_first_ns` is the time of the piece that brought the first byte of the final response, `t_last_ns` of the piece
    that brought the last byte so far. `excess_bytes` counts what came after the response in the same piece.
    """

    __slots__ = (
        "_buffer",
        "_chunks",
        "_kept",
        "_kind",
        "_left",
        "_limit_bytes",
        "_method",
        "body",
        "body_bytes",
        "detail",
        "excess_bytes",
        "head",
        "interim",
        "keep_alive",
        "started",
        "status",
        "t_first_ns",
        "t_last_ns",
        "tunnel",
    )

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._chunks: ChunkedDecoder | None = None
        self.begin("")

    def begin(self, method: str) -> None:
        """Get ready for the response to a request of `method`."""
        self._method = method
        self._buffer = b""  # the unfinished head
        self._kind: Body | None = None  # None until the final head is there
        self._left = 0
        self._kept: bytearray | None = None  # content of a body that comes in more than one piece
        self.started = False  # any byte came
        self.status = 0
        self.interim = 0
        self.head = b""
        self.body = b""
        self.body_bytes = 0
        self.keep_alive = False
        self.tunnel = False
        self.excess_bytes = 0
        self.t_first_ns = 0
        self.t_last_ns = 0
        self.detail = ""

    def feed(self, data: bytes, t_ns: int) -> Progress:
        """Take the next bytes (not empty) and the time they came at. Not to be called again after WHOLE or GARBAGE."""
        self.t_last_ns = t_ns
        if self._kind is not None:
            return self._take_body(data)
        if self.started and self._buffer:
            searched = max(0, len(self._buffer) - 3)
            data = self._buffer + data
        else:
            searched = 0
            self.started = True
            self.t_first_ns = t_ns
        end = head_end(data, searched)
        if end < 0 or end > HEAD_LIMIT_BYTES:
            return self._wait_for_head(data)
        return self._take_head(data, end)

    def end(self) -> Progress:
        """The connection was closed in order: WHOLE if that ends the response, GARBAGE never, else MORE."""
        if self._kind is not Body.CLOSE:
            return Progress.MORE
        return self._whole()

    def _wait_for_head(self, data: bytes) -> Progress:
        if data[:7] != _PREFIX[: len(data)]:
            return self._garbage("not an HTTP/1.x response")
        if len(data) > HEAD_LIMIT_BYTES:
            return self._garbage(f"response head larger than {HEAD_LIMIT_BYTES} bytes")
        self._buffer = data
        return Progress.MORE

    def _take_head(self, data: bytes, end: int) -> Progress:
        raw = data[:end]
        head = parse_response_head(raw, self._method)
        if head is None:
            return self._garbage("not an HTTP/1.x response head, or its framing contradicts itself")
        if head.status < 200 and not head.tunnel:
            return self._take_interim(data, end)
        self.head = raw
        self._buffer = b""
        self.status = head.status
        self.keep_alive = head.keep_alive
        self._kind = body = head.body
        if body is Body.LENGTH:
            self._left = head.length
            if len(data) - end == head.length <= self._limit_bytes:
                self.body = data[end:]
                self.body_bytes = head.length
                return Progress.WHOLE
        elif body is Body.NONE:
            self.tunnel = head.tunnel
            self.excess_bytes = 0 if head.tunnel else len(data) - end
            return Progress.WHOLE
        elif body is Body.CHUNKED:
            self._chunks = ChunkedDecoder()
        self._kept = bytearray()
        return self._take_body(data[end:])

    def _take_interim(self, data: bytes, end: int) -> Progress:
        """Pass over a 1xx response; the final one begins in what follows it."""
        self.interim += 1
        if self.interim > INTERIM_LIMIT:
            return self._garbage(f"more than {INTERIM_LIMIT} interim responses")
        self._buffer = b""
        self.t_first_ns = 0
        rest = data[end:]
        return self.feed(rest, self.t_last_ns) if rest else Progress.MORE

    def _take_body(self, data: bytes) -> Progress:
        if self._kind is Body.CHUNKED:
            return self._take_chunks(data)
        if self._kind is Body.CLOSE:
            self._keep(data)
            return Progress.MORE
        over = len(data) - self._left
        if over > 0:
            data = data[: self._left]
            self.excess_bytes = over
        self._left -= len(data)
        self._keep(data)
        return self._whole() if self._left == 0 else Progress.MORE

    def _take_chunks(self, data: bytes) -> Progress:
        decoder = self._chunks
        if decoder is None:
            return self._garbage("no chunked body was begun")
        stop, pieces = decoder.feed(data)
        for piece in pieces:
            self._keep(piece)
        if decoder.failed:
            return self._garbage("broken chunked coding")
        if not decoder.done:
            return Progress.MORE
        self.excess_bytes = len(data) - stop
        return self._whole()

    def _keep(self, data: bytes) -> None:
        """Count the content, and keep what fits the limit."""
        self.body_bytes += len(data)
        kept = self._kept
        if kept is not None and len(kept) < self._limit_bytes:
            kept += data[: self._limit_bytes - len(kept)]

    def _whole(self) -> Progress:
        self.close()
        return Progress.WHOLE

    def close(self) -> None:
        """Put what was kept into `body`; for a response that ended before it was whole."""
        if self._kept:
            self.body = bytes(self._kept)
        self._kept = None

    def _garbage(self, detail: str) -> Progress:
        self.detail = detail
        self.close()
        return Progress.GARBAGE
