"""An exchange as one line of JSON, for other programs (`replay --export`)."""

from __future__ import annotations

import json
from typing import Any

from replay.exchange import Exchange, Request, Response, body_sha1
from replay.http1 import header_values

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def as_line(exchange: Exchange) -> str:
    """One line without its end."""
    return _encode(as_json(exchange))


def as_json(exchange: Exchange) -> dict[str, Any]:
    """Addresses, what was asked and answered, with times in nanoseconds since the epoch.

    `request` is null when its head never came as a whole; `incomplete` says why the request cannot be replayed;
    `ended_by` whether "client" or "server" broke off before the response was whole. Bodies appear as length and SHA-1
    (null unless all of it was captured and either kept or hashed).
    """
    return {
        "client": exchange.client,
        "server": exchange.server,
        "connection": exchange.connection,
        "index": exchange.index,
        "request": _request(exchange.request) if exchange.request is not None else None,
        "response": _response(exchange.response) if exchange.response is not None else None,
        "ttfb_ns": exchange.ttfb_ns,
        "interim": list(exchange.interim),
        "upgraded": exchange.upgraded,
        "incomplete": exchange.incomplete.value if exchange.incomplete is not None else None,
        "ended_by": exchange.ended_by or None,
    }


def _request(request: Request) -> dict[str, Any]:
    host = header_values(request.head, b"host")
    return {
        "method": request.method,
        "uri": request.target,
        "version": _version(request.version),
        "host": host[0].decode("latin-1") if host else None,
        **_common(request),
    }


def _response(response: Response) -> dict[str, Any]:
    return {"status": response.status, "version": _version(response.version), **_common(response)}


def _common(message: Request | Response) -> dict[str, Any]:
    return {
        "body_len": message.body_bytes,
        "body_sha1": body_sha1(message),
        "complete": message.complete,
        "t_first_ns": message.t_first_ns,
        "t_last_ns": message.t_last_ns,
    }


def _version(version: int) -> str:
    return f"{version // 10}.{version % 10}"
