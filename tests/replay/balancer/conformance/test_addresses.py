"""Servers at addresses of every kind are asked and named; those of production never are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.balancer.settings import BalancerSettings
from replay.errors import UpstreamError
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import HAPROXY, Member, Setup
from tests.replay.balancer.conformance.shadows import Shadow

ONE = Setup(members=(Member(0),), embedded=BalancerSettings(outlier=None))

MakeShadow = Callable[[str], Shadow]


@pytest.fixture
def make_shadow(directory: Path) -> Iterator[MakeShadow]:
    """A server at such a host, running."""
    made: list[Shadow] = []

    def make(host: str) -> Shadow:
        made.append(Shadow("s1", directory / "s1", host=host))
        made[0].start()
        return made[0]

    yield make
    for shadow in made:
        shadow.kill()


def test_ipv6(run: Run, bench: MakeBench, make_shadow: MakeShadow) -> None:
    shadow = make_shadow("[::1]")

    async def main() -> None:
        async with bench(ONE, [shadow]) as it:
            assert await it.places(3) == {shadow.address: 3}

    run(main())


def test_a_unix_socket(run: Run, bench: MakeBench, kind: str, make_shadow: MakeShadow) -> None:
    """HAProxy does not say which socket it was; so the outcome bears the server's name in its configuration."""
    shadow = make_shadow("unix")

    async def main() -> None:
        async with bench(ONE, [shadow]) as it:
            assert await it.places(3) == {"s1" if kind == HAPROXY else shadow.address: 3}

    run(main())


def test_a_server_of_production_is_refused(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...], directory: Path
) -> None:
    class Wrong(Shadow):
        """A shadow that is no shadow."""

        def __init__(self, address: str) -> None:
            self.name, self.address = "wrong", address

    async def main() -> None:
        it = bench(ONE, shadows)
        wrong = bench(ONE, [Wrong(it.production.servers[1])])
        with pytest.raises(UpstreamError, match="production"):
            async with wrong:
                pass
        assert it.production.contacts() == []

    run(main())
