"""Time limits, retries at another upstream, connections that are used up, and a pool that changes under load."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence

import pytest

from replay.balancer.settings import BalancerSettings, OutlierSettings
from replay.balancer.upstream import make_pool
from replay.exchange import Answer, Dropped, Outcome
from tests.replay.harness import Client, Run, answers, make_request, run
from tests.replay.scripted_server import OK, Peer, Script, ScriptedServer

__all__ = ["run"]  # the fixture

LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHECKED = BalancerSettings(outlier=OutlierSettings(consecutive_errors=0))


def serve(peer: Peer) -> None:
    peer.serve()


def drips(peer: Peer, pause_s: float = 0.012) -> None:
    """Begins at once, and gives the rest byte by byte."""
    while peer.request():
        peer.send(LONG)
        for _ in range(10):
            peer.pause(pause_s)
            peer.send(b"x")


def stalls(peer: Peer) -> None:
    peer.request()
    peer.send(LONG + b"abc")
    peer.hold()


def never_begins(peer: Peer) -> None:
    peer.request()
    peer.hold()


def resets(peer: Peer) -> None:
    peer.request()
    peer.reset()


def resets_in_the_head(peer: Peer) -> None:
    peer.request()
    peer.send(OK[:12])
    peer.pause()
    peer.reset()


@pytest.fixture
def dead() -> Iterator[str]:
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


# Time limits


TOO_LATE, TOO_SLOW = "time limit for the first byte reached", "nothing more came within the time limit"


@pytest.mark.parametrize(
    ("script", "limits", "detail"),
    [
        (never_begins, {"first_byte_timeout_s": 0.1}, f"{TOO_LATE} before any response"),
        (drips, {"first_byte_timeout_s": 0.1}, ""),
        (stalls, {"idle_timeout_s": 0.1}, f"{TOO_SLOW} after 3 bytes of content"),
        (drips, {"idle_timeout_s": 0.15}, ""),
        (never_begins, {"timeout_s": 0.1}, "time limit reached before any response"),
        (never_begins, {"idle_timeout_s": 0.05, "timeout_s": 0.2}, "time limit reached before any response"),
        (stalls, {"first_byte_timeout_s": 0.05, "timeout_s": 0.2}, "time limit reached after 3 bytes of content"),
    ],
)
def test_time_limits(run: Run, script: Script, limits: dict[str, float], detail: str) -> None:
    answer = Answer.TIMEOUT if detail else Answer.OK

    async def main() -> None:
        async with Client(server.address, **{"timeout_s": 5.0, **limits}) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.detail) == (answer, detail)
            assert client.counters.open_connections == (answer is Answer.OK)

    with ScriptedServer(script) as server:
        run(main())


def test_the_whole_has_a_limit_however_steadily_it_comes(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, timeout_s=0.1, idle_timeout_s=5, first_byte_timeout_s=5) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.status) == (Answer.TIMEOUT, 200)
            assert outcome.detail.startswith("time limit reached after ")
            assert 0 < outcome.body_bytes < 10
            assert outcome.t_first_ns and outcome.t_last_ns >= outcome.t_first_ns

    with ScriptedServer(lambda peer: drips(peer, 0.04)) as server:
        run(main())


def test_a_limit_is_for_each_request_of_a_connection(run: Run) -> None:
    def script(peer: Peer) -> None:
        while peer.request():
            peer.pause(0.08)
            peer.send(OK)

    async def main() -> None:
        async with Client(server.address, first_byte_timeout_s=0.3, idle_timeout_s=0.05) as client:
            for _ in range(3):
                assert (await client.send()).answer is Answer.OK
            assert client.counters.connects == 1

    with ScriptedServer(script) as server:
        run(main())


# Retries


def test_without_retries_nothing_goes_elsewhere(run: Run, dead: str) -> None:
    async def main() -> None:
        async with Client([dead, server.address]) as client:
            assert (await client.send()).answer is Answer.CONNECT
            assert client.counters.retries == 0

    with ScriptedServer(serve) as server:
        run(main())
    assert server.requests == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_was_never_sent_goes_elsewhere(run: Run, dead: str, method: str) -> None:
    async def main() -> None:
        async with Client([dead, server.address], retries=1) as client:
            outcome = await client.send(make_request(method=method, body=b"abc"))
            assert (outcome.answer, outcome.upstream) == (Answer.OK, server.address)
            assert (client.counters.retries, client.counters.connect_failures) == (1, 1)

    with ScriptedServer(serve) as server:
        run(main())
    assert len(server.requests) == 1


def test_a_backoff_is_no_answer_either(run: Run, dead: str) -> None:
    """Everything is used, for too few are well: what a backoff forbids goes elsewhere."""
    panicking = BalancerSettings(panic_ratio=1.0)

    async def main() -> None:
        async with Client([dead, server.address], balancer=panicking, retries=1, max_connections=1) as client:
            for _ in range(20):
                assert (await client.send()).answer is Answer.OK
            assert 0 < client.counters.fast_failures < client.counters.retries

    with ScriptedServer(serve) as server:
        run(main())


@pytest.mark.parametrize(
    ("script", "method", "asked"),
    [
        (resets, "GET", 2),
        (resets, "HEAD", 2),
        (resets, "POST", 1),
        (resets, "PUT", 1),
        (resets, "get", 1),  # methods are case-sensitive: nobody knows what this one does
        (resets_in_the_head, "GET", 1),
        (never_begins, "GET", 1),
    ],
)
def test_what_may_have_been_done_is_done_again_only_if_safe(run: Run, script: Script, method: str, asked: int) -> None:
    async def main() -> None:
        async with Client([one.address, two.address], retries=5, timeout_s=0.1) as client:
            outcome = await client.send(make_request(method=method))
            assert outcome.answer is (Answer.TIMEOUT if script is never_begins else Answer.RESET)
            assert client.counters.retries == (5 if asked == 2 else 0)

    with ScriptedServer(script) as one, ScriptedServer(script) as two:
        run(main())
    assert len(one.requests) + len(two.requests) == (6 if asked == 2 else 1)


def test_as_many_more_as_are_allowed(run: Run, dead: str) -> None:
    async def main(retries: int, ends: list[Answer]) -> None:
        addresses = [dead, reset.address, server.address]
        async with Client(addresses, balancer=CHECKED, retries=retries) as client:
            assert [(await client.send()).answer for _ in ends] == ends

    with ScriptedServer(resets) as reset, ScriptedServer(serve) as server:
        run(main(1, [Answer.RESET]))
        run(main(2, [Answer.OK] * 3))


@pytest.mark.parametrize("count", [1, 2])
def test_the_one_that_failed_is_not_asked_again(run: Run, dead: str, count: int) -> None:
    async def main() -> None:
        async with Client([dead, server.address][:count], retries=3) as client:
            outcome = await client.send()
            assert outcome.answer is (Answer.CONNECT if count == 1 else Answer.OK)
            assert client.counters.connects == count

    with ScriptedServer(serve) as server:
        run(main())


@pytest.mark.parametrize(("method", "requests", "resends"), [("GET", 3, 1), ("POST", 2, 0)])
def test_a_reused_connection_that_dies_is_no_reason_to_post_twice(
    run: Run, method: str, requests: int, resends: int
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.request()
        peer.reset()

    async def main() -> None:
        async with Client(server.address) as client:
            assert (await client.send()).answer is Answer.OK
            outcome = await client.send(make_request(method=method))
            assert outcome.answer is (Answer.OK if resends else Answer.RESET)
            assert client.counters.resends == resends

    with ScriptedServer(script) as server:
        run(main())
    assert len(server.requests) == requests


def test_a_retry_that_finds_no_room_is_given_up(run: Run, dead: str) -> None:
    """The failure is told then, and not that the queue was full."""

    async def main() -> None:
        async with Client(
            [server.address, dead], retries=1, max_connections=1, queue_entries=0, timeout_s=0.2
        ) as client:
            client.submit("busy")
            outcome = await client.send()
            assert outcome.answer is Answer.CONNECT
            assert client.counters.retries == 0

    with ScriptedServer(never_begins) as server:
        run(main())


def test_shutdown_ends_what_is_being_retried(run: Run, dead: str) -> None:
    async def main() -> None:
        client = Client([dead, server.address], retries=1)
        for number in range(10):
            client.submit(number)
        await client.replayer.drain(0.1)
        assert set(answers(client)) <= {Dropped.SHUTDOWN, Answer.CONNECT}
        client.check()

    with ScriptedServer(never_begins) as server:
        run(main())


# Connections that are used up


@pytest.mark.parametrize(("limit", "connects"), [(0, 1), (1, 6), (2, 3), (4, 2)])
def test_so_many_requests_a_connection(run: Run, limit: int, connects: int) -> None:
    async def main() -> None:
        async with Client(server.address, requests_per_connection=limit) as client:
            assert [(await client.send()).answer for _ in range(6)] == [Answer.OK] * 6
            assert (client.counters.connects, client.counters.resends) == (connects, 0)

    with ScriptedServer(serve) as server:
        run(main())


def test_what_waits_gets_the_next_connection(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, requests_per_connection=3, max_connections=2, queue_entries=100) as client:
            for number in range(30):
                assert client.submit(number) is None
            await client.replayer.drain(5)
            assert answers(client) == [Answer.OK] * 30
            assert 10 <= client.counters.connects <= 11

    with ScriptedServer(serve) as server:
        run(main())


# A pool that changes


async def under_load(client: Client, pools: Sequence[Sequence[str]], each_s: float = 0.06) -> int:
    """Ask as fast as there is room, while the pool becomes one after the other; how many were asked."""
    asked = 0
    stop = False

    async def ask() -> None:
        nonlocal asked
        while not stop:
            await client.replayer.room()
            assert client.submit(asked) is None
            asked += 1
            await asyncio.sleep(0.0005)

    asking = asyncio.ensure_future(ask())
    for pool in pools:
        client.engine.change(make_pool(pool))
        await asyncio.sleep(each_s)
    stop = True
    await asking
    return asked


def test_no_request_is_lost_when_the_pool_changes(run: Run) -> None:
    def slowly(peer: Peer) -> None:
        while peer.request():
            peer.pause(0.005)
            peer.send(OK)

    async def main() -> None:
        a, b, c = one.address, two.address, three.address
        async with Client([a, b], max_connections=4, queue_entries=50) as client:
            asked = await under_load(client, [[a], [b, c], [c], [a, b, c], [b]])
            await client.replayer.drain(5)
            assert asked == len(client.results) > 50
            assert set(answers(client)) == {Answer.OK}
            assert {o.upstream for o in client.results.values() if isinstance(o, Outcome)} == {a, b, c}

    with ScriptedServer(slowly) as one, ScriptedServer(slowly) as two, ScriptedServer(slowly) as three:
        run(main())


def test_an_upstream_that_has_left_is_not_kept_waiting(run: Run) -> None:
    """Its unused connections are closed long before the time that unused ones have."""

    async def main() -> None:
        async with Client([one.address, two.address], keepalive_s=60) as client:
            for _ in range(4):
                await client.send()
            assert client.counters.open_connections == 2
            client.engine.change(make_pool([two.address]))
            async with asyncio.timeout(5):
                while client.counters.open_connections > 1:
                    await asyncio.sleep(0.02)
            assert (await client.send()).upstream == two.address
            assert client.counters.connects == 2, "the one that stayed keeps its connections"

    with ScriptedServer(serve) as one, ScriptedServer(serve) as two:
        run(main())


def test_what_is_under_way_ends_where_it_is(run: Run) -> None:
    async def main() -> None:
        async with Client([one.address], max_connections=1, queue_entries=10) as client:
            for number in range(3):
                client.submit(number)
            client.engine.change(make_pool([two.address]))
            client.submit("new")
            outcomes = [await client.result(token) for token in (0, 1, 2, "new")]
            assert [o.upstream for o in outcomes if isinstance(o, Outcome)] == [one.address] * 3 + [two.address]
            assert answers(client) == [Answer.OK] * 4

    with ScriptedServer(drips) as one, ScriptedServer(serve) as two:
        run(main())


def test_an_empty_pool_drops_until_there_is_one(run: Run) -> None:
    async def main() -> None:
        async with Client([server.address]) as client:
            client.engine.change(())
            assert client.submit("nobody") is Dropped.NO_UPSTREAM
            client.engine.change(make_pool([server.address]))
            assert (await client.send()).answer is Answer.OK

    with ScriptedServer(serve) as server:
        run(main())
