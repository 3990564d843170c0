"""The fate of every request: chosen or skipped, sent or dropped, answered, and recorded once both sides are final.

It stands between the pipeline (which yields exchanges) and the replay client (which yields outcomes), live and offline
alike, and keeps the account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from replay.account import Account
from replay.exchange import Dropped, Exchange, Fate, Incomplete, Outcome, Request, Skipped
from replay.http1 import asks_for_tunnel

Record = Callable[[Exchange], None]


class Sender(Protocol):
    """What the mirror needs of `replay.client.Replayer`."""

    def submit(self, request: Request, token: object) -> Dropped | None:
        """Take a request; `Mirror.answered` is called for it later, exactly once. Or say why not."""


class Selector:
    """The exact choice in user space: which whole requests are meant for the shadow."""

    def __init__(self, methods: Iterable[str], mark: bytes, *, dry_run: bool = False) -> None:
        self._methods = frozenset(methods)
        self._mark = b"\n" + mark.lower() if mark else b""
        self._dry_run = dry_run

    def __call__(self, exchange: Exchange) -> Skipped | None:
        """Why the request is skipped, or None."""
        request = exchange.request
        assert request is not None
        if self._dry_run:
            return Skipped.DRY_RUN
        lower = request.head.lower()
        if asks_for_tunnel(request.method, lower):
            return Skipped.TUNNEL
        if request.method not in self._methods:
            return Skipped.METHOD
        return Skipped.SHADOW_TRAFFIC if self._mark and self._mark in lower else None


class Mirror:
    """Owns the account. `take` and `answered` may come in any order for one exchange; it is recorded when both came."""

    def __init__(self, select: Selector, record: Record | None = None) -> None:
        self.account = Account()
        self.sender: Sender | None = None  # None: capture only
        self._select = select
        self._record = record

    def take(self, ready: Iterable[Exchange], finished: Iterable[Exchange], seen: int) -> None:
        """Exchanges from the pipeline, and how many requests it has begun in all."""
        self.account.seen = seen
        for exchange in ready:
            self._decide(exchange)
        for exchange in finished:
            exchange.finished = True
            if exchange.incomplete is not None and exchange.fate is None:
                self._end(exchange, Fate.INCOMPLETE, exchange.incomplete)
            elif exchange.fate is not None and self._record is not None:
                self._record(exchange)

    def answered(self, token: object, result: Outcome | Dropped) -> None:
        """The replay client's callback."""
        assert isinstance(token, Exchange)
        if isinstance(result, Outcome):
            token.outcome = result
            self.account.answers[result.answer] += 1
            self._end(token, Fate.REPLAYED)
        else:
            self._end(token, Fate.DROPPED, result)

    def _decide(self, exchange: Exchange) -> None:
        request = exchange.request
        assert request is not None
        skip = self._select(exchange)
        if skip is not None:
            self._end(exchange, Fate.SKIPPED, skip)
        elif not request.whole:
            exchange.incomplete = Incomplete.BODY_LIMIT
            self._end(exchange, Fate.INCOMPLETE, Incomplete.BODY_LIMIT)
        elif self.sender is None:
            self._end(exchange, Fate.SKIPPED, Skipped.DRY_RUN)
        elif (drop := self.sender.submit(request, exchange)) is not None:
            self._end(exchange, Fate.DROPPED, drop)

    def _end(self, exchange: Exchange, fate: Fate, reason: str = "") -> None:
        exchange.fate, exchange.reason = fate, reason
        account = self.account
        if fate is Fate.REPLAYED:
            account.replayed += 1
        elif fate is Fate.SKIPPED:
            account.skipped[reason] += 1
        elif fate is Fate.DROPPED:
            account.dropped[reason] += 1
        else:
            account.incomplete[reason] += 1
        if exchange.finished and self._record is not None:
            self._record(exchange)
