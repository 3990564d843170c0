"""HAProxy's configuration: what changes in the ten files, that nothing else does, and what becomes of the rest.

The files in `haproxy/` are written after real ones. HAProxy itself checks each, as it is and as it is derived.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.balancer.derive.change import Derived, unexplained
from replay.balancer.derive.haproxy_draft import Reason
from replay.balancer.derive.haproxy_server import read_targets
from replay.balancer.derive.haproxy_source import read_source
from replay.errors import UpstreamError
from tests.replay.balancer.derive.haproxy_harness import (
    CORPUS,
    ENVIRONMENT,
    NAMES,
    SHADOWS,
    VIA_LINE,
    check,
    derive,
    derive_file,
    warnings,
    with_haproxy,
)


def test_the_corpus_is_of_ten_kinds() -> None:
    assert len(NAMES) == 10


@with_haproxy
@pytest.mark.parametrize("name", NAMES)
def test_haproxy_takes_production_and_shadow(here: Path, name: str) -> None:
    _, derived = derive_file(name)
    Path(f"derived-{name}.cfg").write_bytes(derived.text.encode())
    production = check(f"{name}.cfg")
    shadow = check(f"derived-{name}.cfg")
    assert production.returncode == 0, production.stderr
    assert shadow.returncode == 0, shadow.stderr
    assert not set(warnings(shadow.stderr)) - set(warnings(production.stderr))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_differs_without_a_reason(here: Path, name: str) -> None:
    text, derived = derive_file(name)
    source, lines = text.split("\n"), derived.text.split("\n")
    assert unexplained(source, lines, derived.changes) == []
    for change in derived.changes:
        assert change.file == f"{name}.cfg"
        assert set(change.reason.split("; ")) <= set(Reason)
    # And once more with a diff that knows nothing of how the changes were made.
    gone = Counter(line for change in derived.changes if change.before is not None for line in [change.before])
    new = Counter(line for change in derived.changes if change.after is not None for line in [change.after])
    for line in difflib.ndiff(source, lines):
        assert line[:2] != "- " or gone[line[2:]], line
        assert line[:2] != "+ " or new[line[2:]], line


@pytest.mark.parametrize("name", NAMES)
def test_no_address_of_production_is_left(here: Path, name: str) -> None:
    text, derived = derive_file(name)
    production = {target.address for target in read_targets(read_source(text, name, ENVIRONMENT))}
    private = {f"{each.private_host}:{each.private_port}" for each in derived.listeners}
    inner = set(re.findall(r"127\.0\.0\.1:200\d\d", derived.text))
    allowed = {*SHADOWS, *private, *inner, "unix@/run/shadow/nowhere.sock"}
    read = read_source(derived.text, name, ENVIRONMENT)
    assert {target.address for target in read_targets(read)} <= allowed
    for each in read.within("backend", "listen"):
        if each.values[0] in ("server", "server-template", "default-server", "dispatch"):
            assert not any(address in each.values for address in production - allowed)
            assert not {"addr", "agent-addr", "agent-check", "usesrc", "socks4"} & set(each.values)
    assert {each.name for each in derived.servers} >= {"acls_maps": {"app/web1", "acme/certbot"}}.get(name, set())
    assert {each.shadow.replace("unix:", "unix@") for each in derived.servers} <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_listened_to_but_private_addresses(here: Path, name: str) -> None:
    _, derived = derive_file(name)
    read = read_source(derived.text, name, ENVIRONMENT)
    binds = [each for each in read.statements if each.values[0] in ("bind", "dgram-bind")]
    for each in binds:
        outside = each.section.kind in ("frontend", "listen")
        assert not outside or all(part.startswith("127.0.0.1:200") for part in each.values[1].split(","))
        assert outside or each.section.kind == "peers"  # which is disabled
    assert not any(each.says("stats", "socket") for each in read.statements)
    assert len({(each.private_host, each.private_port) for each in derived.listeners}) == len(derived.listeners)


def kinds(derived: Derived) -> dict[Reason, int]:
    found: Counter[Reason] = Counter()
    for change in derived.changes:
        found.update(reason for reason in Reason if reason in change.reason)
    return dict(found)


def test_what_changes_in_each_file(here: Path) -> None:
    """Nothing more than before is changed. What is changed is looked at below, reason by reason."""
    found = {name: kinds(derive_file(name)[1]) for name in NAMES}
    r = Reason
    assert found == {
        "acls_maps": {r.BIND: 3, r.PROXY: 3, r.SERVER: 8, r.CHECK: 2, r.LOG: 2, r.STATS: 1, r.SUPERVISED: 1, r.VIA: 1},
        "cache_errors": {r.BIND: 2, r.PROXY: 2, r.SERVER: 4, r.LOG: 2, r.STATS: 1, r.VIA: 1},
        "canary": {
            r.BIND: 2, r.OUTER: 1, r.SERVER: 10, r.AGENT: 3, r.SOCKS: 1, r.LOG: 1, r.STATE: 1, r.STATS: 1, r.VIA: 1,
        },
        "classic": {
            r.BIND: 2, r.PROXY: 2, r.SERVER: 4, r.LOG: 4, r.LOG_SINK: 12, r.STATS: 2, r.MAIL: 8, r.PROGRAM: 3,
            r.EXTERNAL: 4, r.STATE: 2, r.SUPERVISED: 2, r.VIA: 1,
        },
        "http2_sni": {
            r.BIND: 6, r.PROXY: 5, r.PLAIN: 1, r.LOOPBACK: 1, r.SERVER: 7, r.CHECK: 1, r.LOG: 1, r.VIA: 2,
        },
        "lua": {r.BIND: 1, r.PROXY: 1, r.SERVER: 5, r.LOG: 1, r.LUA_FILE: 1, r.LUA_USE: 4, r.PATHS: 1, r.VIA: 1},
        "passthrough": {r.BIND: 6, r.PROXY: 4, r.INNER: 1, r.SERVER: 4, r.OWN: 3, r.LOG: 1, r.STATS: 1, r.VIA: 3},
        "rate_limits": {
            r.BIND: 2, r.PROXY: 2, r.SESSION: 3, r.SERVER: 3, r.LOG: 1, r.STATS: 2, r.PEERS: 2, r.SUPERVISED: 2,
            r.VIA: 1,
        },
        "several": {
            r.BIND: 7, r.PROXY: 7, r.LOOPBACK: 1, r.SERVER: 10, r.CHECK: 1, r.SPOOF: 2, r.LOG: 2, r.STATS: 1,
            r.SUPERVISED: 1, r.VIA: 4,
        },
        "waf_spoe": {
            r.BIND: 2, r.PROXY: 2, r.SERVER: 4, r.NOWHERE: 2, r.CHECK: 1, r.AGENT: 1, r.INIT: 1, r.AGENTS: 2, r.LOG: 1,
            r.STATS: 1, r.VIA: 1,
        },
    }  # fmt: skip


HARMLESS = st.sampled_from(
    [
        "", "   ", "# comment with 'one quote", "\t# log 10.0.0.1:514 local0", "global", "backend app", "defaults x",
        "  timeout connect 5s  # note", "\tbalance\troundrobin", 'acl a path_beg "/a b" /c\\ d', "unknown-to-us 1 2 3",
        "  no option httplog", "http-request set-header X-A '%[src]' if { path /bind }", "userlist u", "log global",
        "resolvers dns", "  nameserver a 10.0.0.53:53", "cache c", "http-errors e", "\r",
        "description server x 1.2.3.4:80",
        "  server-side-thing x", ".if defined(X)", ".endif", "frontend tcp", "source 10.0.0.1",
    ]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(HARMLESS, max_size=30), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_file_with_nothing_to_change_comes_back_as_it_was(lines: list[str], ending: str, ends: bool) -> None:
    text = ending.join(lines) + (ending if ends else "")
    derived = derive(text)
    assert derived.text == text
    assert derived.changes == ()


LINES = [line for name in NAMES for line in (CORPUS / f"{name}.cfg").read_text().split("\n") if line.strip()]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LINES), st.integers(0, 12)), max_size=40))
def test_lines_of_any_file_in_any_order_are_derived_or_refused(chosen: list[tuple[str, int]]) -> None:
    """Cut short as well. What is derived has passed the check that its changes tell the whole difference."""
    text = "\n".join(line if words > 10 else " " + " ".join(line.split()[:words]) for line, words in chosen)
    try:
        derived = derive(text, environment=ENVIRONMENT)
    except UpstreamError as error:
        assert str(error).startswith("haproxy.cfg:")
        return
    again = derive(derived.text, environment=ENVIRONMENT, keep=frozenset(["lua", "peers"]))
    assert not {change.reason for change in again.changes} & {Reason.LOG, Reason.STATS, Reason.MAIL, Reason.LOG_SINK}


def test_all_but_the_changed_words_stays_byte_for_byte() -> None:
    text = (
        "frontend f  # front\r\n\tmode   http\r\n"
        "\tbind\t*:80 \t# plain\r\n"
        "\tbind '*:443'  ssl   crt \"/etc/my certs/a.pem\"   interface 'eth0'  alpn h2,http/1.1  # TLS\r\n"
        "backend b\r\n  server\ts1   10.0.0.1:80    check\taddr  10.9.9.9   weight 5 # slow\r\n  server s2 h:80"
    )
    derived = derive(text, {"*": "s:1"})
    assert derived.text == (
        "frontend f  # front\r\n\tmode   http\r\n"
        f"\t{VIA_LINE}\r\n"
        "\tbind\t127.0.0.1:20001 accept-proxy \t# plain\r\n"
        '\tbind 127.0.0.1:20002  ssl   crt "/etc/my certs/a.pem"  alpn h2,http/1.1 accept-proxy  # TLS\r\n'
        "backend b\r\n  server\ts1   s:1    check   weight 5 # slow\r\n  server s2 s:1"
    )
    assert [change.line for change in derived.changes] == [2, 3, 4, 6, 7]
