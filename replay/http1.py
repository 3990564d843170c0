"""HTTP/1.x message syntax, without I/O: where a head ends, what it says of the body, and how chunks are undone.

Both ends use it: the agent on captured bytes, the replay client on the shadow's answers. It is lenient where servers
are (bare LF, spaces in the target, obs-fold) and never raises on what strangers send. RFC 9112 sections 2 to 7.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

HEAD_LIMIT_BYTES = 64 * 1024
CHUNK_LINE_LIMIT_BYTES = 4096

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_VERSIONS = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}


class Body(IntEnum):
    """How the end of a body is found (RFC 9112 section 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # a response that ends with the connection


class RequestHead(NamedTuple):
    """What a request's head says. `length` is meant for Body.LENGTH only."""

    method: str
    target: str
    version: int  # 10 or 11
    body: Body
    length: int
    keep_alive: bool
    upgrade: bool  # CONNECT, or an Upgrade header: a tunnel may follow


class ResponseHead(NamedTuple):
    """What a response's head says, given the method it answers. `tunnel`: after it, the connection is not HTTP."""

    status: int
    version: int
    body: Body
    length: int
    keep_alive: bool
    tunnel: bool


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Offset just past the blank line that ends the head beginning at `start`, or -1 if it is not there yet."""
    end = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start) if end < 0 else data.find(b"\n\n", start, end)
    if bare >= 0:
        return bare + 2
    return end + 3 if end >= 0 else -1


def parse_request_head(head: bytes) -> RequestHead | None:
    """Parse a head as `head_end` delimits it; None when it is not HTTP/1.x or its framing contradicts itself."""
    line = head[: head.find(b"\n")].rstrip(b"\r")
    method, _, rest = line.partition(b" ")
    target, _, version_text = rest.rstrip(b" ").rpartition(b" ")
    version = _VERSIONS.get(version_text) or _version(version_text)
    if version == 0 or not target or not _TOKEN.fullmatch(method):
        return None
    lower = head.lower()
    framing = _framing(lower)
    if framing is None:
        return None
    body, length = framing
    return RequestHead(
        method.decode("ascii"),
        target.decode("latin-1"),
        version,
        body,
        length,
        _keep_alive(lower, version),
        method == b"CONNECT" or b"\nupgrade:" in lower,
    )


def parse_response_head(head: bytes, method: str) -> ResponseHead | None:
    """Parse a response's head; `method` is that of the request it answers ("" if unknown). None if not HTTP/1.x."""
    if not head.startswith(b"HTTP/1."):
        return None
    version = 10 if head[7:8] == b"0" else 11
    digits = head[9:12]
    if not digits.isdigit() or len(digits) != 3 or head[8:9] != b" ":
        return None
    status = int(digits)
    lower = head.lower()
    keep_alive = _keep_alive(lower, version)
    if status == 101 or (method == "CONNECT" and 200 <= status < 300):
        return ResponseHead(status, version, Body.NONE, 0, keep_alive, True)
    if method == "HEAD" or status == 204 or status == 304 or status < 200:
        return ResponseHead(status, version, Body.NONE, 0, keep_alive, False)
    framing = _framing(lower)
    if framing is None:
        return None
    body, length = framing
    if body is Body.NONE:
        body, keep_alive = Body.CLOSE, False
    return ResponseHead(status, version, body, length, keep_alive, False)


def header_values(head: bytes, name: bytes) -> list[bytes]:
    """Values of a header, in order, stripped and unfolded; `name` in lower case."""
    lower = head.lower()
    out: list[bytes] = []
    at = lower.find(b"\n" + name)
    while at >= 0:
        after = at + 1 + len(name)
        colon = head.find(b":", after)
        if colon >= 0 and not head[after:colon].strip(b" \t"):
            end = _field_end(head, colon)
            out.append(_FOLD.sub(b" ", head[colon + 1 : end]).strip(b" \t\r\n"))
        at = lower.find(b"\n" + name, after)
    return out


def _field_end(head: bytes, start: int) -> int:
    """End of the field value that begins after `start`, continuation lines included."""
    end = head.find(b"\n", start)
    while end >= 0 and head[end + 1 : end + 2] in (b" ", b"\t"):
        end = head.find(b"\n", end + 1)
    return end if end >= 0 else len(head)


def _version(text: bytes) -> int:
    """10 or 11 for an HTTP/1.x version however it is written, else 0."""
    if text[:7].upper() == b"HTTP/1." and len(text) == 8 and text[7:].isdigit():
        return 10 if text[7:] == b"0" else 11
    return 0


def _keep_alive(lower: bytes, version: int) -> bool:
    if b"\nconnection" not in lower:
        return version == 11
    tokens = b",".join(header_values(lower, b"connection"))
    if version == 11:
        return b"close" not in tokens
    return b"keep-alive" in tokens


def _framing(lower: bytes) -> tuple[Body, int] | None:
    """Body kind and length from a head in lower case; None when the head contradicts itself."""
    if b"\ntransfer-encoding" in lower:
        codings = b",".join(header_values(lower, b"transfer-encoding"))
        if codings.rpartition(b",")[2].strip() == b"chunked":
            return Body.CHUNKED, 0
    if b"\ncontent-length" not in lower:
        return Body.NONE, 0
    values = {v.strip() for field in header_values(lower, b"content-length") for v in field.split(b",")}
    if not values:
        return Body.NONE, 0
    numbers = {int(v) if v.isdigit() and len(v) < 19 else -1 for v in values}
    if len(numbers) != 1 or -1 in numbers:
        return None
    return Body.LENGTH, numbers.pop()


class ChunkedDecoder:
    """Undoes the chunked transfer coding piece by piece (RFC 9112 section 7.1).

    `feed` returns the content found and moves on; `done` after the trailer's blank line, `failed` when the coding
    cannot be followed. Bytes after the end of the message are not consumed: `feed` says where it stopped.
    """

    __slots__ = ("_left", "_line", "_state", "done", "failed")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._line = b""  # the part of a line that came so far
        self.done = False
        self.failed = False

    def feed(self, data: bytes, start: int = 0) -> tuple[int, list[bytes]]:
        """Consume `data` from `start`; return where it stopped and the pieces of content in between."""
        out: list[bytes] = []
        at, end = start, len(data)
        while at < end and not self.done and not self.failed:
            if self._state == self._DATA:
                stop = min(end, at + self._left)
                out.append(data[at:stop])
                self._left -= stop - at
                at = stop
                if self._left == 0:
                    self._state = self._DATA_END
            else:
                at = self._take_line(data, at)
        return at, out

    def skip(self, length: int) -> bool:
        """Pass over `length` missing bytes; False (and failed) unless they all lie inside one chunk's data."""
        if self._state != self._DATA or length > self._left:
            self.failed = True
            return False
        self._left -= length
        if self._left == 0:
            self._state = self._DATA_END
        return True

    def _take_line(self, data: bytes, at: int) -> int:
        newline = data.find(b"\n", at)
        if newline < 0:
            self._line += data[at:]
            self.failed = len(self._line) > CHUNK_LINE_LIMIT_BYTES
            return len(data)
        line = (self._line + data[at:newline]).rstrip(b"\r")
        self._line = b""
        self._end_of_line(line)
        return newline + 1

    def _end_of_line(self, line: bytes) -> None:
        if self._state == self._TRAILER:
            self.done = not line
        elif self._state == self._DATA_END:
            self.failed = bool(line)
            self._state = self._SIZE
        else:
            size = chunk_size(line)
            self.failed = size < 0
            self._left = size
            self._state = self._DATA if size > 0 else self._TRAILER


def chunk_size(line: bytes) -> int:
    """Size on a chunk's first line, extensions ignored; -1 if it is not one."""
    digits = line.partition(b";")[0].strip(b" \t")
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        return -1
    return int(digits, 16)
