"""Tries of prefixes: look-ups in them equal the trees themselves, on every address, and while they are updated."""

from __future__ import annotations

import ipaddress
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from agent.capture.layout import TESTS_MAX
from agent.select.client_address import Address
from agent.select.criteria import Always, And, Cidr, Criteria, Field, Geo, Head, Match, Network, Not, Or
from agent.select.geo import NO_GEOGRAPHY, GeoDatabase, Prefix
from agent.select.prefixes import difference, flatten

MAPPED = ipaddress.ip_network("::ffff:0:0/96")
CODES = ("US", "DE", "continent:EU", "continent:NA")
Trie = dict[bytes, int]


def key(network: Network) -> bytes:
    """struct bpf_lpm_trie_key."""
    return struct.pack("=I", network.prefixlen) + network.network_address.packed


def look_up(trie: Trie, address: Address) -> int:
    """What the kernel's trie answers: the value of the longest prefix that holds the address."""
    width, number = address.max_prefixlen, int(address)
    for length in range(width, -1, -1):
        network = number >> width - length << width - length
        mask = trie.get(struct.pack("=I", length) + network.to_bytes(width // 8, "big"))
        if mask is not None:
            return mask
    raise AssertionError(f"no entry holds {address}")


def holds(criteria: Criteria, address: Address, codes: frozenset[str]) -> bool:
    """The tree itself, as exact criteria have it."""
    match criteria:
        case Geo(code):
            return code in codes
        case Cidr(network):
            return address in network
        case Not(child):
            return not holds(child, address, codes)
        case And(children):
            return all(holds(child, address, codes) for child in children)
        case Or(children):
            return any(holds(child, address, codes) for child in children)
    return True


def expected(atoms: list[Criteria], address: Address, codes: frozenset[str]) -> int:
    if any(address in block for block in NO_GEOGRAPHY[address.version]):
        codes = frozenset()
    return sum(1 << n for n, atom in enumerate(atoms) if holds(atom, address, codes))


def geography(table: dict[Network, frozenset[str]]) -> Callable[[Iterable[str]], Iterator[Prefix]]:
    def networks(codes: Iterable[str]) -> Iterator[Prefix]:
        wanted = frozenset(codes)
        for network, found in table.items():
            if found & wanted:
                yield network.version, int(network.network_address), network.prefixlen, found & wanted

    return networks


def codes_of(table: dict[Network, frozenset[str]], address: Address) -> frozenset[str]:
    return frozenset().union(*(found for network, found in table.items() if address in network))


def nowhere(codes: Iterable[str]) -> Iterator[Prefix]:
    raise AssertionError("no geography is asked for")


# Few bits at few depths, so that networks nest, touch and repeat.
_BASES = {4: (0x08000000, 0x0A000000, 0xC0A80000, 0), 6: (0x2600 << 112, 0xFD00 << 112, 0, 0xFFFF << 32, 0x2001 << 112)}


@st.composite
def networks(draw: st.DrawFn) -> Network:
    version = draw(st.sampled_from([4, 6]))
    width = 32 if version == 4 else 128
    length = draw(st.sampled_from([0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 31, 32, width - 1, width]))
    number = draw(st.sampled_from(_BASES[version])) | draw(st.integers(0, 7)) << width - max(length, 3)
    number &= (1 << width) - 1
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return kind((number >> width - length << width - length, length))


leaf: st.SearchStrategy[Criteria] = (
    st.builds(Geo, st.sampled_from(CODES)) | st.builds(Cidr, networks()) | st.just(Always())
)
trees = st.recursive(
    leaf,
    lambda child: (
        st.builds(Not, child)
        | st.builds(And, st.lists(child, max_size=3).map(tuple))
        | st.builds(Or, st.lists(child, max_size=3).map(tuple))
    ),
    max_leaves=6,
)
atom_lists = st.lists(trees, max_size=TESTS_MAX)
tables = st.dictionaries(networks(), st.frozensets(st.sampled_from(CODES), min_size=1), max_size=12)
anywhere = st.ip_addresses()


def probes(seen: Iterable[Network]) -> Iterator[Address]:
    """The edges of networks, and just outside of them."""
    for network in seen:
        for number in (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                address = type(network.network_address)(number)
                if address not in MAPPED:
                    yield address


@settings(deadline=None)
@given(atom_lists, tables, st.lists(networks(), max_size=5), st.lists(anywhere, max_size=5))
def test_look_ups_equal_the_trees(
    atoms: list[Criteria], table: dict[Network, frozenset[str]], others: list[Network], addresses: list[Address]
) -> None:
    v4, v6 = flatten(atoms, geography(table))
    cidrs = [leaf.network for leaf in _cidrs(atoms)]
    for address in [*probes([*table, *others, *cidrs, *NO_GEOGRAPHY[4], *NO_GEOGRAPHY[6]]), *addresses]:
        if address not in MAPPED:
            trie = v4 if address.version == 4 else v6
            assert look_up(trie, address) == expected(atoms, address, codes_of(table, address)), address


def _cidrs(atoms: Iterable[Criteria]) -> Iterator[Cidr]:
    for atom in atoms:
        match atom:
            case Cidr():
                yield atom
            case Not(child):
                yield from _cidrs([child])
            case And(children) | Or(children):
                yield from _cidrs(children)


@settings(deadline=None)
@given(atom_lists, tables)
def test_no_entry_says_what_the_one_around_it_says_and_no_halves_agree(
    atoms: list[Criteria], table: dict[Network, frozenset[str]]
) -> None:
    for trie in flatten(atoms, geography(table)):
        for entry, mask in trie.items():
            length, address = struct.unpack_from("=I", entry)[0], ipaddress.ip_address(entry[4:])
            network = ipaddress.ip_network((address, length))
            if length:
                around = {k: v for k, v in trie.items() if k != entry and struct.unpack_from("=I", k)[0] < length}
                assert look_up(around, address) != mask
                halves = network.supernet().subnets()
                assert [trie.get(key(half)) for half in halves] != [mask, mask]


def test_keys_are_those_of_the_kernel() -> None:
    v4, v6 = flatten([Cidr(ipaddress.ip_network("192.0.2.0/24")), Cidr(ipaddress.ip_network("2001:db8::/32"))], nowhere)
    length = (24).to_bytes(4, sys.byteorder)
    assert v4 == {bytes(8): 0, length + bytes((192, 0, 2, 0)): 1}
    assert v6[(32).to_bytes(4, sys.byteorder) + bytes.fromhex("20010db8") + bytes(12)] == 2
    assert v6[bytes(20)] == 0
    assert {len(entry) for entry in v6} == {20}


def test_not_geo_is_true_of_private_addresses_even_if_the_database_has_them() -> None:
    table: dict[Network, frozenset[str]] = {
        ipaddress.ip_network(text): frozenset({"US"}) for text in ("0.0.0.0/0", "10.1.0.0/16", "::/0", "fd00::/8")
    }
    v4, v6 = flatten([Not(Geo("US")), Geo("US")], geography(table))
    for text, mask in (("10.1.2.3", 1), ("127.0.0.1", 1), ("8.8.8.8", 2), ("239.1.1.1", 1)):
        assert look_up(v4, ipaddress.ip_address(text)) == mask
    for text, mask in (("fd00::1", 1), ("::1", 1), ("2600::", 2), ("ff02::1", 1), ("2001:db8::", 1)):
        assert look_up(v6, ipaddress.ip_address(text)) == mask


def test_nested_networks_carry_what_is_around_them() -> None:
    inner, outer = (Cidr(ipaddress.ip_network(text)) for text in ("9.1.2.0/24", "9.0.0.0/8"))
    table: dict[Network, frozenset[str]] = {ipaddress.ip_network("9.1.0.0/16"): frozenset({"US"})}
    v4, _ = flatten([outer, And((Geo("US"), Not(inner))), And((outer, inner))], geography(table))
    for text, mask in (("9.9.9.9", 0b001), ("9.1.1.1", 0b011), ("9.1.2.3", 0b101), ("1.1.1.1", 0)):
        assert look_up(v4, ipaddress.ip_address(text)) == mask


def test_mapped_addresses_are_generous() -> None:
    inside = Cidr(ipaddress.ip_network("::ffff:10.0.0.0/104"))
    _, v6 = flatten([Geo("US"), Not(Always()), inside, Not(inside)], geography({}))
    for text in ("::ffff:8.8.8.8", "::ffff:10.0.0.1", "::ffff:0:0", "::ffff:255.255.255.255"):
        assert look_up(v6, ipaddress.ip_address(text)) == 0b1111
    assert look_up(v6, ipaddress.ip_address("2600::")) == 0b1000


def test_without_atoms_there_is_the_default_alone() -> None:
    assert flatten([], nowhere) == ({bytes(8): 0}, {bytes(20): 0})
    assert flatten([Always()], nowhere) == ({bytes(8): 1}, {bytes(20): 1})


def test_other_trees_are_our_bug() -> None:
    with pytest.raises(ValueError, match="not decidable by an address"):
        flatten([Or((Geo("US"), Head(Field.PATH, "", Match.GLOB, "/a*")))], geography({}))
    with pytest.raises(ValueError, match="9 atoms, at most 8"):
        flatten([Always()] * 9, nowhere)


@settings(deadline=None)
@given(atom_lists, tables, atom_lists, tables)
def test_an_update_is_complete_and_shows_old_or_new_at_every_step(
    before: list[Criteria],
    table: dict[Network, frozenset[str]],
    after: list[Criteria],
    other: dict[Network, frozenset[str]],
) -> None:
    seen = list(probes([*table, *other, *(leaf.network for leaf in _cidrs([*before, *after]))]))
    for old, new in zip(flatten(before, geography(table)), flatten(after, geography(other)), strict=True):
        width = len(next(iter(new))) * 8 - 32
        addresses = [address for address in seen if address.max_prefixlen == width][:12]
        allowed = {address: {look_up(old, address), look_up(new, address)} for address in addresses}
        changed, removed = difference(old, new)
        live = dict(old)
        for entry, mask in [*changed.items(), *((gone, None) for gone in removed)]:
            if mask is None:
                del live[entry]
            else:
                live[entry] = mask
            for address, masks in allowed.items():
                assert look_up(live, address) in masks
        assert live == new
        assert all(old.get(entry) != mask for entry, mask in changed.items())


def test_no_difference_is_no_work() -> None:
    trie = {b"a" * 8: 1}
    assert difference(trie, dict(trie)) == ({}, [])


def test_a_database_and_its_trie_agree(tmp_path: Path) -> None:
    """End to end: what `locate` says of addresses, and what the kernel would."""
    writer = MMDBWriter(6, ipv4_compatible=True)
    chance = random.Random(5)
    for _ in range(400):
        length = chance.randint(4, 28)
        network = f"{ipaddress.IPv4Address(chance.getrandbits(length) << 32 - length)}/{length}"
        code, continent = chance.choice([("US", "NA"), ("DE", "EU"), ("FR", "EU")])
        writer.insert_network(IPSet([network]), {"country": {"iso_code": code}, "continent": {"code": continent}})
        v6 = f"{ipaddress.IPv6Address(1 << 125 | chance.getrandbits(29) << 96)}/{chance.choice([24, 30, 32])}"
        writer.insert_network(IPSet([v6]), {"country": code})
    writer.to_db_file(str(tmp_path / "a.mmdb"))
    database = GeoDatabase(tmp_path / "a.mmdb")
    atoms: list[Criteria] = [Geo("US"), Not(Geo("continent:EU")), And((Geo("DE"), Geo("continent:EU")))]
    v4, v6_trie = flatten(atoms, database.prefixes)
    edges = [address for network, _ in database.networks(CODES) for address in (network[0], network[-1])]
    chances: list[Address] = [ipaddress.IPv4Address(chance.getrandbits(32)) for _ in range(2000)]
    chances += [ipaddress.IPv6Address(1 << 125 | chance.getrandbits(125)) for _ in range(2000)]
    for address in [*edges, *chances]:
        trie = v4 if address.version == 4 else v6_trie
        assert look_up(trie, address) == expected(atoms, address, database.locate(address))
    assert {look_up(v4, address) for address in edges if address.version == 4} >= {0b011, 0b100, 0b010}


def test_twenty_thousand_prefixes_equal_the_trees() -> None:
    chance = random.Random(3)
    table: dict[Network, frozenset[str]] = {}
    for _ in range(10_000):
        code = frozenset(chance.sample(CODES, chance.randint(1, 2)))
        length = chance.randint(12, 26)
        table[ipaddress.IPv4Network((chance.getrandbits(length) << 32 - length, length))] = code
        length = chance.randint(20, 56)
        start = 1 << 125 | chance.getrandbits(length - 3) << 128 - length
        table[ipaddress.IPv6Network((start, length))] = code
    cidrs = tuple(Cidr(network) for network in chance.sample(list(table), 300))
    atoms: list[Criteria] = [Geo("US"), Not(Geo("DE")), And((Geo("continent:EU"), Not(Or(cidrs)))), Or(cidrs)]
    v4, v6 = flatten(atoms, geography(table))
    for network in chance.sample(list(table), 150):
        for address in probes([network]):
            trie = v4 if address.version == 4 else v6
            assert look_up(trie, address) == expected(atoms, address, codes_of(table, address))
