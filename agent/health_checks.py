"""The health checks of an embedded balancer's pool: who is checked follows the pool, what they find goes to it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from agent.pool_order import PoolOrder
from replay.balancer.checker import Checker
from replay.balancer.engine import Embedded
from replay.balancer.upstream import Transport, Upstream
from replay.lane import SocketFactory


class HealthChecks:
    """See the module. `follow` is to be called after every change of the pool."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Embedded,
        pool: PoolOrder,
        mark: bytes,
        factory: SocketFactory | None,
        transport: Transport | None = None,
    ) -> None:
        """`transport`: one that was made before."""
        transport = transport or pool.transport
        check = pool.balancer.health
        assert check is not None
        context = transport.tls
        self._engine = engine
        self._checker = Checker(
            loop,
            check,
            self._changed,
            factory,
            mark,
            None if context is None else lambda: context,
            transport.server_name,
            pool.balancer.seed ^ os.getpid(),  # or all workers would check at the same moment
            transport.proxy_protocol,
        )

    def follow(self) -> None:
        """Check those that are in the pool now, and no others."""
        pool = set(self._engine.upstreams)
        for gone in set(self._checker.results()) - pool:
            self._checker.unwatch(gone)
        for fresh in pool - set(self._checker.results()):
            self._checker.watch(fresh, fresh.family, fresh.sockaddr, fresh.name)

    def close(self) -> None:
        """Check no more."""
        self._checker.close()

    def results(self) -> dict[str, Any]:
        """By upstream: what the checks found."""
        return {key.name: found for key, found in self._checker.results().items() if isinstance(key, Upstream)}

    def _changed(self, key: object, healthy: bool, reason: str) -> None:
        assert isinstance(key, Upstream)
        self._engine.health_changed(key, healthy)
