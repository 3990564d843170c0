"""What the shadow listens on, and who is offered it."""

from __future__ import annotations

import pytest

from replay.balancer.derive.change import Listener, Server
from tests.replay.balancer.derive.haproxy_harness import (
    derive,
)


def one_bind(line: str, servers: str = "") -> tuple[list[str], tuple[Listener, ...]]:
    """The lines that a bind line becomes."""
    derived = derive(f"frontend f\n{line}\nbackend b\n{servers}")
    lines = derived.text.split("\n")
    return lines[1 : lines.index("backend b")], derived.listeners


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("bind :80", "bind 127.0.0.1:20001 accept-proxy"),
        ("bind *:80,:81", "bind 127.0.0.1:20001,127.0.0.1:20002 accept-proxy"),
        ("bind 10.0.0.1:8000-8002", "bind 127.0.0.1:20001,127.0.0.1:20002,127.0.0.1:20003 accept-proxy"),
        ("bind :::80 v6only", "bind 127.0.0.1:20001 v6only accept-proxy"),
        ("bind ipv6@:80 v4v6", "bind 127.0.0.1:20001 v4v6 accept-proxy"),
        ("bind /run/x.sock mode 666", "bind 127.0.0.1:20001 mode 666 accept-proxy"),
        ("bind abns@x", "bind 127.0.0.1:20001 accept-proxy"),
        ("bind fd@3 ssl crt a.pem", "bind 127.0.0.1:20001 ssl crt a.pem accept-proxy"),
        ("bind :80 accept-proxy maxconn 9", "bind 127.0.0.1:20001 accept-proxy maxconn 9"),
        ("bind :80 proto h2 name interface", "bind 127.0.0.1:20001 name interface accept-proxy"),
        ("bind :80 proto h1", "bind 127.0.0.1:20001 proto h1 accept-proxy"),
        ("bind :80 transparent namespace blue id 5", "bind 127.0.0.1:20001 id 5 accept-proxy"),
        ("bind :80 accept-netscaler-cip 1 tfo", "bind 127.0.0.1:20001 tfo accept-proxy"),
        ("bind :443,quic4@:443 ssl crt a alpn h3,h2", "bind 127.0.0.1:20001 ssl crt a alpn h3,h2 accept-proxy"),
        ('bind ":80" ssl crt a alpn h2,http/1.1', "bind 127.0.0.1:20001 ssl crt a alpn h2,http/1.1 accept-proxy"),
    ],
)
def test_bind_lines(line: str, becomes: str) -> None:
    assert one_bind(line)[0] == [becomes]


def test_quic_is_not_listened_to() -> None:
    lines, listeners = one_bind("bind quic4@:443,quic6@:443 ssl crt a alpn h3")
    assert (lines, listeners) == ([], ())


def test_listeners_say_what_production_listens_to() -> None:
    text = (
        "defaults\n mode http\nfrontend web\n bind 10.0.0.1:80-81\n bind [::]:443 ssl crt a\n"
        'listen tcp\n mode tcp\n bind "${A}:5",unix@/run/s ssl crt a\n'
    )
    derived = derive(text, environment={"A": "0.0.0.0"})
    assert derived.listeners == (
        Listener("10.0.0.1:80", "10.0.0.1", 80, "127.0.0.1", 20001, False, "web", True),
        Listener("10.0.0.1:81", "10.0.0.1", 81, "127.0.0.1", 20002, False, "web", True),
        Listener("[::]:443", "*", 443, "127.0.0.1", 20003, True, "web", True),
        Listener("0.0.0.0:5", "*", 5, "127.0.0.1", 20004, True, "tcp", False),
        Listener("unix@/run/s", "/run/s", 0, "127.0.0.1", 20005, True, "tcp", False),
    )
    assert [note for note in derived.notes if "TCP mode" in note] == [
        "listen tcp is in TCP mode: which server answers there is not told"
    ]


def test_an_address_that_is_bound_twice_stays_one() -> None:
    text = "frontend f\n.if defined(X)\n bind :80 process 1\n.else\n bind *:80\n.endif\n bind [::]:80 v6only\n"
    derived = derive(text)
    assert [each.private_port for each in derived.listeners] == [20001, 20001, 20002]
    assert any("every branch" in note for note in derived.notes)


def test_private_addresses_may_be_of_ipv6() -> None:
    derived = derive("frontend f\n bind :80\n", places=lambda: ("::1", 7))
    assert " bind [::1]:7 accept-proxy\n" in derived.text


@pytest.mark.parametrize(
    ("line", "server", "bind", "points_to"),
    [
        ("bind abns@in accept-proxy", "abns@in send-proxy", ["bind 127.0.0.1:20001 accept-proxy"], 20001),
        ("bind abns@in proto h2", "abns@in proto h2", ["bind 127.0.0.1:20001 proto h2"], 20001),
        ("bind /run/in.sock", "unix@/run/in.sock", ["bind 127.0.0.1:20001"], 20001),
        ("bind 127.0.0.1:81", "localhost:81", ["bind 127.0.0.1:20001"], 20001),
        (
            'bind :81 ssl crt "a b" id 3 interface eth0',
            "127.0.0.1:81",
            ['bind 127.0.0.1:20001 ssl crt "a b" id 3 accept-proxy', 'bind 127.0.0.1:20002 ssl crt "a b"'],
            20002,
        ),
        ("bind :81 accept-proxy", "[::1]:81 send-proxy-v2", ["bind 127.0.0.1:20001 accept-proxy"], 20001),
        (
            "bind :80,abns@in",
            "abns@in",
            ["bind 127.0.0.1:20001 accept-proxy", "bind 127.0.0.1:20002"],
            20002,
        ),
        ("bind 10.0.0.1:81", "10.0.0.1:81", ["bind 127.0.0.1:20001 accept-proxy", "bind 127.0.0.1:20002"], 20002),
    ],
)
def test_servers_that_lead_back_into_the_file(line: str, server: str, bind: list[str], points_to: int) -> None:
    """No mapping is needed for them, and what they speak to stays as they expect it."""
    derived = derive(f"frontend f\n{line}\nbackend b\n server s {server}\n", {})
    lines = derived.text.split("\n")
    assert lines[1 : lines.index("backend b")] == bind
    address, _, rest = server.partition(" ")
    assert lines[-2] == f" server s 127.0.0.1:{points_to} {rest}".rstrip()
    assert derived.servers == (Server("b/s", address, f"127.0.0.1:{points_to}"),)
    offered = [each for each in derived.listeners if each.private_port == points_to]
    assert bool(offered) == (len(bind) == 1 and "accept-proxy" in bind[0])


@pytest.mark.parametrize(
    ("bind", "rule", "becomes"),
    [
        (":80", "tcp-request connection reject if { src 10.0.0.1 }", "tcp-request session reject if { src 10.0.0.1 }"),
        (":80", "tcp-request connection expect-proxy layer4", "tcp-request connection expect-proxy layer4"),
        (":80", "tcp-request connection expect-netscaler-cip layer4", None),
        (":80", "tcp-request session reject", "tcp-request session reject"),
        (":80 accept-proxy", "tcp-request connection reject unless { src 10.0.0.1 }", None),
        (":80 accept-proxy", "tcp-request content reject", "tcp-request content reject"),
    ],
)
def test_rules_on_connections_see_the_client(bind: str, rule: str, becomes: str | None) -> None:
    lines = derive(f"frontend f\n bind {bind}\n {rule}\n").text.split("\n")
    assert lines[2:] == ([f" {becomes}", ""] if becomes else [""])
