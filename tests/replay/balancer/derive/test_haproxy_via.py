"""The header that names the upstream, also from a running HAProxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.haproxy_via import NS_PER_MS, parse_via
from replay.errors import UpstreamError
from replay.via import Via
from tests.replay.balancer.derive.haproxy_harness import (
    VIA_LINE,
    Running,
    derive,
    proxied,
    speak,
)


@pytest.mark.parametrize("header", ["", "X Y", 'X"', "X:", "X%", "X#"])
def test_a_header_has_a_name(header: str) -> None:
    with pytest.raises(UpstreamError, match="write a header's name"):
        derive("", header=header)


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("frontend f\n bind :80\n mode http\n option x\n", [" mode http"]),
        ("defaults\n mode http\nfrontend f\n bind :80\n", ["frontend f"]),
        ("defaults\n mode http\ndefaults b\nfrontend f\n bind :80\n", []),
        ("defaults a\n mode http\ndefaults b\nfrontend f from a\n bind :80\n", ["frontend f from a"]),
        ("defaults a\n mode http\ndefaults b from a\nlisten f from b\n", ["listen f from b"]),
        ("defaults\n mode http\nfrontend f\n mode tcp\nbackend b\n", []),
        ("listen f\n.if x\n mode http\n.else\n mode tcp\n.endif\n", [" mode http"]),
        ("backend b\n mode http\n", []),
    ],
)
def test_http_frontends_name_the_upstream(text: str, behind: list[str]) -> None:
    lines = derive(text).text.split("\n")
    assert [lines[index - 1] for index, line in enumerate(lines) if line.strip() == VIA_LINE] == behind


@pytest.mark.parametrize(
    ("value", "via"),
    [
        (b"app/web1 10.0.0.1:80 0 3 12", Via("app", "web1", "10.0.0.1:80", 0, 3 * NS_PER_MS)),
        (b"app/web1 ::1:80 15 0 0", Via("app", "web1", "[::1]:80", 15 * NS_PER_MS, 0)),
        (b"app/web1 unix:0 0 0 2", Via("app", "web1", "", 0, 0)),
        (b"f/<NOSRV> : -1 -1 -1", Via("f", "", "", -1, -1)),
        (b"f/<STATS> : 0 0 0", Via("f", "", "", 0, 0)),
        (b"b/<NOSRV> 10.0.0.1:80 0 1 2", Via("b", "<NOSRV>", "10.0.0.1:80", 0, NS_PER_MS)),  # by `dispatch`
        (b"b/s 10.0.0.1:80 7 -1 -1", Via("b", "", "", 7 * NS_PER_MS, -1)),
        (b"", None),
        (b"app/web1 10.0.0.1:80 0 3", None),
        (b"app 10.0.0.1:80 0 3 1", None),
        (b"app/web1 10.0.0.1 0 3 1", None),
        (b"app/web1 10.0.0.1:80 x 3 1", None),
        (b"app/web1 10.0.0.1:80 0 3 1 2", None),
        (b"app/web1 10.0.0.1:80 0 3 99999999999", None),
        (b"\xff/web1 10.0.0.1:80 0 3 1", None),
        (b"a" * 2000 + b"/b 10.0.0.1:80 0 3 1", None),
    ],
)
def test_reading_the_header(value: bytes, via: Via | None) -> None:
    assert parse_via(value) == via


@given(st.one_of(st.binary(max_size=60), st.from_regex(rb"\A[a<>/]*/[b<>]* [0-9.:a]*:[0-9]* -?[0-9 -]*\Z")))
def test_any_header_is_read_or_not(value: bytes) -> None:
    via = parse_via(value)
    assert via is None or (via.queue_ns >= -1 and via.connect_ns >= -1)


def test_the_upstream_is_named(running: Running) -> None:
    found = [running.ask("/", f"192.0.2.{number}") for number in (10, 11)]
    assert {via.server for _, via in found if via} == {"a1", "a2"}
    for response, via in found:
        assert via is not None
        assert (via.backend, via.address, via.queue_ns) == ("app", running.addresses[via.server], 0)
        assert 0 <= via.connect_ns < 1_000 * NS_PER_MS
        assert f"\r\n\r\n{via.server} GET / HTTP/1.1".encode() in response


def test_the_client_is_the_real_one(running: Running) -> None:
    response, _ = running.ask("/", "192.0.2.20")
    assert b"x-forwarded-for: 192.0.2.20\r\n" in response.lower()
    assert b"x-seen: 1 192.0.2.20 203.0.113.1:80\r\n" in response.lower()


def test_tables_count_by_client_without_peers(running: Running) -> None:
    """The fourth connection of one client is refused by its own count, not by that of the replay client's address; the
    table that stands in the peers section counts as well."""
    for number in (1, 2, 3):
        assert f"x-seen: {number} 192.0.2.30 ".encode() in running.ask("/", "192.0.2.30")[0].lower()
    with contextlib.suppress(ConnectionError):
        assert running.ask("/", "192.0.2.30") == (b"", None)
    assert b"x-seen: 1 192.0.2.31 " in running.ask("/", "192.0.2.31")[0].lower()


def test_time_in_the_queue(running: Running) -> None:
    """One connection at a time, 150 ms each: the second waits for the first."""
    found: list[Via | None] = []
    threads = [threading.Thread(target=lambda: found.append(running.ask("/slow", "192.0.2.40")[1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    first, second = sorted(via.queue_ns for via in found if via)
    assert first == 0
    assert 80 * NS_PER_MS < second < 2_000 * NS_PER_MS


@pytest.mark.parametrize(
    ("path", "status", "backend"),
    [
        ("/refused", 503, "refused"),
        ("/empty", 503, "empty"),
        ("/redirect", 302, "web"),
        ("/return", 200, "web"),
        ("/deny", 403, "web"),
        ("/stats", 200, "web"),
    ],
)
def test_answers_of_the_balancer_itself_name_no_server(running: Running, path: str, status: int, backend: str) -> None:
    response, via = running.ask(path, f"192.0.2.5{len(path)}")
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert via is not None
    assert (via.backend, via.server, via.address, via.connect_ns) == (backend, "", "", 0 if path == "/stats" else -1)


def test_answers_out_of_the_cache_name_no_server(running: Running) -> None:
    (_, first), (again, second) = running.ask("/cached", "192.0.2.60"), running.ask("/cached", "192.0.2.60")
    assert first is not None and first.server == "c"
    assert b"\r\nage: " in again.lower()
    assert second is not None and (second.server, second.address) == ("", "")


def test_of_two_frontends_in_a_row_the_last_one_names_the_upstream(running: Running) -> None:
    _, via = running.ask("/chained", "192.0.2.70")
    assert via is not None
    assert (via.backend, via.server, via.address) == ("last", "final", running.addresses["final"])


def test_the_old_way_to_name_a_server(running: Running) -> None:
    _, via = running.ask("/dispatch", "192.0.2.71")
    assert via is not None
    assert (via.backend, via.address) == ("old", running.addresses["dispatch"])


def test_tls_is_spoken_behind_the_proxy_header(running: Running, corpus: Path) -> None:
    context = ssl.create_default_context(cafile=str(corpus / "certs" / "ca.pem"))
    with socket.create_connection(("127.0.0.1", running.ports["203.0.113.1:443"]), 5) as connection:
        proxied(connection, "192.0.2.80", 443)
        with context.wrap_socket(connection, server_hostname="www.example.com") as secure:
            assert secure.selected_alpn_protocol() is None
            response, via = speak(secure, "/")
    assert b"x-seen: 1 192.0.2.80 203.0.113.1:443\r\n" in response.lower()
    assert via is not None and via.server in ("a1", "a2")


def test_no_peer_is_listened_for_and_inner_listeners_are_not_offered(running: Running) -> None:
    assert set(running.ports) == {"203.0.113.1:80", "203.0.113.1:443", "abns@inner"}
    assert "peer lb1 10.0.0.1:1024" in running.derived.text
    assert "peers mates\n disabled\n" in running.derived.text
