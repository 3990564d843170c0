"""The kernel's tables, decided with here as the kernel does: never narrower than the exact choice, and hardly wider."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.layout import MASKS, PPM, SHADOWS_MAX, TESTS_MAX
from agent.select.automaton import FOLD, HEAD_END, REQUEST_LINE, STICKY
from agent.select.choice import Choice, Rule, key_of
from agent.select.client_address import Address, ClientAddress, client_address
from agent.select.criteria import Criteria
from agent.select.exact import compile_criteria
from agent.select.language import parse, write
from agent.select.sampling import EVERYTHING, By, Window, client_hash, flow_hash
from agent.select.superset import Selection, Wanted, make_selection
from replay.exchange import Exchange, Request, Skipped
from tests.agent.select import trees
from tests.agent.select.places import clients, geo_networks, locate

SEED = 99
ALL_HEADS = MASKS - 1
TEST = b"GET / HTTP/1.1\r\nX-Test: 1\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def selected(*texts: str, **options: bool) -> Selection:
    """The tables for shadows that take 100 %."""
    return make_selection([Wanted(parse(text), EVERYTHING) for text in texts], geo_networks, **options)


def address_mask(selection: Selection, client: Address) -> int:
    """A slow look-up of the longest prefix."""
    if not selection.address_tests:
        return 0
    table = selection.prefixes4 if client.version == 4 else selection.prefixes6
    bits = client.max_prefixlen
    matching = {}
    for key, mask in table.items():
        (length,) = struct.unpack_from("=I", key)
        if int(client) >> bits - length == int.from_bytes(key[4:], "big") >> bits - length:
            matching[length] = mask
    return matching[max(matching)]


def wants(selection: Selection, client: str | Address, data: bytes | None) -> int:
    """Mask of the shadows that may want a request, when all are on and their windows hold it; without data, of those
    that the address leaves."""
    at = address_mask(selection, ipaddress.ip_address(client))
    if data is None or selection.automaton is None:
        return selection.possible[at]
    outputs = selection.automaton.walk(data).outputs
    if outputs & (FOLD | STICKY) or not outputs & HEAD_END or not outputs & REQUEST_LINE:
        return selection.possible[at]  # it is copied whatever the tests say
    return selection.certain[at] | selection.wanted[at * MASKS | outputs & ALL_HEADS]


def takes(selection: Selection, exchange: Exchange) -> int:
    """The same, with the windows."""
    assert exchange.request is not None
    client, connection = exchange.client.rpartition(":")[0].strip("[]"), key_of(exchange.client, exchange.server)
    places = client_hash(client, SEED), flow_hash(connection, SEED)
    inside = 0
    for bit, window in enumerate(selection.windows):
        inside |= window.has(places[0 if selection.by_client >> bit & 1 else 1]) << bit
    return inside & wants(selection, client, exchange.request.head)


several = st.lists(trees.cases(), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(several, clients)
def test_whatever_the_criteria_take_the_kernel_wants(cases: list[tuple[Criteria, Request]], client: Address) -> None:
    selection = make_selection([Wanted(tree, EVERYTHING) for tree, _ in cases], geo_networks)
    for _, request in cases:
        found = wants(selection, client, request.head)
        for bit, (tree, _) in enumerate(cases):
            if compile_criteria(tree, locate)(request, client):
                assert found >> bit & 1, (write(tree), client, request.head)


windows = st.tuples(st.integers(0, PPM), st.integers(0, PPM)).map(lambda edges: Window(*sorted(edges)))


@settings(max_examples=300, deadline=None)
@given(several, clients, st.data())
def test_whatever_the_exact_choice_takes_the_kernel_takes(
    cases: list[tuple[Criteria, Request]], client: Address, data: st.DataObject
) -> None:
    """With percentages of connections, clients and what the kernel cannot see, and all that Choice asks."""
    rules = [
        Rule(criteria=tree, by=data.draw(st.sampled_from(By)), name="x-a", window=data.draw(windows))
        for tree, _ in cases
    ]
    wanted = [
        Wanted(
            rule.criteria, rule.window if rule.by in (By.CONNECTION, By.CLIENT) else EVERYTHING, rule.by is By.CLIENT
        )
        for rule in rules
    ]
    selection = make_selection(wanted, geo_networks)
    end = f"[{client}]:7" if client.version == 6 else f"{client}:7"
    for _, request in cases:
        exchange = Exchange(end, "198.51.100.1:80" if client.version == 4 else "[2001:db8::9]:80", 1, 0, request)
        found = takes(selection, exchange)
        for bit, rule in enumerate(rules):
            exact = Choice(rule, SEED, ClientAddress(), locate)(exchange)
            if exact not in (Skipped.CRITERIA, Skipped.UNSAMPLED):
                assert found >> bit & 1, (write(rule.criteria), rule, end, request.head)


@settings(max_examples=200, deadline=None)
@given(trees.cases(), clients)
def test_behind_another_balancer_no_address_decides(case: tuple[Criteria, Request], peer: Address) -> None:
    """The client that the header names is a stranger to the kernel."""
    tree, request = case
    selection = make_selection([Wanted(tree, EVERYTHING)], geo_networks, peer_is_client=False)
    assert (selection.address_tests, selection.prefixes4, selection.prefixes6) == ((), {}, {})
    for client in ("8.8.8.8", "10.1.2.3", "2001:db8::1"):
        if compile_criteria(tree, locate)(request, ipaddress.ip_address(client)):
            assert wants(selection, peer, request.head) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(trees.criteria(max_leaves=20), min_size=1, max_size=SHADOWS_MAX))
def test_what_the_address_says_alone_agrees_with_all_heads(criteria: list[Criteria]) -> None:
    """`possible`: some head would do. `certain`: every head does. More heads that fit never make less wanted."""
    selection = make_selection([Wanted(tree, EVERYTHING) for tree in criteria], geo_networks)
    heads = range(1 << len(selection.head_tests))
    assert len(selection.head_tests) <= TESTS_MAX and len(selection.address_tests) <= TESTS_MAX
    for address in range(1 << len(selection.address_tests)):
        row = [selection.wanted[address * MASKS | head] for head in heads]
        assert selection.possible[address] == row[-1]
        assert selection.certain[address] == row[0]
        for bit in range(len(selection.head_tests)):
            assert all(row[head] & ~row[head | 1 << bit] == 0 for head in heads)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("cidr:10.0.0.0/8", "10.1.2.3", "11.1.2.3"),
        ("not cidr:10.0.0.0/8", "2001:db8::1", "10.1.2.3"),
        ("cidr:10.0.0.0/8 and not cidr:10.1.0.0/16", "10.2.0.1", "10.1.0.1"),
        ("not (cidr:10.0.0.0/8 or cidr:2001:db8::/32)", "192.0.2.1", "2001:db8::5"),
        ("geo:US", "8.8.8.8", "81.2.69.142"),
        ("geo:europe and not cidr:81.2.69.142", "2a02:1::1", "81.2.69.142"),
        ("not geo:DE", "10.1.2.3", "2a02:1::1"),
        ("random and geo:US", "8.8.8.8", "9.9.9.9"),
        ("not (random and geo:US)", "9.9.9.9", "8.8.8.8"),
    ],
)
def test_addresses_decide_exactly_and_no_head_is_read(text: str, inside: str, outside: str) -> None:
    selection = selected(text)
    assert (len(selection.address_tests), selection.head_tests, selection.automaton) == (1, (), None)
    assert (wants(selection, inside, None), wants(selection, outside, None)) == (1, 0)
    assert selection.possible == selection.certain, "so a flow that passes is copied without looking further"
    assert list(selection.possible[:2]) in ([0, 1], [1, 0])


@settings(max_examples=200, deadline=None)
@given(trees.criteria(), clients)
def test_what_asks_for_addresses_alone_is_exact(tree: Criteria, client: Address) -> None:
    request = Request("GET", "/", 11, PLAIN, b"", 0, None, 0, 0)
    selection = make_selection([Wanted(tree, EVERYTHING)], geo_networks)
    if not any(word in write(tree) for word in ("header:", "cookie:", "query:", "agent:", "method:", "host:", "path:")):
        assert wants(selection, client, None) == compile_criteria(tree, locate)(request, client)


@pytest.mark.parametrize("text", ["not header:X-Test", "not (header:X-Test or method:GET)", "not (not not path:/a)"])
def test_what_is_negated_in_a_head_is_left_to_user_space(text: str) -> None:
    """The automaton says "maybe": of its opposite nothing follows."""
    selection = selected(text)
    assert (selection.head_tests, selection.address_tests, selection.automaton) == ((), (), None)
    assert list(selection.possible[:1]) == list(selection.certain[:1]) == [1]


def test_a_negation_leaves_what_stands_beside_it_to_the_kernel() -> None:
    selection = selected(
        "not header:X-Test and cidr:10.0.0.0/8", "not header:X-Test and method:PUT", "not not header:X-Test"
    )
    assert len(selection.address_tests) == 1 and len(selection.head_tests) == 2
    assert wants(selection, "10.0.0.1", PLAIN) == 0b001
    assert wants(selection, "11.0.0.1", PLAIN) == 0b000
    assert wants(selection, "11.0.0.1", PLAIN.replace(b"GET", b"PUT")) == 0b010
    assert wants(selection, "11.0.0.1", TEST) == 0b100


def test_heads_decide_where_addresses_leave_it_open() -> None:
    selection = selected("cidr:10.0.0.0/8 or header:X-Test", "cidr:10.0.0.0/8 and header:X-Test")
    assert len(selection.address_tests) == len(selection.head_tests) == 1, "the same test is one, whoever asks"
    assert [wants(selection, "10.0.0.1", data) for data in (None, PLAIN, TEST)] == [0b11, 0b01, 0b11]
    assert [wants(selection, "11.0.0.1", data) for data in (None, PLAIN, TEST)] == [0b01, 0b00, 0b01]
    assert list(selection.certain[:2]) == [0b00, 0b01]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("random", 1),
        ("not random", 0),
        ("not not random", 1),
        ("random and not random", 0),
        ("random or not random", 1),
        ("random or header:X-Test", 1),
        ("not (random or not random)", 0),
    ],
)
def test_constants(text: str, value: int) -> None:
    selection = selected(text)
    assert selection.address_tests == ()
    assert (wants(selection, "10.0.0.1", PLAIN), wants(selection, "10.0.0.1", None)) == (value, value)
    assert (selection.possible[0], selection.certain[0]) == (value, value)


def test_never_is_never_whatever_stands_beside_it() -> None:
    selection = selected("not random and header:X-Test", "not random or header:X-Test", "not random and geo:US")
    assert (wants(selection, "8.8.8.8", TEST), wants(selection, "8.8.8.8", PLAIN)) == (0b010, 0)


@pytest.mark.parametrize("beyond", [1, 5])
def test_tests_on_the_head_beyond_what_there_is_room_for_count_as_true(beyond: int) -> None:
    names = [f"X-{n}" for n in range(TESTS_MAX + beyond)]
    selection = selected(*(f"header:{name}" for name in names[:4]), " or ".join(f"header:{name}" for name in names))
    assert [test.name for test in selection.head_tests] == [name.lower() for name in names[:TESTS_MAX]]
    assert selection.notes == tuple(
        f"header:{name.lower()}: left to user space: more than {TESTS_MAX} tests on heads" for name in names[TESTS_MAX:]
    )
    assert wants(selection, "10.0.0.1", PLAIN) == 0b10000
    assert wants(selection, "10.0.0.1", b"GET / HTTP/1.1\r\nX-2: a\r\n\r\n") == 0b10100


def test_tests_on_addresses_beyond_what_there_is_room_for_count_as_true() -> None:
    """Even negated; one that is made of others is decided as far as these are."""
    networks = [f"cidr:10.{n}.0.0/16" for n in range(TESTS_MAX)]
    full = " and ".join(f"({network} or header:X-Test)" for network in networks)
    beyond = ("cidr:11.0.0.0/8", "not cidr:12.0.0.0/8", "cidr:11.0.0.0/8 and cidr:10.0.0.0/16")
    assert selected(full).notes == ()
    selection = selected(full, *beyond)
    assert [write(test) for test in selection.address_tests] == networks
    assert selection.notes == tuple(
        f"{text}: left to user space: more than {TESTS_MAX} tests on addresses" for text in beyond
    )
    assert wants(selection, "10.0.0.1", PLAIN) == 0b1110
    assert wants(selection, "12.0.0.1", PLAIN) == 0b0110
    assert wants(selection, "12.0.0.1", TEST) == 0b0111


def test_what_became_coarser_is_told_to_people() -> None:
    text = 'header:x-test=~"[ab]*a[ab]{18}$"'
    (note,) = selected("geo:US", f"method:PUT or {text}").notes
    assert note.startswith(f"{write(parse(text))}: the table would be too large")


def test_each_shadow_is_a_bit_with_a_window_of_its_own() -> None:
    some = [Window(n * 1000, (n + 1) * 1000) for n in range(SHADOWS_MAX)]
    wanted = [Wanted(parse(f"method:M{n}"), window, by_client=n % 3 == 0) for n, window in enumerate(some)]
    selection = make_selection(wanted)
    assert (selection.windows, selection.by_client) == (tuple(some), 0b01001001)
    for n in range(SHADOWS_MAX):
        assert wants(selection, "10.0.0.1", b"M%d / HTTP/1.1\r\n\r\n" % n) == 1 << n
    with pytest.raises(ValueError, match="9 shadows, the kernel has room for 8"):
        make_selection([*wanted, wanted[0]])


def test_the_model_of_the_kernel_looks_at_windows() -> None:
    """So that the tests above mean something."""
    exchange = Exchange("10.0.0.1:7", "198.51.100.1:80", 1, 0, Request("GET", "/", 11, TEST, b"", 0, None, 0, 0))
    for by_client in (False, True):
        found = {
            takes(make_selection([Wanted(parse("random"), Window(start, start + PPM // 4), by_client)]), exchange)
            for start in range(0, PPM, PPM // 4)
        }
        assert found == {0, 1}


def test_behind_another_balancer_heads_decide_still() -> None:
    selection = selected("geo:US and header:X-Test", "not geo:US and method:PUT", peer_is_client=False)
    assert (wants(selection, "10.0.0.1", PLAIN), wants(selection, "10.0.0.1", TEST)) == (0, 0b01)
    assert client_address("x-real-ip").header, "what makes it so"


def test_no_shadow_wants_nothing() -> None:
    selection = make_selection([])
    assert (selection.windows, set(selection.possible), set(selection.wanted)) == ((), {0}, {0})
