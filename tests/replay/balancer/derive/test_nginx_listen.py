"""Where the shadow listens: every way to write an address, the same private one in every server block."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.change import Derived, Listener
from replay.balancer.derive.nginx_edits import Reason
from replay.balancer.derive.nginx_listen import Socket, sockets_of
from replay.balancer.derive.nginx_tree import Statement
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import counted, write


def after(derived: Derived, *reasons: Reason) -> list[str]:
    """What is there now where one of these is a reason."""
    found = [each for each in derived.changes if any(reason in each.reason for reason in reasons)]
    return [line.strip().rstrip(";") for each in found for line in (each.after or "").split("\n")]


def listens(tmp_path: Path, text: str, host: str = "127.0.0.1") -> list[str]:
    derived = write(tmp_path, text).derive(private=counted(host))
    return [line.strip().removeprefix("listen ").rstrip(";") for line in derived.text.split("\n") if "listen " in line]


@pytest.mark.parametrize(
    ("text", "sockets"),
    [
        ("80", ["*:80"]),
        ("*:80", ["*:80"]),
        ("0.0.0.0:80", ["*:80"]),
        ("192.0.2.1:8080", ["192.0.2.1:8080"]),
        ("192.0.2.1", ["192.0.2.1:80"]),
        ("[::]:443", ["[::]:443"]),
        ("[2001:DB8::1]", ["[2001:db8::1]:80"]),
        ("localhost:8080", ["localhost:8080"]),
        ("localhost", ["localhost:80"]),
        ("8000-8002", ["*:8000", "*:8001", "*:8002"]),
        ("127.0.0.1:8000-8001", ["127.0.0.1:8000", "127.0.0.1:8001"]),
        ("unix:/run/nginx.sock", ["unix:/run/nginx.sock"]),
    ],
)
def test_every_way_to_write_an_address(text: str, sockets: list[str]) -> None:
    assert [each.name for each in sockets_of(Statement("listen", (text,)))] == sockets


@pytest.mark.parametrize("text", ["192.0.2.1:http", "70000", "[::1]:", ":-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UpstreamError, match=r"f:3: listen '.*' is not an address"):
        list(sockets_of(Statement("listen", (text,), None, "f", 3)))


def test_one_private_address_for_every_way_to_write_one(tmp_path: Path) -> None:
    text = "server { listen 80; } server { listen *:80 default_server; listen [::]:80; } server { listen 0.0.0.0:80; }"
    assert listens(tmp_path, text) == [
        "127.0.0.1:20001 proxy_protocol",
        "127.0.0.1:20001 default_server proxy_protocol",
        "127.0.0.1:20002 proxy_protocol",
        "127.0.0.1:20001 proxy_protocol",
    ]


@pytest.mark.parametrize(
    ("host", "parameters", "kept"),
    [
        ("127.0.0.1", "ssl http2 reuseport backlog=511", "ssl http2 reuseport backlog=511 proxy_protocol"),
        ("127.0.0.1", "bind so_keepalive=on deferred", "bind so_keepalive=on deferred proxy_protocol"),
        ("127.0.0.1", "proxy_protocol ssl", "proxy_protocol ssl"),
        ("127.0.0.1", "ipv6only=on ssl", "ssl proxy_protocol"),
        ("::1", "ipv6only=on ssl", "ipv6only=on ssl proxy_protocol"),
        ("127.0.0.1", "quic reuseport", "ssl reuseport proxy_protocol"),
    ],
)
def test_parameters(host: str, parameters: str, kept: str, tmp_path: Path) -> None:
    address = "[::1]:20001" if ":" in host else "127.0.0.1:20001"
    assert listens(tmp_path, f"server {{ listen [::]:443 {parameters}; }}", host) == [f"{address} {kept}"]


def test_quic_beside_tcp_goes(tmp_path: Path) -> None:
    derived = write(tmp_path, "server { listen 443 quic reuseport; listen 443 ssl; }").derive()
    assert [(each.before, each.after) for each in derived.changes if each.reason == Reason.QUIC] == [
        ("        listen 443 quic reuseport;", None)
    ]
    assert [each.tls for each in derived.listeners] == [True]


def test_a_server_without_listen_gets_what_nginx_implies(tmp_path: Path) -> None:
    derived = write(tmp_path, "server { server_name a; } server { listen 80 default_server; }").derive()
    assert after(derived, Reason.IMPLIED_LISTEN) == ["listen 127.0.0.1:20001 proxy_protocol"]
    assert [each.production for each in derived.listeners] == ["*:80"]


def test_listeners_say_what_they_are(tmp_path: Path) -> None:
    text = """
        server { listen 443 ssl; listen [::]:443 ssl; server_name _ shop.example; }
        server { listen 443; listen unix:/run/a.sock; listen [2001:db8::1]:8080; }
        """
    assert write(tmp_path, text).derive().listeners == (
        Listener("*:443", "*", 443, "127.0.0.1", 20001, True, "shop.example", True),
        Listener("[::]:443", "*", 443, "127.0.0.1", 20002, True, "shop.example", True),
        Listener("unix:/run/a.sock", "/run/a.sock", 0, "127.0.0.1", 20003, False, "nginx.conf:5", True),
        Listener("[2001:db8::1]:8080", "2001:db8::1", 8080, "127.0.0.1", 20004, False, "nginx.conf:5", True),
    )


def test_tls_by_the_old_directive(tmp_path: Path) -> None:
    derived = write(tmp_path, "server { listen 443; ssl on; } server { listen 80; }").derive()
    assert [each.tls for each in derived.listeners] == [True, False]


@pytest.mark.parametrize("asked", ["127.0.0.1:8080", "localhost:8080", "127.9.9.9:8080"])
def test_what_nginx_asks_itself_stays_inside(asked: str, tmp_path: Path) -> None:
    text = f"""
        server {{ listen 80; location / {{ proxy_set_header Host a; proxy_pass http://{asked}/x; }} }}
        server {{ listen 8080 backlog=9; }}
        """
    derived = write(tmp_path, text).derive({})
    assert after(derived, Reason.INSIDE) == [
        "proxy_pass http://127.0.0.1:20003/x",
        "listen 127.0.0.1:20002 backlog=9 proxy_protocol",
        "listen 127.0.0.1:20003 backlog=9",
    ]
    assert derived.listeners[2] == Listener("*:8080 inside", "", 0, "127.0.0.1", 20003, False, "inside", False)
    assert derived.servers == ()


def test_another_host_on_the_same_port_is_not_inside(tmp_path: Path) -> None:
    text = "server { listen 8080; location / { proxy_pass http://192.0.2.5:8080; } }"
    with pytest.raises(UpstreamError, match=r"192\.0\.2\.5:8080 has no shadow"):
        write(tmp_path, text).derive({})


def test_a_socket_of_its_own(tmp_path: Path) -> None:
    text = "upstream u { server unix:/run/a.sock; } server { listen unix:/run/a.sock proxy_protocol; listen 80; }"
    derived = write(tmp_path, text).derive({})
    assert after(derived, Reason.INSIDE) == [
        "server 127.0.0.1:20003",
        "listen 127.0.0.1:20001 proxy_protocol",
        "listen 127.0.0.1:20003",
    ]


def test_redirects_name_no_port_where_production_names_none(tmp_path: Path) -> None:
    usual = "server { listen 80; listen [::]:80; } server { listen 443 ssl; listen unix:/run/a; }"
    assert after(write(tmp_path, usual).derive(), Reason.NO_PORT) == ["port_in_redirect off"]
    derived = write(tmp_path, "server { listen 80; } server { listen 8080; } server { listen 443; }").derive()
    assert after(derived, Reason.NO_PORT) == ["port_in_redirect off"]
    assert derived.notes == tuple(
        f"{tmp_path}/nginx.conf:3: redirects that nginx itself writes name the private port" for _ in "1"
    )
    derived = write(tmp_path, "server { listen 80; port_in_redirect on; }").derive()
    assert after(derived, Reason.NO_PORT) == ["port_in_redirect off"]
    assert after(write(tmp_path, "port_in_redirect off; server { listen 80; }").derive(), Reason.NO_PORT) == []


def test_a_socket_has_one_name() -> None:
    assert Socket("*", 80).name == "*:80"
    assert Socket("unix:/a", 0).name == "unix:/a"
