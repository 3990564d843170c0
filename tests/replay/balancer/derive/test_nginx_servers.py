"""Servers of upstreams and of every *_pass: mapped, or refused with what to write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from replay.balancer.derive.change import Derived, Server
from replay.balancer.derive.nginx_edits import Reason
from replay.balancer.derive.nginx_servers import Target, is_numeric, join_target, parse_target, with_port
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import write

ONE = {"10.0.0.1:8080": "192.0.2.9:9000"}
UPSTREAMS = "upstream blue { server 10.0.0.1:8080; } upstream green { server 10.0.0.1:8080; }\n"


def located(lines: str, before: str = "") -> str:
    return f"{before}server {{ listen 80; proxy_set_header Host $host; location / {{ {lines} }} }}"


def derive(tmp_path: Path, text: str, entries: Mapping[str, str | list[str]], **options: bool) -> Derived:
    return write(tmp_path, text).derive(entries, **options)


def now(derived: Derived, *reasons: Reason) -> list[str]:
    """What stands where a server has been mapped."""
    wanted = reasons or (Reason.SERVER,)
    return [
        (each.after or "").strip().rstrip(";") for each in derived.changes if any(why in each.reason for why in wanted)
    ]


# upstream blocks


def test_parameters_of_servers_stay(tmp_path: Path) -> None:
    text = "upstream u { zone z 64k; server 10.0.0.1:8080 weight=5 max_fails=2 max_conns=9 backup; keepalive 8; }"
    derived = derive(tmp_path, text, ONE)
    assert now(derived) == ["server 192.0.2.9:9000 weight=5 max_fails=2 max_conns=9 backup"]
    assert derived.servers == (Server("u/10.0.0.1:8080", "10.0.0.1:8080", "192.0.2.9:9000"),)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"u/10.0.0.1": "192.0.2.1:1", "*": "192.0.2.2:2"}, "192.0.2.1:1"),
        ({"10.0.0.1:80": "192.0.2.1:1", "u/*": "192.0.2.2:2"}, "192.0.2.1:1"),
        ({"10.0.0.1": "192.0.2.1", "u/*": "192.0.2.2:2"}, "192.0.2.1:80"),
        ({"u/*": "[2001:db8::1]:2", "*": "192.0.2.1:1"}, "[2001:db8::1]:2"),
        ({"*": "unix:/run/shadow.sock"}, "unix:/run/shadow.sock"),
    ],
)
def test_every_way_to_map(entries: dict[str, str], expected: str, tmp_path: Path) -> None:
    assert now(derive(tmp_path, "upstream u { server 10.0.0.1; }", entries)) == [f"server {expected}"]


def test_several_shadows_are_dealt_out(tmp_path: Path) -> None:
    text = "upstream u { server 10.0.0.1; server 10.0.0.2; server 10.0.0.3; }"
    derived = derive(tmp_path, text, {"u/*": ["192.0.2.1:1", "192.0.2.2:1"]})
    assert now(derived) == ["server 192.0.2.1:1", "server 192.0.2.2:1", "server 192.0.2.1:1"]


def test_a_name_may_be_several_servers(tmp_path: Path) -> None:
    derived = derive(tmp_path, "upstream u { server app.example:81; }", {"*": "a.example:82"})
    assert derived.notes == (
        f"{tmp_path}/nginx.conf:3: app.example:81 may stand for several servers, the shadow's is one: a.example:82",
    )


@pytest.mark.parametrize(
    ("parameters", "shadow", "kept"),
    [
        ("resolve weight=2", "192.0.2.1:1", "192.0.2.1:1 weight=2"),
        ("resolve weight=2", "shadow.example:1", "shadow.example:1 resolve weight=2"),
        ("service=_http._tcp resolve", "shadow.example:1", "shadow.example:1 resolve"),
    ],
)
def test_servers_that_are_resolved(parameters: str, shadow: str, kept: str, tmp_path: Path) -> None:
    text = f"upstream u {{ zone u 64k; server app.example {parameters}; }}"
    assert now(derive(tmp_path, text, {"*": shadow})) == [f"server {kept}"]


def test_a_service_has_no_port_to_keep(tmp_path: Path) -> None:
    text = "upstream u { zone u 64k; server app.example service=http resolve; }"
    with pytest.raises(UpstreamError, match="has no port to keep"):
        derive(tmp_path, text, {"*": "shadow.example"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "upstream u {\n server 10.0.0.1;\n}",
            r"nginx\.conf:4: server 10.0.0.1 of upstream u has no shadow: map u/10.0.0.1 \(or u/\*\) to host:port$",
        ),
        ("upstream u { state /var/lib/u.state; }", r"nginx\.conf:3: the servers of upstream u are in a state file"),
        (
            located("proxy_pass https://10.0.0.1/x;"),
            r"nginx\.conf:3: proxy_pass to 10.0.0.1 has no shadow: map 10.0.0.1 to host:port$",
        ),
        (located("fastcgi_pass unix:/run/php.sock;"), r"fastcgi_pass to unix:/run/php.sock has no shadow: map unix:"),
        (located("proxy_pass http://$http_x_backend;"), r"nginx\.conf:3: \$http_x_backend can be any server: name the"),
        (located("proxy_pass http://$host:8080;"), r"\$host:8080 can be any server"),
        (located("proxy_pass http://app-$1;"), r"app-\$1 can be any server"),
    ],
)
def test_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=message):
        derive(tmp_path, text, {})


def test_unmapped_where_that_is_allowed(tmp_path: Path) -> None:
    text = "upstream u { server 10.0.0.1; }" + located("proxy_pass http://$host;")
    derived = derive(tmp_path, text, {}, allow_unmapped=True)
    assert now(derived) == []
    assert derived.servers == (Server("u/10.0.0.1", "10.0.0.1:80", "10.0.0.1:80"),)
    assert [note.partition(": ")[2] for note in derived.notes] == [
        "server 10.0.0.1 of upstream u has no shadow, and it stays as it is",
        "$host can be any server, and it stays as it is",
    ]


# *_pass


@pytest.mark.parametrize(
    ("text", "shadow", "expected"),
    [
        ("proxy_pass http://10.0.0.1:8080", "192.0.2.9:1", "proxy_pass http://192.0.2.9:1"),
        ("proxy_pass http://10.0.0.1/a?b#c", "192.0.2.9", "proxy_pass http://192.0.2.9:80/a?b#c"),
        ("proxy_pass https://10.0.0.1", "192.0.2.9", "proxy_pass https://192.0.2.9:443"),
        ("proxy_pass http://app.example$request_uri", "[::1]:1", "proxy_pass http://[::1]:1$request_uri"),
        ("proxy_pass http://10.0.0.1/${uri}x", "unix:/s", "proxy_pass http://unix:/s:/${uri}x"),
        ("proxy_pass http://unix:/run/a.sock:/api/", "192.0.2.9:1", "proxy_pass http://192.0.2.9:1/api/"),
        ("proxy_pass http://unix:/run/a.sock:/api/", "unix:/s", "proxy_pass http://unix:/s:/api/"),
        ("proxy_pass http://unix:/run/a.sock", "192.0.2.9:1", "proxy_pass http://192.0.2.9:1"),
        ("fastcgi_pass unix:/run/php.sock", "192.0.2.9:9000", "fastcgi_pass 192.0.2.9:9000"),
        ("fastcgi_pass 10.0.0.1:9000", "unix:/s", "fastcgi_pass unix:/s"),
        ("uwsgi_pass suwsgi://10.0.0.1:3031", "192.0.2.9", "uwsgi_pass suwsgi://192.0.2.9:3031"),
        ("scgi_pass localhost:4000", "192.0.2.9", "scgi_pass 192.0.2.9:4000"),
        ("grpc_pass grpcs://10.0.0.1:50051", "192.0.2.9", "grpc_pass grpcs://192.0.2.9:50051"),
        ("grpc_pass 10.0.0.1:50051", "192.0.2.9", "grpc_pass 192.0.2.9:50051"),
        ("memcached_pass 10.0.0.1:11211", "192.0.2.9", "memcached_pass 192.0.2.9:11211"),
        ("redis2_pass 10.0.0.1:6379", "192.0.2.9", "redis2_pass 192.0.2.9:6379"),
    ],
)
def test_servers_named_where_they_are_used(text: str, shadow: str, expected: str, tmp_path: Path) -> None:
    derived = derive(tmp_path, located(f"grpc_set_header Host a; {text};"), {"*": shadow})
    assert now(derived) == [expected]
    assert len(derived.servers) == 1


@pytest.mark.parametrize(
    "text",
    [
        "proxy_pass http://blue",
        "proxy_pass https://BLUE/x",
        "proxy_pass http://blue$request_uri",
        "proxy_pass $scheme://blue",
        "grpc_pass grpc://green",
        "fastcgi_pass green",
        "upload_pass /stored",
        "js_pass main.route",
    ],
)
def test_upstreams_and_what_is_no_server_stay(text: str, tmp_path: Path) -> None:
    derived = derive(tmp_path, located(f"{text};", UPSTREAMS), ONE)
    assert now(derived) == ["server 192.0.2.9:9000"] * 2


def test_one_server_is_one_shadow_wherever_it_is_named(tmp_path: Path) -> None:
    text = located("proxy_pass http://10.0.0.1/a;") + located("proxy_pass http://10.0.0.1:80/b;")
    derived = derive(tmp_path, text, {"*": ["192.0.2.1:1", "192.0.2.2:1"]})
    assert now(derived) == ["proxy_pass http://192.0.2.1:1/a", "proxy_pass http://192.0.2.1:1/b"]


# Variables


@pytest.mark.parametrize(
    ("definition", "text", "expected"),
    [
        ("", "set $b 10.0.0.1:8080; proxy_pass http://$b", ["set $b 192.0.2.9:9000"]),
        ("", "set $b http://10.0.0.1:8080/a; proxy_pass $b", ["set $b http://192.0.2.9:9000/a"]),
        ("", "set $b 10.0.0.1:8080; proxy_pass $scheme://${b}/x", ["set $b 192.0.2.9:9000"]),
        ("", "set $b blue; proxy_pass http://$b$request_uri", []),
        ("", 'set $b ""; proxy_pass http://$b', []),
        ("", "set $b 10.0.0.1:8080; set $c $b; fastcgi_pass $c", ["set $b 192.0.2.9:9000"]),
        ("map $a $b { default blue; x 10.0.0.1:8080; hostnames; }", "proxy_pass http://$b", ["x 192.0.2.9:9000"]),
        ("geo $b { ranges; default blue; 10.0.0.0-10.0.0.9 green; }", "proxy_pass http://$b", []),
        ("split_clients $a $b { 5% 10.0.0.1:8080; * blue; }", "proxy_pass http://$b", ["5% 192.0.2.9:9000"]),
        ("map $a $c { default ue; }", "proxy_pass http://bl$c", []),
    ],
)
def test_variables_by_their_values(definition: str, text: str, expected: list[str], tmp_path: Path) -> None:
    derived = derive(tmp_path, located(f"{text};", UPSTREAMS + definition), ONE)
    assert now(derived)[2:] == expected


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        ("map $a $b { default red; }", "proxy_pass http://app_$b"),
        ("map $a $b { default $http_x; }", "proxy_pass http://$b"),
        ("map $a $b { default $b; }", "proxy_pass http://$b"),
        ("map $a $b { ~(?<c>.*) blue; default blue; }", "proxy_pass http://$c"),
        ("", "set $b blue; auth_request_set $b $upstream_http_x; proxy_pass http://$b"),
        ("", "set $b blue; rewrite_by_lua_block { ngx.var.b = ngx.var.arg_x } proxy_pass http://$b"),
        ("", "set $b blue; rewrite_by_lua_block { ngx.var[x] = 1 } proxy_pass http://$b"),
        ("", "set $b blue; js_content main.route; proxy_pass http://$b"),
    ],
)
def test_variables_that_can_be_anything_are_refused(definition: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="can be any server"):
        derive(tmp_path, located(f"{text};", UPSTREAMS + definition), ONE)


def test_a_port_in_the_pass_is_the_shadows_as_well(tmp_path: Path) -> None:
    text = located("set $b 10.0.0.1; proxy_pass http://$b:8080/x;")
    assert now(derive(tmp_path, text, {"*": "192.0.2.9"})) == ["set $b 192.0.2.9"]
    with pytest.raises(UpstreamError, match=r"map 10\.0\.0\.1:8080 to a shadow server on port 8080"):
        derive(tmp_path, text, ONE)


def test_one_value_for_two_different_things_is_refused(tmp_path: Path) -> None:
    text = located("set $b 10.0.0.1; proxy_pass http://$b:8080/x; proxy_pass https://$b;")
    with pytest.raises(UpstreamError, match="use two variables"):
        derive(tmp_path, text, {"*": "192.0.2.9"})


def test_a_name_in_a_variable_needs_a_resolver(tmp_path: Path) -> None:
    text = located("set $b 10.0.0.1; proxy_pass http://$b;")
    with pytest.raises(UpstreamError, match="map it to an address in numbers"):
        derive(tmp_path, text, {"*": "shadow.example:1"})
    assert now(derive(tmp_path, f"resolver 127.0.0.1; {text}", {"*": "shadow.example:1"})) == [
        "set $b shadow.example:1"
    ]


# The Host header


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("proxy_pass http://10.0.0.1:8080;", ["proxy_set_header Host 10.0.0.1:8080"]),
        ("proxy_pass http://10.0.0.1:80/x;", ["proxy_set_header Host 10.0.0.1"]),
        ("proxy_pass https://10.0.0.1:443/x;", ["proxy_set_header Host 10.0.0.1"]),
        ("proxy_set_header X y; proxy_pass http://unix:/run/a;", ["proxy_set_header Host localhost"]),
        ("proxy_set_header host $host; proxy_pass http://10.0.0.1:8080;", []),
        ("grpc_pass 10.0.0.1:50051;", ["grpc_set_header Host 10.0.0.1:50051"]),
        ("fastcgi_pass 10.0.0.1:9000;", []),
    ],
)
def test_the_shadow_gets_the_host_that_production_gets(text: str, added: list[str], tmp_path: Path) -> None:
    derived = derive(tmp_path, f"server {{ listen 80; location / {{ {text} }} }}", {"*": "192.0.2.9:1"})
    assert now(derived, Reason.HOST) == added


def test_headers_set_further_out_are_not_done_away_with(tmp_path: Path) -> None:
    text = "proxy_set_header X y; server { listen 80; location / { proxy_pass http://10.0.0.1:8080; } }"
    derived = derive(tmp_path, text, {"*": "192.0.2.9:1"})
    assert now(derived, Reason.HOST) == []
    assert any("gets its own name as Host, not 10.0.0.1:8080" in note for note in derived.notes)


# Parts


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://a:1/b", Target("http", "a:1", "/b")),
        ("a:1", Target("", "a:1", "")),
        ("$x", Target("", "$x", "")),
        ("$p://$x$uri$is_args$args", Target("$p", "$x", "$uri$is_args$args")),
        ("http://[::1]:1?x", Target("http", "[::1]:1", "?x")),
        ("http://unix:/a:/b:c", Target("http", "unix:/a", ":/b:c")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text, "proxy_pass") == target
    assert join_target(target) == text


def test_addresses() -> None:
    assert with_port("[::1]", "80") == "[::1]:80"
    assert with_port("a", "") == "a"
    assert [is_numeric(each) for each in ("1.2.3.4", "1.2.3.4:5", "[::1]:5", "unix:/a")] == [True] * 4
    assert [is_numeric(each) for each in ("a", "a.b:80", "localhost")] == [False] * 3
