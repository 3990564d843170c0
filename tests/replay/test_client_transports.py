"""The ways to an upstream: Unix sockets, IPv6, PROXY headers, X-Forwarded-For, and a balancer program's own header."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.select.client_address import ProxyHeader, parse_proxy_header
from replay.balancer.derive.change import HEADER
from replay.balancer.derive.haproxy_via import parse_via
from replay.balancer.upstream import Transport
from replay.exchange import Answer, Dropped
from replay.proxy_header import LOCAL
from tests.replay.harness import QUICK, Client, From, Run, answers, make_request, run
from tests.replay.scripted_server import OK, Peer, ScriptedServer

__all__ = ["run"]  # the fixture

PROXIED = Transport(proxy_protocol=True)
FORWARDED = Transport(forwarded_for=True)
ANN, BOB, EVE = (From(f"198.51.100.{number}:5555") for number in (1, 2, 3))


def serve(peer: Peer) -> None:
    peer.serve()


def serve_slowly(peer: Peer) -> None:
    while peer.request():
        peer.pause(0.03)
        peer.send(OK)


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a Unix socket; pytest's own directories may be too long for one."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "s")


# Unix sockets and IPv6


def test_a_unix_socket(run: Run, path: Path) -> None:
    async def main() -> None:
        async with Client(server.address) as client:
            for number in range(3):
                outcome = await client.send(make_request(f"/{number}", body=b"abc"))
                assert (outcome.answer, outcome.status, outcome.body) == (Answer.OK, 200, b"ok")
                assert outcome.upstream == f"unix:{path}"
                assert outcome.t_queued_ns <= outcome.t_sent_ns < outcome.t_first_ns <= outcome.t_last_ns
            assert client.counters.connects == 1
            assert client.counters.clock_fallbacks == 3, "the kernel tells no receive time there"

    with ScriptedServer(serve, place=path) as server:
        run(main())
    assert [request.split()[1] for request in server.requests] == [b"/0", b"/1", b"/2"]


def test_large_bodies_over_a_unix_socket(run: Run, path: Path) -> None:
    data, sent = os.urandom(3 << 20), os.urandom(3 << 20)

    async def main() -> None:
        async with Client(server.address, body_limit_bytes=len(data)) as client:
            for _ in range(2):
                outcome = await client.send(make_request(method="POST", body=sent))
                assert (outcome.answer, outcome.body) == (Answer.OK, data)
            assert client.counters.connects == 1

    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
    with ScriptedServer(lambda peer: peer.serve(response), place=path) as server:
        run(main())
    assert [request.partition(b"\r\n\r\n")[2] == sent for request in server.requests] == [True, True]


@pytest.mark.parametrize(("left", "detail"), [(True, "connection refused"), (False, "no such file or directory")])
def test_a_unix_socket_without_a_server(run: Run, path: Path, left: bool, detail: str) -> None:
    async def main() -> None:
        async with Client(f"unix:{path}", **QUICK) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.detail, outcome.t_sent_ns) == (Answer.CONNECT, detail, 0)
            assert client.upstreams[0].failures == 1

    if left:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    run(main())


def test_a_unix_socket_that_nobody_accepts_at_is_the_shadows_fault(run: Run, path: Path) -> None:
    """The kernel says at once that the backlog is full, with the word that it has for our own shortages."""

    async def main() -> None:
        async with Client(f"unix:{path}", **QUICK) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.detail) == (Answer.CONNECT, "resource temporarily unavailable")
            assert (client.counters.connect_failures, client.counters.local_failures) == (1, 0)

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        run(main())


def test_ipv6(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address) as client:
            for _ in range(2):
                outcome = await client.send()
                assert (outcome.answer, outcome.upstream) == (Answer.OK, server.address)
            assert client.counters.connects == 1

    with ScriptedServer(serve, place="::1") as server:
        assert server.address.startswith("[::1]:")
        run(main())


def test_all_kinds_in_one_pool(run: Run, path: Path) -> None:
    async def main() -> None:
        addresses = [one.address, two.address, three.address]
        async with Client(addresses) as client:
            assert [(await client.send()).upstream for _ in range(6)] == addresses * 2

    with (
        ScriptedServer(serve) as one,
        ScriptedServer(serve, place="::1") as two,
        ScriptedServer(serve, place=path) as three,
    ):
        run(main())


# PROXY headers


def told(server: ScriptedServer) -> list[ProxyHeader]:
    """What the headers said, in the order of the connections."""
    found = [parse_proxy_header(header) for header in server.proxy_headers]
    assert all(isinstance(each, ProxyHeader) for each in found)
    return [each for each in found if isinstance(each, ProxyHeader)]


def test_a_connection_names_and_serves_one_client(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=PROXIED) as client:
            for origin in (ANN, BOB, ANN, EVE, BOB):
                assert (await client.send(origin=origin)).answer is Answer.OK
            assert (client.counters.connects, client.counters.evictions) == (3, 0)

    with ScriptedServer(serve, proxied=True) as server:
        run(main())
    assert [str(each.source) for each in told(server)] == ["198.51.100.1", "198.51.100.2", "198.51.100.3"]
    assert server.requests == [b"GET / HTTP/1.1\r\nHost: shop\r\nX-Shadowtap: 1\r\n\r\n"] * 5


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (From("[2001:db8::1]:5555", "[2001:db8::2]:80"), "2001:db8::1"),
        (From("[2001:db8::1]:5555", "192.0.2.1:80"), "2001:db8::1"),
        (From("192.0.2.1:5555", forwarded=ipaddress.ip_address("198.51.100.77")), "198.51.100.77"),
        (From("192.0.2.1:5555", forwarded=ipaddress.ip_address("2001:db8::77")), "2001:db8::77"),
    ],
)
def test_clients_of_every_kind(run: Run, origin: From, source: str) -> None:
    async def main() -> None:
        async with Client(server.address, transport=PROXIED) as client:
            assert (await client.send(origin=origin)).answer is Answer.OK

    with ScriptedServer(serve, proxied=True) as server:
        run(main())
    assert [str(each.source) for each in told(server)] == [source]


@pytest.mark.parametrize("origin", [None, From("unix:"), From("")])
def test_nobody_in_particular(run: Run, origin: From | None) -> None:
    async def main() -> None:
        async with Client(server.address, transport=PROXIED) as client:
            for _ in range(2):
                assert (await client.send(origin=origin)).answer is Answer.OK
            assert client.counters.connects == 1

    with ScriptedServer(serve, proxied=True) as server:
        run(main())
    assert server.proxy_headers == [LOCAL]


def test_at_the_limit_the_longest_unused_makes_room(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=PROXIED, max_connections=2) as client:
            for origin in (ANN, BOB):
                await client.send(origin=origin)
                await asyncio.sleep(0.2)  # the clock that tells which is older is coarse
            await client.send(origin=EVE)
            assert (client.counters.connects, client.counters.evictions) == (3, 1)
            await client.send(origin=BOB)
            assert client.counters.connects == 3, "it was not his that went"
            await client.send(origin=ANN)
            assert (client.counters.connects, client.counters.evictions) == (4, 2)
            assert client.counters.open_connections == 2

    with ScriptedServer(serve, proxied=True) as server:
        run(main())
    assert server.accepted == 4


def test_what_waits_is_served_whoever_it_is(run: Run) -> None:
    """One connection, three clients in turn: each is free for the next only once it is closed."""
    origins = [ANN, BOB, EVE] * 4

    async def main() -> None:
        async with Client(server.address, transport=PROXIED, max_connections=1) as client:
            for number, origin in enumerate(origins):
                assert client.submit(number, make_request(f"/{number}"), origin) is None
            await client.result(len(origins) - 1)
            assert answers(client) == [Answer.OK] * len(origins)
            assert list(client.results) == list(range(len(origins))), "in their order"
            assert client.counters.evictions == len(origins) - 1

    with ScriptedServer(serve_slowly, proxied=True) as server:
        run(main())
    assert [str(each.source) for each in told(server)] == ["198.51.100.1", "198.51.100.2", "198.51.100.3"] * 4


def test_nobody_is_served_on_anothers_connection(run: Run) -> None:
    """Many clients, few connections: each request names its client, and so does the connection that it came on."""
    clients = [From(f"198.51.100.{number}:5555") for number in range(1, 9)]
    mixed: list[tuple[str, bytes]] = []

    def script(peer: Peer) -> None:
        named = parse_proxy_header(peer.proxy_header)
        assert isinstance(named, ProxyHeader)
        while request := peer.request():
            mixed.append((str(named.source), request.split()[1]))
            peer.send(OK)

    async def main() -> None:
        async with Client(server.address, transport=PROXIED, max_connections=3, queue_entries=1000) as client:
            for number in range(200):
                origin = clients[number * 7 % len(clients)]
                assert client.submit(number, make_request(f"/{origin.client.partition(':')[0]}"), origin) is None
                if number % 5 == 0:
                    await asyncio.sleep(0.002)
            await client.replayer.drain(5)
            assert answers(client) == [Answer.OK] * 200

    with ScriptedServer(script, proxied=True) as server:
        run(main())
    assert len(mixed) == 200
    assert [f"/{source}".encode() for source, _ in mixed] == [target for _, target in mixed]


def test_a_full_queue_drops_whatever_key_it_has(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=PROXIED, max_connections=1, queue_entries=1, **QUICK) as client:
            reasons = [client.submit(number, origin=origin) for number, origin in enumerate((ANN, BOB, EVE))]
            assert reasons == [None, None, Dropped.QUEUE_FULL]
            await client.result(1)

    with ScriptedServer(serve_slowly, proxied=True) as server:
        run(main())


def test_a_dead_connection_is_made_anew_for_the_same_client(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        if peer.number == 0:
            peer.request()
            peer.reset()
        peer.serve()

    async def main() -> None:
        async with Client(server.address, transport=PROXIED) as client:
            assert [(await client.send(origin=ANN)).answer for _ in range(3)] == [Answer.OK] * 3
            assert (client.counters.resends, client.counters.connects) == (1, 2)

    with ScriptedServer(script, proxied=True) as server:
        run(main())
    assert server.proxy_headers[0] == server.proxy_headers[1] != LOCAL


# X-Forwarded-For


@pytest.mark.parametrize(
    ("headers", "origin", "added"),
    [
        (b"", ANN, b"X-Forwarded-For: 198.51.100.1\r\n"),
        (b"", From("[2001:db8::1]:5555"), b"X-Forwarded-For: 2001:db8::1\r\n"),
        (b"", From(forwarded=ipaddress.ip_address("192.0.2.77")), b"X-Forwarded-For: 192.0.2.77\r\n"),
        (b"X-Forwarded-For: 192.0.2.9\r\n", ANN, b"X-Forwarded-For: 198.51.100.1\r\n"),
        (b"x-forwarded-for: 192.0.2.9, 198.51.100.1\r\n", ANN, b""),
        (b"", From("unix:"), b""),
        (b"", None, b""),
    ],
)
def test_the_client_is_named_behind_the_mark(run: Run, headers: bytes, origin: From | None, added: bytes) -> None:
    request = make_request(headers=b"Host: shop\r\n" + headers, body=b"abc")

    async def main() -> None:
        async with Client(server.address, transport=FORWARDED) as client:
            await client.send(request, origin=origin)

    with ScriptedServer(serve) as server:
        run(main())
    assert server.requests == [request.head[:-2] + b"X-Shadowtap: 1\r\n" + added + b"\r\nabc"]


def test_the_client_is_named_without_a_mark(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=FORWARDED, mark_header="") as client:
            for origin in (ANN, BOB):
                await client.send(origin=origin)
            assert client.counters.connects == 1, "it binds no connection"

    with ScriptedServer(serve) as server:
        run(main())
    assert [request[-34:] for request in server.requests] == [
        b"\nX-Forwarded-For: 198.51.100.%d\r\n\r\n" % number for number in (1, 2)
    ]


# What a balancer program adds


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_programs_header_names_the_upstream_and_is_gone(run: Run, place: str) -> None:
    line = HEADER.encode() + b": app/web1 192.0.2.9:8080 3 12 40\r\n"
    response = (
        OK.replace(b"OK\r\n", b"OK\r\n" + line)
        if place == "first"
        else OK.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n")
    )
    transport = Transport(via_header=HEADER.lower().encode(), read_via=parse_via)

    async def main() -> None:
        async with Client(server.address, transport=transport) as client:
            for _ in range(2):
                outcome = await client.send()
                assert (outcome.upstream, outcome.queue_ns, outcome.connect_ns) == (
                    "192.0.2.9:8080",
                    3 * 10**6,
                    12 * 10**6,
                )
                assert (outcome.head, outcome.body) == (OK[:-2], b"ok")
            assert client.counters.connects == 1

    with ScriptedServer(lambda peer: peer.serve(response)) as server:
        run(main())
