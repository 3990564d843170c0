"""PROXY headers on live traffic: a balancer in front names the client once, and each request of the connection is his.

The lab's HAProxy speaks no PROXY protocol to its clients, so a small server of our own stands beside it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest

from agent.select import sampling
from tests.e2e.agent_process import Agent, Settings, running, until
from vagrant.lab import Lab

pytestmark = pytest.mark.root
PORT = 8081
QUIET_S = 0.3  # more than a request can be on its way
JOINED_S = 1.5  # more than a connection that is joined in the middle can be held back for its earliest byte
PAUSE_S = 0.01  # so that what is sent apart comes apart
SETTINGS: Settings = {"capture": {"ports": [PORT]}, "client": {"source": "proxy_protocol"}}

SERVER = """
import socket, sys, threading

V2 = b"\\r\\n\\r\\n\\0\\r\\nQUIT\\n"


def header_bytes(data):
    '''Of a PROXY header at the beginning; None while that is open.'''
    if V2.startswith(data[:12]):
        if len(data) < 16:
            return None
        end = 16 + int.from_bytes(data[14:16], "big")
        return end if len(data) >= end else None
    if b"PROXY ".startswith(data[:6]):
        end = data.find(b"\\r\\n")
        return end + 2 if end >= 0 else None
    return 0


def serve(connection):
    data, begun = b"", False
    while piece := connection.recv(65536):
        data += piece
        if not begun:
            skipped = header_bytes(data)
            if skipped is None:
                continue
            data, begun = data[skipped:], True
        while b"\\r\\n\\r\\n" in data:
            data = data.partition(b"\\r\\n\\r\\n")[2]
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")


listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MARK = "X-Shadow-Test: 1"


def v1(source: str) -> bytes:
    """A header in text."""
    family = "TCP6" if ":" in source else "TCP4"
    server = "2001:db8::1" if family == "TCP6" else "192.0.2.1"
    return f"PROXY {family} {source} {server} 4711 443\r\n".encode()


def v2(source: str, extra: bytes = b"") -> bytes:
    """A binary one; `extra` stands behind the addresses."""
    client = ipaddress.ip_address(source)
    server = ipaddress.ip_address("2001:db8::1" if client.version == 6 else "192.0.2.1")
    body = client.packed + server.packed + (4711).to_bytes(2, "big") + (443).to_bytes(2, "big") + extra
    family = b"\x21" if client.version == 6 else b"\x11"
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + family + len(body).to_bytes(2, "big") + body


V1_UNKNOWN = b"PROXY UNKNOWN\r\n"
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"
V2_EXTRA = b"\x04\x00\x03abc"  # a type-length-value, as many balancers add


class Talk(NamedTuple):
    """One connection."""

    name: str
    client: str  # whom the agent is to take for the client
    header: bytes = b""
    apart: bool = False  # the header in segments of its own, else its last one holds the first request, too
    pieces: int = 1  # of the header, each in a segment
    pipelined: bool = False  # all requests in one segment


PEER = "10.77.1.2"
TALKS = (
    Talk("plain", PEER),
    Talk("v1", "8.8.8.8", v1("8.8.8.8")),
    Talk("v1-apart", "8.8.8.9", v1("8.8.8.9"), apart=True),
    Talk("v1-pieces", "8.8.8.10", v1("8.8.8.10"), pieces=5),
    Talk("v1-pieces-apart", "8.8.8.10", v1("8.8.8.10"), apart=True, pieces=5),
    Talk("v1-other", "9.9.9.9", v1("9.9.9.9")),
    Talk("v1-other-apart", "9.9.9.9", v1("9.9.9.9"), apart=True),
    Talk("v1-unknown", PEER, V1_UNKNOWN),
    Talk("v1-unknown-apart", PEER, V1_UNKNOWN, apart=True),
    Talk("v1-six", "2001:4860::8", v1("2001:4860::8"), apart=True),
    Talk("v1-pipelined", "8.8.8.11", v1("8.8.8.11"), pipelined=True),
    Talk("v2", "8.8.8.12", v2("8.8.8.12")),
    Talk("v2-apart", "8.8.8.13", v2("8.8.8.13"), apart=True),
    Talk("v2-pieces", "8.8.8.14", v2("8.8.8.14", V2_EXTRA), pieces=5),
    Talk("v2-bytes-apart", "8.8.8.14", v2("8.8.8.14", V2_EXTRA), apart=True, pieces=34),
    Talk("v2-extra", "8.8.8.15", v2("8.8.8.15", V2_EXTRA)),
    Talk("v2-other", "9.9.9.9", v2("9.9.9.9")),
    Talk("v2-local", PEER, V2_LOCAL),
    Talk("v2-local-apart", PEER, V2_LOCAL, apart=True),
    Talk("v2-six", "2001:4860::9", v2("2001:4860::9")),
    Talk("v2-pipelined-apart", "8.8.8.16", v2("8.8.8.16"), apart=True, pipelined=True),
    Talk("plain-pipelined", PEER, pipelined=True),
)
MARKED = (False, True, True, False, True, False)  # the requests of each connection
_rounds = itertools.count()


