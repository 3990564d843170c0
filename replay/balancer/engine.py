"""Engines: what stands between the replay client and the shadow pool, behind one interface.

`Embedded` balances in this process. Engines that run or name another program (haproxy, nginx, an external URL) have
one upstream, the program's own address, and start and stop it outside this interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from replay.balancer.policy import Policy, round_robin
from replay.balancer.upstream import Upstream
from replay.exchange import Dropped, Outcome, Request


class Balancer(Protocol):
    """Assigns requests to upstreams. Every assignment is released exactly once, with how it ended."""

    @property
    def upstreams(self) -> Sequence[Upstream]:
        """The pool, fixed for the engine's life; `Upstream.index` is the position in it."""

    def assign(self, request: Request) -> Upstream | None:
        """Pick an upstream and count the request as in flight there; None when there is none to be had."""

    def release(self, upstream: Upstream, result: Outcome | Dropped) -> None:
        """The assigned request ended."""


class Embedded:
    """The balancer inside this process. Upstreams in a backoff are passed over while another is usable; when none
    is, requests are assigned all the same, and the client fails them fast."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        policy: Policy = round_robin,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstreams = tuple(upstreams)
        self._policy = policy
        self._clock = clock
        self._turn = 0

    @property
    def upstreams(self) -> Sequence[Upstream]:
        return self._upstreams

    def assign(self, request: Request) -> Upstream | None:
        candidates = self._upstreams
        for upstream in candidates:
            if upstream.failures:
                candidates = self._usable()
                break
        if not candidates:
            return None
        upstream = self._policy(candidates, request, self._turn)
        self._turn += 1
        upstream.in_flight += 1
        return upstream

    def release(self, upstream: Upstream, result: Outcome | Dropped) -> None:
        upstream.in_flight -= 1

    def _usable(self) -> tuple[Upstream, ...]:
        now_s = self._clock()
        return tuple(u for u in self._upstreams if u.usable(now_s)) or self._upstreams
