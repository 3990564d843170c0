"""The mapping of servers: which entry counts, what it stands for, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.mapping import ServerMap, canonical
from replay.errors import UpstreamError

ENTRIES = {
    "app/web1": "own:1",
    "10.0.0.1:80": "address:1",
    "web1": "name:1",
    "app/*": "backend:1",
    "*": "every:1",
}


@pytest.mark.parametrize("left_out", range(len(ENTRIES)))
def test_the_most_specific_entry_counts(left_out: int) -> None:
    """Each entry that is taken away leaves the decision to the next one."""
    entries = dict(list(ENTRIES.items())[left_out:])
    assert ServerMap(entries).lookup("app", "web1", "10.0.0.1:80") == list(ENTRIES.values())[left_out]


def test_without_an_entry_there_is_no_shadow() -> None:
    servers = ServerMap({"app/web1": "s:1", "other/*": "s:2", "10.0.0.1:81": "s:3"})
    assert servers.lookup("app", "web2", "10.0.0.1:80") is None
    assert ServerMap({}).lookup("app", "web1", "10.0.0.1:80") is None


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("prod-web1:80", "prod-web1:80"),
        ("Prod-Web1:80", "prod-web1:80"),
        ("10.0.0.1:80", "10.0.0.1:080"),
        ("10.0.0.1:80", "ipv4@10.0.0.1:80"),
        ("10.0.0.1:80", "[::ffff:10.0.0.1]:80"),
        ("[2001:db8::1]:80", "2001:db8::1:80"),
        ("[2001:DB8:0:0::1]:80", "[2001:db8::1]:80"),
        ("unix:/run/app.sock", "unix@/run/app.sock"),
        ("unix:/run/app.sock", "/run/app.sock"),
        ("unix@/run/app.sock", "unix:/run/app.sock"),
        ("abns@app", "abns@app"),
        ("10.0.0.1:+1000", "10.0.0.1:+1000"),
    ],
)
def test_addresses_match_as_written_or_in_numbers(entry: str, address: str) -> None:
    assert ServerMap({entry: "shadow:1"}).lookup("app", "web1", address) == "shadow:1"


@pytest.mark.parametrize("address", ["prod-web1:8080", "10.0.0.10:80", "10.0.0.1", "[::1]:80", "unix:/run/app.soc"])
def test_other_addresses_do_not_match(address: str) -> None:
    entries = {"prod-web1:80": "s:1", "10.0.0.1:80": "s:1", "[2001:db8::1]:80": "s:1", "unix:/run/app.sock": "s:1"}
    assert ServerMap(entries).lookup("app", "x", address) is None


@pytest.mark.parametrize(
    ("value", "shadow"),
    [
        ("shadow1:8080", "shadow1:8080"),
        (" shadow1:8080 ", "shadow1:8080"),
        ("shadow1", "shadow1:80"),
        ("192.0.2.1", "192.0.2.1:80"),
        ("[2001:db8::1]", "[2001:db8::1]:80"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("unix:/run/shadow.sock", "unix:/run/shadow.sock"),
    ],
)
def test_values(value: str, shadow: str) -> None:
    assert ServerMap({"*": value}).lookup("app", "web1", "10.0.0.1:80") == shadow


def test_a_list_is_dealt_out_in_turn_in_each_backend() -> None:
    servers = ServerMap({"*": ["a:1", "b:1"], "app/web9": "c:1"})
    names = ["web1", "web2", "web9", "web3"]
    assert [servers.lookup("app", name, "h:1") for name in names] == ["a:1", "b:1", "c:1", "a:1"]
    assert [servers.lookup("api", name, "h:1") for name in names] == ["a:1", "b:1", "a:1", "b:1"]


def test_a_derivation_begins_anew() -> None:
    servers = ServerMap({"*": ["a", "b"], "web2": "c"})
    assert servers.lookup("app", "web1", "h:1") == "a:1"
    again = servers.fresh()
    assert again.lookup("app", "web1", "h:1") == "a:1"
    assert again.lookup("app", "web1", "h:1") == "b:1"
    assert (servers.unused, again.unused) == (("web2",), ("web2",))


def test_entries_that_nothing_hits_are_told() -> None:
    servers = ServerMap({"app/web1": "a:1", "10.0.0.2:80": "a:1", "webb3": "a:1", "*": "a:1"})
    assert list(servers.unused) == ["app/web1", "10.0.0.2:80", "webb3", "*"]
    servers.lookup("app", "web1", "10.0.0.1:80")
    servers.lookup("app", "web2", "10.0.0.2:80")
    assert list(servers.unused) == ["webb3", "*"]


@pytest.mark.parametrize("address", ["unix@/run/app.sock", "10.0.0.1", "10.0.0.1:+10", "10.0.0.1:-10", "10.0.0.1:0"])
def test_a_port_that_is_not_there_cannot_be_kept(address: str) -> None:
    assert ServerMap({"*": "shadow:1"}).lookup("app", "web1", address) == "shadow:1"
    with pytest.raises(UpstreamError, match="has no port to keep, write shadow:PORT"):
        ServerMap({"*": "shadow"}).lookup("app", "web1", address)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("", "a:1"), (" app/web1", "a:1"), ("app/web1", ""), ("app/web1", []), ("app/web1", ["a:1", "b:"]),
        ("app/web1", "a:b"), ("app/web1", "a:0"), ("app/web1", "a:65536"), ("app/web1", "http://a"),
        ("app/web1", "::1"), ("app/web1", "[::1"), ("app/web1", "[x]:1"), ("app/web1", "unix:run/x"),
        ("app/web1", "unix:"), ("app/web1", "unix:/run/a b"), ("app/web1", "0.0.0.0:1"), ("app/web1", "[::]:1"),
        ("app/web1", "*:1"), ("app/web1", "a b:1"), ("app/web1", "a#b:1"), ("app/web1", 'a"b'), ("app/web1", "$x:1"),
        ("app/web1", "a;b:1"), ("app/web1", "a{b"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_told_in_one_line(key: str, value: str | Sequence[str]) -> None:
    with pytest.raises(UpstreamError) as error:
        ServerMap({key: value})
    assert repr(key) in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_an_entry_or_an_error(key: str, value: str, address: str) -> None:
    try:
        found = ServerMap({key: value}).lookup("app", "web1", address)
    except UpstreamError as error:
        assert "\n" not in str(error).replace(repr(value), "")
        return
    assert found is None or not any(char in found for char in " \t\n\"'#;{}$\\")


@given(st.text(alphabet="0123456789abc.:[]@/*+", max_size=24))
def test_one_way_to_write_an_address_stays_as_it_is(address: str) -> None:
    once = canonical(address)
    if not once.startswith("unix:"):
        assert canonical(once) == once
