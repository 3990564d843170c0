"""The replay client over TLS: what it speaks, what it refuses and why; and times are the segments' all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from pathlib import Path

import pytest

from replay.balancer.settings import HOST, TlsSettings
from replay.balancer.upstream import Transport
from replay.exchange import Answer, Outcome
from replay.tls import make_context
from tests.replay.harness import QUICK, Client, From, Run, make_request, run
from tests.replay.scripted_server import OK, Peer, Script, ScriptedServer
from tests.replay.test_tls import NAME, VERSIONS, OpenSsl, client_context, files, open_ssl, server_context

__all__ = ["files", "open_ssl", "run"]  # fixtures

SHOP = make_request(headers=b"Host: Shop.Example:8443\r\n")
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"


def over_tls(server_name: str = HOST, context: ssl.SSLContext | None = None, *, proxied: bool = False) -> Transport:
    return Transport(context or client_context(), server_name, proxied)


def serve(peer: Peer) -> None:
    peer.serve()


def secure_server(script: Script = serve, kind: str = "good", version: str = "TLSv1.3") -> ScriptedServer:
    return ScriptedServer(script, tls=server_context(kind, version))


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_requests_share_a_connection_and_say_what_was_agreed_on(run: Run, version: str) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls()) as client:
            for _ in range(3):
                outcome = await client.send(SHOP)
                assert (outcome.answer, outcome.status, outcome.body) == (Answer.OK, 200, b"ok")
                assert outcome.tls.startswith(f"{version} ") and len(outcome.tls.split()) == 2
                assert outcome.tls_not_after_s == 32_503_680_000  # trustme's default: the year 3000
            assert client.counters.connects == 1

    with secure_server(version=version) as server:
        run(main())
    assert server.requests == [SHOP.head[:-2] + b"X-Shadowtap: 1\r\n\r\n"] * 3


def test_each_name_has_connections_of_its_own(run: Run) -> None:
    names: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda tls, name, _: names.append(name)

    async def main() -> None:
        async with Client(server.address, transport=over_tls(context=client_context(verify=False))) as client:
            for host in (b"a.example", b"b.example", b"a.example:443", b"B.EXAMPLE."):
                assert (await client.send(make_request(headers=b"Host: %b\r\n" % host))).answer is Answer.OK
            assert client.counters.connects == 2

    with ScriptedServer(serve, tls=context) as server:
        run(main())
    assert names == ["a.example", "b.example"]


@pytest.mark.parametrize(("server_name", "told"), [("one.example", "one.example"), ("", None)])
def test_a_name_that_is_set_is_for_all(run: Run, server_name: str, told: str | None) -> None:
    names: list[str | None] = []
    context = server_context()
    context.sni_callback = lambda tls, name, _: names.append(name)
    transport = over_tls(server_name, client_context(verify=False))

    async def main() -> None:
        async with Client(server.address, transport=transport) as client:
            for host in (b"a.example", b"b.example"):
                assert (await client.send(make_request(headers=b"Host: %b\r\n" % host))).answer is Answer.OK
            assert client.counters.connects == 1

    with ScriptedServer(serve, tls=context) as server:
        run(main())
    assert names == [told]


# What is refused


@pytest.mark.parametrize("version", sorted(VERSIONS))
@pytest.mark.parametrize(
    ("kind", "host", "detail"),
    [
        ("expired", NAME, "certificate verify failed: certificate has expired"),
        ("unknown authority", NAME, "certificate verify failed: unable to get local issuer certificate"),
        ("self-signed", NAME, "Hostname mismatch"),
        ("good", "other.example", "certificate is not valid for 'other.example'."),
        ("good", "192.0.2.8", "IP address mismatch, certificate is not valid for '192.0.2.8'."),
    ],
)
def test_a_certificate_that_is_refused_is_an_answer(run: Run, version: str, kind: str, host: str, detail: str) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls()) as client:
            outcome = await client.send(make_request(headers=b"Host: %b\r\n" % host.encode()))
            assert (outcome.answer, outcome.status, outcome.t_sent_ns, outcome.tls) == (Answer.TLS, 0, 0, "")
            assert detail in outcome.detail
            assert (client.counters.tls_failures, client.counters.open_connections) == (1, 0)
            assert client.upstreams[0].failures == 0, "it can be connected to"

    with secure_server(kind=kind, version=version) as server:
        run(main())
    assert server.requests == []
    assert "ALERT" in server.tls_errors[0], "the server was told"


def test_without_verification_any_certificate_will_do(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls(context=client_context(verify=False))) as client:
            assert (await client.send(SHOP)).answer is Answer.OK

    with secure_server(kind="expired") as server:
        run(main())


@pytest.mark.parametrize("host", [b"a..b", b"x" * 64 + b".example"])
def test_a_host_that_is_no_server_name_is_an_answer_at_once(run: Run, host: bytes) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls(), connect_timeout_s=30) as client:
            outcome = await asyncio.wait_for(client.send(make_request(headers=b"Host: %b\r\n" % host)), 5)
            assert outcome.answer is Answer.TLS
            assert outcome.detail.endswith("is not a server name")
            assert (await client.send(SHOP)).answer is Answer.OK

    with secure_server() as server:
        run(main())


def speaks_http(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.hold()


def resets(peer: Peer) -> None:
    peer.sock.recv(100)
    peer.reset()


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (speaks_http, "wrong version number"),
        (lambda peer: peer.sock.recv(65536), "closed by the upstream inside the TLS handshake"),
        (resets, "connection reset by peer inside the TLS handshake"),
        (lambda peer: peer.hold(), "no TLS handshake within the time limit"),
    ],
)
def test_a_handshake_that_fails_is_an_answer(run: Run, script: Script, detail: str) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls(), **QUICK) as client:
            outcome = await client.send(SHOP)
            assert (outcome.answer, outcome.detail, outcome.t_sent_ns) == (Answer.TLS, detail, 0)
            assert (client.counters.tls_failures, client.counters.resends) == (1, 0)

    with ScriptedServer(script) as server:
        run(main())


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_a_client_certificate(run: Run, version: str, files: Path) -> None:
    """In TLS 1.3 the server judges it when the request has gone out already."""
    settings = TlsSettings(ca=str(files / "ca.pem"), certificate=str(files / "both.pem"))

    async def main() -> None:
        async with Client(server.address, transport=over_tls(context=make_context(settings)), **QUICK) as client:
            assert (await client.send(SHOP)).answer is Answer.OK
        async with Client(server.address, transport=over_tls(), **QUICK) as client:
            outcome = await client.send(SHOP)
            assert outcome.answer is Answer.TLS
            assert "alert" in outcome.detail
            assert client.counters.resends == 0

    with ScriptedServer(serve, tls=server_context(version=version, client_authority=True)) as server:
        run(main())
    assert len(server.requests) == 1


# Bodies and times


@pytest.mark.parametrize("coding", ["length", "chunked", "close"])
def test_large_bodies(run: Run, coding: str) -> None:
    size = 3 << 20
    data, sent = os.urandom(size), os.urandom(size)
    heads = {"length": b"Content-Length: %d\r\n" % size, "chunked": b"Transfer-Encoding: chunked\r\n", "close": b""}

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n" + heads[coding] + b"\r\n")
        peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, data) if coding == "chunked" else data)
        part(peer)

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            outcome = await client.send(make_request(method="POST", body=sent))
            assert (outcome.answer, outcome.body_bytes) == (Answer.OK, size)
            assert outcome.body == data[: 1 << 20]

    with ScriptedServer(script, receive_buffer=32768, tls=server_context()) as server:
        run(main())
    assert server.requests[0].partition(b"\r\n\r\n")[2] == sent


def test_times_are_the_kernels_and_in_order(run: Run) -> None:
    """The loop is kept busy while the pieces of the answer wait in the socket."""

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(OK[:-1])
            peer.pause(0.05)
            peer.send(OK[-1:])

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            fallbacks = -1
            while fallbacks < client.counters.clock_fallbacks:  # the kernel begins to stamp packets after a moment
                fallbacks = client.counters.clock_fallbacks
                await client.send()
            client.submit("late")
            await asyncio.sleep(0.02)  # until the first piece is read
            time.sleep(0.3)
            outcome = await client.result("late")
            assert isinstance(outcome, Outcome)
            assert outcome.t_queued_ns <= outcome.t_sent_ns <= outcome.t_first_ns < outcome.t_last_ns
            assert 30_000_000 < outcome.t_last_ns - outcome.t_first_ns < 200_000_000
            assert client.counters.clock_fallbacks == fallbacks

    with secure_server(script) as server:
        run(main())


def test_a_record_in_pieces_has_the_time_of_its_last(run: Run) -> None:
    """What is deciphered is known when the record is whole, and that is when it came."""
    context = server_context()

    def script(peer: Peer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        done = False
        while not done:
            incoming.write(peer.sock.recv(65536))
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            peer.send(outgoing.read())
        if not incoming.pending:
            peer.sock.recv(65536)
        tls.write(OK)
        record = outgoing.read()
        for at in range(0, len(record), 20):
            peer.send(record[at : at + 20])
            peer.pause(0.01)
        peer.hold()

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            outcome = await client.send()
            assert (outcome.answer, outcome.body) == (Answer.OK, b"ok")
            assert outcome.t_first_ns == outcome.t_last_ns
            assert outcome.t_first_ns - outcome.t_sent_ns > 20_000_000

    with ScriptedServer(script) as server:
        run(main())


# Ends


def part(peer: Peer) -> None:
    """close_notify, without waiting for the client's."""
    assert isinstance(peer.sock, ssl.SSLSocket)
    peer.sock.settimeout(0)
    with contextlib.suppress(OSError, ValueError):
        peer.sock.unwrap()


