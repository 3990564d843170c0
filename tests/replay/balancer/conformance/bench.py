"""One engine under test: the replay client in front of it, shadows behind it, and what must hold for every outcome.

- it names the upstream, and that is the server whose own words are in the body;
- the header by which a program names it is not in the head;
- nobody of production was contacted;
- at the end every request has ended exactly once, and nothing is left open.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from replay.balancer.address import UNIX, resolve
from replay.balancer.derive.change import HEADER
from replay.balancer.engine import Embedded
from replay.client import Replayer, ReplaySettings
from replay.exchange import Answer, Dropped, Outcome
from tests.replay.balancer.conformance.drivers import EmbeddedDriver, ProgramDriver
from tests.replay.balancer.conformance.production import SITE, Production
from tests.replay.balancer.conformance.shadows import Shadow
from tests.replay.harness import From, make_request

WAIT_S = 25.0  # for what comes in well under a second where nothing else runs
IN_A_ROW = 30  # requests that went elsewhere: nobody is sent there any more
CLIENT = "198.51.100.7:4321"
PATIENT = {"timeout_s": 15.0, "connect_timeout_s": 10.0, "queue_timeout_s": 15.0}
BUSY_TARGETS = ("/", "/slow", "/", "/")


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for it; AssertionError when it does not come."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what or "waited in vain"
        await asyncio.sleep(0.005)


class Bench:
    """See the module. Use as an async context manager, in the main thread: it starts the engine and stops it."""

    def __init__(
        self,
        driver: EmbeddedDriver | ProgramDriver,
        production: Production,
        shadows: Sequence[Shadow],
        **settings: Any,
    ) -> None:
        self.driver = driver
        self.production = production
        self.shadows = shadows
        self._settings = ReplaySettings(**{**PATIENT, **settings})
        self._names = {shadow.name: shadow.address for shadow in shadows}
        self._results: dict[object, asyncio.Future[Outcome | Dropped]] = {}

    async def __aenter__(self) -> Bench:
        balancer = self.driver.start()
        self.balancer = balancer
        self.replayer = Replayer(asyncio.get_running_loop(), balancer, self._settings, self._done)
        self.driver.connected(self.replayer)
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.replayer.drain(0.0 if exc[0] else WAIT_S)
        finally:
            self.driver.stop()
        if exc[0] is None:
            self._check()

    # Requests

    async def end(
        self,
        target: str = "/",
        headers: bytes = b"",
        client: str = CLIENT,
        host: str = SITE,
        server: str = "",
        forwarded: IPv4Address | IPv6Address | None = None,
        **request: Any,
    ) -> Outcome | Dropped:
        """Send one request and wait for how it ends. `server` is the address of production that it came to."""
        token = object()
        asked = make_request(target, headers=b"Host: %b\r\n%b" % (host.encode(), headers), **request)
        result: asyncio.Future[Outcome | Dropped] = asyncio.get_running_loop().create_future()
        self._results[token] = result
        if dropped := self.replayer.submit(asked, token, From(client, server or self.production.address, forwarded)):
            del self._results[token]
            return dropped
        return await result

    async def ask(self, target: str = "/", **request: Any) -> Outcome:
        """Send one request, which is answered."""
        outcome = await self.end(target, **request)
        assert isinstance(outcome, Outcome) and outcome.answer is Answer.OK, outcome
        return outcome

    async def place(self, target: str = "/", **request: Any) -> str:
        """The upstream that has answered one, well."""
        outcome = await self.ask(target, **request)
        assert outcome.status == 200, outcome
        return outcome.upstream

    async def places(self, count: int, at_once: int = 1, **request: Any) -> Counter[str]:
        """Which upstreams have answered so many, well."""

        async def some(share: int) -> list[str]:
            return [await self.place(**request) for _ in range(share)]

        done = await asyncio.gather(*(some(len(range(number, count, at_once))) for number in range(at_once)))
        return Counter(place for places in done for place in places)

    async def all_at_once(self, count: int, target: str) -> list[Outcome]:
        """Send so many in one go; each is answered, with any status."""
        return await asyncio.gather(*(self.ask(target) for _ in range(count)))

    def busy(self, at_once: int = 3) -> Busy:
        """Requests without end."""
        return Busy(self, at_once)

    # Waiting

    async def until_avoided(self, shadow: Shadow) -> None:
        """Send requests until none goes there any more: that it is dead has been noticed."""
        deadline = time.monotonic() + WAIT_S
        row = 0
        while row < IN_A_ROW or self._still_tries(shadow):
            assert time.monotonic() < deadline, f"{shadow.name} still gets requests"
            outcome = await self.end()
            well = isinstance(outcome, Outcome) and outcome.status == 200
            row = row + 1 if well and outcome.upstream != shadow.address else 0  # type: ignore[union-attr]
            await asyncio.sleep(0.001)

    async def until_used(self, shadow: Shadow) -> None:
        """Send requests until that one answers one; all are answered well."""
        deadline = time.monotonic() + WAIT_S
        while await self.place() != shadow.address:
            assert time.monotonic() < deadline, f"{shadow.name} gets no request"
            await asyncio.sleep(0.002)

    def _still_tries(self, shadow: Shadow) -> bool:
        """The embedded engine tries again after each backoff, until the health checks have spoken."""
        balancer = self.balancer
        return isinstance(balancer, Embedded) and balancer.states()[shadow.address] != "unhealthy"

    # What holds for all

    def _done(self, token: object, result: Outcome | Dropped) -> None:
        future = self._results.pop(token)  # KeyError: it has ended before
        if future.cancelled():
            return
        try:
            if isinstance(result, Outcome):
                self._check_outcome(result)
        except AssertionError as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _check_outcome(self, outcome: Outcome) -> None:
        assert HEADER.lower().encode() not in outcome.head.lower(), outcome
        said = said_in(outcome).get("name")
        if said is None:
            assert resolve(outcome.upstream), outcome
        elif self._names[said].startswith(UNIX):
            assert outcome.upstream in (self._names[said], said), f"{said} answered: {outcome}"
        else:
            assert outcome.upstream == self._names[said], f"{said} answered: {outcome}"

    def _check(self) -> None:
        counters = self.replayer.counters
        assert counters.submitted == counters.done + counters.refused
        assert counters.open_requests == counters.open_connections == counters.queue_entries == 0
        assert all(upstream.in_flight == 0 for upstream in self.balancer.upstreams)
        assert self._results == {}
        assert self.production.contacts() == []


class Busy:
    """Requests of several clients without end, fast and slow ones; as an async context manager it ends them."""

    def __init__(self, bench: Bench, at_once: int) -> None:
        self._bench = bench
        self._at_once = at_once
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False
        self.ends: list[Outcome | Dropped] = []

    @property
    def failed(self) -> list[Outcome | Dropped]:
        return [end for end in self.ends if isinstance(end, Dropped) or end.status != 200]

    @property
    def upstreams(self) -> list[str]:
        return [end.upstream for end in self.ends if isinstance(end, Outcome)]

    async def more(self, count: int) -> None:
        """Until so many more have ended."""
        wanted = len(self.ends) + count
        await until(lambda: len(self.ends) >= wanted, "the requests do not end")

    async def until_in_use(self, shadow: Shadow) -> None:
        """Until that one has answered one from now on."""
        since = len(self.ends)
        await until(lambda: shadow.address in self.upstreams[since:], f"{shadow.name} gets no request")

    async def until_unused(self, shadow: Shadow) -> None:
        """Until so many in a row were answered by others."""

        def avoided() -> bool:
            last = self.upstreams[-3 * IN_A_ROW :]
            return len(last) == 3 * IN_A_ROW and shadow.address not in last

        await until(avoided, f"{shadow.name} still gets requests")

    async def __aenter__(self) -> Busy:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(self._at_once)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, number: int) -> None:
        client = f"198.51.100.{number + 1}:1000"
        turn = 0
        while not self._over:
            self.ends.append(await self._bench.end(BUSY_TARGETS[turn % len(BUSY_TARGETS)], client=client))
            turn += 1


def said_in(outcome: Outcome) -> dict[str, str]:
    """What a shadow says of itself and of the request; empty where something else answered."""
    try:
        said = json.loads(outcome.body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
