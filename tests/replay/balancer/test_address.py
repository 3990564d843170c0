"""Addresses: how they may be written, what they resolve to, and which are production's."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.address import HostPort, Production, is_local, parse_host_port, resolve
from replay.errors import UpstreamError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1:80", HostPort("192.0.2.1", 80)),
        (" shadow.example:8080 ", HostPort("shadow.example", 8080)),
        ("[2001:db8::1]:443", HostPort("2001:db8::1", 443)),
        ("localhost:65535", HostPort("localhost", 65535)),
    ],
)
def test_forms(text: str, expected: HostPort) -> None:
    assert parse_host_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":80", "host", "host:", "host:0", "host:65536", "host:-1", "host:8o", "host:+80", "host:\u0661",
        "host:99999999999999999999999", "::1:80", "2001:db8::1", "[::1]", "[::1]80", "[::1:80", "[]:80", "[host]:80",
        "http://host:80", "host:80/path", "a b:80", "a@b:80", "a,b:80",
    ],
)  # fmt: skip
def test_other_forms_are_told_in_one_line(text: str) -> None:
    with pytest.raises(UpstreamError) as error:
        parse_host_port(text)
    assert repr(text.strip()) in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    try:
        host, port = parse_host_port(text)
    except UpstreamError:
        return
    assert host
    assert 0 < port < 65536


def test_numeric_addresses_resolve_to_themselves() -> None:
    (endpoint,) = resolve("127.0.0.1:80")
    assert (endpoint.family, endpoint.sockaddr) == (socket.AF_INET, ("127.0.0.1", 80))
    (endpoint,) = resolve("[::1]:80")
    assert (endpoint.family, endpoint.sockaddr[:2]) == (socket.AF_INET6, ("::1", 80))


def resolver(*addresses: str) -> Any:
    """getaddrinfo for a name with these addresses."""

    def resolved(host: str, port: int, **hints: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

    return resolved


def test_a_name_has_all_its_addresses() -> None:
    found = resolve("shadow:80", resolver("192.0.2.1", "2001:db8::1"))
    assert [str(e.address) for e in found] == ["192.0.2.1", "2001:db8::1"]


def test_names_that_do_not_resolve() -> None:
    def unknown(host: str, port: int, **hints: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(UpstreamError, match="'shadow' does not resolve: Name or service not known"):
        resolve("shadow:80", unknown)
    with pytest.raises(UpstreamError, match="does not resolve to an address"):
        resolve("shadow:80", resolver())
    with pytest.raises(UpstreamError, match="does not resolve"):
        resolve("x" * 300 + ":80")


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[::ffff:0.0.0.0]:80"])
def test_addresses_of_no_one_host(text: str) -> None:
    with pytest.raises(UpstreamError, match="not the address of one host"):
        resolve(text)


@pytest.mark.parametrize(
    ("entry", "upstream", "refused"),
    [
        ("192.0.2.1:80", "192.0.2.1:80", True),
        ("192.0.2.1:80", "192.0.2.1:81", False),
        ("192.0.2.1:80", "192.0.2.2:80", False),
        ("192.0.2.1:80", "[::ffff:192.0.2.1]:80", True),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1:80", True),
        ("[2001:db8::1]:80", "[2001:db8:0:0::1]:80", True),
        ("*:80", "127.0.0.1:80", True),
        ("*:80", "127.9.9.9:80", True),
        ("*:80", "[::1]:80", True),
        ("*:80", "127.0.0.1:81", False),
        ("*:80", "192.0.2.1:80", False),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "127.0.0.1:80", True),
    ],
)
def test_production_is_recognised(entry: str, upstream: str, refused: bool) -> None:
    assert Production([entry]).has(resolve(upstream)[0]) is refused


def test_production_addresses_are_numeric() -> None:
    with pytest.raises(UpstreamError, match="write a numeric address"):
        Production(["shop.example:80"])


def test_local_addresses() -> None:
    assert is_local(ipaddress.ip_address("127.0.0.1"))
    assert is_local(ipaddress.ip_address("::1"))
    assert not is_local(ipaddress.ip_address("192.0.2.1"))
