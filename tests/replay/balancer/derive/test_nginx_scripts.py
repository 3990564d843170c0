"""Code in the configuration: what stays inside stays, what may call out goes or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.nginx_edits import Reason
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import fill, write


def served(text: str) -> str:
    return f"server {{ listen 80; location / {{ {text} }} }}"


@pytest.mark.parametrize(
    "code",
    [
        'ngx.say("hello")',
        'local l = require "resty.limit.req" ',
        'local c = require("cjson.safe").encode({})',
        "local r = require 'resty.lrucache'",
        "-- ngx.socket.tcp() and require 'resty.http'\n ngx.exit(403)",
        "--[[ io.popen('ls') ]] return",
        "ngx.header['X-A'] = ngx.var.uri .. os.date()",
        "ngx.shared.counters:incr('a', 1, 0)",
    ],
)
def test_lua_that_stays_inside(code: str, tmp_path: Path) -> None:
    derived = write(tmp_path, served(f"access_by_lua_block {{ {code} }}")).derive({})
    assert "access_by_lua_block" in derived.text
    assert derived.notes == ()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("local s = ngx.socket.tcp()", "it uses ngx.socket"),
        ('local h = require "resty.http"', "it takes resty.http, which may call out"),
        ("local r = require('my.module')", "it takes my.module, which may call out"),
        ("local r = require(name)", "it takes a module, which may call out"),
        ('os.execute("curl x")', "it uses os.execute"),
        ('local f = io.popen("x")', "it uses io."),
        ('ngx.location.capture("/x")', "it uses ngx.location.capture"),
        ('local ffi = require "ffi"', "it uses ffi"),
        ('load("x")()', "it uses load("),
        ('s = "--" ngx.socket.udp()', "it uses ngx.socket"),
        ("s = [[--]] ngx.socket.udp()", "it uses ngx.socket"),
    ],
)
def test_lua_that_may_call_out(code: str, why: str, tmp_path: Path) -> None:
    site = write(tmp_path, served(f"access_by_lua_block {{ {code} }} proxy_pass_header A;"))
    derived = site.derive({})
    assert "_by_lua" not in derived.text
    assert derived.notes == (f"{site.path}:3: access_by_lua_block is taken out: {why}; keep it with 'lua'",)
    kept = site.derive({}, keep=["lua"])
    assert "access_by_lua_block" in kept.text
    assert kept.notes == (f"{site.path}:3: access_by_lua_block stays as asked for: {why}",)


def test_a_variable_stays_defined(tmp_path: Path) -> None:
    for text in ("set_by_lua_block $x { return ngx.socket.tcp() }", "set_by_lua $x 'return ngx.socket.tcp()';"):
        derived = write(tmp_path, served(f"{text} return 200 $x;")).derive({})
        assert "set $x '';" in derived.text
        assert [each.reason for each in derived.changes if each.before and "set_by" in each.before] == [Reason.CODE]


def test_files_of_lua_are_read(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.lua", tmp_path / "bad.lua"
    text = served(f"access_by_lua_file {good}; content_by_lua_file {bad}; log_by_lua_file lua/relative.lua;")
    site = write(tmp_path, text, good__lua="ngx.exit(200)", bad__lua='require "resty.redis"')
    derived = site.derive({})
    assert f"access_by_lua_file {good};" in derived.text
    assert [note.partition(": ")[2] for note in derived.notes] == [
        "content_by_lua_file is taken out: it takes resty.redis, which may call out; keep it with 'lua'",
        "log_by_lua_file is taken out: lua/relative.lua is not a file that can be read here; keep it with 'lua'",
    ]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("js_import bad.js;", "js", "js_import: it uses ngx.fetch"),
        ("js_import main from bad.js;", "js", "js_import: it uses ngx.fetch"),
        ("js_import other.js;", "js", r"js_import: it takes ./bad.js, which may call out"),
        ("js_import gone.js;", "js", r"js_import: .*/gone.js is not a file that can be read here"),
        ("perl_set $x 'sub { system(\"ls\"); }';", "perl", "perl_set: it may call out"),
        ("perl_set $x My::handler;", "perl", "perl_set: it may call out"),
        ("perl_require a.pm;", "perl", "perl_require: it may call out"),
    ],
)
def test_other_code_is_refused(text: str, kind: str, message: str, tmp_path: Path) -> None:
    site = write(tmp_path, text, bad__js="ngx.fetch('http://10.0.0.1/')", other__js="import a from './bad.js';")
    with pytest.raises(UpstreamError, match=rf"nginx\.conf:3: {message}.*keep it with '{kind}'"):
        site.derive({})
    assert site.derive({}, keep=[kind]).notes


def test_other_code_that_stays_inside(tmp_path: Path) -> None:
    text = "js_import good.js; js_set $y good.y; perl_set $x 'sub { return 1; }';"
    site = write(tmp_path, text, good__js="import c from 'crypto'; export default {y: r => r.uri};")
    assert site.derive({}).notes == ()


def test_the_gateway(tmp_path: Path) -> None:
    """Needs the Lua module to be run, which is not installed here: it takes the place of wrk's library."""
    derived = fill("openresty", tmp_path).derive()
    taken = [(each.before or "").split()[0] for each in derived.changes if each.reason == Reason.CODE]
    assert taken == [
        "init_worker_by_lua_block",
        "balancer_by_lua_block",
        "set_by_lua_block",
        "log_by_lua_block",
        "access_by_lua_file",
    ]
    assert 'greeting = [[say "hi" } ]]' in derived.text
    for kept in ("init_by_lua_block", "set_by_lua_block $tenant", "access_by_lua_block", "hash.lua", "{fine}"):
        assert kept in derived.text
    assert "stream {" not in derived.text
    assert "mail {" not in derived.text
