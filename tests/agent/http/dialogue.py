"""Feeds Pairing with the events of one connection, without Flows, and puts exchanges into comparable form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agent.capture.segment import reverse
from agent.http.connection import GONE
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.stream.events import Chunk, End, EndReason, Event, Gap
from agent.stream.flow import Flow, Half
from replay.exchange import Exchange, Request, Response

CLIENT_KEY = bytes((10, 0, 0, 1, 192, 0, 2, 80)) + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big")
CLIENT, SERVER = "10.0.0.1:40000", "192.0.2.80:80"


class Dialogue:
    """One connection. Time is the number of the event, unless given."""

    def __init__(self, limits: HttpLimits | None = None, from_start: bool = True, known_client: bool = True) -> None:
        self.pairing = Pairing(limits)
        self.flow = Flow(1, CLIENT_KEY, reverse(CLIENT_KEY))
        self.flow.client = self.flow.halves[0] if known_client else None
        for half in self.flow.halves:
            half.from_start = from_start
        self.ready: list[Exchange] = []
        self.finished: list[Exchange] = []
        self.t_ns = 0

    def client(self, *pieces: bytes) -> Dialogue:
        """Bytes from the client, each piece a chunk."""
        return self._say(self.flow.halves[0], pieces)

    def server(self, *pieces: bytes) -> Dialogue:
        """Bytes from the server."""
        return self._say(self.flow.halves[1], pieces)

    def client_gap(self, length: int) -> Dialogue:
        """Bytes of the client are missing."""
        return self.feed(Gap(self.flow.halves[0], 0, self.t_ns, length))

    def server_gap(self, length: int) -> Dialogue:
        """Bytes of the server are missing."""
        return self.feed(Gap(self.flow.halves[1], 0, self.t_ns, length))

    def client_left_out(self, length: int) -> Dialogue:
        """The client's bytes go on behind requests that were left out."""
        return self.feed(Gap(self.flow.halves[0], 0, self.t_ns, length, True))

    def server_left_out(self, length: int) -> Dialogue:
        """The server's bytes go on behind responses that were left out."""
        return self.feed(Gap(self.flow.halves[1], 0, self.t_ns, length, True))

    def end(self, *sides: int, reason: EndReason = EndReason.FIN) -> Dialogue:
        """End halves, by default both."""
        for side in sides or (0, 1):
            self.feed(End(self.flow.halves[side], 0, self.t_ns, reason))
        return self

    def feed(self, event: Event) -> Dialogue:
        """One event. Checks what holds for all: each exchange comes up once, and not ready when incomplete."""
        ready, finished = self.pairing.feed([event])
        self.ready += ready
        self.finished += finished
        assert len({id(e) for e in self.ready}) == len(self.ready)
        assert len({id(e) for e in self.finished}) == len(self.finished)
        assert all(e.incomplete is None and e.request is not None for e in self.ready)
        assert self.pairing.open_exchanges == self.pairing.seen - len(self.finished)
        return self

    def over(self) -> list[Exchange]:
        """End the connection and check that the account closes."""
        sides = [side for side, half in enumerate(self.flow.halves) if half.reader not in (None, GONE)]
        if sides:
            self.end(*sides, reason=EndReason.FINISH)
        assert self.pairing.seen == len(self.finished)
        assert self.pairing.budget.kept_bytes == 0
        assert all((e in self.ready) == (e.incomplete is None) for e in self.finished)
        return self.finished

    def _say(self, half: Half, pieces: Iterable[bytes]) -> Dialogue:
        for piece in pieces:
            self.t_ns += 1
            if not self.flow.muted:
                self.feed(Chunk(half, 0, self.t_ns, piece))
        return self


def brief(exchanges: Iterable[Exchange]) -> list[tuple[Any, ...]]:
    """(method, target, body) or None, (status, body) or None, in order of index."""
    return [
        (_asked(e.request), _answered(e.response), *([e.incomplete.value] if e.incomplete else []))
        for e in sorted(exchanges, key=lambda e: e.index)
    ]


def _asked(request: Request | None) -> tuple[str, str, bytes] | None:
    return None if request is None else (request.method, request.target, request.body)


def _answered(response: Response | None) -> tuple[int, bytes] | None:
    return None if response is None else (response.status, response.body)


def full(exchanges: Sequence[Exchange]) -> list[tuple[Any, ...]]:
    """Everything but the times, in order of index."""
    return [
        (
            e.index,
            e.request and e.request._replace(t_first_ns=0, t_last_ns=0),
            e.response and e.response._replace(t_first_ns=0, t_last_ns=0),
            e.interim,
            e.upgraded,
            e.incomplete,
        )
        for e in sorted(exchanges, key=lambda e: e.index)
    ]


def chunked(*parts: bytes, trailer: bytes = b"") -> bytes:
    """Parts in chunked transfer coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n" + trailer + b"\r\n"


def get(target: str = "/") -> bytes:
    """A GET request."""
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def post(body: bytes, target: str = "/") -> bytes:
    """A POST with Content-Length."""
    return f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def ok(body: bytes = b"", status: int = 200) -> bytes:
    """A response with Content-Length."""
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
