"""What production does besides balancing, and the shadow does not."""

from __future__ import annotations

import pytest

from tests.replay.balancer.derive.haproxy_harness import (
    derive,
)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("global\n log /dev/log len 80 local0\n", "global\n log ring@buf0 len 80 local0\n"),
        ("frontend f\n no log\n log global\n", "frontend f\n no log\n log global\n"),
        ("fcgi-app a\n log-stderr 10.0.0.1 local0\n", "fcgi-app a\n log-stderr ring@buf0 local0\n"),
        ("ring r\n size 1\n # note\n server s 10.0.0.1:514\nuserlist u\n", " # note\nuserlist u\n"),
        ("global\n stats socket /run/x expose-fd listeners\n stats timeout 5s\n", "global\n stats timeout 5s\n"),
        ("global\n daemon\n master-worker no-exit-on-failure\n pidfile /x\n nbthread 2\n", "global\n nbthread 2\n"),
        ("global\n server-state-file x\n server-state-base y\n maxconn 5\n", "global\n maxconn 5\n"),
        ("mailers m\n mailer a 10.0.0.1:25\nbackend b\n email-alert mailers m\n", "backend b\n"),
        ("program p\n command x\n", ""),
        ("backend b\n option external-check\n external-check command x\n cookie a\n", "backend b\n cookie a\n"),
        ("peers p\n\tpeer a 10.0.0.1:1\n\ttable t type ip size 1\n", None),
        ("peers p\n enabled\n bind :1\n", "peers p\n disabled\n bind :1\n"),
        ("peers p\n", "peers p\n    disabled\n"),
        ("global\n default-path config\n", "global\n default-path origin /etc/haproxy\n"),
        ("global\n default-path parent\n", "global\n default-path origin /etc/haproxy/..\n"),
        ("global\n default-path current\n", "global\n default-path current\n"),
        ("acme LE\n directory https://x\nglobal\n", "global\n"),
        ("crt-store s\n load crt a acme LE domains a.example key k\n", "crt-store s\n load crt a key k\n"),
        ("frontend f\n filter opentracing id x config y\n filter compression\n", "frontend f\n filter compression\n"),
        ("backend b\n mode log\n server s udp@h\n", "backend b\n mode log\n server s unix@/run/shadow/nowhere.sock\n"),
        (".if x\nmailers m\n mailer a h:25\n.if y\n mailer b h:25\n.endif\n.endif\n", ".if x\n.if y\n.endif\n.endif\n"),
        ("global\n stats socket /a\n.if feature(X)\n daemon\n.endif\n", "global\n.if feature(X)\n.endif\n"),
    ],
)  # fmt: skip
def test_what_production_does_besides(text: str, becomes: str | None) -> None:
    derived = derive(text, source="/etc/haproxy/haproxy.cfg")
    expected = becomes if becomes is not None else text.replace("peers p\n", "peers p\n\tdisabled\n")
    assert derived.text == expected


KEPT = {
    "log": "global\n log /dev/log local0\nring r\n server s 10.0.0.1:514\n",
    "peers": "peers p\n peer a 10.0.0.1:1\n",
    "external-check": "global\n external-check\nbackend b\n option external-check\n external-check command x\n",
    "lua": "global\n lua-load /nowhere/x.lua\nfrontend f\n acl a lua.x\n",
    "spoe": "frontend f\n filter spoe engine x config /nowhere/y\n http-request send-spoe-group x y\n",
    "opentracing": "frontend f\n filter opentracing config y\n",
}


@pytest.mark.parametrize("word", KEPT)
def test_what_is_kept_because_it_was_asked_for(word: str) -> None:
    assert derive(KEPT[word], keep=frozenset([word])).text == KEPT[word]
