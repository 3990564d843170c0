"""Upstreams out of the DNS, against a name server on loopback that also fails in every way."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.discovery import dns as module
from agent.discovery.dns import Dns
from agent.discovery.settings import AGAIN_MAX_S, AGAIN_MIN_S, UPSTREAMS_MAX, DnsSource, Found
from replay.balancer.settings import UpstreamSpec

NAME, SERVICE = "shadow.example", "_http._tcp.shadow.example"
Fault = Callable[[dns.message.Message], bytes | None]  # the answer's bytes; None for silence


class NameServer:
    """Answers from `records` by UDP and TCP on one port, or as `fault` says."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}  # (name, type) -> seconds to live, data
        self.faults: dict[str, Fault] = {}  # by type, or "" for all
        self.asked: list[tuple[str, str]] = []
        self._udp, self._tcp = _both_sockets()
        self.address = "{}:{}".format(*self._udp.getsockname())
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def set(self, name: str, kind: str, *data: str, ttl_s: int = 60) -> None:
        self.records[name + ".", kind] = (ttl_s, list(data))

    def drop(self, *names: str) -> None:
        self.records = {key: value for key, value in self.records.items() if key[0].rstrip(".") not in names}

    def told(self) -> list[tuple[str, str]]:
        asked, self.asked = self.asked, []
        return asked

    def close(self) -> None:
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                data, client = self._udp.recvfrom(65535)
                if (answer := self._answer(data, tcp=False)) is not None:
                    self._udp.sendto(answer, client)
            except OSError:
                return

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                (length,) = struct.unpack("!H", file.read(2))
                answer = self._answer(file.read(length), tcp=True)
                connection.sendall(struct.pack("!H", len(answer or b"")) + (answer or b""))

    def _answer(self, data: bytes, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(), question.rdtype.name
        self.asked.append((name.rstrip("."), kind))
        if fault := self.faults.get(kind) or self.faults.get(""):
            return fault(query)
        answer = dns.message.make_response(query)
        if (name, kind) in self.records:
            ttl_s, texts = self.records[name, kind]
            answer.answer.append(dns.rrset.from_text_list(name, ttl_s, "IN", kind, texts))
        elif name not in {known for known, _ in self.records}:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        wire = answer.to_wire(max_size=65535)
        if len(wire) > 512 and not tcp:
            answer.answer.clear()
            answer.flags |= dns.flags.TC
            wire = answer.to_wire()
        return wire


def _both_sockets() -> tuple[socket.socket, socket.socket]:
    for _ in range(20):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            tcp.bind(udp.getsockname())
        except OSError:
            udp.close()
            tcp.close()
            continue
        tcp.listen()
        return udp, tcp
    raise RuntimeError("no port that is free for both protocols")


def refusing(code: dns.rcode.Rcode) -> Fault:
    def fault(query: dns.message.Message) -> bytes:
        answer = dns.message.make_response(query)
        answer.set_rcode(code)
        return answer.to_wire()

    return fault


def silent(query: dns.message.Message) -> None:
    return None


def garbage(query: dns.message.Message) -> bytes:
    return b"\x00\x01 this is not the DNS \xff" * 3


def garbage_inside(query: dns.message.Message) -> bytes:
    """The head is right; what follows points behind the end."""
    return dns.message.make_response(query).to_wire()[:12] + b"\xc0\xff\xff\xff\xc0\x0c" * 4


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUESTION_S", 0.25)


def source(server: NameServer, clock: Clock, name: str = NAME, port: int = 8080, kind: str = "auto") -> Dns:
    return Dns(DnsSource(name, port, kind, (server.address,)), clock)


def addresses(found: Found) -> list[str]:
    return [each.address for each in found.upstreams]


def test_both_families_make_the_pool(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", "192.0.2.2", "192.0.2.1")
    server.set(NAME, "AAAA", "2001:db8::1")
    found = source(server, clock).look()
    expected = tuple(map(UpstreamSpec, ["192.0.2.1:8080", "192.0.2.2:8080", "[2001:db8::1]:8080"]))
    assert found == Found(expected, 60.0, "")


@pytest.mark.parametrize(("kind", "expected"), [("A", "192.0.2.1:80"), ("AAAA", "[2001:db8::1]:80")])
def test_one_family_can_be_asked_for(server: NameServer, clock: Clock, kind: str, expected: str) -> None:
    server.set(NAME, "A", "192.0.2.1")
    server.set(NAME, "AAAA", "2001:db8::1")
    assert addresses(source(server, clock, port=80, kind=kind).look()) == [expected]
    assert server.told() == [(NAME, kind)]


def test_one_family_is_enough(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", "192.0.2.1")
    found = source(server, clock).look()
    assert (addresses(found), found.problem) == (["192.0.2.1:8080"], "")


def test_an_alias_is_followed(server: NameServer, clock: Clock) -> None:
    def alias(query: dns.message.Message) -> bytes:
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(NAME + ".", 7, "IN", "CNAME", "pool.example."))
        answer.answer.append(dns.rrset.from_text("pool.example.", 90, "IN", "A", "192.0.2.7"))
        return answer.to_wire()

    server.faults["A"] = alias
    found = source(server, clock, kind="A").look()
    assert found == Found((UpstreamSpec("192.0.2.7:8080"),), 7.0, "")


def test_the_order_of_records_makes_no_difference(server: NameServer, clock: Clock) -> None:
    dns_source = source(server, clock, kind="A")
    server.set(NAME, "A", "192.0.2.1", "192.0.2.2", "192.0.2.3")
    first = dns_source.look()
    server.set(NAME, "A", "192.0.2.3", "192.0.2.1", "192.0.2.2")
    clock.now_s += 60
    assert dns_source.look() == first


def test_the_time_to_live_says_when_to_ask_again(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", "192.0.2.1", ttl_s=30)
    server.set(NAME, "AAAA", "2001:db8::1", ttl_s=45)
    dns_source = source(server, clock)
    assert dns_source.look().again_in_s == 30
    server.told()
    server.set(NAME, "A", "192.0.2.9", ttl_s=30)
    clock.now_s += 29
    assert "192.0.2.1:8080" in addresses(dns_source.look())
    assert server.told() == []
    clock.now_s += 1
    found = dns_source.look()
    assert (addresses(found)[0], found.again_in_s) == ("192.0.2.9:8080", 15)
    assert server.told() == [(NAME, "A")]


@pytest.mark.parametrize(("ttl_s", "again_in_s"), [(0, AGAIN_MIN_S), (86_400, AGAIN_MAX_S)])
def test_the_time_to_live_is_bounded(server: NameServer, clock: Clock, ttl_s: int, again_in_s: float) -> None:
    server.set(NAME, "A", "192.0.2.1", ttl_s=ttl_s)
    assert source(server, clock, kind="A").look().again_in_s == again_in_s


def test_services_bring_port_and_weight(server: NameServer, clock: Clock) -> None:
    server.set(SERVICE, "SRV", "10 30 8001 a.example.", "10 10 8002 b.example.", "20 90 8003 spare.example.")
    server.set("a.example", "A", "192.0.2.1", "192.0.2.2")
    server.set("b.example", "A", "192.0.2.3")
    found = source(server, clock, SERVICE, port=0).look()
    assert found.problem == ""
    assert found.upstreams == (
        UpstreamSpec("192.0.2.1:8001", 30),
        UpstreamSpec("192.0.2.2:8001", 30),
        UpstreamSpec("192.0.2.3:8002", 10),
    )
    assert ("spare.example", "A") not in server.asked


def test_a_service_without_an_underscore_has_to_be_said(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "SRV", "0 0 81 a.example.")
    server.set("a.example", "A", "192.0.2.1")
    assert addresses(source(server, clock, kind="SRV").look()) == ["192.0.2.1:81"]


def test_a_service_on_both_families_counts_once(server: NameServer, clock: Clock) -> None:
    server.set(SERVICE, "SRV", "0 1 80 both.example.", "0 1 80 new.example.")
    server.set("both.example", "A", "192.0.2.1")
    server.set("both.example", "AAAA", "2001:db8::1")
    server.set("new.example", "AAAA", "2001:db8::2")
    found = source(server, clock, SERVICE).look()
    assert (addresses(found), found.problem) == (["192.0.2.1:80", "[2001:db8::2]:80"], "")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((0, 0), [1, 1]), ((0, 5), [1, 5]), ((65535, 6553), [1000, 100]), ((65535, 1), [1000, 1])],
)
def test_weights_fit_what_a_balancer_takes(
    server: NameServer, clock: Clock, weights: tuple[int, int], expected: list[int]
) -> None:
    server.set(SERVICE, "SRV", f"0 {weights[0]} 80 a.example.", f"0 {weights[1]} 80 b.example.")
    server.set("a.example", "A", "192.0.2.1")
    server.set("b.example", "A", "192.0.2.2")
    assert [each.weight for each in source(server, clock, SERVICE).look().upstreams] == expected


def test_a_service_that_is_not_offered_changes_nothing(server: NameServer, clock: Clock) -> None:
    server.set(SERVICE, "SRV", "0 0 80 a.example.")
    server.set("a.example", "A", "192.0.2.1")
    dns_source = source(server, clock, SERVICE)
    before = dns_source.look()
    server.set(SERVICE, "SRV", "0 0 0 .")
    clock.now_s += 60
    found = dns_source.look()
    assert found.upstreams == before.upstreams
    assert found.problem == "_http._tcp.shadow.example has no SRV record"


def test_a_target_that_is_gone_keeps_its_address(server: NameServer, clock: Clock) -> None:
    server.set(SERVICE, "SRV", "0 0 80 a.example.", "0 0 80 b.example.")
    server.set("a.example", "A", "192.0.2.1")
    server.set("b.example", "A", "192.0.2.2")
    dns_source = source(server, clock, SERVICE)
    before = dns_source.look()
    server.drop("b.example")
    server.set("a.example", "A", "192.0.2.7")
    clock.now_s += 60
    found = dns_source.look()
    assert addresses(before) == ["192.0.2.1:80", "192.0.2.2:80"]
    assert addresses(found) == ["192.0.2.2:80", "192.0.2.7:80"]
    assert found.problem == "b.example. does not exist (NXDOMAIN)"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (refusing(dns.rcode.NXDOMAIN), "shadow.example does not exist (NXDOMAIN)"),
        (refusing(dns.rcode.SERVFAIL), "shadow.example A: every nameserver fails: SERVFAIL"),
        (refusing(dns.rcode.REFUSED), "shadow.example A: every nameserver fails: REFUSED"),
        (refusing(dns.rcode.NOERROR), "shadow.example has no A record"),
        (silent, "shadow.example A: no nameserver answers within 0.25 s"),
        (garbage, "shadow.example A: no nameserver answers within 0.25 s"),
        (garbage_inside, "shadow.example A: no nameserver answers within 0.25 s"),
    ],
)
def test_a_failure_keeps_the_pool_and_is_told(server: NameServer, clock: Clock, fault: Fault, reason: str) -> None:
    server.faults["A"] = fault
    dns_source = source(server, clock, kind="A")
    at_first = dns_source.look()
    assert (at_first.upstreams, at_first.problem) == ((), reason)
    server.faults.clear()
    server.set(NAME, "A", "192.0.2.1")
    clock.now_s += AGAIN_MAX_S
    well = dns_source.look()
    assert (addresses(well), well.problem) == (["192.0.2.1:8080"], "")
    server.faults["A"] = fault
    clock.now_s += 60
    later = dns_source.look()
    assert (later.upstreams, later.problem) == (well.upstreams, reason)


