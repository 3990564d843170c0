"""The replay client against servers that misbehave: each costs an outcome with a reason, and nothing more."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import time

import pytest

from replay.exchange import Answer, Dropped, Outcome
from replay.response import INTERIM_LIMIT
from tests.replay.harness import QUICK, Client, Run, answers, make_request, run
from tests.replay.scripted_server import OK, Peer, Script, ScriptedServer

__all__ = ["run"]  # the fixture


def never_answers(peer: Peer) -> None:
    peer.hold()


def stalls_in_the_head(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-")
    peer.hold()


def stalls_in_the_body(peer: Peer) -> None:
    peer.request()
    peer.send(OK[:-1])
    peer.hold()


def resets(peer: Peer) -> None:
    peer.request()
    peer.reset()


def resets_in_the_body(peer: Peer) -> None:
    peer.request()
    peer.send(OK[:-1])
    peer.reset()


def closes_at_once(peer: Peer) -> None:
    pass


def closes_without_an_answer(peer: Peer) -> None:
    peer.request()


def closes_in_the_head(peer: Peer) -> None:
    peer.request()
    peer.send(OK[:10])


def closes_in_the_body(peer: Peer) -> None:
    peer.request()
    peer.send(OK[:-1])


def closes_inside_a_chunk(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe")


def sends_garbage(peer: Peer) -> None:
    peer.request()
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    peer.hold()


def sends_http2(peer: Peer) -> None:
    peer.request()
    peer.send(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")
    peer.hold()


def sends_a_bad_status(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 2x0 OK\r\n\r\n")
    peer.hold()


def sends_an_endless_head(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.send(b"X-More: " + b"x" * 1000 + b"\r\n")


def sends_endless_interim(peer: Peer) -> None:
    peer.request()
    while True:
        peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" * (INTERIM_LIMIT // 3))


def sends_a_wrong_length(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello")
    peer.hold()


def sends_two_lengths(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
    peer.hold()


def sends_a_broken_chunk(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n")
    peer.hold()


MISBEHAVIOUR: list[tuple[Script, Answer, int]] = [
    (never_answers, Answer.TIMEOUT, 0),
    (stalls_in_the_head, Answer.TIMEOUT, 0),
    (stalls_in_the_body, Answer.TIMEOUT, 200),
    (resets, Answer.RESET, 0),
    (resets_in_the_body, Answer.RESET, 200),
    (closes_at_once, Answer.RESET, 0),
    (closes_without_an_answer, Answer.RESET, 0),
    (closes_in_the_head, Answer.RESET, 0),
    (closes_in_the_body, Answer.RESET, 200),
    (closes_inside_a_chunk, Answer.RESET, 200),
    (sends_garbage, Answer.GARBAGE, 0),
    (sends_http2, Answer.GARBAGE, 0),
    (sends_a_bad_status, Answer.GARBAGE, 0),
    (sends_an_endless_head, Answer.GARBAGE, 0),
    (sends_endless_interim, Answer.GARBAGE, 0),
    (sends_a_wrong_length, Answer.GARBAGE, 0),
    (sends_two_lengths, Answer.GARBAGE, 0),
    (sends_a_broken_chunk, Answer.GARBAGE, 200),
]


@pytest.mark.parametrize(("script", "answer", "status"), MISBEHAVIOUR, ids=[m[0].__name__ for m in MISBEHAVIOUR])
def test_misbehaviour_costs_one_outcome(run: Run, script: Script, answer: Answer, status: int) -> None:
    async def main() -> None:
        async with Client(server.address, **QUICK) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.status) == (answer, status), outcome
            assert outcome.detail
            assert outcome.t_queued_ns <= outcome.t_sent_ns
            assert client.counters.open_connections == 0
            assert client.counters.resends == 0

    with ScriptedServer(script) as server:
        run(main())


def closed_port() -> tuple[socket.socket, str]:
    """A port that is taken (as long as the socket lives) and refuses connections."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    return taken, f"127.0.0.1:{taken.getsockname()[1]}"


def test_refused(run: Run) -> None:
    async def main() -> None:
        async with Client(address, **QUICK) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.detail) == (Answer.CONNECT, "connection refused")
            assert (outcome.t_sent_ns, outcome.upstream) == (0, address)

    taken, address = closed_port()
    with taken:
        run(main())


def test_unreachable(run: Run) -> None:
    class Unreachable(socket.socket):
        def connect_ex(self, address: object) -> int:  # type: ignore[override]
            return errno.ENETUNREACH

    async def main() -> None:
        async with Client("127.0.0.1:9", lambda family: Unreachable(family), **QUICK) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.detail) == (Answer.CONNECT, "network is unreachable")

    run(main())


