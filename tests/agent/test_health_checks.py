"""Health checks of a pool: who is checked follows the pool, what they find goes to the engine, and how they ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.health_checks import HealthChecks
from agent.pool_order import PoolOrder
from replay.balancer.engine import Embedded
from replay.balancer.settings import BalancerSettings, HealthCheck, TlsSettings, UpstreamSpec
from replay.exchange import Dropped
from replay.lane import SocketFactory
from replay.proxy_header import LOCAL
from tests.replay.harness import Run, make_request, run
from tests.replay.scripted_server import OK, Peer, ScriptedServer
from tests.replay.test_tls import files, server_context

__all__ = ["files", "run"]  # fixtures
QUICK = HealthCheck(kind="http", path="/health", interval_s=0.03, timeout_s=1.0, rise=2, fall=2)
SICK = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def serve(peer: Peer) -> None:
    peer.serve()


class Moody(ScriptedServer):
    """Well, until it is told not to be."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda peer: peer.serve(OK if self.well else SICK), **options)
        self.well = True


class Bench:
    """A pool's engine, with its checks."""

    def __init__(
        self, *addresses: str, factory: SocketFactory | None = None, check: HealthCheck = QUICK, **settings: Any
    ) -> None:
        balancer = BalancerSettings(health=check, panic_ratio=0.0, **settings)
        self.order = PoolOrder(tuple(map(UpstreamSpec, addresses)), balancer)
        engine = self.order.engine(())
        assert isinstance(engine, Embedded)
        self.engine = engine
        self.checks = HealthChecks(asyncio.get_running_loop(), engine, self.order, b"X-Shadowtap: 1", factory)
        self.checks.follow()

    def change(self, *addresses: str | UpstreamSpec) -> None:
        specs = tuple(each if isinstance(each, UpstreamSpec) else UpstreamSpec(each) for each in addresses)
        self.engine.change(replace(self.order, upstreams=specs).pool((), self.order.transport))
        self.checks.follow()

    @property
    def states(self) -> list[str]:
        return list(self.engine.states().values())

    def assigned(self) -> str:
        """Where the next request would go."""
        found = self.engine.assign(make_request())
        if isinstance(found, Dropped):
            return found
        self.engine.release(found, Dropped.SHUTDOWN)
        return found.name

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_checked(self, count: int = 2) -> None:
        await self.until(
            lambda: (
                all(each.good + each.bad >= count for each in self.checks.results().values()) and self.checks.results()
            )
        )


def test_an_upstream_that_is_sick_takes_nothing_until_it_is_well(run: Run) -> None:
    async def main() -> None:
        bench = Bench(one.address, two.address)
        await bench.until_checked()
        assert bench.states == ["well", "well"]
        one.well = False
        await bench.until(lambda: bench.states == ["unhealthy", "well"])
        assert {bench.assigned() for _ in range(10)} == {two.address}
        assert bench.checks.results()[one.address].reason == "status 503"
        one.well = True
        await bench.until(lambda: bench.states == ["well", "well"])
        assert {bench.assigned() for _ in range(10)} == {one.address, two.address}
        bench.checks.close()

    with Moody() as one, Moody() as two:
        run(main())
    head = f"GET /health HTTP/1.1\r\nHost: {one.address}\r\n".encode()
    assert all(request.startswith(head) and b"\r\nX-Shadowtap: 1\r\n" in request for request in one.requests)


def test_a_dead_one_is_found_without_a_request(run: Run) -> None:
    async def main() -> None:
        bench = Bench(address, server.address)
        await bench.until(lambda: bench.states == ["unhealthy", "well"])
        assert bench.checks.results()[address].reason == "connection refused"
        bench.checks.close()

    with socket.socket() as taken, ScriptedServer(serve) as server:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run(main())


