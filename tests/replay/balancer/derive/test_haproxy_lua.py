"""Lua: which files call out, what uses them, and what cannot go without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.balancer.derive.change import Derived
from replay.balancer.derive.haproxy_lua import read_script
from replay.errors import UpstreamError
from tests.replay.balancer.derive.haproxy_harness import (
    derive,
)


@pytest.mark.parametrize(
    ("text", "calls_out"),
    [
        ("core.register_action('a', {'tcp-req', 'http-req'}, f)", False),
        ("-- no core.tcp here\n   -- nor socket\nlocal t = os.time() .. os.getenv('X')", False),
        ("local s = core.tcp()", True),
        ("local s = core [ 'tcp' ]()", True),
        ("core.httpclient():get{url=u}", True),
        ("local h = io.popen('x')", True),
        ("os.execute('x')", True),
        ("require('json')", True),
        ("local x = '--' core.tcp()", True),
        ("--[[ note\n]] core.tcp()", True),
        ("local f = load(code)", True),
        ("for k, v in pairs(_G) do end", True),
    ],
)
def test_lua_that_calls_out(text: str, calls_out: bool) -> None:
    assert read_script(text).calls_out is calls_out


def test_what_lua_registers() -> None:
    text = (
        "core.register_action('a', {}, f) core.register_service( \"b\", 'http', f)\n"
        "core.register_fetches('c', f) core.register_converters('d', f) core.register_task(f)"
    )
    assert read_script(text).names == frozenset("abcd")
    assert read_script("for name in names do core.register_fetches(name, f) end").names is None
    assert read_script(None).names is None
    assert read_script(None).calls_out


def lua(tmp_path: Path, rules: str, **files: str) -> Derived:
    for name, text in files.items():
        (tmp_path / f"{name}.lua").write_text(text)
    loads = "".join(f" lua-load {tmp_path}/{name}.lua\n" for name in files)
    return derive(f"global\n{loads}frontend f\n{rules}")


BAD = "core.register_fetches('bad', function() return core.tcp() end)"
GOOD = "core.register_fetches('good', function() return 1 end)"


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("http-request lua.bad", False),
        ("http-request lua.good", True),
        ("http-request set-header X %[lua.bad]", False),
        ("http-request set-var(txn.x) lua.bad(1),lower if { src 10.0.0.1 }", False),
        ("tcp-request content lua.bad", False),
        ("log-format %[lua.bad]", False),
        ("http-request use-service lua.bad if { path / }", False),
        ("http-request deny if { lua.good }", True),
        ("http-request set-header X lua.badly", True),
    ],
)
def test_lines_that_use_disabled_lua(tmp_path: Path, rule: str, kept: bool) -> None:
    derived = lua(tmp_path, f" {rule}\n", bad=BAD, good=GOOD)
    assert derived.text.endswith(f"good.lua\nfrontend f\n {rule}\n" if kept else "good.lua\nfrontend f\n")
    assert any("it says 'core.tcp'" in note for note in derived.notes)


@pytest.mark.parametrize(
    "rule",
    [
        "acl x lua.bad -m found",
        "http-request deny if { lua.bad -m bool }",
        "http-request set-header X y if { lua.bad 1 }",
        "use_backend %[lua.bad]",
        "http-request track-sc0 lua.bad",
        "http-request set-path %[path,lua.bad]",
    ],
)
def test_lua_that_decides_is_refused(tmp_path: Path, rule: str) -> None:
    with pytest.raises(UpstreamError, match=r"haproxy\.cfg:4: lua\.bad decides here.*write `keep: lua`"):
        lua(tmp_path, f" {rule}\n", bad=BAD)


def test_lua_that_cannot_be_read_may_have_registered_anything(tmp_path: Path) -> None:
    derived = derive("global\n lua-load /nowhere/x.lua\nfrontend f\n http-request lua.x\n http-request deny\n")
    assert derived.text == "global\nfrontend f\n http-request deny\n"
    assert any("it cannot be read" in note for note in derived.notes)