def test_never_accepts(run: Run) -> None:
    """A listener whose backlog is full lets connections hang."""

    async def main() -> None:
        async with Client(address, **QUICK) as client:
            for n in range(3):
                client.submit(n)
            outcome = await client.result(2)
            assert isinstance(outcome, Outcome)
            assert (outcome.answer, outcome.t_sent_ns) == (Answer.CONNECT_TIMEOUT, 0)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()):
            run(main())


def test_no_descriptor_left_is_our_shortage_not_the_shadows(run: Run) -> None:
    def factory(family: socket.AddressFamily) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        async with Client("127.0.0.1:9", factory) as client:
            client.submit(1)
            assert await client.result(1) is Dropped.SHORTAGE
            assert (client.counters.local_failures, client.counters.local_failure) == (1, "too many open files")
            assert client.upstreams[0].failures == 0

    run(main())


def test_a_dead_upstream_is_not_hammered(run: Run) -> None:
    async def main() -> None:
        async with Client(address, max_connections=4, queue_entries=100, **QUICK) as client:
            for n in range(300):
                assert client.submit(n) is None
                await asyncio.sleep(0.001)
            await client.result(299)
            ends = answers(client)
            assert set(ends) == {Answer.CONNECT, Dropped.BACKOFF}
            assert ends.count(Answer.CONNECT) == client.counters.connects < 30
            assert ends.count(Dropped.BACKOFF) == client.counters.fast_failures

    taken, address = closed_port()
    with taken:
        run(main())


def test_an_upstream_that_comes_back_is_used_again(run: Run) -> None:
    async def main() -> None:
        async with Client(address, **QUICK) as client:
            for _ in range(5):
                assert await client.end() in (Answer.CONNECT, Dropped.BACKOFF)
            taken.listen()
            taken.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.add_reader(taken, lambda: accepted.append(taken.accept()[0]))
            async with asyncio.timeout(5):
                while await client.end() in (Answer.CONNECT, Dropped.BACKOFF):
                    await asyncio.sleep(0.02)
            assert client.upstreams[0].failures == 0
            loop.remove_reader(taken)
            for sock in accepted:
                sock.close()

    accepted: list[socket.socket] = []
    taken, address = closed_port()
    with taken:
        run(main())


def test_a_dead_upstream_is_passed_over(run: Run) -> None:
    async def main() -> None:
        async with Client([address, server.address], **QUICK) as client:
            for _ in range(40):
                await client.send()
            assert answers(client).count(Answer.CONNECT) <= 6

    taken, address = closed_port()
    with taken, ScriptedServer(lambda peer: peer.serve()) as server:
        run(main())


def test_a_connection_closed_between_requests_is_noticed(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)

    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(3):
                assert (await client.send()).answer is Answer.OK
                await asyncio.sleep(0.05)
            assert (client.counters.idle_closed, client.counters.resends, client.counters.connects) == (3, 0, 3)

    with ScriptedServer(script) as server:
        run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_a_reused_connection_that_dies_unanswered_is_tried_once_more(run: Run, reset: bool) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        if peer.number == 0:
            peer.request()
            if reset:
                peer.reset()
        else:
            peer.serve()

    async def main() -> None:
        async with Client(server.address) as client:
            assert [(await client.send()).answer for _ in range(3)] == [Answer.OK] * 3
            assert (client.counters.resends, client.counters.connects) == (1, 2)

    with ScriptedServer(script) as server:
        run(main())
    assert len(server.requests) == 4


