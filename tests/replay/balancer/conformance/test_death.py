"""The balancer program dies, in whole or its master alone; it is found dead, and runs again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from replay.exchange import Answer, Dropped, Outcome
from tests.replay.balancer.conformance.bench import Bench, until
from tests.replay.balancer.conformance.conftest import MakeBench, Run
from tests.replay.balancer.conformance.drivers import ProgramDriver
from tests.replay.balancer.conformance.production import HAPROXY, NGINX, Setup
from tests.replay.balancer.conformance.shadows import Shadow

PLAIN = Setup()
UNANSWERED = {Answer.CONNECT, Answer.RESET, Dropped.BACKOFF}

pytestmark = pytest.mark.parametrize("kind", [HAPROXY, NGINX], indirect=True)


def test_all_of_the_program_is_killed(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    async def main() -> None:
        async with bench(PLAIN) as it:
            engine = program_of(it).engine
            await it.place()
            under_way = [asyncio.create_task(it.end("/slow", client=f"192.0.2.{number}:1")) for number in (1, 2)]
            await until(lambda: it.replayer.counters.open_connections == 3)
            os.killpg(engine.pid, signal.SIGKILL)
            await until(lambda: not engine.alive())
            assert {how(await end) for end in under_way} <= UNANSWERED
            ends = [how(await it.end()) for _ in range(6)]
            assert Answer.CONNECT in ends and set(ends) <= UNANSWERED
            engine.restart()
            assert engine.alive()
            await works_again(it, shadows)

    run(main())


def test_only_the_master_is_killed(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    """HAProxy's workers end with it. Those of nginx go on, and keep the addresses that the next one is to listen on."""

    async def main() -> None:
        async with bench(PLAIN) as it:
            engine = program_of(it).engine
            first = engine.pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: not engine.alive())
            engine.restart()
            assert engine.alive() and engine.pid != first
            await works_again(it, shadows)
            await until(lambda: group_is_gone(first), "workers of the first one are left")
            assert engine.alive(), engine.last_words()
            assert "bind" not in engine.last_words()

    run(main())


def test_it_ends_whole(run: Run, bench: MakeBench, kind: str, shadows: tuple[Shadow, ...]) -> None:
    async def main() -> None:
        async with bench(PLAIN) as it:
            await it.place()
            group = program_of(it).engine.pid
        await until(lambda: group_is_gone(group), "something of it is left")
        assert not program_of(it).run_directory.exists()

    run(main())


async def works_again(it: Bench, shadows: tuple[Shadow, ...]) -> None:
    """Once the backoff that its death has opened is over."""
    while how(await it.end()) is not Answer.OK:
        await until(lambda: it.balancer.upstreams[0].usable(it.replayer.loop.time()))
    assert (await it.places(30)).keys() == {shadow.address for shadow in shadows}


def how(end: Outcome | Dropped) -> Answer | Dropped:
    return end.answer if isinstance(end, Outcome) else end


def program_of(it: Bench) -> ProgramDriver:
    assert isinstance(it.driver, ProgramDriver)
    return it.driver


def group_is_gone(group: int) -> bool:
    """But for what waits to be reaped by init."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return False
    return True
