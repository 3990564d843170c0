"""PROXY protocol v2: golden bytes, the agent's own reader, and a real HAProxy that believes them."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.select.client_address import NEED_MORE, ProxyHeader, parse_proxy_header
from replay.proxy_header import LOCAL, Peer, parse_peer, proxy_v2

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")

addresses = st.ip_addresses()
ports = st.integers(0, 65535)


def written(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """As an Exchange has it."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


@pytest.mark.parametrize(
    ("client", "server", "rest"),
    [
        ("192.0.2.1:5555", "198.51.100.7:443", "21 11 000c c0000201 c6336407 15b3 01bb"),
        (
            "[2001:db8::1]:5555",
            "[2001:db8::2]:443",
            "21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 15b3 01bb",
        ),
        (
            "192.0.2.1:5555",
            "[2001:db8::2]:443",
            "21 21 0024 00000000000000000000ffffc0000201 20010db8000000000000000000000002 15b3 01bb",
        ),
        ("[::ffff:192.0.2.1]:5555", "198.51.100.7:443", "21 11 000c c0000201 c6336407 15b3 01bb"),
        ("192.0.2.1", "198.51.100.7:443", "21 11 000c c0000201 c6336407 0000 01bb"),
        ("", "198.51.100.7:443", "20 00 0000"),
        ("192.0.2.1:5555", "", "20 00 0000"),
        ("shop.example:80", "198.51.100.7:443", "20 00 0000"),
    ],
)
def test_golden_bytes(client: str, server: str, rest: str) -> None:
    assert proxy_v2(client, server) == SIGNATURE + bytes.fromhex(rest)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("192.0.2.1:5555", Peer(bytes([192, 0, 2, 1]), 5555)),
        ("192.0.2.1", Peer(bytes([192, 0, 2, 1]), 0)),
        ("[2001:db8::1]:65535", Peer(bytes.fromhex("20010db8" + "0" * 23 + "1"), 65535)),
        ("[2001:DB8::1]", Peer(bytes.fromhex("20010db8" + "0" * 23 + "1"), 0)),
        ("2001:db8::1", Peer(bytes.fromhex("20010db8" + "0" * 23 + "1"), 0)),
        ("::", Peer(bytes(16), 0)),
        ("::ffff:192.0.2.1", Peer(bytes([192, 0, 2, 1]), 0)),
    ],
)
def test_ends_of_connections(text: str, peer: Peer) -> None:
    assert parse_peer(text) == peer


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "80", "a:80", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.256:1", "192.0.2:1", "192.0.2.01:1"),
        *("[192.0.2.1]:1", "[2001:db8::1", "2001:db8::1]:1", "[]:1", "[:::1]:1", "fe80::1%eth0", "[::1]:x", "[::1]x"),
        *("192.0.2.1:5555\r\nX: 1", "192.0.2.1:\u0661", "192.0.2.1 :1", "192.0.2.1:1\n"),
    ],
)
def test_what_is_no_end_of_a_connection(text: str) -> None:
    assert parse_peer(text) is None
    assert proxy_v2(text, "198.51.100.7:443") == LOCAL


@given(st.text(max_size=50))
def test_any_text_is_data(text: str) -> None:
    assert proxy_v2(text, text).startswith(SIGNATURE)


@given(addresses, ports, addresses, ports)
def test_the_agent_reads_what_is_written(
    client: ipaddress.IPv4Address, client_port: int, server: ipaddress.IPv4Address, server_port: int
) -> None:
    header = proxy_v2(written(client, client_port), written(server, server_port))
    seen = getattr(client, "ipv4_mapped", None) or client
    assert parse_proxy_header(header + b"GET") == ProxyHeader(len(header), seen, client_port)
    assert all(parse_proxy_header(header[:end]) is NEED_MORE for end in range(len(header)))


def test_the_agent_reads_the_local_header() -> None:
    assert parse_proxy_header(LOCAL) == ProxyHeader(16, None, 0)


# The real thing

DEFAULTS = """
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend f
"""


@contextlib.contextmanager
def haproxy(folder: Path, bind: str, *lines: str) -> Iterator[int]:
    """An HAProxy of our own with one frontend; `bind` is what stands behind the address. Gives its port."""
    if HAPROXY is None:
        pytest.skip("haproxy is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it inherits the socket: nobody can take the port
        conf = folder / "haproxy.cfg"
        bound = (f"bind fd@{listener.fileno()} {bind}", *lines)
        conf.write_text(DEFAULTS + "".join(f"  {line}\n" for line in bound))
        command = [HAPROXY, "-db", "-q", "-f", str(conf)]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.wait(5)


def ask(port: int, header: bytes) -> bytes:
    """The body of the answer to one request behind `header`."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(header + b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return data.partition(b"\r\n\r\n")[2].strip()


def test_haproxy_believes_it(tmp_path: Path) -> None:
    answer = 'http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]"'
    with haproxy(tmp_path, "accept-proxy", answer) as port:
        for client, server, seen in [
            ("192.0.2.1:5555", "198.51.100.7:443", b"192.0.2.1:5555 198.51.100.7:443"),
            ("[2001:db8::1]:5555", "[2001:db8::2]:443", b"2001:db8::1:5555 2001:db8::2:443"),
            ("192.0.2.1:5555", "[2001:db8::2]:443", b"::ffff:192.0.2.1:5555 2001:db8::2:443"),
            ("192.0.2.1", "198.51.100.7:443", b"192.0.2.1: 198.51.100.7:443"),
        ]:
            assert ask(port, proxy_v2(client, server)) == seen
        assert ask(port, LOCAL).startswith(b"127.0.0.1:")
