"""Who the client is: PROXY headers whole, cut anywhere and garbled; headers through trusted and other proxies."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.select.client_address import (
    MAX_HOPS,
    NEED_MORE,
    V1_LIMIT_BYTES,
    V2_LIMIT_BYTES,
    Address,
    ClientAddress,
    ProxyHeader,
    client_address,
    client_of,
    parse_proxy_header,
    unmapped,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXIES = client_address("X-Forwarded-For", ["10.0.0.0/8", "2001:db8:ffff::/48"])


def ip(text: str) -> Address:
    return ipaddress.ip_address(text)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def v2_address(source: str, port: int, tlvs: bytes = b"") -> bytes:
    kind, code = (socket.AF_INET, 0x11) if ":" not in source else (socket.AF_INET6, 0x21)
    packed = socket.inet_pton(kind, source)
    return v2(0x21, code, packed + packed[::-1] + struct.pack("!HH", port, 443) + tlvs)


GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n", "192.0.2.1", 56324),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65535),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4124 443\r\n", "2001:db8::1", 4124),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", "192.0.2.1", 1),
    (b"PROXY UNKNOWN\r\n", None, 0),
    (b"PROXY UNKNOWN " + b"ffff:" * 8 + b" what ever 65535 65535\r\n", None, 0),
    (v2_address("192.0.2.1", 56324), "192.0.2.1", 56324),
    (v2_address("192.0.2.1", 80, b"\x04\x00\x05hello"), "192.0.2.1", 80),
    (v2_address("2001:db8::1", 65535), "2001:db8::1", 65535),
    (v2_address("2001:db8::1", 1, b"\x01\x00\x02h2" * 9), "2001:db8::1", 1),
    (v2_address("::ffff:192.0.2.9", 2), "192.0.2.9", 2),
    (v2(0x20, 0x00, b""), None, 0),
    (v2(0x20, 0x11, b"\0" * 12), None, 0),
    (v2(0x21, 0x00, b"\x03\x00\x04crcc"), None, 0),
    (v2(0x21, 0x31, b"/run/socket".ljust(216, b"\0")), None, 0),
    (v2(0x21, 0x12, b"\1" * 12), None, 0),
]
BAD = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY",
    b"PROXYTCP4 ",
    b"PROXY \r\n",
    b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    b"PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xb2\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n" + b"x" * V1_LIMIT_BYTES,
    b"PROXY UNKNOWN " + b"x" * V1_LIMIT_BYTES + b"\r\n",
    v2(0x11, 0x11, b"\0" * 12),
    v2(0x22, 0x11, b"\0" * 12),
    v2(0x21, 0x41, b"\0" * 12),
    v2(0x21, 0x13, b"\0" * 12),
    v2(0x21, 0x11, b"\0" * 11),
    v2(0x21, 0x21, b"\0" * 35),
    v2_address("192.0.2.1", 1, b"\0" * V2_LIMIT_BYTES),
    SIGNATURE[:-1] + b"\r",
]


@pytest.mark.parametrize(("data", "source", "port"), GOOD)
def test_proxy_headers_whole_and_cut_at_every_byte(data: bytes, source: str | None, port: int) -> None:
    expected = ProxyHeader(len(data), source and ip(source), port)
    assert parse_proxy_header(data) == parse_proxy_header(bytearray(data)) == expected
    assert parse_proxy_header(data + b"GET / HTTP/1.1\r\n\r\n") == parse_proxy_header(data * 2) == expected
    for cut in range(len(data)):
        assert parse_proxy_header(data[:cut]) is NEED_MORE


@pytest.mark.parametrize("data", BAD)
def test_what_is_no_proxy_header_never_becomes_one(data: bytes) -> None:
    full = data + b" " * V1_LIMIT_BYTES
    assert parse_proxy_header(full) is None
    results = [parse_proxy_header(full[:cut]) for cut in range(len(full))]
    assert set(results) <= {None, NEED_MORE}
    decided = results.index(None)
    assert set(results[decided:]) == {None}
    assert decided <= V1_LIMIT_BYTES


def test_an_ordinary_request_is_told_at_once() -> None:
    assert parse_proxy_header(b"G") is None
    assert parse_proxy_header(b"PO") is None
    assert parse_proxy_header(b"\x16\x03\x01") is None
    assert parse_proxy_header(b"") is NEED_MORE


def test_the_longest_line_of_version_1_is_taken_and_no_longer_one() -> None:
    filler = V1_LIMIT_BYTES - len(b"PROXY UNKNOWN \r\n")
    assert parse_proxy_header(b"PROXY UNKNOWN " + b"x" * filler + b"\r\n") == ProxyHeader(V1_LIMIT_BYTES, None, 0)
    assert parse_proxy_header(b"PROXY UNKNOWN " + b"x" * (filler + 1) + b"\r\n") is None


@given(st.sampled_from([data for data, *_ in GOOD]), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255))))
def test_garbled_proxy_headers_never_raise_and_never_change_their_mind(
    data: bytes, changes: list[tuple[int, int]]
) -> None:
    garbled = bytearray(data)
    for at, value in changes:
        garbled[at % len(garbled)] = value
    settled: object = NEED_MORE
    for cut in range(len(garbled) + 1):
        result = parse_proxy_header(garbled[:cut])
        assert settled is NEED_MORE or result == settled
        settled = result
        assert not isinstance(result, ProxyHeader) or result.consumed_bytes <= cut


@given(st.binary(max_size=64), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes_are_data(data: bytes, start: bytes) -> None:
    result = parse_proxy_header(start + data)
    assert result is None or result is NEED_MORE or isinstance(result, ProxyHeader)


def client(*values: str, peer: str = "10.0.0.1", settings: ClientAddress = PROXIES) -> str:
    lines = "".join(f"X-Forwarded-For: {value}\r\n" for value in values)
    head = f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode("latin-1")
    return str(client_of(head, ip(peer), settings))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["8.8.8.8"], "8.8.8.8"),
        (["1.1.1.1, 8.8.8.8"], "8.8.8.8"),
        (["1.1.1.1, 8.8.8.8, 10.9.9.9,10.1.1.1"], "8.8.8.8"),
        (["1.1.1.1", "8.8.8.8", "10.9.9.9"], "8.8.8.8"),
        (["8.8.8.8:4711"], "8.8.8.8"),
        (["2001:4860::1"], "2001:4860::1"),
        (["[2001:4860::1]"], "2001:4860::1"),
        (["[2001:4860::1]:443, 2001:db8:ffff::7"], "2001:4860::1"),
        (["::ffff:8.8.8.8"], "8.8.8.8"),
        (["8.8.8.8, ::ffff:10.0.0.9"], "8.8.8.8"),
        (["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        (["8.8.8.8, , 10.2.2.2,"], "8.8.8.8"),
        (["8.8.8.8, unknown, 10.2.2.2"], "10.2.2.2"),
        (["8.8.8.8, unknown"], "10.0.0.1"),
        (["1.2.3"], "10.0.0.1"),
        (["8.8.8.8:x"], "10.0.0.1"),
        (["[8.8.8.8"], "10.0.0.1"),
        (["8.8.8.8%eth0"], "10.0.0.1"),
        (["fe80::1%<script>"], "10.0.0.1"),
        (["\xb2.8.8.8"], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
    ],
)
def test_the_client_is_the_first_untrusted_address_from_the_right(values: list[str], expected: str) -> None:
    assert client(*values) == expected


def test_a_peer_that_is_not_trusted_is_the_client_itself() -> None:
    assert client("8.8.8.8", peer="9.9.9.9") == "9.9.9.9"
    assert client("8.8.8.8", peer="::ffff:9.9.9.9") == "9.9.9.9"
    assert client("8.8.8.8", peer="::ffff:10.0.0.1") == "8.8.8.8"
    assert client("8.8.8.8", peer="2001:db8:ffff::1") == "8.8.8.8"


def test_with_no_trusted_proxies_nobody_is_believed() -> None:
    assert client("8.8.8.8", settings=client_address("x-forwarded-for")) == "10.0.0.1"


@pytest.mark.parametrize("source", ["connection", "proxy_protocol"])
def test_other_sources_leave_the_headers_alone(source: str) -> None:
    assert client("8.8.8.8", settings=client_address(source, ["10.0.0.0/8"])) == "10.0.0.1"


def test_any_header_will_do() -> None:
    settings = client_address("CF-Connecting-IP", ["10.0.0.0/8"])
    head = b"GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\ncf-connecting-ip: 8.8.8.8\r\n\r\n"
    assert str(client_of(head, ip("10.0.0.1"), settings)) == "8.8.8.8"
    assert str(client_of(head, ip("10.0.0.1"), client_address("X-Real-IP", ["10.0.0.0/8"]))) == "10.0.0.1"


def test_a_single_address_counts_even_if_it_is_trusted() -> None:
    settings = client_address("X-Real-IP", ["10.0.0.0/8"])
    assert str(client_of(b"GET / HTTP/1.1\r\nX-Real-IP: 10.7.7.7\r\n\r\n", ip("10.0.0.1"), settings)) == "10.7.7.7"


def test_the_walk_is_limited() -> None:
    near = ["8.8.8.8"] + ["10.2.2.2"] * (MAX_HOPS - 1)
    assert client(", ".join(near)) == "8.8.8.8"
    assert client(", ".join([*near, "10.2.2.2"])) == "10.2.2.2"
    assert client(",".join(["8.8.8.8"] + [""] * 30_000)) == "10.0.0.1"


@given(st.binary(max_size=200), st.booleans())
def test_any_header_is_data(value: bytes, v6: bool) -> None:
    peer = ip("2001:db8:ffff::1" if v6 else "10.0.0.1")
    head = b"GET / HTTP/1.1\r\nX-Forwarded-For: " + value + b"\r\n\r\n"
    assert client_of(head, peer, PROXIES).version in (4, 6)


addresses = st.ip_addresses()


@given(st.lists(addresses, max_size=5), st.lists(st.sampled_from(["10.0.0.2", "2001:db8:ffff::2"]), max_size=5))
def test_what_a_stranger_writes_does_not_matter(forged: list[Address], proxies: list[str]) -> None:
    """The last untrusted address was written by a trusted proxy; all to its left may be forged."""
    entries = [*map(str, forged), "9.9.9.9", *proxies]
    assert client(", ".join(entries)) == "9.9.9.9"


def test_settings_name_what_is_wrong() -> None:
    assert client_address(" X-Real-IP ").header == "x-real-ip"
    assert client_address("connection").header == client_address("proxy_protocol").header == ""
    for source in ("Forwarded", "", "X Forwarded", "x:y"):
        with pytest.raises(ConfigError, match="connection, proxy_protocol or a header"):
            client_address(source)
    for network in ("10.0.0.1/8", "lb1", ""):
        with pytest.raises(ConfigError, match=r"trusted proxy '.*give a network"):
            client_address("x-real-ip", [network])


def test_trusted_networks_may_be_written_as_mapped() -> None:
    settings = client_address("x-forwarded-for", ["::ffff:10.0.0.0/104", "::/0"])
    assert [str(network) for network in settings.trusted] == ["10.0.0.0/8", "::/0"]
    assert client("8.8.8.8", settings=settings) == "8.8.8.8"


def test_unmapped() -> None:
    assert [str(unmapped(ip(text))) for text in ("::ffff:1.2.3.4", "::1.2.3.4", "1.2.3.4")] == [
        "1.2.3.4",
        "::102:304",
        "1.2.3.4",
    ]