def test_failures_are_asked_again_ever_later(server: NameServer, clock: Clock) -> None:
    server.faults["A"] = refusing(dns.rcode.SERVFAIL)
    dns_source = source(server, clock, kind="A")
    pauses = []
    for _ in range(7):
        pauses.append(dns_source.look().again_in_s)
        clock.now_s += pauses[-1]
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_nobody_there_at_all(clock: Clock) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    found = Dns(DnsSource(NAME, 80, "A", (f"127.0.0.1:{port}",)), clock).look()
    assert found.upstreams == ()
    assert found.problem.startswith("shadow.example A: ")


def test_one_family_that_fails_does_not_spoil_the_other(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", "192.0.2.1")
    server.faults["AAAA"] = refusing(dns.rcode.SERVFAIL)
    found = source(server, clock).look()
    assert addresses(found) == ["192.0.2.1:8080"]
    assert found.problem == "shadow.example AAAA: every nameserver fails: SERVFAIL"


def test_a_second_nameserver_stands_in(server: NameServer, clock: Clock) -> None:
    broken = NameServer()
    broken.faults[""] = refusing(dns.rcode.SERVFAIL)
    server.set(NAME, "A", "192.0.2.1")
    found = Dns(DnsSource(NAME, 80, "A", (broken.address, server.address)), clock).look()
    broken.close()
    assert (addresses(found), found.problem) == (["192.0.2.1:80"], "")


def test_an_answer_too_long_for_a_datagram_comes_by_tcp(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", *(f"192.0.2.{n}" for n in range(1, 201)))
    found = source(server, clock, kind="A").look()
    assert (len(found.upstreams), found.problem) == (200, "")
    assert len(server.told()) == 2


def test_a_pool_beyond_the_limit_is_cut(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", *(f"10.1.{n >> 8}.{n & 255}" for n in range(UPSTREAMS_MAX + 10)))
    found = source(server, clock, kind="A").look()
    assert len(found.upstreams) == UPSTREAMS_MAX
    assert "1034 upstreams are too many" in found.problem


def test_addresses_of_no_host_are_left_out(server: NameServer, clock: Clock) -> None:
    server.set(NAME, "A", "0.0.0.0", "224.0.0.1", "192.0.2.1")
    server.set(NAME, "AAAA", "::ffff:192.0.2.1", "::")
    found = source(server, clock).look()
    assert addresses(found) == ["192.0.2.1:8080"]
    assert "0.0.0.0 is not the address of one host" in found.problem


def test_a_port_zero_is_told(server: NameServer, clock: Clock) -> None:
    server.set(SERVICE, "SRV", "0 0 0 a.example.")
    server.set("a.example", "A", "192.0.2.1")
    found = source(server, clock, SERVICE).look()
    assert found.upstreams == ()
    assert "'0' is not a port" in found.problem


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example", "a." * 200, "\udc80", "", ".", "\0.example", "a\\b\\"])
def test_a_name_that_cannot_be_one_is_a_problem(server: NameServer, clock: Clock, name: str) -> None:
    found = source(server, clock, name, kind="A").look()
    assert found.upstreams == ()
    assert found.problem.isprintable()
    assert found.problem


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80))
def test_hostile_answers_are_problems(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """After a head and a question that fit, so that the rest is parsed."""

    def query(nameserver: object, request: dns.message.Message, **options: object) -> dns.message.Message:
        head = dns.message.make_response(request).to_wire()
        return dns.message.from_wire(head[:6] + b"\0\x02\0\x01\0\0" + head[12:] + data)

    monkeypatch.setattr("dns.nameserver.Do53Nameserver.query", query)
    found = Dns(DnsSource(SERVICE, nameservers=("127.0.0.1",)), Clock()).look()
    assert found.upstreams == ()
    assert found.problem


@pytest.mark.parametrize(
    "content", [None, "", "nameserver\n", "nameserver not-an-address\n", "search ..\nnameserver 127.0.0.1\n"]
)
def test_a_system_without_nameservers_is_a_problem(
    content: str | None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    if content is not None:
        path.write_text(content)
    read = module.dns.resolver.Resolver.read_resolv_conf
    monkeypatch.setattr("dns.resolver.Resolver.read_resolv_conf", lambda self, _: read(self, str(path)))
    found = Dns(DnsSource(NAME, 80, "A"), Clock()).look()
    assert found.upstreams == ()
    assert found.problem.startswith("shadow.example A: ")


def test_names_are_relative_to_the_systems_domains(
    server: NameServer, clock: Clock, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    path.write_text("search prod.example\nnameserver 127.0.0.1\n")
    resolver_of = module.dns.resolver.Resolver

    def configured(configure: bool) -> dns.resolver.Resolver:
        made = resolver_of(str(path))
        made.port = int(server.address.partition(":")[2])
        return made

    monkeypatch.setattr(module.dns.resolver, "Resolver", configured)
    server.set("shadow.prod.example", "A", "192.0.2.1")
    found = Dns(DnsSource("shadow", 80, "A"), clock).look()
    assert (addresses(found), found.problem) == (["192.0.2.1:80"], "")
