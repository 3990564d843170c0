"""A server whose answers are errors gets no request for a while, although its health checks are good.

The embedded engine ejects it (`outlier`), HAProxy marks it down (`observe layer7`) until its checks were good for
`rise` times, nginx counts the answer as a failure (`proxy_next_upstream http_500`) and tells the client another one.
The server's own log says how many errors it took, and what came between the last of them and the next request.
"""

from __future__ import annotations

from replay.balancer.settings import BalancerSettings, HealthCheck, OutlierSettings
from tests.replay.balancer.conformance.bench import until
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, NGINX, Setup
from tests.replay.balancer.conformance.shadows import HEALTH, Asked, Shadow

ERRORS, RISE = 5, 3
EJECTION_S = 0.5
FAIL_TIMEOUT_S = 1
CLOCK_S = 0.05  # logs are in milliseconds, of a clock that nginx looks at once in a while
WATCHED = Setup(
    embedded=BalancerSettings(
        health=HealthCheck("http", HEALTH, interval_s=0.1, timeout_s=5.0),
        outlier=OutlierSettings(ERRORS, ejection_s=EJECTION_S),
    ),
    backend=f"balance roundrobin\noption httpchk GET {HEALTH}\ntimeout check 5s",
    server=f"check inter 100ms rise {RISE} observe layer7 error-limit {ERRORS} on-error mark-down",
    peer=f"max_fails={ERRORS} fail_timeout={FAIL_TIMEOUT_S}s",
    location="proxy_next_upstream error timeout http_500 http_503 non_idempotent;",
)


def test_errors_eject_a_server_for_a_while(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    victim = shadows[0]
    statuses: list[tuple[str, int]] = []

    async def main() -> None:
        async with bench(WATCHED) as it:
            await until(lambda: victim.checks or kind == NGINX, "it is not checked")
            victim.be("broken")
            while len(errors(victim)) < ERRORS:
                outcome = await it.ask()
                statuses.append((outcome.upstream, outcome.status))
            victim.be("broken", so=False)
            await it.until_used(victim)
            await until(lambda: victim.requests[-1].status == 200)

    run(main())
    asked = victim.asked
    last = [place for place, each in enumerate(asked) if each.status == 500][-1]
    again = next(place for place, each in enumerate(asked) if place > last and not each.is_check)
    assert len(errors(victim)) == ERRORS
    if kind == HAPROXY:
        assert len(asked[last + 1 : again]) >= RISE, "only health checks come between"
    else:
        wait_s = EJECTION_S if kind == EMBEDDED else FAIL_TIMEOUT_S
        assert asked[again].at_s - asked[last].at_s >= wait_s - CLOCK_S
    told = [each for each in statuses if each[1] != 200]
    assert told == ([] if kind == NGINX else [(victim.address, 500)] * ERRORS)


def test_the_status_of_one_error_is_passed_on(run: Run, bench: MakeBench, shadows: tuple[Shadow, ...]) -> None:
    """nginx names the last of the servers that it tried."""

    async def main() -> None:
        async with bench(WATCHED) as it:
            outcome = await it.ask("/status/500")
        assert outcome.status == 500
        assert outcome.upstream in {shadow.address for shadow in shadows}

    run(main())


def errors(shadow: Shadow) -> list[Asked]:
    return [each for each in shadow.requests if each.status == 500]
