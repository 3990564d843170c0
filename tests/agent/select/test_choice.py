"""The exact choice: coherent for what is taken as a whole, nested, the same everywhere, and said with its reason."""

from __future__ import annotations

import ipaddress
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.layout import PPM
from agent.select.choice import Choice, Rule, key_of
from agent.select.client_address import CONNECTION, PROXY_PROTOCOL, ClientAddress, client_address
from agent.select.language import parse
from agent.select.sampling import EVERYTHING, By, Window, client_hash, flow_hash, place_of, request_hash, value_hash
from replay.exchange import Exchange, Skipped
from tests.replay.examples import make_request

SEED = 4711
SERVER = "198.51.100.1:80"
PLAIN = ClientAddress(CONNECTION)
FORWARDED = client_address("X-Forwarded-For", ["192.0.2.0/24"])
EVERY = [(By.CONNECTION, ""), (By.CLIENT, ""), (By.REQUEST, ""), (By.HEADER, "x-user"), (By.COOKIE, "id")]
NOT_SAMPLED = Rule(methods=("GET",))


def asked(
    client: str = "192.0.2.1:5555", index: int = 0, headers: bytes = b"Host: a\r\n", method: str = "GET"
) -> Exchange:
    """One whole request."""
    return Exchange(client, SERVER, 7, index, make_request("/", method, headers=headers))


def choice(rule: Rule, seed: int = SEED, client: ClientAddress = PLAIN, *, in_kernel: bool = False) -> Choice:
    return Choice(rule, seed, client, in_kernel=in_kernel)


def share(by: By, name: str, from_ppm: int, to_ppm: int) -> Rule:
    return replace(NOT_SAMPLED, by=by, name=name, window=Window(from_ppm, to_ppm))


