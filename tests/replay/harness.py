"""Runs the replay client in a test, under either loop; every result is recorded and the account checked at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import uvloop

from replay.balancer.engine import Embedded
from replay.balancer.settings import BalancerSettings
from replay.balancer.upstream import PLAIN, Transport, make_pool
from replay.client import Replayer, ReplaySettings
from replay.exchange import Answer, Dropped, Origin, Outcome, Request

RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
Run = Callable[[Coroutine[Any, Any, Any]], Any]

# Limits that keep tests short; a server that does answer does so long before them.
QUICK = {"timeout_s": 0.2, "connect_timeout_s": 0.2, "queue_timeout_s": 5.0}


@pytest.fixture(params=sorted(RUNNERS))
def run(request: pytest.FixtureRequest) -> Run:
    """asyncio.run of either loop."""
    runner: Run = RUNNERS[request.param]
    return runner


def make_request(
    target: str = "/", method: str = "GET", headers: bytes = b"Host: shop\r\n", body: bytes = b"", version: int = 11
) -> Request:
    """A request as the pipeline hands it over."""
    line = f"{method} {target} HTTP/1.{version - 10}\r\n".encode("latin-1")
    if body:
        headers += b"Content-Length: %d\r\n" % len(body)
    return Request(method, target, version, line + headers + b"\r\n", body, len(body), None, 1, 2)


@dataclass(frozen=True)
class From:
    """Whose request it is."""

    client: str = "198.51.100.1:5555"
    server: str = "203.0.113.1:80"
    forwarded: IPv4Address | IPv6Address | None = None


class Client:
    """A Replayer whose results are kept by token. Use as an async context manager: it drains and checks the account."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        socket_factory: Any = None,
        transport: Transport = PLAIN,
        balancer: BalancerSettings | None = None,
        **settings: Any,
    ) -> None:
        pool = make_pool([addresses] if isinstance(addresses, str) else addresses, transport=transport)
        self.upstreams = pool
        self.engine = Embedded(pool, balancer)
        self.results: dict[object, Outcome | Dropped] = {}
        self.refused: dict[object, Dropped] = {}
        self._wanted: asyncio.Event = asyncio.Event()
        self.replayer = Replayer(
            asyncio.get_running_loop(), self.engine, ReplaySettings(**settings), self._done, socket_factory
        )
        self.counters = self.replayer.counters
        self._submitting = False

    def _done(self, token: object, result: Outcome | Dropped) -> None:
        assert not self._submitting, "done was called from within submit"
        assert token not in self.results, "done was called twice"
        self.results[token] = result
        self._wanted.set()

    def submit(self, token: object, request: Request | None = None, origin: Origin | None = None) -> Dropped | None:
        self._submitting = True
        reason = self.replayer.submit(request or make_request(), token, origin)
        self._submitting = False
        if reason is not None:
            self.refused[token] = reason
        return reason

    async def result(self, token: object, limit_s: float = 10.0) -> Outcome | Dropped:
        async with asyncio.timeout(limit_s):
            while token not in self.results:
                self._wanted.clear()
                await self._wanted.wait()
        return self.results[token]

    async def send(self, request: Request | None = None, token: object = None, origin: Origin | None = None) -> Outcome:
        """Submit one and wait for its outcome."""
        token = token if token is not None else object()
        assert self.submit(token, request, origin) is None
        result = await self.result(token)
        assert isinstance(result, Outcome), result
        return result

    async def end(self) -> Answer | Dropped:
        """Submit one and wait for how it ends."""
        token = object()
        assert self.submit(token) is None
        result = await self.result(token)
        return result.answer if isinstance(result, Outcome) else result

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.replayer.drain(0.0 if exc[0] else 5.0)
        if exc[0] is None:
            self.check()

    def check(self) -> None:
        """The identity, and that nothing is left behind."""
        counters = self.counters
        assert counters.submitted == counters.done + counters.refused
        assert counters.open_requests == 0
        assert len(self.results) == counters.done
        assert len(self.refused) == counters.refused
        assert not set(self.results) & set(self.refused)
        assert counters.open_connections == counters.queue_entries == counters.queue_bytes == 0
        assert all(u.in_flight == 0 for u in self.upstreams)


def answers(client: Client) -> list[Answer | Dropped]:
    """How each ended, in the order of their ends."""
    return [r.answer if isinstance(r, Outcome) else r for r in client.results.values()]
