"""A request on the control socket and its answer, without I/O: HTTP/1.1 with a JSON object either way."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from replay.errors import ShadowtapError
from replay.http1 import Body, framing, head_end, header_values, request_line

HEAD_LIMIT_BYTES = 16 * 1024
BODY_LIMIT_BYTES = 64 * 1024
QUERY_LIMIT_BYTES = 1024
QUERY_LIMIT_FIELDS = 16
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")  # all that the API needs, and safe in any log


class ControlError(ShadowtapError):
    """The answer to a request that cannot be served. `allow`: the methods there are, with status 405."""

    def __init__(self, status: int, text: str, allow: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Call:
    """A whole request. `peer`: who sent it, as the kernel knows it: "uid 1000 (ann)"."""

    method: str
    path: str
    body: dict[str, Any] | None
    peer: str
    query: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: a JSON object."""

    body: dict[str, Any]
    status: int = 200
    allow: tuple[str, ...] = ()


class Request:
    """One request as its bytes come, without I/O. Bytes after its end are ignored: the answer closes the connection."""

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query: dict[str, str] = {}
        self.body: dict[str, Any] | None = None
        self._data = bytearray()
        self._body_at = 0
        self._end = 0  # 0: the head is not whole

    def feed(self, data: bytes) -> bool:
        """True once it is whole; no bytes are the end of what comes. ControlError when it can be no request."""
        self._data += data
        if not self._end:
            self._read_head()
        if not self._end or len(self._data) < self._end:
            if not data:
                raise ControlError(400, "the request ends in the middle")
            return False
        if self._end > self._body_at:
            self.body = _json_object(bytes(self._data[self._body_at : self._end]))
        return True

    def _read_head(self) -> None:
        end = head_end(self._data)
        if max(end, len(self._data) if end < 0 else 0) > HEAD_LIMIT_BYTES:
            raise ControlError(413, f"the head of a request may have {HEAD_LIMIT_BYTES} bytes")
        if end < 0:
            return
        head = bytes(self._data[:end])
        line = request_line(head)
        framed = framing(head.lower())
        if line is None or framed is None:
            raise ControlError(400, "not an HTTP/1.1 request")
        self.method, target, _ = line
        self.path, mark, query = target.partition("?")
        if header_values(head, b"transfer-encoding"):
            raise ControlError(411, "send the body with a Content-Length")
        if not _PATH.fullmatch(self.path):
            raise ControlError(400, "a path has letters, digits and . _ ~ / - only")
        self.query = _fields(query) if mark else {}
        length = framed[1] if framed[0] is Body.LENGTH else 0
        if length > BODY_LIMIT_BYTES:
            raise ControlError(413, f"the body of a request may have {BODY_LIMIT_BYTES} bytes")
        self._body_at, self._end = end, end + length


def _fields(query: str) -> dict[str, str]:
    """What `limit=20&before=7` says."""
    if len(query) > QUERY_LIMIT_BYTES:
        raise ControlError(400, f"a query may have {QUERY_LIMIT_BYTES} bytes")
    if not query.isascii():
        raise ControlError(400, "a query is NAME=VALUE&..., with other than ASCII as %XX")
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=QUERY_LIMIT_FIELDS
        )
    except ValueError:
        raise ControlError(400, f"a query is NAME=VALUE&..., {QUERY_LIMIT_FIELDS} of them at most") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ControlError(400, "a name stands twice in the query")
    return fields


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data, parse_constant=_no_number)
        json.dumps(body, ensure_ascii=False).encode()  # lone surrogates would raise wherever they are written
    except (ValueError, RecursionError):
        raise ControlError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise ControlError(400, 'the body is not a JSON object, like {"percentage": 5}')
    return body


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def encoded(reply: Reply, with_body: bool) -> bytes:
    """The answer on the wire; its connection is closed behind it."""
    body = json.dumps(reply.body, allow_nan=False).encode() + b"\n"
    head = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", "Content-Type: application/json"]
    head += [f"Allow: {', '.join(reply.allow)}"] if reply.allow else []
    head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode("ascii") + (body if with_body else b"")