def test_who_is_checked_follows_the_pool(run: Run) -> None:
    async def main() -> None:
        bench = Bench(one.address)
        await bench.until_checked()
        before = bench.checks.results()[one.address].good
        bench.change(one.address, two.address)
        await bench.until_checked()
        assert set(bench.checks.results()) == {one.address, two.address}
        assert bench.checks.results()[one.address].good >= before, "the one that stayed goes on"
        bench.change(two.address)
        assert set(bench.checks.results()) == {two.address}
        asked = len(one.requests)
        await asyncio.sleep(0.15)
        assert len(one.requests) <= asked + 1, "one may have been under way"
        bench.checks.close()

    with Moody() as one, Moody() as two:
        run(main())


def test_one_that_comes_back_begins_afresh(run: Run) -> None:
    async def main() -> None:
        server.well = False
        bench = Bench(server.address, other.address)
        await bench.until(lambda: bench.states == ["unhealthy", "well"])
        bench.change(other.address)
        bench.change(server.address, other.address)
        assert bench.states == ["well", "well"], "nothing is known of it yet"
        await bench.until(lambda: bench.states == ["unhealthy", "well"])
        bench.checks.close()

    with Moody() as server, Moody() as other:
        run(main())


def test_one_that_is_drained_is_still_checked(run: Run) -> None:
    async def main() -> None:
        bench = Bench(one.address, two.address)
        bench.change(UpstreamSpec(one.address, 0), two.address)
        await bench.until_checked()
        assert bench.states == ["draining", "well"]
        assert set(bench.checks.results()) == {one.address, two.address}
        bench.checks.close()

    with Moody() as one, Moody() as two:
        run(main())


def test_an_empty_pool_has_no_checks(run: Run) -> None:
    async def main() -> None:
        bench = Bench()
        assert bench.checks.results() == {}
        bench.change(server.address)
        await bench.until_checked()
        bench.change()
        assert bench.checks.results() == {}
        bench.checks.close()

    with Moody() as server:
        run(main())


def test_after_the_end_nothing_is_checked(run: Run) -> None:
    async def main() -> None:
        bench = Bench(server.address)
        await bench.until_checked()
        bench.checks.close()
        bench.checks.close()
        bench.checks.follow()
        await asyncio.sleep(0.05)
        asked = len(server.requests)
        await asyncio.sleep(0.15)
        assert len(server.requests) == asked

    with Moody() as server:
        run(main())


def test_checks_take_the_way_that_requests_take(run: Run, files: Path) -> None:
    """TLS with the host that is checked for, behind a PROXY header that names nobody."""
    made: list[socket.AddressFamily] = []
    check = replace(QUICK, host="shop.example")

    def factory(family: socket.AddressFamily) -> socket.socket:
        made.append(family)
        return socket.socket(family, socket.SOCK_STREAM)

    async def main() -> None:
        tls = TlsSettings(ca=str(files / "ca.pem"))
        bench = Bench(server.address, factory=factory, check=check, tls=tls, proxy_protocol=True)
        await bench.until_checked()
        assert bench.checks.results()[server.address].good >= 2
        bench.checks.close()

    with ScriptedServer(serve, tls=server_context(), proxied=True) as server:
        run(main())
    assert set(server.proxy_headers) == {LOCAL}
    assert b"\r\nHost: shop.example\r\n" in server.requests[0]
    assert len(made) >= 2


@pytest.mark.parametrize("kind", ["expired", "unknown authority"])
def test_a_certificate_that_requests_would_not_take_is_sick(run: Run, files: Path, kind: str) -> None:
    async def main() -> None:
        tls = TlsSettings(ca=str(files / "ca.pem"), server_name="shop.example")
        bench = Bench(server.address, tls=tls)
        await bench.until(lambda: bench.states == ["unhealthy"])
        assert bench.checks.results()[server.address].reason.startswith("certificate verify failed: ")
        assert bench.assigned() == Dropped.NO_UPSTREAM
        bench.checks.close()

    with ScriptedServer(serve, tls=server_context(kind)) as server:
        run(main())


def test_a_unix_socket_is_checked(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(server.address)
        await bench.until_checked()
        assert bench.states == ["well"]
        bench.checks.close()

    with ScriptedServer(serve, place=tmp_path / "s") as server:
        run(main())
    assert b"\r\nHost: localhost\r\n" in server.requests[0]
