"""The content of one message while it comes in: kept up to a limit, counted and, if asked, hashed beyond it."""

from __future__ import annotations

import hashlib

from agent.http.limits import HttpCounters, HttpLimits
from replay.exchange import Request

EXCHANGE_BYTES = 512  # what an open exchange costs beside the bytes of its messages, so that tiny ones are limited too
SMALL_PIECE_BYTES = 512  # pieces below this are put together as they come: an object for each would cost too much


def kept_of(request: Request) -> int:
    """The bytes that a request keeps."""
    wire_body = request.wire_body
    return len(request.head) + len(request.body) + (len(wire_body) if wire_body is not None else 0)


class Budget:
    """What all unfinished exchanges of one Pairing keep, in bytes, against the limit for all of them.

    Connections without an open exchange are not in it: they are few and small (`FlowLimits.max_flows`).
    """

    __slots__ = ("counters", "kept_bytes", "limits")

    def __init__(self, limits: HttpLimits, counters: HttpCounters) -> None:
        self.limits = limits
        self.counters = counters
        self.kept_bytes = 0

    @property
    def full(self) -> bool:
        """No more may be kept."""
        return self.kept_bytes >= self.limits.total_kept_bytes


class Content:
    """Collects the content of a message. `total` counts all of it, `data()` is the part that was kept.

    `head_bytes` of the message's head are charged to the budget as long as the content is.
    """

    __slots__ = ("_budget", "_hash", "_head_bytes", "_pieces", "kept", "limit", "total")

    def __init__(self, budget: Budget, head_bytes: int, hashed: bool) -> None:
        self._budget = budget
        self._pieces: list[bytes | bytearray] = []
        self._head_bytes = head_bytes
        budget.kept_bytes += head_bytes
        self._hash = hashlib.sha1(usedforsecurity=False) if hashed else None
        self.limit = budget.limits.body_limit_bytes
        self.kept = 0
        self.total = 0

    def add(self, data: bytes) -> None:
        """Append what came."""
        size = len(data)
        self.total += size
        if self._hash is not None:
            self._hash.update(data)
        if self.kept + size > self.limit:
            data = data[: self.limit - self.kept]
            self.limit = self.kept + len(data)  # a later, smaller piece must not follow a hole
            size = len(data)
        if size and self._budget.full:
            self._budget.counters.kept_limit += self.limit > self.kept
            self.limit = self.kept
        elif size:
            if size >= SMALL_PIECE_BYTES:
                self._pieces.append(data)
            elif self._pieces and self._pieces[-1].__class__ is bytearray:
                self._pieces[-1] += data
            else:
                self._pieces.append(bytearray(data))
            self.kept += size
            self._budget.kept_bytes += size

    def skip(self, length: int) -> None:
        """`length` bytes are missing. What follows is counted, and kept as if they had never been."""
        self.total += length
        self._hash = None

    def release(self) -> None:
        """Give back to the budget; what was kept goes where `data()` brings it."""
        self._budget.kept_bytes -= self.kept + self._head_bytes
        self.kept = self._head_bytes = 0

    def data(self) -> bytes:
        """What was kept, in one piece."""
        return b"".join(self._pieces)

    def sha1(self) -> str | None:
        """Of all of it, in hex; None when bytes are missing or nobody asked."""
        return self._hash.hexdigest() if self._hash is not None else None