def test_closed_while_the_loop_was_busy_then_sent(run: Run) -> None:
    """The close waits unread in the socket when the next request is sent on it."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send()
            time.sleep(0.05)
            assert (await client.send()).answer is Answer.OK
            assert client.counters.resends == 1

    with ScriptedServer(script) as server:
        run(main())


def test_it_is_not_tried_a_third_time(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        if peer.number == 0:
            peer.send(OK)
            peer.request()

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send()
            assert (await client.send()).answer is Answer.RESET
            assert client.counters.resends == 1

    with ScriptedServer(script) as server:
        run(main())
    assert len(server.requests) == 3


def test_nothing_is_tried_again_once_a_byte_came(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.request()
        peer.send(b"H")

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send()
            assert (await client.send()).answer is Answer.RESET
            assert client.counters.resends == 0

    with ScriptedServer(script) as server:
        run(main())


def test_two_responses_for_one_request(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address) as client:
            for n in range(3):
                assert (await client.send()).answer is Answer.OK
                assert client.counters.excess == n + 1
                assert client.counters.open_connections == 0

    with ScriptedServer(lambda peer: peer.serve(OK + OK)) as server:
        run(main())


def test_a_second_response_later_drops_the_idle_connection(run: Run) -> None:
    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(OK)
            peer.pause()
            peer.send(OK)

    async def main() -> None:
        async with Client(server.address) as client:
            for n in range(2):
                assert (await client.send()).answer is Answer.OK
                await asyncio.sleep(0.1)
                assert client.counters.excess == n + 1
            assert client.counters.connects == 2

    with ScriptedServer(script) as server:
        run(main())


def test_bytes_from_before_the_request_do_not_answer_it(run: Run) -> None:
    """As when a server sends 408 and closes an idle connection, just before the client uses it again."""
    stray = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        if peer.number == 0:
            peer.pause(0.02)
            peer.send(stray)
        else:
            peer.serve()

    async def main() -> None:
        async with Client(server.address) as client:
            await client.send()
            time.sleep(0.1)
            assert (await client.send()).status == 200
            assert (client.counters.excess, client.counters.resends) == (1, 1)

    with ScriptedServer(script) as server:
        run(main())


def test_an_answer_before_the_request_is_sent(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        peer.pause(0.3)

    async def main() -> None:
        async with Client(server.address) as client:
            outcome = await client.send(make_request(method="POST", body=b"x" * (8 << 20)))
            assert (outcome.answer, outcome.status) == (Answer.OK, 413)
            assert (client.counters.early, client.counters.open_connections) == (1, 0)

    with ScriptedServer(script, receive_buffer=8192) as server:
        run(main())


def test_an_answer_and_a_reset_while_the_request_is_being_sent(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        peer.sock.shutdown(socket.SHUT_WR)
        peer.pause(0.02)

    async def main() -> None:
        async with Client(server.address, **QUICK) as client:
            outcome = await client.send(make_request(method="POST", body=b"x" * (8 << 20)))
            assert (outcome.answer, outcome.status) == (Answer.OK, 413)

    with ScriptedServer(script, receive_buffer=8192) as server:
        run(main())


def test_never_reads_the_request(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, **QUICK) as client:
            outcome = await client.send(make_request(method="POST", body=b"x" * (8 << 20)))
            assert (outcome.answer, outcome.detail) == (
                Answer.TIMEOUT,
                "time limit reached before the request was sent",
            )

    with ScriptedServer(lambda peer: peer.pause(1), receive_buffer=8192) as server:
        run(main())


def test_a_reset_behind_data_is_seen_at_once(run: Run) -> None:
    """libuv stops watching after an error event: the client must not then wait for the time limit."""

    def script(peer: Peer) -> None:
        peer.sock.recv(10)  # the rest stays unread, so that closing resets
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 400_000)
        peer.sock.close()

    async def main() -> None:
        async with Client(server.address, timeout_s=30) as client:
            outcome = await asyncio.wait_for(client.send(make_request(body=b"x" * 1000)), 5)
            assert (outcome.answer, outcome.status) == (Answer.RESET, 200)

    with ScriptedServer(script) as server:
        run(main())


@pytest.mark.parametrize("seed", range(3))
def test_the_account_closes_under_any_mix(run: Run, seed: int) -> None:
    """Random misbehaviour on every connection, more requests than the queue takes, one dead upstream in the pool."""
    dice = random.Random(seed)
    scripts = [m[0] for m in MISBEHAVIOUR] + [lambda peer: peer.serve()] * 6

    def script(peer: Peer) -> None:
        for _ in range(dice.randrange(4)):
            if not peer.request():
                return
            peer.send(OK)
        dice.choice(scripts)(peer)

    async def main() -> None:
        settings = {**QUICK, "timeout_s": 0.1, "queue_timeout_s": 0.15, "max_connections": 4, "queue_entries": 20}
        client = Client([server.address, address, server2.address], **settings)
        for n in range(400):
            client.submit(n, make_request(f"/{n}", body=b"x" * dice.choice([0, 0, 100, 300_000])))
            if n % 7 == 0:
                await asyncio.sleep(0.005)
        await client.replayer.drain(dice.choice([0.0, 0.1, 5.0]))
        client.check()
        assert len(client.results) + len(client.refused) == 400

    taken, address = closed_port()
    with taken, ScriptedServer(script) as server, ScriptedServer(script) as server2:
        run(main())
