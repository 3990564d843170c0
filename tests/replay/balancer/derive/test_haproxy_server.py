"""Where requests and health checks go, and what is refused because it may be production."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from replay.errors import UpstreamError
from tests.replay.balancer.derive.haproxy_harness import (
    derive,
)


def one_server(line: str, servers: Mapping[str, str | Sequence[str]] | None = None, **options: Any) -> str:
    derived = derive(f"backend b\n{line}\n", {"*": "s:1"} if servers is None else servers, **options)
    return derived.text.split("\n")[1]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("server s 10.0.0.1:80", "server s s:1"),
        ("server s 10.0.0.1", "server s s:1"),
        ("server s 10.0.0.1:+100 check", "server s s:1 check"),
        ("server s ipv4@prod:80 check", "server s s:1 check"),
        ("server s unix@/run/a.sock", "server s s:1"),
        ("server s prod:80 check port 81 inter 2s weight 5 backup cookie a", None),
        ("server s prod:80 ssl verify required ca-file a sni str(addr) resolvers dns", None),
        ("server s prod:80 check addr 10.0.0.2 port 81", "server s s:1 check port 81"),
        ("server s prod:80 cookie addr check", None),
        ("server s prod:80 agent-check agent-port 9 agent-addr 10.0.0.2", "server s s:1 agent-port 9"),
        ("server s prod:80 init-addr last,libc,10.0.0.3", "server s s:1 init-addr last,libc"),
        ("server s prod:80 init-addr 10.0.0.3 check", "server s s:1 check"),
        ("server s prod:80 init-addr none", None),
        ("server s prod:80 source 10.0.0.9 check", None),
        ("server s prod:80 source 0.0.0.0 usesrc clientip check", "server s s:1 check"),
        ("server s prod:80 source 0.0.0.0 interface lo usesrc hdr_ip(x,-1) check", "server s s:1 check"),
        ("server s prod:80 socks4 10.0.0.5:1080 check check-via-socks4", "server s s:1 check"),
        ("server-template s 2-4 _http._tcp.prod resolvers d", "server-template s 2-4 s:1 resolvers d"),
        ("dispatch 10.0.0.1:80", "dispatch s:1"),
        ("default-server check addr 10.0.0.2 port 5 agent-check", "default-server check port 5"),
        ("tcp-check connect port 5 addr 10.0.0.2 ssl", "tcp-check connect port 5 ssl"),
        ("http-check connect addr 10.0.0.2 sni a via-socks4", "http-check connect sni a"),
        ("source 10.0.0.9", "source 10.0.0.9"),
        ("source 0.0.0.0 usesrc client", ""),
        ("load-server-state-from-file local", ""),
        ("server-state-file-name x", ""),
    ],
)
def test_server_lines(line: str, becomes: str | None) -> None:
    assert one_server(line) == (line.replace("prod:80", "s:1") if becomes is None else becomes)


@pytest.mark.parametrize(
    ("shadow", "written"),
    [
        ("shadow:8080", "shadow:8080"),
        ("shadow", "shadow:80"),
        ("[2001:db8::9]:8080", "[2001:db8::9]:8080"),
        ("[2001:db8::9]", "[2001:db8::9]:80"),
        ("unix:/run/shadow.sock", "unix@/run/shadow.sock"),
    ],
)
@pytest.mark.parametrize("key", ["b/web", "10.0.0.1:80", "web", "b/*", "*"])
def test_shadows_are_written_as_haproxy_takes_them(key: str, shadow: str, written: str) -> None:
    assert one_server("server web 10.0.0.1:80 check", {key: shadow}) == f"server web {written} check"


def test_a_list_of_shadows_is_dealt_out() -> None:
    text = "backend a\n server s1 h:1\n server s2 h:2\n server s3 h:3\nlisten b\n server s1 h:1\n"
    derived = derive(text, {"*": ["x:1", "y:1"]})
    assert [(each.name, each.shadow) for each in derived.servers] == [
        ("a/s1", "x:1"), ("a/s2", "y:1"), ("a/s3", "x:1"), ("b/s1", "x:1"),
    ]  # fmt: skip
    assert derive(text, {"*": ["x:1", "y:1"]}) == derived


def test_a_template_makes_one_server_for_each_number() -> None:
    derived = derive("backend b\n server-template web 2-4 prod:80 resolvers d\n", {"web": "x"})
    assert [each.name for each in derived.servers] == ["b/web2", "b/web3", "b/web4"]
    assert {(each.production, each.shadow) for each in derived.servers} == {("prod:80", "x:80")}
    assert derived.notes == ("b/web makes 3 servers, all of them x:80",)


@pytest.mark.parametrize(
    ("shadow", "kept"), [("10.0.0.9:80", True), ("10.0.0.2:8080", False), ("shadow:80", True), ("prod:80", False)]
)
def test_ports_of_health_checks_do_not_lead_to_production(shadow: str, kept: bool) -> None:
    """On a host of its own, the port that checks go to is the shadow's; on a host of production's, it is not."""
    text = (
        "backend b\n tcp-check connect port 82\n server a h:80 check port 81\n server b 10.0.0.2:1\n server c PROD:1\n"
    )
    lines = derive(text, {"a": shadow, "*": "else:1"}).text.split("\n")
    assert ("port 82" in lines[1], "port 81" in lines[2]) == (kept, kept)


def test_variables_in_addresses() -> None:
    text = (
        "global\n presetenv APP_HOST ignored\n setenv PORT 81\nbackend b\n"
        ' server s "${APP_HOST}:$PORT" # "${NONE}"\n server t "${NONE-10.0.0.2}:80"\n'
    )
    derived = derive(text, {"10.0.0.1:81": "x:1", "10.0.0.2:80": "y:1"}, environment={"APP_HOST": "10.0.0.1"})
    assert [each.shadow for each in derived.servers] == ["x:1", "y:1"]


def test_production_is_kept_only_when_asked_for() -> None:
    derived = derive("backend b\n server s 10.0.0.1:80 check addr 10.0.0.9\n", {}, allow_unmapped=True)
    assert derived.text == "backend b\n server s 10.0.0.1:80 check\n"
    assert derived.notes == ("server b/s is production's own, 10.0.0.1:80: it has no shadow",)


def test_entries_that_fit_no_server_are_noted() -> None:
    derived = derive("backend b\n server s 10.0.0.1:80\n", {"*": "x:1", "b/S": "y:1"})
    assert derived.notes == ("server mapping 'b/S' is not used: no server of this file is called so",)


def test_servers_of_other_sections_are_none() -> None:
    derived = derive(
        "peers p\n server lb1 10.0.0.1:1024\n peer lb2 10.0.0.2:1024\nring r\n server l 10.0.0.3:514\n", {}
    )
    assert derived.servers == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("server web1 10.0.0.1:80", "server b/web1 at 10.0.0.1:80 has no shadow; map 'b/web1' to its HOST:PORT"),
        ("server-template w 3 prod:80", "server b/w at prod:80 has no shadow"),
        ("dispatch 10.0.0.1:80", "server b/dispatch at 10.0.0.1:80 has no shadow"),
        ("server s *:80", "dials the address that the client asked for"),
        ("server s 0.0.0.0:0", "dials the address that the client asked for"),
        ("server s [::]:80", "dials the address that the client asked for"),
        ("server s :80", "dials the address that the client asked for"),
        ("server s ipv4@:80", "dials the address that the client asked for"),
        ("server s ::", "dials the address that the client asked for"),
        ('server s "${UNSET}:80"', "UNSET is not known; give its value in `environment`"),
        ('server s "${SET[*]}:80"', "a list of values is no address"),
        ("server s", "has no address"),
        ("option transparent", "'option transparent' lets a request choose where it goes"),
        ("option http_proxy", "lets a request choose where it goes"),
        ("http-request set-dst hdr_ip(x)", "'http-request set-dst hdr_ip(x)' lets a request choose where it goes"),
        ("http-request set-dst-port int(80) if TRUE", "lets a request choose where it goes"),
        ("tcp-request content set-dst src", "'tcp-request content set-dst' lets a request choose where it goes"),
        ("bind :1-65535", "is not a range of at most 256 ports"),
        ("bind :0", "is not a range of at most 256 ports"),
        ("bind example", "'example' has no port"),
        ('bind "${UNSET}:80"', "$UNSET is not known"),
        ("bind rhttp@b/s", "reverse HTTP is not handled"),
    ],
)
def test_refusals_name_the_place_and_what_to_do(line: str, says: str) -> None:
    with pytest.raises(UpstreamError) as error:
        derive(f"listen b\n\n {line}\n", {"none": "x:1"}, environment={"SET": "a b"})
    assert str(error.value).startswith("haproxy.cfg:3: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_that_production_does_not_name_is_asked_for() -> None:
    with pytest.raises(UpstreamError, match=r"haproxy\.cfg:2: server b/s: .*write shadow:PORT"):
        derive("backend b\n server s 10.0.0.1\n", {"*": "shadow"})