def says_goodbye(peer: Peer) -> None:
    peer.request()
    peer.send(UNTIL_CLOSE)
    part(peer)
    peer.pause(0.02)


def just_closes(peer: Peer) -> None:
    peer.request()
    peer.send(UNTIL_CLOSE)


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_a_body_until_close_is_whole_with_close_notify_alone(run: Run, version: str) -> None:
    """Without it, anybody on the way may have cut it (RFC 9112 section 9.8)."""

    async def main() -> None:
        for server, answer, detail in (
            (good, Answer.OK, ""),
            (cut, Answer.RESET, "closed by the upstream without a TLS close_notify after 5 bytes of content"),
        ):
            async with Client(server.address, transport=over_tls("")) as client:
                outcome = await client.send()
                assert (outcome.answer, outcome.body, outcome.detail) == (answer, b"hello", detail)

    with secure_server(says_goodbye, version=version) as good, secure_server(just_closes, version=version) as cut:
        run(main())


def test_a_length_needs_no_close_notify(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            for _ in range(3):
                assert (await client.send()).answer is Answer.OK
                await asyncio.sleep(0.05)
            assert (client.counters.connects, client.counters.idle_closed, client.counters.excess) == (3, 3, 0)

    with secure_server(script) as server:
        run(main())


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_close_notify_on_an_idle_connection_ends_it(run: Run, version: str) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.pause(0.02)
        part(peer)
        peer.pause(0.05)

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            for _ in range(2):
                assert (await client.send()).answer is Answer.OK
                await asyncio.sleep(0.06)
                assert client.counters.open_connections == 0
            assert (client.counters.idle_closed, client.counters.excess, client.counters.resends) == (2, 0, 0)

    with secure_server(script, version=version) as server:
        run(main())


def test_a_second_response_drops_the_idle_connection(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.pause()
        peer.send(OK)
        peer.hold()

    async def main() -> None:
        async with Client(server.address, transport=over_tls("")) as client:
            assert (await client.send()).answer is Answer.OK
            await asyncio.sleep(0.1)
            assert (client.counters.excess, client.counters.open_connections) == (1, 0)

    with secure_server(script) as server:
        run(main())


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_the_client_parts_in_order(run: Run, version: str) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls(""), keepalive_s=0.1) as client:
            await client.send()
            async with asyncio.timeout(5):
                while client.counters.open_connections:
                    await asyncio.sleep(0.02)

    with secure_server(version=version) as server:
        run(main())
    assert server.tls_errors == [], "its end came without close_notify"


def breaks_off(peer: Peer) -> None:
    """Something that is no record, in the place of an answer."""
    peer.request()
    os.write(peer.sock.fileno(), b"HTTP/1.1 200 OK\r\n\r\n")
    peer.pause(0.1)


@pytest.mark.parametrize(("method", "count"), [("GET", 2), ("POST", 1)])
def test_tls_that_breaks_after_the_request_may_have_done_what_it_asked_for(run: Run, method: str, count: int) -> None:
    async def main() -> None:
        addresses = [one.address, two.address]
        async with Client(addresses, transport=over_tls(""), retries=1, **QUICK) as client:
            outcome = await client.send(make_request(method=method))
            assert outcome.answer is Answer.TLS
            assert outcome.t_sent_ns
            assert client.counters.retries == count - 1

    with secure_server(breaks_off) as one, secure_server(breaks_off) as two:
        run(main())
    assert len(one.requests) + len(two.requests) == count


@pytest.mark.parametrize("open_ssl", [["-tls1_3"]], indirect=True)
def test_messages_of_tls_itself_do_not_end_an_idle_connection(open_ssl: OpenSsl) -> None:
    """As session tickets are, a key update is one; it comes when the server likes."""

    async def respond() -> None:
        for line in (b"HTTP/1.1 200 OK", b"Content-Length: 3", b"", b"ok"):
            open_ssl.say(line)
            await asyncio.sleep(0.02)  # it takes one line for each read

    async def main() -> None:
        async with Client(f"127.0.0.1:{open_ssl.port}", transport=over_tls("")) as client:
            for number in range(3):
                client.submit(number)
                await asyncio.sleep(0.1)
                await respond()
                outcome = await client.result(number)
                assert isinstance(outcome, Outcome)
                assert (outcome.answer, outcome.body) == (Answer.OK, b"ok\n")
                open_ssl.say(b"k")
                await asyncio.sleep(0.05)
                assert client.counters.open_connections == 1
            assert (client.counters.connects, client.counters.excess, client.counters.idle_closed) == (1, 0, 0)

    asyncio.run(main())


def test_behind_a_proxy_header(run: Run) -> None:
    async def main() -> None:
        async with Client(server.address, transport=over_tls(proxied=True)) as client:
            for port in (1, 2, 1):
                outcome = await client.send(SHOP, origin=From(f"198.51.100.1:{port}"))
                assert outcome.answer is Answer.OK
            assert client.counters.connects == 2

    with ScriptedServer(serve, tls=server_context(), proxied=True) as server:
        run(main())
    assert len(server.proxy_headers) == 2
