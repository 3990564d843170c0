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
TRAILER_LIMIT_BYTES = HEAD_LIMIT_BYTES
ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")  # a target with its authority (RFC 9112 section 3.2.2)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_METHODS = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")}
_VERSIONS = {b"HTTP/1.1": 11, b"HTTP/1.0": 10, b"HTTP/1.1\r": 11, b"HTTP/1.0\r": 10}
_STATUSES = {str(status).encode(): status for status in range(100, 1000)}
_MAX_LENGTH_DIGITS = 18  # fits 64 bits with room to add
_MAX_PADDED_DIGITS = 1000  # with leading zeros; CPython refuses to convert more than 4300


class Body(IntEnum):
    """How the end of a body is found (RFC 9112 section 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # a response that ends with the connection


_NO_BODY = (Body.NONE, 0)


class ResponseHead(NamedTuple):
    """What a response's head says, given the method it answers. `length` is meant for Body.LENGTH only. `tunnel`:
    after it, the connection is not HTTP."""

    status: int
    version: int  # 10 or 11
    body: Body
    length: int
    keep_alive: bool
    tunnel: bool


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Offset just past the blank line that ends the head beginning at `start`, or -1 if it is not there yet."""
    end = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start) if end < 0 else data.find(b"\n\n", start, end + 1)
    if bare >= 0:
        return bare + 2
    return end + 3 if end >= 0 else -1


def request_line(head: bytes) -> tuple[str, str, int] | None:
    """Method, target and version (10, 11) of the request line that `head` begins with, its LF included; None if it
    is none. Spaces inside the target belong to it: real clients send them and real servers take them."""
    parts = head[: head.find(b"\n")].split(b" ")
    method = _METHODS.get(parts[0])
    if len(parts) == 3 and method is not None and parts[1]:
        version = _VERSIONS.get(parts[2])
        if version is not None:
            return method, parts[1].decode("latin-1"), version
    return _odd_request_line(head)


def _odd_request_line(head: bytes) -> tuple[str, str, int] | None:
    line = head[: head.find(b"\n")].rstrip(b"\r ")
    method, _, rest = line.partition(b" ")
    target, _, text = rest.rpartition(b" ")
    version = _version(text)
    target = target.strip(b" ")
    if not version or not target or not _TOKEN.fullmatch(method):
        return None
    return method.decode("ascii"), target.decode("latin-1"), version


def status_line(head: bytes) -> tuple[int, int] | None:
    """Status and version (10, 11) of the status line that `head` begins with; None if it is none."""
    status = _STATUSES.get(head[9:12])
    if status is None or not head.startswith(b"HTTP/1.") or head[8:9] != b" " or head[12:13] not in b" \r\n":
        return None
    return status, 10 if head[7:8] == b"0" else 11


def asks_for_tunnel(method: str, lower: bytes) -> bool:
    """A request with this method and this head in lower case may turn its connection into something else than HTTP."""
    return method == "CONNECT" or b"\nupgrade:" in lower


def parse_response_head(head: bytes, method: str) -> ResponseHead | None:
    """Parse a response's head; `method` is that of the request it answers ("" if unknown). None if not HTTP/1.x."""
    line = status_line(head)
    if line is None:
        return None
    status, version = line
    lower = head.lower()
    keep_alive = _keep_alive(lower, version)
    if status == 101 or (method == "CONNECT" and 200 <= status < 300):
        return ResponseHead(status, version, Body.NONE, 0, keep_alive, True)
    framed = response_framing(lower, status, method)
    if framed is None:
        return None
    body, length = framed
    return ResponseHead(status, version, body, length, keep_alive and body is not Body.CLOSE, False)


def response_framing(lower: bytes, status: int, method: str) -> tuple[Body, int] | None:
    """`framing` for a response: what has no body by its nature, and what ends with the connection."""
    if method == "HEAD" or status == 204 or status == 304 or status < 200:
        return _NO_BODY
    framed = framing(lower)
    if framed is not None and framed[0] is Body.NONE:
        return Body.CLOSE, 0
    return framed


