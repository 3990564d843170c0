"""Who nginx takes for the client: real_ip in every scope, and the address that the client asked for."""

from __future__ import annotations

from pathlib import Path

from replay.balancer.derive.nginx_edits import Reason
from tests.replay.balancer.derive.nginx_site import counted, write

OURS = "set_real_ip_from 127.0.0.1;"
PROXY = "real_ip_header proxy_protocol;"


def changed(tmp_path: Path, text: str, reason: Reason = Reason.REAL_IP) -> list[tuple[str, str]]:
    """Before and after of these changes, in the order of the file."""
    derived = write(tmp_path, text).derive({})
    return [
        ((each.before or "").strip(), " ".join((each.after or "").split()))
        for each in derived.changes
        if each.reason == reason
    ]


def test_nothing_said(tmp_path: Path) -> None:
    assert changed(tmp_path, "server { listen 80; }") == [("", f"{OURS} {PROXY}")]


def test_all_private_hosts_are_believed_once(tmp_path: Path) -> None:
    one, two = counted(), counted("::1")
    both = iter([one(), two(), one()])
    derived = write(tmp_path, "server { listen 80; listen 81; listen 82; }").derive(private=lambda: next(both))
    assert derived.text.count("set_real_ip_from 127.0.0.1;") == 1
    assert derived.text.count("set_real_ip_from ::1;") == 1


def test_another_header_stays_and_is_noted(tmp_path: Path) -> None:
    text = "set_real_ip_from 10.0.0.0/8;\nreal_ip_header X-Forwarded-For;\nserver { listen 80; }"
    assert changed(tmp_path, text) == [("", OURS)]
    assert any("taken from X-Forwarded-For" in note for note in write(tmp_path, text).derive({}).notes)


def test_the_default_header_counts(tmp_path: Path) -> None:
    assert changed(tmp_path, "set_real_ip_from 10.0.0.0/8; server { listen 80; }") == [
        ("", f"{OURS} real_ip_header X-Real-IP;")
    ]


def test_a_header_that_nobody_may_send_has_no_effect(tmp_path: Path) -> None:
    assert changed(tmp_path, "real_ip_header X-Real-IP; server { listen 80; }") == [
        ("", OURS),
        ("real_ip_header X-Real-IP;", PROXY),
    ]


def test_one_server_block_of_two(tmp_path: Path) -> None:
    text = "server { listen 80; set_real_ip_from 10.0.0.1; real_ip_header CF-IP; } server { listen 80; server_name b; }"
    assert changed(tmp_path, text) == [("", f"{OURS} {PROXY}"), ("", OURS)]
    text = "server { listen 80; location / { set_real_ip_from 10.0.0.1; } }"
    assert changed(tmp_path, text) == [("", f"{OURS} {PROXY}"), ("", f"{OURS} real_ip_header X-Real-IP;")]


def test_header_and_list_in_different_places(tmp_path: Path) -> None:
    text = "real_ip_header X-A; server { listen 80; set_real_ip_from 10.0.0.1; } server { listen 80; server_name b; }"
    assert changed(tmp_path, text) == [
        ("", OURS),
        ("real_ip_header X-A;", PROXY),
        ("", f"{OURS} real_ip_header X-A;"),
    ]


def test_what_is_believed_already_is_not_added(tmp_path: Path) -> None:
    text = "set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol; server { listen 80 proxy_protocol; }"
    assert changed(tmp_path, text) == []


def test_the_port_that_the_client_asked(tmp_path: Path) -> None:
    text = """
        log_format f '$server_port';
        map $server_port $x { 80 "${server_port}0"; default $server_ports; }
        server {
            listen 80;
            if ($server_port = 80) { return 301 https://$server_addr:$server_port$request_uri; }
            access_log off;
        }"""
    assert changed(tmp_path, text, Reason.CLIENT_PORT) == [
        ("map $server_port $x {", "map $proxy_protocol_server_port $x {"),
        ("80 '${server_port}0';", "80 '${proxy_protocol_server_port}0';"),
        ("if ($server_port = 80) {", "if ($proxy_protocol_server_port = 80) {"),
        (
            "return 301 https://$server_addr:$server_port$request_uri;",
            "return 301 https://$proxy_protocol_server_addr:$proxy_protocol_server_port$request_uri;",
        ),
    ]


def test_lua_that_asks_for_the_port_is_noted(tmp_path: Path) -> None:
    site = write(tmp_path, "server { listen 80; set_by_lua_block $p { return ngx.var.server_port } }")
    assert site.derive({}).notes == (
        f"{site.path}:3: Lua that reads server_port or server_addr sees the private address",
    )
