"""Requests of one session stay on one server, and move when it is down."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from replay.balancer.settings import BalancerSettings, HealthCheck
from tests.replay.balancer.conformance.bench import Bench
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.production import EMBEDDED, HAPROXY, Member, Setup
from tests.replay.balancer.conformance.shadows import HEALTH, Shadow

CHECKS = HealthCheck("http", HEALTH, interval_s=0.1, timeout_s=5.0, rise=2, fall=3)
HAPROXY_CHECKS = f"retries 0\noption httpchk GET {HEALTH}\ntimeout check 5s"
BY_SESSION = Setup(
    embedded=BalancerSettings(sticky_cookie="sid", health=CHECKS, outlier=None),
    backend=f"""
        balance roundrobin
        stick-table type string len 64 size 10k expire 30m
        stick on req.cook(sid)
        {HAPROXY_CHECKS}
        """,
    server="check inter 100ms",
    upstream="hash $cookie_sid consistent;",
    peer="max_fails=2 fail_timeout=30s",
)
BY_NAME = replace(
    BY_SESSION,
    members=(Member(0, cookie="web1"), Member(1, cookie="web2"), Member(2, cookie="web3")),
    embedded=BalancerSettings(sticky_cookie="SRV", health=CHECKS, outlier=None),
    backend=f"balance roundrobin\ncookie SRV insert indirect nocache\n{HAPROXY_CHECKS}",
)
SESSIONS = [f"session-{number}" for number in range(24)]


def test_a_session_stays_where_it_is_and_moves_when_that_is_down(
    run: Run, bench: MakeBench, shadows: tuple[Shadow, ...]
) -> None:
    """The cookie is the application's own. The embedded engine and HAProxy (`stick on`) remember where it went; nginx
    has no memory, and hashes it."""

    async def main() -> None:
        async with bench(BY_SESSION) as it:
            before = {session: await home(it, session) for session in SESSIONS}
            assert len(Counter(before.values())) > 1
            address = before[SESSIONS[0]]
            victim = next(shadow for shadow in shadows if shadow.address == address)
            victim.kill()
            await it.until_avoided(victim)
            await settle(it)
            after = {session: await home(it, session) for session in SESSIONS}
        assert address not in after.values()
        assert all(after[session] == before[session] for session in SESSIONS if before[session] != address)

    run(main())


@pytest.mark.parametrize("kind", [EMBEDDED, HAPROXY], indirect=True)
def test_a_cookie_names_the_server(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    """Requests bear the cookies of production, so the shadow's server is the one that stands in for the one named.
    HAProxy sets them (`cookie insert`), also in the shadow; the embedded engine sets none. nginx's `sticky` is not in
    the open-source one."""
    names = dict(zip(("web1", "web2", "web3"), (shadow.address for shadow in shadows), strict=True))

    async def main() -> None:
        async with bench(BY_NAME) as it:
            for name, address in names.items():
                assert await it.places(5, headers=f"Cookie: a=b; SRV={name}\r\n".encode()) == {address: 5}
            outcome = await it.ask()
            found = [name for name in names if f"set-cookie: srv={name};" in outcome.head.decode().lower()]
            assert [names[name] for name in found] == ([outcome.upstream] if kind == HAPROXY else [])
            shadows[1].kill()
            await it.until_avoided(shadows[1])
            elsewhere = await it.places(10, headers=b"Cookie: SRV=web2\r\n")
            assert names["web2"] not in elsewhere
            shadows[1].start()
            await it.until_used(shadows[1])
            assert await it.places(5, headers=b"Cookie: SRV=web1\r\n") == {names["web1"]: 5}

    run(main())


async def home(it: Bench, session: str) -> str:
    """Where three requests of a session go: always the same."""
    places = await it.places(3, headers=f"Cookie: theme=dark; sid={session}\r\n".encode())
    assert len(places) == 1, places
    return next(iter(places))


async def settle(it: Bench) -> None:
    """Let each session find its new home: what nginx tries meanwhile, it learns from."""
    for session in SESSIONS:
        await it.place(headers=f"Cookie: sid={session}\r\n".encode())
