"""What variables can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.nginx_tree import read
from replay.balancer.derive.nginx_variables import Variables
from tests.replay.balancer.derive.nginx_site import write


def variables(tmp_path: Path, text: str, gone: str = "-") -> Variables:
    return Variables(read(write(tmp_path, text).path).http, lambda each: each.name == gone)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("server { set $x 1; location / { set $X 2; } }", ["1", "2"]),
        ("map $a $x { default 1; ~b 2; volatile; }", ["1", "2"]),
        ("geo $remote_addr $x { proxy 10.0.0.1; default 1; 10.0.0.0/8 2; }", ["1", "2"]),
        ("split_clients $a $x { 5% 1; * 2; }", ["1", "2"]),
        ("server { server_name ~^(?<y>.*)$; set $x 1; }", ["1"]),
        ("init_by_lua_block { ngx.var.x = 1 } server { set $x 1; }", ["1"]),
        ("server { set $x 1; log_by_lua_block { if ngx.var.x == 'a' then end } }", ["1"]),
        ("server { set $x 1; log_by_lua_block { ngx.var.y = 1 } }", ["1"]),
    ],
)
def test_values(text: str, values: list[str], tmp_path: Path) -> None:
    places = variables(tmp_path, text).values("${x}")
    assert places is not None
    assert [each.text for each in places] == values


@pytest.mark.parametrize(
    "text",
    [
        "server { listen 80; }",
        "server { set $x 1; server_name ~^(?P<x>.*)$; }",
        "map $a $x { ~(?<x>b) 1; }",
        "server { set $x 1; location / { auth_request_set $x $upstream_status; } }",
        "server { set $x 1; set_by_lua_block $x { return 2 } }",
        "server { set $x 1; access_by_lua_file a.lua; }",
        "server { set $x 1; access_by_lua_block { local v = ngx.var } }",
        "perl_set $x 'sub { return 1; }';",
    ],
)
def test_anything(text: str, tmp_path: Path) -> None:
    assert variables(tmp_path, text).values("$x") is None


def test_code_that_is_taken_out_sets_nothing(tmp_path: Path) -> None:
    text = "server { set $x 1; access_by_lua_file a.lua; }"
    assert variables(tmp_path, text, "access_by_lua_file").values("$x") is not None


def test_expansion(tmp_path: Path) -> None:
    known = variables(tmp_path, "map $a $x { default 1; b 2; c 2; } map $a $y { default $x; }")
    assert known.expand("a-$x-${x}b") == ["a-1-1b", "a-1-2b", "a-2-1b", "a-2-2b"]
    assert known.expand("plain") == ["plain"]
    assert known.expand("a$y") is None
    assert known.expand("a$z") is None


def test_expansion_has_a_limit(tmp_path: Path) -> None:
    entries = "".join(f"k{n} {n};" for n in range(20))
    known = variables(tmp_path, f"map $a $x {{ {entries} }}")
    assert known.expand("$x") is not None
    assert known.expand("$x$x$x") is None