class Ask(NamedTuple):
    """A request that was made."""

    target: str
    client: str
    marked: bool


def request(target: str, marked: bool) -> bytes:
    mark = f"{MARK}\r\n" if marked else ""
    return f"GET {target} HTTP/1.1\r\nHost: shop\r\nUser-Agent: test\r\n{mark}\r\n".encode()


def converse(lab: Lab, talks: Sequence[Talk] = TALKS) -> list[Ask]:
    """Every connection, one after the other; targets are never used twice."""
    turn = next(_rounds)
    asks = []
    for talk in talks:
        made = [Ask(f"/{turn}/{talk.name}/{n}", talk.client, marked) for n, marked in enumerate(MARKED)]
        with connected(lab) as connection:
            say(connection, talk, [request(ask.target, ask.marked) for ask in made])
        asks += made
    return asks


@contextlib.contextmanager
def connected(lab: Lab) -> Iterator[socket.socket]:
    with lab.inside("client"):
        connection = socket.create_connection((lab.address("lb"), PORT), timeout=10)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def say(connection: socket.socket, talk: Talk, requests: list[bytes]) -> None:
    """Each request is sent when the one before it was answered, unless they are pipelined."""
    step = max(1, -(-len(talk.header) // talk.pieces))
    pieces = [talk.header[at : at + step] for at in range(0, len(talk.header), step)]
    lead = b"" if talk.apart or not pieces else pieces.pop()
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(PAUSE_S)
    for data in [b"".join(requests)] if talk.pipelined else requests:
        connection.sendall(lead + data)
        lead = b""
        expect(connection, data.count(b"\r\n\r\n"))


def expect(connection: socket.socket, answers: int) -> None:
    wanted, got = ANSWER * answers, b""
    while len(got) < len(wanted):
        piece = connection.recv(65536)
        assert piece, "the server closed"
        got += piece
    assert got == wanted


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> Iterator[None]:
    """Answers whatever comes, with a PROXY header before it or not."""
    script = lab.directory / "proxied.py"
    script.write_text(SERVER)
    argv = [sys.executable, str(script), lab.address("lb"), str(PORT)]
    process = lab.popen_in("lb", argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield
    process.kill()
    process.wait()
    process.stdout.close()


def within(client: str, network: str) -> bool:
    return ipaddress.ip_address(client) in ipaddress.ip_network(network)


def settled(agent: Agent, before: int, wanted: int, what: str) -> int:
    """How many requests the shadow got since it had got `before`, when no more can come."""
    until(lambda: agent.shadow() - before >= wanted, what=f"{what}: {wanted} requests")
    time.sleep(QUIET_S)
    return agent.shadow() - before


def played(agent: Agent, lab: Lab, criteria: str) -> list[Ask]:
    """All connections under these criteria; the requests they want. The shadow got so many, no more and no less."""
    agent.control("set", f"criteria={criteria}")
    before = agent.shadow()
    wanted = [ask for ask in converse(lab) if CASES[criteria](ask)]
    assert settled(agent, before, len(wanted), criteria) == len(wanted), criteria
    return wanted


# Criteria, and which requests they want.
CASES: dict[str, Callable[[Ask], bool]] = {
    "cidr:8.8.8.0/24": lambda ask: within(ask.client, "8.8.8.0/24"),
    "cidr:9.9.9.9": lambda ask: ask.client == "9.9.9.9",
    "cidr:2001:4860::/32": lambda ask: within(ask.client, "2001:4860::/32"),
    "cidr:10.77.1.0/24": lambda ask: ask.client == PEER,
    "cidr:192.0.2.0/24": lambda ask: False,  # where the client connected to, which the headers name too
    "not cidr:8.8.8.0/24": lambda ask: not within(ask.client, "8.8.8.0/24"),
    "random": lambda ask: True,
    # The kernel reads heads here, and a PROXY header comes first.
    "header:X-Shadow-Test": lambda ask: ask.marked,
    "cidr:8.8.8.0/24 and header:X-Shadow-Test": lambda ask: ask.marked and within(ask.client, "8.8.8.0/24"),
    "cidr:10.77.1.2 and header:X-Shadow-Test": lambda ask: ask.marked and ask.client == PEER,
    "not cidr:8.8.8.0/24 and header:X-Shadow-Test": lambda ask: ask.marked and not within(ask.client, "8.8.8.0/24"),
    'cidr:9.9.9.9 and path:~"/v[12].*/[0-2]$"': lambda ask: ask.client == "9.9.9.9" and ask.target[-1] < "3",
    "cidr:8.8.8.0/24 or header:X-Shadow-Test": lambda ask: ask.marked or within(ask.client, "8.8.8.0/24"),
}


def test_every_request_goes_by_the_client_that_the_header_names(lab: Lab) -> None:
    with running(lab, SETTINGS) as agent:
        wanted = [ask for criteria in CASES for ask in played(agent, lab, criteria)]
        ended = agent.stop()
    assert sorted(row["target"] for row in ended.rows()) == sorted(ask.target for ask in wanted)
    assert ended.status == 0 and ended.account.in_flight == 0
    assert ended.account.answers == {"ok": len(wanted)} and ended.account.replayed == len(wanted)
    assert ended.account.incomplete == {} and ended.account.dropped == {}


def test_the_kernel_still_leaves_unwanted_heads_of_connections_without_a_header(lab: Lab) -> None:
    plain = [talk for talk in TALKS if talk.name == "plain"] * 10
    named = [talk for talk in TALKS if talk.header and talk.client == "8.8.8.8"] * 10
    criteria = "cidr:8.8.8.0/24 and header:X-Shadow-Test"
    with running(lab, {**SETTINGS, "shadows": {"candidate": {"criteria": criteria}}}) as agent:
        converse(lab, plain)
        wanted = [ask.target for ask in converse(lab, named) if ask.marked]
        assert settled(agent, 0, len(wanted), criteria) == len(wanted)
        ended = agent.stop()
    assert sorted(row["target"] for row in ended.rows()) == sorted(wanted)
    unmarked = MARKED.count(False) * len(plain)
    assert ended.kernel["unmatched"] >= 2 * unmarked  # with their answers
    assert ended.account.seen < len(MARKED) * (len(plain) + len(named))


def test_many_connections_at_once(lab: Lab) -> None:
    """Their segments mix, and so do wanted and unwanted requests on each."""
    criteria, turn = "cidr:8.8.8.0/24 and header:X-Shadow-Test", next(_rounds)
    wanted = []
    with (
        running(lab, {**SETTINGS, "shadows": {"candidate": {"criteria": criteria}}}) as agent,
        contextlib.ExitStack() as stack,
    ):
        open_ones = [(talk, stack.enter_context(connected(lab))) for talk in TALKS * 5]
        for talk, connection in open_ones:
            connection.sendall(talk.header)
        for n, marked in enumerate(MARKED * 3):
            for place, (talk, connection) in enumerate(open_ones):
                target = f"/{turn}/{place}/{n}"
                connection.sendall(request(target, marked))
                if marked and within(talk.client, "8.8.8.0/24"):
                    wanted.append(target)
            for _, connection in open_ones:
                expect(connection, 1)
        assert settled(agent, 0, len(wanted), criteria) == len(wanted)
        ended = agent.stop()
    assert sorted(row["target"] for row in ended.rows()) == sorted(wanted)
    assert ended.account.in_flight == 0


def test_a_connection_keeps_its_client_when_the_criteria_change(lab: Lab) -> None:
    """Also on connections that were made before the change. (One without a header, whose beginning was left out, is of
    nobody known: its header might have been.)"""
    turn, expected = next(_rounds), []
    talks = [talk for talk in TALKS if talk.header and not talk.pipelined]
    steps = (
        "cidr:8.8.8.0/24",
        "header:X-Shadow-Test",
        "cidr:8.8.8.0/24 and header:X-Shadow-Test",
        "not cidr:8.8.8.0/24 and header:X-Shadow-Test",
        "cidr:10.77.1.0/24",
        "random",
    )
    with running(lab, SETTINGS) as agent, contextlib.ExitStack() as stack:
        agent.control("set", "criteria=cidr:10.77.1.2 and header:X-Shadow-Test")
        open_ones = [(talk, stack.enter_context(connected(lab))) for talk in talks]
        for talk, connection in open_ones:
            connection.sendall(talk.header)
        for step, criteria in enumerate(steps):
            agent.control("set", f"criteria={criteria}")
            before, wanted = agent.shadow(), []
            for n, marked in enumerate(MARKED):
                for talk, connection in open_ones:
                    ask = Ask(f"/{turn}/{step}/{talk.name}/{n}", talk.client, marked)
                    connection.sendall(request(ask.target, marked))
                    expect(connection, 1)
                    if CASES[criteria](ask):
                        wanted.append(ask.target)
            assert settled(agent, before, len(wanted), criteria) == len(wanted), criteria
            expected += wanted
            time.sleep(JOINED_S)  # requests are decided by the rule of when they are handed on
        ended = agent.stop()
    assert sorted(row["target"] for row in ended.rows()) == sorted(expected)


def test_a_percentage_of_clients_is_of_those_that_the_headers_name(lab: Lab) -> None:
    clients = [f"8.8.{n}.8" for n in range(40)]
    talks = [Talk(f"client-{n}", c, (v1 if n % 2 else v2)(c), apart=n % 3 == 0) for n, c in enumerate(clients)]
    shadow = {"percentage": 30, "sample_by": "client"}
    with running(lab, {**SETTINGS, "seed": 3, "shadows": {"candidate": shadow}}) as agent:
        taken = {c for c in clients if sampling.sampled(sampling.client_hash(c, 3), 300_000)}
        wanted = [ask.target for ask in converse(lab, talks) if ask.client in taken]
        assert 0 < len(taken) < len(clients)
        assert settled(agent, 0, len(wanted), "30 % of the clients") == len(wanted)
        ended = agent.stop()
    assert sorted(row["target"] for row in ended.rows()) == sorted(wanted)
    assert ended.account.skipped == {"unsampled": len(MARKED) * (len(clients) - len(taken))}
