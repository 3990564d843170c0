"""Databases of countries: forms of records, addresses that are nowhere, lists that agree with look-ups, bad files."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter, TreeWriter
from netaddr import IPSet

from agent.errors import ConfigError
from agent.select.client_address import Address, unmapped
from agent.select.geo import CACHE_ENTRIES, NO_GEOGRAPHY, GeoDatabase, codes_of

US = {"country": {"iso_code": "US", "names": {"en": "United States"}}, "continent": {"code": "NA"}}
DE = {"country": {"iso_code": "DE"}, "continent": {"code": "EU"}}
WORLD = [
    ("8.0.0.0/9", US),
    ("8.128.0.0/9", {**US, "city": {"names": {"en": "Palo Alto"}}}),
    ("2.160.0.0/12", DE),
    ("10.0.0.0/8", US),
    ("2001:4860::/32", US),
    ("2a01::/16", DE),
    ("fd00::/8", US),
]
CODES = frozenset({"US", "DE", "continent:NA", "continent:EU"})


def write(path: Path, networks: Iterable[tuple[str, Any]], version: int = 6, kind: str = "Test-Country") -> Path:
    """As geoipupdate does it: under another name, then renamed."""
    writer = MMDBWriter(version, kind, ipv4_compatible=version == 6)
    for network, record in networks:
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path.with_suffix(".new")))
    return path.with_suffix(".new").rename(path)


@pytest.fixture
def world(tmp_path: Path) -> GeoDatabase:
    return GeoDatabase(write(tmp_path / "world.mmdb", WORLD))


def codes(database: GeoDatabase, address: str) -> set[str]:
    return set(database.locate(ipaddress.ip_address(address)))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", {"US", "continent:NA"}),
        ("8.255.255.255", {"US", "continent:NA"}),
        ("2.160.0.0", {"DE", "continent:EU"}),
        ("2.176.0.0", set()),
        ("1.1.1.1", set()),
        ("2001:4860:4860::8888", {"US", "continent:NA"}),
        ("2001:4860:4860::8888%eth0", {"US", "continent:NA"}),
        ("2a01:1::", {"DE", "continent:EU"}),
        ("2a02::", set()),
        ("::ffff:8.8.8.8", {"US", "continent:NA"}),
        ("::8.8.8.8", set()),
    ],
)
def test_addresses_have_the_codes_of_their_network(world: GeoDatabase, address: str, expected: set[str]) -> None:
    assert codes(world, address) == expected
    assert world.faults == 0


NOT_PUBLIC = (
    "0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.1.1 172.16.0.1 192.168.1.1 192.0.2.1 224.0.0.1 239.1.1.1 240.0.0.1 "
    "255.255.255.255 :: ::1 ::ffff:10.0.0.1 fe80::1 fe80::1%eth0 fec0::1 fd00::1 ff02::1 2001:db8::1 2002:808:808::1 "
    "2001:0:4136:e378:8000:63bf:3fff:fdd2"
)


def everywhere(path: Path) -> GeoDatabase:
    return GeoDatabase(write(path, [("0.0.0.0/1", US), ("128.0.0.0/1", US), ("::/1", US), ("8000::/1", US)]))


def test_what_is_not_public_is_nowhere_whatever_the_database_says(tmp_path: Path) -> None:
    database = everywhere(tmp_path / "every.mmdb")
    assert [address for address in NOT_PUBLIC.split() if codes(database, address)] == []
    assert codes(database, "2600::1") == {"US", "continent:NA"}


def test_no_geography_holds_what_python_calls_not_global() -> None:
    """At the edges of each block that `ipaddress` knows, and just outside of ours."""
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        constants: Any = kind._constants  # type: ignore[attr-defined]
        ours = NO_GEOGRAPHY[4 if kind is ipaddress.IPv4Address else 6]
        for network in [
            *constants._private_networks,
            constants._multicast_network,
            constants._linklocal_network,
            *ours,
        ]:
            edges = int(network[0]), int(network[-1])
            for number in (edges[0] - 1, *edges, edges[1] + 1):
                if 0 <= number < 1 << kind(0).max_prefixlen:
                    address = kind(number)
                    nowhere = any(address in block for block in ours)
                    assert nowhere or (address.is_global and not address.is_multicast), address


public = st.builds(ipaddress.IPv4Address, st.integers(0, (1 << 32) - 1)) | st.builds(
    ipaddress.IPv6Address, st.integers(0, (1 << 128) - 1)
)


@given(public)
def test_no_geography_is_a_superset_of_not_global(address: Address) -> None:
    plain = unmapped(address)
    if not plain.is_global or plain.is_multicast:
        assert any(plain in block for block in NO_GEOGRAPHY[plain.version])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"country": {"iso_code": "us"}}, {"US"}),
        ({"country": "US", "continent": "NA"}, {"US", "continent:NA"}),
        (
            {"country_code": "US", "country": "United States", "continent_code": "NA", "continent": "North America"},
            None,
        ),
        ({"continent": {"code": "EU"}}, {"continent:EU"}),
        ({"registered_country": {"iso_code": "US"}}, set()),
        ({"country": {"iso_code": 7}, "continent": ["EU"]}, set()),
        ({"country": "United States"}, set()),
        ({"country": "U\u00df"}, set()),
        ({"country_code": "-"}, set()),
        ({}, set()),
        ("US", set()),
        (None, set()),
    ],
)
def test_records_of_every_maker(record: Any, expected: set[str] | None) -> None:
    assert codes_of(record) == ({"US", "continent:NA"} if expected is None else expected)


def test_networks_are_listed_once_joined_and_in_order(world: GeoDatabase) -> None:
    found = [(str(network), set(named)) for network, named in world.networks(["US", "continent:EU"])]
    assert found == [
        ("2.160.0.0/12", {"continent:EU"}),
        ("8.0.0.0/8", {"US"}),
        ("10.0.0.0/8", {"US"}),
        ("2001:4860::/32", {"US"}),
        ("2a01::/16", {"continent:EU"}),
        ("fd00::/8", {"US"}),
    ]
    assert list(world.networks(["FR"])) == list(world.networks([])) == []


def test_a_database_of_ipv4_alone(tmp_path: Path) -> None:
    database = GeoDatabase(write(tmp_path / "four.mmdb", [("8.8.0.0/16", US)], version=4))
    assert codes(database, "8.8.4.4") == {"US", "continent:NA"}
    assert codes(database, "2001:4860::1") == set()
    assert [str(network) for network, _ in database.networks(["US"])] == ["8.8.0.0/16"]
    assert database.faults == 0


def test_a_network_above_all_of_ipv4_is_in_both(tmp_path: Path) -> None:
    database = GeoDatabase(write(tmp_path / "wide.mmdb", [("::/2", US)]))
    assert [str(network) for network, _ in database.networks(["US"])] == ["0.0.0.0/0", "::/2"]
    assert codes(database, "8.8.8.8") == codes(database, "2600::") == {"US", "continent:NA"}


def test_ipv4_that_appears_again_in_ipv6_is_listed_once(tmp_path: Path) -> None:
    writer = MMDBWriter(6, ipv4_compatible=True)
    writer.insert_network(IPSet(["8.0.0.0/8"]), US)
    writer.insert_network(IPSet(["2002:100::/24"]), DE)
    node: Any = writer.tree
    for _ in range(96):
        node = node.left
    six_to_four: Any = writer.tree
    for bit in f"{0x2002:016b}"[:-1]:
        six_to_four = six_to_four[int(bit)]
    six_to_four[0] = node  # as MaxMind's databases have it
    writer.to_db_file(str(tmp_path / "alias.mmdb"))
    assert [str(n) for n, _ in GeoDatabase(tmp_path / "alias.mmdb").networks(CODES)] == ["8.0.0.0/8"]


blocks = st.builds(
    lambda number, length: str(ipaddress.ip_network((number >> 32 - length << 32 - length, length))),
    st.integers(0, (1 << 32) - 1),
    st.integers(1, 32),
) | st.builds(
    lambda number, length: str(ipaddress.IPv6Network((number >> 128 - length << 128 - length, length))),
    st.integers(1 << 125, (1 << 126) - 1),
    st.integers(4, 128),
)
records = st.sampled_from([US, DE, {"country": "FR"}, {"continent": "NA"}, {"country": {}}, {"country": "US"}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(networks=st.lists(st.tuples(blocks, records), min_size=1, max_size=20), probes=st.lists(public))
def test_lists_agree_with_look_ups(tmp_path: Path, networks: list[tuple[str, Any]], probes: list[Address]) -> None:
    networks.sort(key=lambda item: ipaddress.ip_network(item[0]).prefixlen)  # the writer wants the outer ones first
    database = GeoDatabase(write(tmp_path / "any.mmdb", [*networks, ("8.8.8.8/32", US)]))
    listed = [(network, named) for network, named in database.networks(CODES)]
    for earlier, later in itertools.pairwise(listed):
        assert earlier[0].version < later[0].version or earlier[0].broadcast_address < later[0].network_address
    edges = [edge for text, _ in networks for edge in (ipaddress.ip_network(text)[0], ipaddress.ip_network(text)[-1])]
    for address in map(unmapped, [*probes, *edges]):
        if not any(address in block for block in NO_GEOGRAPHY[address.version]):
            expected = [named for network, named in listed if address in network] or [frozenset()]
            assert [database.locate(address) & CODES] == expected


def test_a_new_file_is_noticed_and_read(tmp_path: Path) -> None:
    database = GeoDatabase(write(tmp_path / "a.mmdb", [("8.0.0.0/8", US)]))
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}
    assert not database.changed()
    write(tmp_path / "a.mmdb", [("8.0.0.0/8", DE)])
    assert database.changed()
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}
    assert database.reload() is None
    assert codes(database, "8.8.8.8") == {"DE", "continent:EU"}
    assert not database.changed()


def test_a_listing_goes_on_in_the_file_it_began_with(tmp_path: Path) -> None:
    database = GeoDatabase(write(tmp_path / "a.mmdb", [("8.0.0.0/8", US), ("11.0.0.0/8", US), ("2600::/16", US)]))
    listing = database.networks(["US"])
    first = next(listing)
    write(tmp_path / "a.mmdb", [("8.0.0.0/8", DE)])
    assert database.reload() is None
    assert [str(network) for network, _ in [first, *listing]] == ["8.0.0.0/8", "11.0.0.0/8", "2600::/16"]


def test_a_broken_new_file_leaves_the_old_one_and_is_tried_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mmdb", [("8.0.0.0/8", US)])
    database = GeoDatabase(path)
    (tmp_path / "bad").write_bytes(b"<html>quota exceeded</html>")
    (tmp_path / "bad").rename(path)
    assert database.changed()
    problem = database.reload()
    assert problem is not None
    assert str(path) in problem
    assert "\n" not in problem
    assert not database.changed()
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}
    write(path, [("8.0.0.0/8", DE)])
    assert database.changed()
    assert database.reload() is None
    assert codes(database, "8.8.8.8") == {"DE", "continent:EU"}


def test_a_file_that_is_gone_is_no_change(tmp_path: Path) -> None:
    database = GeoDatabase(write(tmp_path / "a.mmdb", [("8.0.0.0/8", US)]))
    database.path.unlink()
    assert not database.changed()
    assert "No such file" in (database.reload() or "")
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}


def refuse(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        GeoDatabase(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "give a country" in message
    assert "\n" not in message
    return message


def test_files_of_no_use_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "No such file" in refuse(tmp_path / "none.mmdb")
    assert "directory" in refuse(tmp_path)
    for name, data in (("empty", b""), ("text", b"hello"), ("bare", b"\xab\xcd\xefMaxMind.com")):
        (tmp_path / name).write_bytes(data)
        assert "not a database" in refuse(tmp_path / name)
    asn = write(tmp_path / "asn", [("8.0.0.0/8", {"autonomous_system_number": 15169})], kind="Test-ASN")
    assert "'Test-ASN' database, without countries" in refuse(asn)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12), keep=st.floats(0.3, 1))
def test_broken_files_are_refused_or_read_without_raising(
    tmp_path: Path, changes: list[tuple[float, int]], keep: float
) -> None:
    whole = write(tmp_path / "whole.mmdb", WORLD).read_bytes()
    tail = whole.rfind(b"\xab\xcd\xefMaxMind.com")
    data = bytearray(whole[: int(tail * keep)] + whole[tail:])  # cut in the middle: the metadata stay
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    (tmp_path / "bad.mmdb").write_bytes(data)
    try:
        database = GeoDatabase(tmp_path / "bad.mmdb")
    except ConfigError:
        return
    for text in ("8.8.8.8", "2.160.1.1", "2001:4860::1", "2a01::1", "1.1.1.1"):
        assert all(isinstance(code, str) for code in codes(database, text))
    try:
        assert len(list(database.networks(CODES))) < 1000
    except ConfigError as error:
        assert "loops" in str(error)


def test_a_broken_record_is_counted_and_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mmdb", [("2.160.0.0/12", DE), ("8.0.0.0/8", US)])
    data = path.read_bytes()
    assert data.count(b"\x42US") == 1
    path.write_bytes(data.replace(b"\x42US", b"\x42\xff\xfe"))  # not UTF-8
    database = GeoDatabase(path)
    assert codes(database, "8.8.8.8") == set()
    assert codes(database, "8.8.8.8") == set()
    assert database.faults == 1
    assert codes(database, "2.160.0.1") == {"DE", "continent:EU"}
    assert [str(network) for network, _ in database.networks(CODES)] == ["2.160.0.0/12"]


def test_a_tree_with_a_loop_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mmdb", [("8.0.0.0/8", US)], version=4)
    data = bytearray(path.read_bytes())
    data[3:6] = b"\0\0\0"  # the first node's right half is the first node: 24-bit records
    path.write_bytes(data)
    database = GeoDatabase(path)
    with pytest.raises(ConfigError, match="loops"):
        list(database.networks(["US"]))
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}
    assert codes(database, "203.0.114.1") == set()


def test_the_memory_of_clients_is_bounded(world: GeoDatabase) -> None:
    for number in range(CACHE_ENTRIES + 100):
        world.locate(ipaddress.IPv4Address((8 << 24) + number))
    assert world._cached.cache_info().currsize == CACHE_ENTRIES


@pytest.mark.parametrize("record_bits", [24, 28, 32])
def test_every_size_of_tree_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_bits: int) -> None:
    """With so much data in front that pointers need the larger sizes."""
    filler = {"filler": "x" * (1 << 24)} if record_bits > 24 else {}
    monkeypatch.setattr(TreeWriter, "_adjust_record_size", lambda writer: setattr(writer, "record_size", record_bits))
    database = GeoDatabase(write(tmp_path / "a.mmdb", [("1.2.3.0/24", filler), *WORLD]))
    assert database._file._record_bits == record_bits
    assert len(list(database.networks(CODES))) == 6
    assert codes(database, "8.8.8.8") == {"US", "continent:NA"}
