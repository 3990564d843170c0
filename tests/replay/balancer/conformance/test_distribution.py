"""Requests are spread over the shadow's servers as production spreads them over its own."""

from __future__ import annotations

from replay.balancer.settings import BalancerSettings
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import Member, Setup
from tests.replay.balancer.conformance.shadows import Shadow

ROUND_ROBIN = Setup(embedded=BalancerSettings("round_robin"))
WEIGHTED = Setup(
    members=(Member(0, weight=3), Member(1, weight=1)),
    embedded=BalancerSettings("weighted"),
)


def test_round_robin_is_even(run: Run, bench: MakeBench, shadows: tuple[Shadow, ...]) -> None:
    async def main() -> None:
        async with bench(ROUND_ROBIN) as it:
            counts = await it.places(300, at_once=6)
        assert counts.keys() == {shadow.address for shadow in shadows}
        assert max(counts.values()) - min(counts.values()) <= 6

    run(main())


def test_weights_of_three_to_one(run: Run, bench: MakeBench, shadows: tuple[Shadow, ...]) -> None:
    heavy, light, none = shadows

    async def main() -> None:
        async with bench(WEIGHTED) as it:
            counts = await it.places(400, at_once=6)
        assert counts.keys() == {heavy.address, light.address}
        assert 290 <= counts[heavy.address] <= 310

    run(main())
    assert none.requests == []
