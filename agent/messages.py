"""Messages between the service and its workers: one JSON object a packet on a SOCK_SEQPACKET socket."""

from __future__ import annotations

import json
import socket
from typing import Any

LIMIT_BYTES = 131_072  # such a socket takes about 200 KB at once


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; OSError when the other side is gone, BlockingIOError when it is behind."""
    channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, None when the other side is gone; BlockingIOError when there is none now, or none came within
    the channel's time limit."""
    try:
        data = channel.recv(LIMIT_BYTES)
    except (BlockingIOError, TimeoutError):
        raise BlockingIOError from None
    except OSError:
        return None
    message: dict[str, Any] | None = json.loads(data) if data else None
    return message


def fits(message: dict[str, Any]) -> bool:
    """It can be sent."""
    return len(json.dumps(message)) <= LIMIT_BYTES
