"""A server that is dead or sick gets no request, and gets some again once it is well.

nginx (the open-source one) has no health checks: it learns from requests that fail (`max_fails`), tries again after
`fail_timeout`, and meanwhile gives the request to another server. There `fall` and `rise` are nothing to look for.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from replay.balancer.settings import BalancerSettings, HealthCheck
from replay.exchange import Answer, Outcome
from tests.replay.balancer.conformance.bench import Bench, until
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.drivers import ProgramDriver, numbered
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, NGINX, Setup
from tests.replay.balancer.conformance.shadows import HEALTH, Asked, Shadow

RISE, FALL = 2, 3
MAX_FAILS, FAIL_TIMEOUT_S = 3, 2
CHECKED = Setup(
    embedded=BalancerSettings(
        health=HealthCheck("http", HEALTH, interval_s=0.1, timeout_s=5.0, rise=RISE, fall=FALL), outlier=None
    ),
    # Without retries each request that goes to a dead server is seen.
    backend=f"balance roundrobin\nretries 0\noption httpchk GET {HEALTH}\ntimeout check 5s",
    server=f"check inter 100ms rise {RISE} fall {FALL}",
    peer=f"max_fails={MAX_FAILS} fail_timeout={FAIL_TIMEOUT_S}s",
)
SOME = 100
ON_THE_WAY = 3  # requests that may be written down between the last bad check and its effect

has_checks = pytest.mark.parametrize("kind", [EMBEDDED, HAPROXY], indirect=True)
has_none = pytest.mark.parametrize("kind", [NGINX], indirect=True)


def test_a_killed_server_is_left_out_and_comes_back(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    victim, *others = shadows

    async def main() -> None:
        async with bench(CHECKED) as it:
            assert (await it.places(30)).keys() == {shadow.address for shadow in shadows}
            victim.kill()
            await it.until_avoided(victim)
            assert (await it.places(SOME)).keys() == {shadow.address for shadow in others}
            victim.forget()
            victim.start()
            await it.until_used(victim)
            assert (await it.places(SOME)).keys() == {shadow.address for shadow in shadows}
        if kind != NGINX:
            assert len(good_checks_before_first_request(victim.asked)) >= RISE

    run(main())


def test_until_it_is_noticed_the_outcome_says_what_happened(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    """The embedded engine: no connection to that upstream. HAProxy: its own 503, so that only HAProxy itself is named.
    nginx: nothing of it, for another server has answered (`proxy_next_upstream` is on by default)."""
    victim = shadows[0]

    async def main() -> None:
        async with bench(CHECKED) as it:
            victim.kill()
            ends = [await it.end() for _ in range(6)]
            bad = [end for end in ends if isinstance(end, Outcome) and end.status != 200]
            if kind == NGINX:
                assert bad == []
            elif kind == HAPROXY:
                front = it.balancer.upstreams[0].name
                assert {(end.answer, end.status, end.upstream) for end in bad} <= {(Answer.OK, 503, front)}
            else:
                refused = (Answer.CONNECT, victim.address, "connection refused")
                assert {(end.answer, end.upstream, end.detail) for end in bad} == {refused}

    run(main())


def test_with_retries_no_request_fails_by_a_dead_server(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    """What was never sent is sent to another server. The outcome names the one that has answered."""
    victim, *others = shadows
    setup = replace(CHECKED, backend=CHECKED.backend.replace("retries 0", "retries 3\noption redispatch 1"))

    async def main() -> None:
        async with bench(setup, retries=1 if kind == EMBEDDED else 0) as it:
            await it.place()
            victim.kill()
            assert (await it.places(SOME)).keys() == {shadow.address for shadow in others}

    run(main())


@has_checks
def test_a_sick_server_is_left_out_after_fall_checks_and_comes_back_after_rise(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    """The server's own log tells: it answers all requests well, only its health checks go wrong."""
    victim, *others = shadows

    async def main() -> None:
        async with bench(CHECKED) as it:
            await until(lambda: victim.checks, "it is not checked")
            await it.until_used(victim)
            victim.be("sick")
            await it.until_avoided(victim)
            assert (await it.places(SOME)).keys() == {shadow.address for shadow in others}
            victim.be("sick", so=False)
            await it.until_used(victim)
            assert (await it.places(SOME)).keys() == {shadow.address for shadow in shadows}

    run(main())
    asked = victim.asked
    bad = [place for place, each in enumerate(asked) if each.is_check and each.status == 503]
    after = asked[bad[FALL - 1] + 1 :]
    late = next(place for place, each in enumerate(after) if each.is_check)
    assert late <= ON_THE_WAY
    assert len(good_checks_before_first_request(after[late:])) >= RISE
    assert {each.status for each in asked if not each.is_check} == {200}


@has_none
def test_nginx_tries_a_dead_server_only_once_in_a_while(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    """What stands in for health checks there. No request fails by it."""

    async def main() -> None:
        async with bench(CHECKED) as it:
            began_s = time.monotonic()
            shadows[0].kill()
            await it.places(4 * SOME, at_once=2)
            most = MAX_FAILS + 1 + math.ceil((time.monotonic() - began_s) / FAIL_TIMEOUT_S)
            assert MAX_FAILS <= numbered(nginx_of(it).errors) <= most

    run(main())


def nginx_of(it: Bench) -> ProgramDriver:
    assert isinstance(it.driver, ProgramDriver)
    return it.driver


def good_checks_before_first_request(asked: list[Asked]) -> list[Asked]:
    """There must be a request."""
    first = next(place for place, each in enumerate(asked) if not each.is_check)
    return [each for each in asked[:first] if each.status == 200]
