"""The pool changes at run time, under a load that does not stop, and no request fails by it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replay.balancer import program
from replay.balancer.settings import BalancerSettings, HealthCheck, TlsSettings
from replay.errors import UpstreamError
from tests.replay.balancer.conformance.certificates import GOOD, Certificates
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.drivers import ProgramDriver
from tests.replay.balancer.conformance.production import HAPROXY, NGINX, SITE, Member, Production, Setup
from tests.replay.balancer.conformance.shadows import HEALTH, Shadow

BEFORE = Setup(
    members=(Member(0), Member(1)),
    embedded=BalancerSettings(health=HealthCheck("http", HEALTH, interval_s=0.1, timeout_s=5.0)),
    backend=f"balance roundrobin\noption httpchk GET {HEALTH}\ntimeout check 5s",
    server="check inter 100ms",
)
CHANGES = {
    "taken out": (Member(1), Member(2)),
    "drained": (Member(0, weight=0), Member(1), Member(2)),
}

programs = pytest.mark.parametrize("kind", [HAPROXY, NGINX], indirect=True)


@pytest.mark.parametrize("after", CHANGES)
def test_the_pool_changes_without_a_failed_request(
    run: Run, bench: MakeBench, shadows: tuple[Shadow, ...], after: str
) -> None:
    """What is under way at the old server ends there. A program is reloaded, and goes over connection by connection."""
    old, kept, new = shadows

    async def main() -> None:
        async with bench(BEFORE) as it, it.busy() as load:
            await load.until_in_use(old)
            await load.until_in_use(kept)
            slow = it.all_at_once(2, "/slow")
            await it.driver.change(replace(BEFORE, members=CHANGES[after]))
            await load.until_in_use(new)
            await load.until_unused(old)
            assert [outcome.status for outcome in await slow] == [200, 200]
            await load.until_in_use(kept)
        assert load.failed == []
        assert set(load.upstreams) == {shadow.address for shadow in shadows}

    run(main())


def test_there_and_back_again(run: Run, bench: MakeBench, shadows: tuple[Shadow, ...]) -> None:
    """Several changes one after the other, each before the last one's work has ended."""

    async def main() -> None:
        async with bench(BEFORE) as it, it.busy() as load:
            for after in (*CHANGES.values(), *CHANGES.values()):
                await it.driver.change(replace(BEFORE, members=after))
                await load.more(5)
            await it.driver.change(BEFORE)
            await load.until_unused(shadows[2])
            await load.until_in_use(shadows[0])
        assert load.failed == []

    run(main())


@programs
def test_every_change_is_taken_over(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes while the program is still about the one before: HAProxy does not hear of it then."""
    monkeypatch.setattr(program, "check", lambda argv: "")  # it takes as long as a reload, which would be over by then

    async def main() -> None:
        async with bench(BEFORE) as it:
            for _ in range(3):
                for place in (1, 0, 1):
                    await it.driver.change(replace(BEFORE, members=(Member(place),)))
                await it.until_avoided(shadows[0])
                assert (await it.places(20)).keys() == {shadows[1].address}

    run(main())


@programs
def test_another_listener_leaves_the_first_where_it_is(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...], certificates: Certificates
) -> None:
    """Requests are on their way to it all the time."""
    after = replace(BEFORE, certificates=((SITE, certificates.files[GOOD]),))

    async def main() -> None:
        async with bench(BEFORE, tls=TlsSettings(ca=certificates.ca)) as it, it.busy() as load:
            await load.until_in_use(shadows[0])
            before = it.balancer.upstreams[0].name
            await it.driver.change(after)
            assert it.balancer.upstreams[0].name == before
            assert (await it.ask(server=it.production.secure)).tls
            assert (await it.ask()).tls == ""
            await load.more(20)
        assert load.failed == []

    run(main())


@programs
def test_a_balancer_that_asks_itself_is_reloaded_like_any_other(
    run: Run, bench: MakeBench, kind: str, production: Production, shadows: tuple[Shadow, ...]
) -> None:
    """Its own listener is private in the shadow. The outcome names the server at the end of the way."""
    setup = replace(
        BEFORE,
        frontend="use_backend around if { path_beg /around }",
        sections=f"""
backend around
    server itself {production.inner}
frontend inner
    bind {production.inner}
    default_backend app
""",
        location=f"location /around {{ proxy_pass http://{production.inner}; }}",
        blocks=f"server {{ listen {production.inner}; location / {{ proxy_pass http://app; }} }}",
    )

    async def main() -> None:
        async with bench(setup) as it, it.busy() as load:
            assert await it.place("/around") in (shadows[0].address, shadows[1].address)
            await it.driver.change(replace(setup, members=(Member(2),)))
            await load.until_unused(shadows[0])
            assert await it.place("/around") == shadows[2].address
        assert load.failed == []

    run(main())


@programs
def test_a_file_that_the_program_refuses_changes_nothing(
    run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]
) -> None:
    async def main() -> None:
        async with bench(BEFORE) as it, it.busy() as load:
            assert isinstance(it.driver, ProgramDriver)
            await load.until_in_use(shadows[0])
            it.driver.make_mistake()
            with pytest.raises(UpstreamError, match=f"refused by {kind}: .*nonsense"):
                it.driver.engine.follow()
            assert not it.driver.engine.changed(), "it is not tried again"
            await load.until_in_use(shadows[1])
            await it.driver.change(replace(BEFORE, members=CHANGES["taken out"]))
            await load.until_in_use(shadows[2])
        assert load.failed == []

    run(main())
