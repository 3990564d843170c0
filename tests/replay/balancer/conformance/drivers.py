"""The three engines as the agent makes them, behind one interface: what a worker and the process of programs do.

The embedded engine has the shadows as its upstreams, and health checks. A program is run from production's own file, in
which the shadows stand in for production's servers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from agent.balancing import Watched
from agent.health_checks import HealthChecks
from agent.pool_order import Front, PoolOrder
from replay.balancer.engine import Embedded, Program
from replay.balancer.program import Engine, ProgramSettings
from replay.balancer.settings import BalancerSettings, TlsSettings, UpstreamSpec
from replay.client import Replayer
from tests.replay.balancer.conformance.production import (
    EMBEDDED,
    HAPROXY,
    Production,
    Setup,
    haproxy_text,
    mapping,
    nginx_text,
)
from tests.replay.balancer.conformance.shadows import Shadow


class Driver(Protocol):
    """One engine, made and not yet running."""

    def start(self) -> Embedded | Program:
        """Have it run, with the pool of the setup; the balancer for the replay client."""

    def connected(self, replayer: Replayer) -> None:
        """The replay client is there."""

    async def change(self, setup: Setup) -> None:
        """Production is set up otherwise from now on; what else `setup` says must be as it was."""

    def stop(self) -> None:
        """End it."""


class EmbeddedDriver:
    """The engine of this process."""

    def __init__(self, setup: Setup, production: Production, shadows: Sequence[Shadow]) -> None:
        self._production = production
        self._shadows = shadows
        self._order = PoolOrder(self._specs(setup), setup.embedded)
        self._checks: HealthChecks | None = None

    def start(self) -> Embedded:
        engine = self._order.engine(self._production.addresses)
        assert isinstance(engine, Embedded)
        self.engine = engine
        return engine

    def connected(self, replayer: Replayer) -> None:
        if self._order.balancer.health is not None:
            self._checks = HealthChecks(replayer.loop, self.engine, self._order, replayer.mark, replayer.socket_factory)
            self._checks.follow()

    async def change(self, setup: Setup) -> None:
        self._order = replace(self._order, upstreams=self._specs(setup))
        self.engine.change(self._order.pool(self._production.addresses))
        if self._checks is not None:
            self._checks.follow()

    def stop(self) -> None:
        if self._checks is not None:
            self._checks.close()

    def _specs(self, setup: Setup) -> tuple[UpstreamSpec, ...]:
        return tuple(
            UpstreamSpec(self._shadows[place].address, weight, cookie) for place, weight, cookie in setup.members
        )


class ProgramDriver:
    """HAProxy or nginx, with production's file in `directory`."""

    def __init__(
        self,
        kind: str,
        setup: Setup,
        production: Production,
        shadows: Sequence[Shadow],
        directory: Path,
        tls: TlsSettings,
    ) -> None:
        self.run_directory = directory / "run"
        self._kind = kind
        self._production = production
        self._directory = directory
        self._source = directory / f"production-{kind}.conf"
        self._tls = tls
        self._write(setup)
        addresses = [shadow.address for shadow in shadows]
        settings = ProgramSettings(
            kind, str(self._source), servers=mapping(production, addresses), addresses=production.addresses
        )
        self.engine = Engine(settings, self.run_directory)

    def start(self) -> Program:
        """The child ends with the thread that starts it: so this is for the main thread."""
        self.engine.start()
        balancer = self._order().engine(self._production.addresses)
        assert isinstance(balancer, Program)
        self._balancer = balancer
        return balancer

    def connected(self, replayer: Replayer) -> None:
        pass

    async def change(self, setup: Setup) -> None:
        self._write(setup)
        assert self.engine.changed()
        await asyncio.to_thread(self.engine.follow)
        order = self._order()
        self._balancer.change(*order.routes(order.transport))

    def make_mistake(self) -> None:
        """Production's file has a mistake from now on."""
        self._source.write_text(self._source.read_text() + "\nnonsense 1;\n")

    def stop(self) -> None:
        self.engine.stop()

    @property
    def errors(self) -> str:
        """What nginx has said of its upstreams."""
        return (self.run_directory / "error.log").read_text()

    def _order(self) -> PoolOrder:
        """As a worker gets it from the process that runs the programs."""
        fronts = tuple(Front(**front) for front in Watched("web", self.engine).report()["fronts"])
        return PoolOrder(balancer=BalancerSettings(tls=self._tls), fronts=fronts, program=self._kind)

    def _write(self, setup: Setup) -> None:
        if self._kind == HAPROXY:
            text = haproxy_text(setup, self._production, self._directory)
        else:
            text = nginx_text(setup, self._production)
        fresh = self._source.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._source)


def make_driver(
    kind: str,
    setup: Setup,
    production: Production,
    shadows: Sequence[Shadow],
    directory: Path,
    tls: TlsSettings | None = None,
) -> EmbeddedDriver | ProgramDriver:
    """`tls` is for the frontend of a program; the embedded engine's is that of its upstreams, in `setup`."""
    if kind == EMBEDDED:
        return EmbeddedDriver(setup, production, shadows)
    return ProgramDriver(kind, setup, production, shadows, directory, tls or TlsSettings())


def numbered(errors: str) -> int:
    """How many connections to upstreams nginx has seen fail."""
    return len(re.findall(r"connect\(\) failed", errors))
