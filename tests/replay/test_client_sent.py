"""Where somebody knows better when a request left: whose word counts, what is asked for, and what is not believed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from replay.balancer.engine import Embedded
from replay.client import Replayer, ReplaySettings
from replay.exchange import Answer
from replay.job import key_of
from tests.replay.harness import Client, Run, make_request, run
from tests.replay.scripted_server import OK, Peer, ScriptedServer

__all__ = ["run"]  # the fixture
Word = Callable[[int], int]


class Kernel:
    """Knows the time that `word` makes of the one it is asked about."""

    def __init__(self, word: Word) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self._word = word

    def sent_ns(self, key: bytes, not_before_ns: int) -> int:
        self.asked.append((key, not_before_ns))
        return self._word(not_before_ns)


def serve(peer: Peer) -> None:
    while peer.request():
        peer.pause(0.01)
        peer.send(OK)


def key(ends: list[tuple[str, int]]) -> bytes:
    family = socket.AF_INET6 if ":" in ends[0][0] else socket.AF_INET
    addresses = b"".join(socket.inet_pton(family, host) for host, _ in ends)
    return addresses + b"".join(port.to_bytes(2, "big") for _, port in ends)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernels_word_counts_and_the_connection_is_named_as_its_packets_are(run: Run, host: str) -> None:
    kernel = Kernel(lambda t_ns: t_ns + 777)
    clients: list[tuple[str, int]] = []

    def script(peer: Peer) -> None:
        clients.append(peer.sock.getpeername()[:2])
        serve(peer)

    async def main() -> None:
        async with Client(server.address) as client:
            client.replayer.sent_times = kernel
            outcomes = [await client.send() for _ in range(2)]
            assert [outcome.t_sent_ns for outcome in outcomes] == [t_ns + 777 for _, t_ns in kernel.asked]
            assert client.counters.kernel_sent == 2
            latencies = [outcome.t_last_ns - outcome.t_sent_ns for outcome in outcomes]
            assert client.counters.latency_sum_ns == sum(latencies)

    with ScriptedServer(script, place=host) as server:
        run(main())
    name, _, port = server.address.rpartition(":")
    wanted = key([clients[0], (name.strip("[]"), int(port))])
    assert [asked for asked, _ in kernel.asked] == [wanted] * 2, "on a connection that was kept, too"


def test_where_nobody_knows_this_process_clock_counts(run: Run) -> None:
    kernel = Kernel(lambda t_ns: 0)

    async def main() -> None:
        async with Client(server.address) as client:
            client.replayer.sent_times = kernel
            outcome = await client.send()
            assert outcome.t_sent_ns == kernel.asked[0][1]
            assert client.counters.kernel_sent == 0

    with ScriptedServer(serve) as server:
        run(main())


def test_what_left_after_the_answer_began_was_not_the_requests_beginning(run: Run) -> None:
    """An upstream that answers while a large request is still being sent makes the rest look like another one."""
    kernel = Kernel(lambda t_ns: time.time_ns())

    async def main() -> None:
        async with Client(server.address) as client:
            client.replayer.sent_times = kernel
            outcome = await client.send()
            assert outcome.t_sent_ns == kernel.asked[0][1]
            assert client.counters.kernel_sent == 0

    with ScriptedServer(serve) as server:
        run(main())


def test_a_request_without_an_answer_has_the_kernels_time_too(run: Run) -> None:
    kernel = Kernel(lambda t_ns: t_ns + 5)

    async def main() -> None:
        async with Client(server.address, timeout_s=0.05) as client:
            client.replayer.sent_times = kernel
            outcome = await client.send()
            assert (outcome.answer, outcome.t_sent_ns) == (Answer.TIMEOUT, kernel.asked[0][1] + 5)

    with ScriptedServer(lambda peer: peer.hold()) as server:
        run(main())


def test_nobody_is_asked_about_what_was_not_sent_or_has_no_packets(run: Run, tmp_path: Path) -> None:
    kernel = Kernel(lambda t_ns: t_ns + 5)

    async def main(address: str, answer: Answer) -> None:
        async with Client(address) as client:
            client.replayer.sent_times = kernel
            assert (await client.send()).answer is answer
            assert client.counters.kernel_sent == 0

    with ScriptedServer(serve, place=tmp_path / "sock") as server:
        run(main(server.address, Answer.OK))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    run(main(address, Answer.CONNECT))
    assert kernel.asked == []


def test_it_is_given_to_the_replayer_when_that_is_made() -> None:
    kernel = Kernel(lambda t_ns: 0)

    async def main() -> None:
        made = Replayer(
            asyncio.get_running_loop(), Embedded([]), ReplaySettings(), lambda token, result: None, sent_times=kernel
        )
        assert made.sent_times is kernel
        made.close()

    asyncio.run(main())


def test_a_mapped_address_sends_ipv4_packets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        port = server.getsockname()[1]
        client.connect(("::ffff:127.0.0.1", port))
        assert key_of(client) == key([("127.0.0.1", client.getsockname()[1]), ("127.0.0.1", port)])


def test_a_socket_that_is_not_connected_has_no_key() -> None:
    with socket.socket() as unconnected, socket.socket(socket.AF_UNIX) as unix:
        assert key_of(unconnected) == key_of(unix) == b""


def test_requests_of_every_size_are_named_alike(run: Run) -> None:
    kernel = Kernel(lambda t_ns: t_ns + 1)

    async def main() -> None:
        async with Client(server.address) as client:
            client.replayer.sent_times = kernel
            for size in (0, 1, 3_000_000):
                outcome = await client.send(make_request(method="POST", body=b"x" * size))
                assert outcome.answer is Answer.OK
            assert client.counters.kernel_sent == 3

    with ScriptedServer(serve) as server:
        run(main())