def framing(lower: bytes) -> tuple[Body, int] | None:
    """Body kind and length from a head in lower case; None when the head contradicts itself. Chunked wins over a
    length, as it does for servers (RFC 9112 section 6.3, 3)."""
    if b"\ntransfer-encoding" in lower:
        codings = b",".join(_values(lower, lower, b"transfer-encoding"))
        if codings.rpartition(b",")[2].strip() == b"chunked":
            return Body.CHUNKED, 0
    at = lower.find(b"\ncontent-length")
    if at < 0:
        return _NO_BODY
    if lower[at + 15 : at + 16] == b":" and lower.find(b"\ncontent-length", at + 15) < 0:
        value = lower[at + 16 : lower.find(b"\n", at + 16)].strip()
        if value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS:
            return Body.LENGTH, int(value)
    return _odd_length(lower)


def _odd_length(lower: bytes) -> tuple[Body, int] | None:
    """Repeated, listed or oddly written Content-Length fields: all must say the same number."""
    fields = _values(lower, lower, b"content-length")
    if not fields:
        return _NO_BODY
    numbers = {
        int(v) if v.isdigit() and len(v.lstrip(b"0")) <= _MAX_LENGTH_DIGITS and len(v) <= _MAX_PADDED_DIGITS else -1
        for field in fields
        for v in (part.strip() for part in field.split(b","))
    }
    return None if len(numbers) != 1 or -1 in numbers else (Body.LENGTH, numbers.pop())


def header_values(head: bytes, name: bytes) -> list[bytes]:
    """Values of a header, in order, stripped and unfolded; `name` in lower case."""
    return _values(head, head.lower(), name)


def _values(head: bytes, lower: bytes, name: bytes) -> list[bytes]:
    out: list[bytes] = []
    needle = b"\n" + name
    at = lower.find(needle)
    while at >= 0:
        after = at + len(needle)
        line_end = head.find(b"\n", after)
        colon = head.find(b":", after, line_end if line_end >= 0 else len(head))
        if colon >= 0 and not head[after:colon].strip(b" \t"):
            end = _field_end(head, colon)
            out.append(_FOLD.sub(b" ", head[colon + 1 : end]).strip(b" \t\r\n"))
        at = lower.find(needle, after)
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
    tokens = {t.strip() for value in _values(lower, lower, b"connection") for t in value.split(b",")}
    return b"close" not in tokens and (version == 11 or b"keep-alive" in tokens)


class ChunkedDecoder:
    """Undoes the chunked transfer coding piece by piece (RFC 9112 section 7.1).

    `feed` returns the content found and moves on; `done` after the trailer's blank line, `failed` when the coding
    cannot be followed. Bytes after the end of the message are not consumed: `feed` says where it stopped.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "done", "failed")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._line = b""  # the part of a line that came so far
        self._trailer_bytes = 0
        self.done = False
        self.failed = False

    def feed(self, data: bytes, start: int = 0) -> tuple[int, list[bytes]]:
        """Consume `data` from `start`; return where it stopped and the pieces of content in between."""
        out: list[bytes] = []
        at, end = start, len(data)
        while at < end and not self.done and not self.failed:
            if self._state == self._DATA:
                stop = at + self._left
                if stop > end:
                    stop = end
                out.append(data[at:stop])
                self._left -= stop - at
                at = stop
                if not self._left:
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
        if not self._left:
            self._state = self._DATA_END
        return True

    def _take_line(self, data: bytes, at: int) -> int:
        newline = data.find(b"\n", at)
        if newline < 0:
            self._line += data[at : at + CHUNK_LINE_LIMIT_BYTES + 1]
            self.failed = len(self._line) > CHUNK_LINE_LIMIT_BYTES
            return len(data)
        line = self._line + data[at:newline]
        self._line = b""
        self._end_of_line(line[:-1] if line.endswith(b"\r") else line)
        return newline + 1

    def _end_of_line(self, line: bytes) -> None:
        if len(line) > CHUNK_LINE_LIMIT_BYTES:
            self.failed = True
        elif self._state == self._TRAILER:
            self.done = not line
            self._trailer_bytes += len(line)
            self.failed = self._trailer_bytes > TRAILER_LIMIT_BYTES
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


def target_path(target: str) -> str:
    """The target without query, fragment, scheme and authority. "*" and CONNECT's "host:port" are paths too."""
    if not target.startswith("/"):
        absolute = ABSOLUTE.match(target)
        if absolute is not None:
            target = target[absolute.end() :]
            if not target.startswith("/"):
                return "/"
    return target.partition("?")[0].partition("#")[0]
