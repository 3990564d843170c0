"""Route templates: requests are grouped by method and path, with a placeholder for what looks like an identifier.

    GET /users/4711/orders/0b2f9a44-5b1c-4f0e-9a53-8a6e1f1c2d3e?page=2   →   GET /users/{id}/orders/{id}

The table has a limit, since the paths come from strangers: what does not fit is grouped as "other".
"""

from __future__ import annotations

import re
from functools import lru_cache

TABLE_LIMIT = 4096  # routes counted apart while reading
SHOWN_LIMIT = 64  # routes in a report, the rest being "other"
SEGMENT_LIMIT = 12
PATH_LIMIT_CHARS = 120
TOKEN_CHARS = 16  # from this length on, a mixture of letters and digits is taken for a token
TOKEN_CHANGES = 4  # changes between digits, capitals and small letters that make it a mixture

OTHER = "other"
PLACEHOLDER = "{id}"

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUMBER = re.compile(r"\d+([-:_,]\d+)*")
_HEX = re.compile(r"(?=.*\d)[0-9a-fA-F]{8,}")
_TOKEN = re.compile(r"[A-Za-z0-9_\-=+%~]{16,}")
_CHANGE = re.compile(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)|(?<=[a-z])(?=[A-Z])|(?<=[A-Z][A-Z])(?=[a-z])")
_TAIL_NUMBER = re.compile(r"(?<=[A-Za-z][-_])\d+(?![A-Za-z0-9])")


@lru_cache(65_536)
def template(target: str) -> str:
    """The path of a request target with placeholders, without query; "(authority)" for CONNECT's form."""
    path = target.partition("?")[0].partition("#")[0]
    if not path.startswith("/"):
        scheme, found, rest = path.partition("://")
        if not found or not scheme.isalnum():
            return path if path in ("*", "") else "(authority)"
        path = "/" + rest.partition("/")[2]
    segments = path.split("/")[1:]
    shown = [_segment(segment) for segment in segments[:SEGMENT_LIMIT]]
    if len(segments) > SEGMENT_LIMIT:
        shown.append("...")
    out = "/" + "/".join(shown)
    return out if len(out) <= PATH_LIMIT_CHARS else out[:PATH_LIMIT_CHARS] + "..."


def _segment(segment: str) -> str:
    if not segment:
        return ""
    if _identifies(segment):
        return PLACEHOLDER
    if "." in segment:  # a file name: app.3f2a9c1b.js
        return ".".join(PLACEHOLDER if part and _identifies(part) else part for part in segment.split("."))
    return _TAIL_NUMBER.sub(PLACEHOLDER, segment)  # order-4711


def _identifies(text: str) -> bool:
    if _NUMBER.fullmatch(text) or _UUID.fullmatch(text) or _HEX.fullmatch(text):
        return True
    return len(text) >= TOKEN_CHARS and bool(_TOKEN.fullmatch(text)) and len(_CHANGE.findall(text)) >= TOKEN_CHANGES


class Routes:
    """Numbers for routes, in the order they come up. Number 0 is "other"."""

    def __init__(self) -> None:
        self.names: list[str] = [OTHER]
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, method: str | None, target: str | None) -> int:
        """The number of a request's route; 0 for a response without request, and when the table is full."""
        if method is None or target is None:
            return 0
        key = (method, template(target))
        found = self._numbers.get(key)
        if found is None:
            if len(self.names) >= TABLE_LIMIT:
                return 0
            found = self._numbers[key] = len(self.names)
            self.names.append(printable(f"{method} {key[1]}"))
        return found


def printable(name: str) -> str:
    """The name without what would control a terminal; strangers choose it."""
    return name if name.isprintable() else "".join(char if char.isprintable() else "?" for char in name)
