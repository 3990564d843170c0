"""The header that names the upstream: where it is added, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.change import DeriveOptions
from replay.balancer.derive.mapping import ServerMap
from replay.balancer.derive.nginx import derive_nginx
from replay.balancer.derive.nginx_edits import Reason
from replay.balancer.derive.nginx_via import VALUE_LIMIT_BYTES, parse_nginx_via
from replay.via import Via
from tests.replay.balancer.derive.nginx_site import counted, write


def test_added_wherever_inheritance_stops(tmp_path: Path) -> None:
    text = """
        add_header A 1;
        server {
            listen 80;
            location /a { add_header B 1; if ($arg_x) { add_header C 1; } }
            location /b { expires 1d; }
        }
        server { listen 80; server_name b; add_header D 1 always; }
        """
    derived = write(tmp_path, text).derive({})
    value = "$upstream_addr;$upstream_connect_time;$proxy_host;$upstream_http_x_shadowtap_upstream"
    added = f"add_header X-Shadowtap-Upstream '{value}' always;"
    lines = [line.strip() for line in derived.text.split("\n")]
    before = [lines[:at][-1] for at, line in enumerate(lines) if line == added]
    assert before == ["real_ip_header proxy_protocol;", "location /a {", "if ($arg_x) {", "server {"]
    assert sum(change.reason == Reason.VIA for change in derived.changes) == 4


def test_the_header_has_the_name_that_is_asked_for(tmp_path: Path) -> None:
    site = write(tmp_path, "server { listen 80; }")
    derived = derive_nginx(site.path, ServerMap({}), counted(), DeriveOptions(str(site.run), header="X-Via"))
    assert "add_header X-Via " in derived.text
    assert "$upstream_http_x_via'" in derived.text


@pytest.mark.parametrize(
    ("value", "via"),
    [
        (b"192.0.2.1:80;0.012;app", Via("app", "192.0.2.1:80", "192.0.2.1:80", -1, 12_000_000)),
        (b"192.0.2.1:80, 192.0.2.2:81;0.100, 0.001;app", Via("app", "192.0.2.2:81", "192.0.2.2:81", -1, 1_000_000)),
        (b"1.2.3.4:1, 1.2.3.4:2 : 1.2.3.4:3;0.1, - : 0.002;a", Via("a", "1.2.3.4:3", "1.2.3.4:3", -1, 2_000_000)),
        (b"[2001:db8::1]:80;0.000;app", Via("app", "[2001:db8::1]:80", "[2001:db8::1]:80", -1, 0)),
        (b"unix:/run/a.sock;1.500;", Via("", "unix:/run/a.sock", "unix:/run/a.sock", -1, 1_500_000_000)),
        (b"192.0.2.1:80;-;app", Via("app", "192.0.2.1:80", "192.0.2.1:80", -1, -1)),
        (b";;", Via("", "", "", -1, -1)),
        (b"-;-;-", Via("-", "", "", -1, -1)),
        (b"app;0.000;app", Via("app", "", "", -1, -1)),  # no server of it is well
        (b"1.2.3.4:1;0.001;a;", Via("a", "1.2.3.4:1", "1.2.3.4:1", -1, 1_000_000)),
        (b"1.2.3.4:1;0.001;a;1.2.3.4:2;0.002;b;", Via("b", "1.2.3.4:2", "1.2.3.4:2", -1, 2_000_000)),
        (b"1.2.3.4:1;0.001;a;;;b;", Via("a", "1.2.3.4:1", "1.2.3.4:1", -1, 1_000_000)),
        (b"1.2.3.4:1;0.001;a;garbage", Via("a", "1.2.3.4:1", "1.2.3.4:1", -1, 1_000_000)),
        (b";;b;1.2.3.4:2;0.002;b;", Via("b", "", "", -1, -1)),  # what is in a cache is of another request
        (b"1.2.3.4:1;;;" * 300, Via("", "1.2.3.4:1", "1.2.3.4:1", -1, -1)),
        (b" 192.0.2.1:80;0.001;app ", Via("app", "192.0.2.1:80", "192.0.2.1:80", -1, 1_000_000)),
        (b"", None),
        (b"192.0.2.1:80", None),
        (b"a;b", None),
        (b";;" + b"x" * VALUE_LIMIT_BYTES, None),
    ],
)
def test_values(value: bytes, via: Via | None) -> None:
    assert parse_nginx_via(value) == via


@given(st.binary() | st.text(alphabet="0123456789.:,; -[]unix/\xff").map(lambda text: text.encode("latin-1")))
def test_garbage_is_never_an_error(value: bytes) -> None:
    via = parse_nginx_via(value)
    assert via is None or (via.queue_ns == -1 and via.connect_ns >= -1)
