"""The replay client against servers that behave: faithful bytes, all body kinds, reuse, queue, drain, room, marks."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time

import pytest

from replay.client import Replayer, ReplaySettings
from replay.exchange import Answer, Dropped, Outcome, Request
from tests.bench.replay import nginx
from tests.replay.harness import Client, Run, answers, make_request, run
from tests.replay.scripted_server import OK, Peer, ScriptedServer

__all__ = ["run"]  # the fixture


def serve(peer: Peer) -> None:
    peer.serve()


def test_bytes_go_out_as_they_were_with_the_mark_last(run: Run) -> None:
    head = (
        b"pUrGe   /a b?x=\xff HTTP/1.1\r\nhOsT:  Shop \r\nX-A: 1\r\nx-a: 2\r\nX-A: 1\r\nFolded: a\r\n b\r\n"
        b"Transfer-Encoding: chunked\r\nContent-Length: 11\r\n\r\n"
    )
    wire_body = b"3;x=1\r\nabc\r\n"[:11]
    request = Request("pUrGe", "/a b?x=\xff", 11, head, b"abc", 3, wire_body, 0, 0)

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send(request)

    with ScriptedServer(serve) as server:
        run(main())
    assert server.requests == [head[:-2] + b"X-Shadowtap: 1\r\n\r\n" + wire_body]


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"mark_header": ""}, b""), ({"mark_header": "X-Copy", "mark_value": "yes"}, b"X-Copy: yes\r\n")],
)
def test_the_mark_is_a_setting(run: Run, settings: dict[str, str], line: bytes) -> None:
    async def main() -> None:
        async with Client(server.address, **settings) as client:
            await client.send(make_request(body=b"abc"))

    with ScriptedServer(serve) as server:
        run(main())
    assert server.requests == [b"GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n" + line + b"\r\nabc"]


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RESPONSES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "empty": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, b"", True),
    "chunked": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\nT: 1\r\n\r\n", 200, b"hello", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, 200, b"ok", True),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "old keep-alive": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "bare newlines": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, b"ok", True),
}


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "piecewise"])
def test_responses_of_every_kind(run: Run, name: str, piecewise: bool) -> None:
    response, status, body, reusable = RESPONSES[name]

    def script(peer: Peer) -> None:
        while peer.request():
            for piece in [response[i : i + 9] for i in range(0, len(response), 9)] if piecewise else [response]:
                peer.send(piece)
                if piecewise:
                    peer.pause(0.001)

    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(2):
                outcome = await client.send()
                assert (outcome.answer, outcome.status, outcome.body) == (Answer.OK, status, body)
                assert outcome.body_bytes == len(body)
                assert outcome.upstream == server.address
                assert outcome.t_queued_ns <= outcome.t_sent_ns < outcome.t_first_ns <= outcome.t_last_ns
            assert client.counters.connects == (1 if reusable else 2)

    with ScriptedServer(script) as server:
        run(main())


def test_head_has_no_body_whatever_its_length_says(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(2):
                outcome = await client.send(make_request(method="HEAD"))
                assert (outcome.answer, outcome.body, outcome.body_bytes) == (Answer.OK, b"", 0)
            assert client.counters.connects == 1

    with ScriptedServer(lambda peer: peer.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")) as server:
        run(main())


def test_body_until_close(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        peer.pause()
        peer.send(b" world")

    async def main() -> None:
        async with Client(server.address) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.body) == (Answer.OK, b"hello world")
            assert outcome.t_last_ns - outcome.t_first_ns > 10_000_000

    with ScriptedServer(script) as server:
        run(main())


@pytest.mark.parametrize(
    "request_",
    [make_request(headers=b"Host: a\r\nConnection: Close\r\n"), make_request(version=10)],
    ids=["close", "HTTP/1.0"],
)
def test_a_request_that_ends_its_connection_is_not_followed_by_another(run: Run, request_: Request) -> None:
    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(2):
                assert (await client.send(request_)).answer is Answer.OK
            assert client.counters.connects == 2

    with ScriptedServer(serve) as server:
        run(main())


def test_expect_continue_is_sent_whole_at_once(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    async def main() -> None:
        async with Client(server.address) as client:
            headers = b"Host: a\r\nExpect: 100-continue\r\n"
            assert (await client.send(make_request(method="PUT", headers=headers, body=b"x" * 100))).body == b"ok"

    with ScriptedServer(script) as server:
        run(main())


def test_a_request_larger_than_the_socket_takes_is_sent_in_parts(run: Run) -> None:
    body = os.urandom(3 << 20)

    def script(peer: Peer) -> None:
        peer.pause(0.05)
        peer.serve()

    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(2):
                assert (await client.send(make_request(method="POST", body=body))).answer is Answer.OK
            assert client.counters.connects == 1

    with ScriptedServer(script, receive_buffer=32768) as server:
        run(main())
    assert [r.partition(b"\r\n\r\n")[2] == body for r in server.requests] == [True, True]


@pytest.mark.parametrize("coding", ["length", "chunked", "close"])
def test_a_response_beyond_the_limit_is_counted_not_kept(run: Run, coding: str) -> None:
    size = 3 << 20
    data = os.urandom(size)
    heads = {"length": b"Content-Length: %d\r\n" % size, "chunked": b"Transfer-Encoding: chunked\r\n", "close": b""}

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n" + heads[coding] + b"\r\n")
        peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, data) if coding == "chunked" else data)

    async def main() -> None:
        async with Client(server.address, body_limit_bytes=100_000) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.body_bytes) == (Answer.OK, size)
            assert outcome.body == data[:100_000]

    with ScriptedServer(script) as server:
        run(main())


def test_times_are_the_kernels_not_the_loops(run: Run) -> None:
    """The loop is kept busy while the answer waits in the socket: its time must not show it."""

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send()
            await asyncio.sleep(0.05)  # the kernel begins to stamp packets a moment after the first socket asks for it
            client.submit("late")
            time.sleep(0.2)
            outcome = await client.result("late")
            assert isinstance(outcome, Outcome)
            assert 0 < outcome.t_first_ns - outcome.t_sent_ns < 100_000_000
            assert client.counters.latency_count == 2

    with ScriptedServer(serve) as server:
        run(main())


def test_a_stall_of_our_own_is_not_a_timeout_of_the_shadow(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, timeout_s=0.2) as client:
            await client.send()
            client.submit("late")
            time.sleep(0.5)
            outcome = await client.result("late")
            assert isinstance(outcome, Outcome)
            assert outcome.answer is Answer.OK

    with ScriptedServer(serve) as server:
        run(main())


def test_requests_are_spread_in_turn(run: Run) -> None:
    async def main() -> None:
        async with Client([one.address, two.address]) as client:
            outcomes = [await client.send() for _ in range(4)]
            assert [o.upstream for o in outcomes] == [one.address, two.address] * 2

    with ScriptedServer(serve) as one, ScriptedServer(serve) as two:
        run(main())


def test_the_queue_drops_the_newest_and_keeps_the_order(run: Run) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        while peer.request():
            release.wait(5)
            peer.send(OK)

    async def main() -> None:
        async with Client(server.address, max_connections=1, queue_entries=2) as client:
            reasons = [client.submit(n, make_request(f"/{n}")) for n in range(5)]
            assert reasons == [None, None, None, Dropped.QUEUE_FULL, Dropped.QUEUE_FULL]
            assert client.counters.queue_entries == client.counters.queue_peak_entries == 2
            release.set()
            await client.result(2)
            assert list(client.results) == [0, 1, 2]
            assert client.submit("again") is None

    with ScriptedServer(script) as server:
        run(main())
    assert [r.split()[1] for r in server.requests] == [b"/0", b"/1", b"/2", b"/"]


def test_the_queue_is_limited_in_bytes(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, max_connections=1, queue_bytes=1000) as client:
            request = make_request(body=b"x" * 500)
            assert [client.submit(n, request) for n in range(3)] == [None, None, Dropped.QUEUE_FULL]

    with ScriptedServer(serve) as server:
        run(main())


def test_waiting_too_long_is_a_drop(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, max_connections=1, queue_timeout_s=0.1, timeout_s=0.6) as client:
            client.submit("sent")
            client.submit("waits")
            assert await client.result("waits") is Dropped.QUEUE_TIMEOUT
            assert "sent" not in client.results

    with ScriptedServer(lambda peer: peer.hold()) as server:
        run(main())


def test_an_idle_connection_is_closed_in_the_end(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, keepalive_s=0.1) as client:
            await client.send()
            assert client.counters.open_connections == 1
            async with asyncio.timeout(5):
                while client.counters.open_connections:
                    await asyncio.sleep(0.02)
            assert (await client.send()).answer is Answer.OK
            assert (client.counters.connects, client.counters.resends) == (2, 0)

    with ScriptedServer(serve) as server:
        run(main())


def test_without_upstreams_nothing_is_taken(run: Run) -> None:
    class Nothing:
        upstreams = ()

        def assign(self, request: Request, origin: object = None, avoid: object = None) -> Dropped:
            return Dropped.NO_UPSTREAM

        def release(self, upstream: object, result: object) -> None:
            raise AssertionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        replayer = Replayer(loop, Nothing(), ReplaySettings(), lambda token, result: None)
        assert replayer.submit(make_request(), 1) is Dropped.NO_UPSTREAM
        await replayer.drain(1)
        assert replayer.counters.open_requests == 0

    run(main())


def test_drain_finishes_what_is_open_and_takes_no_more(run: Run) -> None:
    def script(peer: Peer) -> None:
        while peer.request():
            peer.pause(0.05)
            peer.send(OK)

    async def main() -> None:
        client = Client(server.address, max_connections=2)
        for n in range(6):
            client.submit(n)
        await client.replayer.drain(5)
        assert answers(client) == [Answer.OK] * 6
        assert client.submit("late") is Dropped.SHUTDOWN
        client.check()

    with ScriptedServer(script) as server:
        run(main())


@pytest.mark.parametrize("limit_s", [0.0, 0.1])
def test_drain_gives_up_at_the_limit_and_loses_nothing(run: Run, limit_s: float) -> None:
    async def main() -> None:
        client = Client(server.address, max_connections=2)
        for n in range(5):
            client.submit(n)
        await client.replayer.drain(limit_s)
        assert answers(client) == [Dropped.SHUTDOWN] * 5
        client.check()
        client.replayer.close()

    with ScriptedServer(lambda peer: peer.hold()) as server:
        run(main())


def test_room_makes_the_caller_wait_instead_of_dropping(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, max_connections=2, queue_entries=8) as client:
            for n in range(200):
                await client.replayer.room(100)
                assert client.submit(n) is None
            assert client.counters.queue_peak_entries == 8

    with ScriptedServer(serve) as server:
        run(main())
    assert len(server.requests) == 200


def test_room_ends_at_shutdown(run: Run) -> None:
    async def main() -> None:
        client = Client(server.address, max_connections=1, queue_entries=1)
        client.submit(1)
        client.submit(2)
        waiter = asyncio.ensure_future(client.replayer.room())
        await asyncio.sleep(0.02)
        assert not waiter.done()
        await client.replayer.drain(0)
        await asyncio.wait_for(waiter, 1)
        client.check()

    with ScriptedServer(lambda peer: peer.hold()) as server:
        run(main())


def test_done_may_submit_again(run: Run) -> None:
    async def main() -> None:
        finished = asyncio.get_running_loop().create_future()
        client = Client(server.address)

        def done(token: object, result: Outcome | Dropped) -> None:
            assert isinstance(token, int)
            if token == 50:
                finished.set_result(None)
            else:
                assert client.replayer.submit(make_request(), token + 1) is None

        client.replayer._done = done
        client.replayer.submit(make_request(), 0)
        await asyncio.wait_for(finished, 10)
        assert client.counters.connects == 1
        await client.replayer.drain(1)

    with ScriptedServer(serve) as server:
        run(main())


@pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed")
def test_nginx_keeps_its_connections(run: Run) -> None:
    async def main() -> None:
        async with Client(f"127.0.0.1:{port}", max_connections=8, queue_entries=1000) as client:
            for n in range(1000):
                assert client.submit(n) is None
            await client.result(999)
            await client.replayer.drain(5)
            assert answers(client) == [Answer.OK] * 1000
            assert client.counters.connects == 8
            assert client.counters.resends == client.counters.excess == 0

    with nginx() as port:
        run(main())
