"""Fixtures of the conformance suite: which engine, the shadows, production, and all of it put together."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.replay.balancer.conformance.bench import Bench
from tests.replay.balancer.conformance.certificates import Certificates, make_certificates
from tests.replay.balancer.conformance.drivers import make_driver
from tests.replay.balancer.conformance.production import EMBEDDED, ENGINES, Production, Setup
from tests.replay.balancer.conformance.shadows import NGINX, Shadow

SEARCH_PATH = "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin"
LIMIT_S = 60.0  # of one test, which takes 3 s where nothing else runs

MakeBench = Callable[..., Bench]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    """Which engine; skips where that program is not installed."""
    name: str = request.param
    if name != EMBEDDED and shutil.which(name, path=SEARCH_PATH) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def run() -> Run:
    """In the loop that the agent uses, and not for ever."""

    async def limited(main: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    return lambda main: uvloop.run(limited(main))


@pytest.fixture(scope="session")
def shared_directory() -> Iterator[Path]:
    """One that nginx's workers, which are not root, may enter."""
    with tempfile.TemporaryDirectory(prefix="shadowtap-conformance-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def certificates(shared_directory: Path) -> Certificates:
    return make_certificates(shared_directory / "certificates")


@pytest.fixture(scope="session")
def servers(shared_directory: Path) -> Iterator[tuple[Shadow, ...]]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    made = tuple(Shadow(f"s{number}", shared_directory / f"s{number}") for number in (1, 2, 3))
    yield made
    for shadow in made:
        shadow.kill()


@pytest.fixture
def shadows(servers: tuple[Shadow, ...]) -> tuple[Shadow, ...]:
    """Three servers, all well, that remember nothing."""
    for shadow in servers:
        shadow.reset()
    return servers


@pytest.fixture
def production() -> Iterator[Production]:
    made = Production()
    yield made
    made.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of production's file, and of the engine's run directory."""
    with tempfile.TemporaryDirectory(prefix="shadowtap-conformance-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def bench(kind: str, shadows: tuple[Shadow, ...], production: Production, directory: Path) -> MakeBench:
    """`bench(setup, shadows, tls, **settings of the replay client)`: the engine, not yet started."""

    def make(setup: Setup, those: Sequence[Shadow] = shadows, tls: Any = None, **settings: Any) -> Bench:
        return Bench(make_driver(kind, setup, production, those, directory, tls), production, those, **settings)

    return make