def varied(by: By, count: int = 4000) -> list[Exchange]:
    """Requests that differ in what is taken as a whole."""
    if by is By.CONNECTION:
        return [asked(f"192.0.2.1:{1024 + n}") for n in range(count)]
    if by is By.CLIENT:
        return [asked(f"10.0.{n >> 8}.{n & 255}:5555") for n in range(count)]
    if by is By.REQUEST:
        return [asked(f"192.0.2.1:{1024 + n % 40}", n // 40) for n in range(count)]
    line = b"X-User: u%d\r\n" if by is By.HEADER else b"Cookie: a=b; id=u%d\r\n"
    return [asked(headers=line % n) for n in range(count)]


def taken(rule: Rule, exchanges: list[Exchange], seed: int = SEED) -> set[int]:
    """The places in the list of those that are taken."""
    decide = choice(rule, seed)
    reasons = [decide(exchange) for exchange in exchanges]
    assert set(reasons) <= {None, Skipped.UNSAMPLED}
    return {n for n, reason in enumerate(reasons) if reason is None}


@pytest.mark.parametrize(("by", "name"), EVERY)
def test_the_share_is_what_it_says_and_lies_within_larger_ones(by: By, name: str) -> None:
    exchanges = varied(by)
    sizes = (10_000, 50_000, 200_000, 500_000)
    one, five, twenty, fifty = (taken(share(by, name, 0, ppm), exchanges) for ppm in sizes)
    assert one < five < twenty < fifty
    for found, ppm in zip((one, five, twenty, fifty), sizes, strict=True):
        expected = len(exchanges) * ppm / PPM
        assert abs(len(found) - expected) < 4.5 * (expected * (1 - ppm / PPM)) ** 0.5
    assert taken(share(by, name, 0, 0), exchanges) == set()
    assert taken(share(by, name, 0, PPM), exchanges) == set(range(len(exchanges)))


@pytest.mark.parametrize(("by", "name"), EVERY)
def test_exclusive_windows_share_nothing_and_leave_nothing(by: By, name: str) -> None:
    exchanges = varied(by)
    edges = (0, 100_000, 100_000, 400_000, PPM)
    windows = [taken(share(by, name, *edge), exchanges) for edge in itertools.pairwise(edges)]
    assert sum(map(len, windows)) == len(exchanges)
    assert set().union(*windows) == set(range(len(exchanges)))
    assert windows[1] == set() and all(windows[at] for at in (0, 2, 3))


@pytest.mark.parametrize(("by", "name"), EVERY)
def test_the_seed_alone_says_who(by: By, name: str) -> None:
    """Another worker, another host, another run: the same choice. Another seed: an independent one."""
    exchanges, rule = varied(by), share(by, name, 0, 200_000)
    first = taken(rule, exchanges)
    assert taken(replace(rule), varied(by)) == first
    other = taken(rule, exchanges, SEED + 1)
    assert abs(len(first & other) - len(exchanges) * 0.04) < 4.5 * (len(exchanges) * 0.04) ** 0.5


SAME = {
    By.CONNECTION: [asked(index=n, headers=b"X-User: %d\r\nCookie: id=%d\r\n" % (n, n)) for n in range(20)],
    By.CLIENT: [asked(f"192.0.2.1:{1024 + n}", n, b"X-User: %d\r\n" % n) for n in range(20)],
    By.REQUEST: [asked(index=3, headers=b"X-User: %d\r\n" % n) for n in range(20)],
    By.HEADER: [
        asked(f"192.0.2.{n}:{n + 1}", n, b"A: %d\r\nx-USER:  ann \r\nX-User: %d\r\n" % (n, n)) for n in range(20)
    ],
    By.COOKIE: [
        asked(f"192.0.2.{n}:{n + 1}", n, b'Cookie: a=%d; id="ann"; id=%d\r\nCookie: id=x\r\n' % (n, n))
        for n in range(20)
    ],
}


@pytest.mark.parametrize(("by", "name"), EVERY)
@pytest.mark.parametrize("seed", range(12))
def test_what_belongs_together_is_taken_or_left_together(by: By, name: str, seed: int) -> None:
    assert len(taken(share(by, name, 0, 500_000), SAME[by], seed)) in (0, 20)


@pytest.mark.parametrize(("by", "name"), EVERY)
def test_both_happen(by: By, name: str) -> None:
    found = {bool(taken(share(by, name, 0, 500_000), SAME[by], seed)) for seed in range(40)}
    assert found == {False, True}


def place(by: By, exchange: Exchange) -> int:
    """Computed without Choice."""
    connection = flow_hash(key_of(exchange.client, exchange.server), SEED)
    found = {
        By.CONNECTION: connection,
        By.CLIENT: client_hash(exchange.client.rpartition(":")[0].strip("[]"), SEED),
        By.REQUEST: request_hash(connection, exchange.index),
        By.HEADER: value_hash(b"ann", SEED),
        By.COOKIE: value_hash(b"ann", SEED),
    }
    return place_of(found[by])


@pytest.mark.parametrize(("by", "name"), EVERY)
@pytest.mark.parametrize("client", ["192.0.2.9:77", "[2001:db8::9]:77"])
def test_the_resolution_is_a_millionth(by: By, name: str, client: str) -> None:
    exchange = asked(client, 5, b'X-User: ann\r\nCookie: id="ann"\r\n')
    at = place(by, exchange)
    windows = [(at, at + 1), (0, at + 1), (at, PPM), (at + 1, PPM), (0, at), (at, at)]
    found = [choice(share(by, name, *window))(exchange) is None for window in windows]
    assert found == [True, True, True, False, False, False]


def test_requests_of_one_connection_are_chosen_one_by_one() -> None:
    exchanges = [asked(index=n) for n in range(2000)]
    assert abs(len(taken(share(By.REQUEST, "", 0, 250_000), exchanges)) - 500) < 4.5 * 375**0.5


@pytest.mark.parametrize(("by", "name"), EVERY[3:])
def test_who_carries_no_value_is_taken_by_connection(by: By, name: str) -> None:
    exchanges = [asked(f"192.0.2.1:{1024 + n}", n, b"X-Use: r\r\nCookie: ID=1; i=2\r\n") for n in range(500)]
    expected = taken(share(By.CONNECTION, "", 0, 500_000), exchanges)
    assert taken(share(by, name, 0, 500_000), exchanges) == expected
    assert 150 < len(expected) < 350
    empty = [asked(f"192.0.2.1:{1024 + n}", headers=b"X-User:\r\nCookie: id=\r\n") for n in range(100)]
    assert len(taken(share(by, name, 0, 500_000), empty)) in (0, 100), "an empty value is a value"


def test_a_headers_name_has_no_case_and_a_cookies_has() -> None:
    both = [asked(f"192.0.2.{n}:9", headers=b"X-uSeR: ann\r\nCookie: ID=ann\r\n") for n in range(100)]
    assert len(taken(share(By.HEADER, "x-user", 0, 500_000), both)) in (0, 100)
    assert len(taken(share(By.COOKIE, "ID", 0, 500_000), both)) in (0, 100)
    assert 20 < len(taken(share(By.COOKIE, "id", 0, 500_000), both)) < 80


@pytest.mark.parametrize(("by", "name"), EVERY)
def test_what_the_kernel_decided_is_not_asked_again(by: By, name: str) -> None:
    rule = share(by, name, 0, 0)
    expected = None if by in (By.CONNECTION, By.CLIENT) else Skipped.UNSAMPLED
    assert choice(rule, in_kernel=True)(asked()) is expected
    assert choice(rule)(asked()) is Skipped.UNSAMPLED


def test_the_client_is_the_one_that_the_settings_name() -> None:
    exchange = asked(headers=b"X-Forwarded-For: 203.0.113.9, 10.0.0.1\r\nx-forwarded-for: 192.0.2.77\r\n")
    stranger = asked("10.9.9.9:1", headers=b"X-Forwarded-For: 203.0.113.9\r\n")
    proxied = replace(asked("192.0.2.1:1"), forwarded=ipaddress.ip_address("203.0.113.5"))
    mapped = asked("[::ffff:203.0.113.6]:1")
    found = [
        choice(NOT_SAMPLED, client=PLAIN).client(exchange),
        choice(NOT_SAMPLED, client=FORWARDED).client(exchange),
        choice(NOT_SAMPLED, client=FORWARDED).client(stranger),
        choice(NOT_SAMPLED, client=ClientAddress(PROXY_PROTOCOL)).client(proxied),
        choice(NOT_SAMPLED).client(mapped),
    ]
    assert list(map(str, found)) == ["192.0.2.1", "10.0.0.1", "10.9.9.9", "203.0.113.5", "203.0.113.6"]


def test_a_clients_share_goes_by_the_client_behind_the_proxy() -> None:
    rule = share(By.CLIENT, "", 0, 500_000)
    behind = [asked(f"192.0.2.{n}:{n + 1}", headers=b"X-Forwarded-For: 203.0.113.9\r\n") for n in range(100)]
    decide = choice(rule, client=FORWARDED)
    (reason,) = {decide(exchange) for exchange in behind}
    assert reason is choice(rule)(asked("203.0.113.9:1"))
    one_proxy = [asked("192.0.2.1:9", headers=b"X-Forwarded-For: 203.0.113.%d\r\n" % n) for n in range(100)]
    assert 20 < sum(decide(exchange) is None for exchange in one_proxy) < 80


def test_criteria_see_the_client_behind_the_proxy() -> None:
    def locate(address: object) -> frozenset[str]:
        return frozenset({"DE"}) if str(address) == "203.0.113.9" else frozenset()

    for text in ("cidr:203.0.113.0/24", "geo:DE"):
        rule = replace(NOT_SAMPLED, criteria=parse(text))
        exchange = asked(headers=b"X-Forwarded-For: 203.0.113.9\r\n")
        assert Choice(rule, SEED, FORWARDED, locate)(exchange) is None
        assert Choice(rule, SEED, PLAIN, locate)(exchange) is Skipped.CRITERIA


@pytest.mark.parametrize(
    ("rule", "exchange", "why"),
    [
        (NOT_SAMPLED, asked(), None),
        (replace(NOT_SAMPLED, enabled=False, criteria=parse("header:No")), asked(), Skipped.DISABLED),
        (replace(NOT_SAMPLED, criteria=parse("header:No"), window=Window(0, 0)), asked(), Skipped.CRITERIA),
        (replace(NOT_SAMPLED, window=Window(0, 0), dry_run=True), asked(), Skipped.UNSAMPLED),
        (replace(NOT_SAMPLED, dry_run=True), asked(method="CONNECT"), Skipped.DRY_RUN),
        (NOT_SAMPLED, asked(method="CONNECT"), Skipped.TUNNEL),
        (replace(NOT_SAMPLED, mark=b"X-M: 1"), asked(headers=b"x-m: 1\r\n", method="PUT"), Skipped.METHOD),
        (replace(NOT_SAMPLED, mark=b"X-M: 1"), asked(headers=b"x-m: 1\r\n"), Skipped.SHADOW_TRAFFIC),
    ],
)
def test_the_first_reason_counts(rule: Rule, exchange: Exchange, why: Skipped | None) -> None:
    assert choice(rule)(exchange) is why


def test_criteria_come_before_the_percentage() -> None:
    """So a percentage is one of what the criteria want."""
    exchanges = [asked(f"192.0.2.1:{1024 + n}", headers=b"X-Test: 1\r\n" if n % 4 == 0 else b"") for n in range(4000)]
    rule = replace(share(By.CONNECTION, "", 0, 500_000), criteria=parse("header:X-Test"))
    decide = choice(rule)
    reasons = [decide(exchange) for exchange in exchanges]
    assert reasons.count(Skipped.CRITERIA) == 3000
    assert abs(reasons.count(None) - 500) < 4.5 * 250**0.5


def test_the_rule_changes_while_it_runs() -> None:
    decide = choice(NOT_SAMPLED)
    assert decide(asked()) is None
    decide.change(replace(NOT_SAMPLED, criteria=parse("header:X-Test")), in_kernel=False)
    assert decide(asked()) is Skipped.CRITERIA
    decide.change(share(By.CONNECTION, "", 0, 0), in_kernel=False)
    assert decide(asked()) is Skipped.UNSAMPLED
    decide.change(share(By.CONNECTION, "", 0, 0), in_kernel=True)
    assert decide(asked()) is None
    decide.change(replace(NOT_SAMPLED, methods=("PUT",)), in_kernel=False)
    assert decide(asked()) is Skipped.METHOD
    decide.change(NOT_SAMPLED, in_kernel=False)
    assert decide(asked()) is None and decide.rule == NOT_SAMPLED


ports = st.integers(0, 65535)
addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda address: f"[{address}]")


@given(addresses, ports, ports, st.integers(0, PPM), st.integers(0, (1 << 64) - 1))
def test_a_connection_is_taken_as_the_kernel_takes_it(address: str, port: int, other: int, ppm: int, seed: int) -> None:
    server = f"{'[2001:db8::1]' if '[' in address else '198.51.100.1'}:{other}"
    exchange = replace(asked(f"{address}:{port}"), server=server)
    packed = [ipaddress.ip_address(end.rpartition(":")[0].strip("[]")).packed for end in (exchange.client, server)]
    key = b"".join(packed) + port.to_bytes(2, "big") + other.to_bytes(2, "big")
    assert key_of(exchange.client, server) == key
    rule = share(By.CONNECTION, "", 0, ppm)
    assert (choice(rule, seed)(exchange) is None) == Window(0, ppm).has(flow_hash(key, seed))
    assert EVERYTHING.has(flow_hash(key, seed))
