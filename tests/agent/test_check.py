"""`shadowtap check` in this network namespace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent.check import check
from agent.errors import ConfigError, LoadError
from replay.errors import UpstreamError
from tests.agent.select.test_geo import write

TEXT = """
capture: {interface: lo, ports: [80, 443], workers: 2}
shadows: {candidate: {percentage: 2.5, upstreams: ["198.51.100.1:80"]}}
"""


def checked(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    return check(path)


def test_it_says_what_the_configuration_means(tmp_path: Path) -> None:
    user, lines = "nobody", checked(tmp_path, TEXT + "user: nobody\n")
    assert lines == [
        f"{tmp_path / 'f.yaml'}: valid",
        f"copies   on lo, port 80, 443, 2 worker(s) as {user}",
        "mirrors  2.5 % of the connections to shadow candidate (198.51.100.1:80)",
        "replays  GET, HEAD, OPTIONS to candidate",
        "records  nothing",
        "metrics  http://127.0.0.1:9464/metrics",
        "control  /run/shadowtap/control.sock",
    ]


def test_what_is_off_is_said(tmp_path: Path) -> None:
    lines = checked(tmp_path, "capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\nmetrics: null\ncontrol: null\n")
    assert "mirrors  100 % of the connections for a, captured only" in lines
    assert not any(line.startswith("replays") for line in lines)
    assert "metrics  none" in lines
    assert "control  none" in lines


def test_every_shadow_has_its_lines(tmp_path: Path) -> None:
    lines = checked(
        tmp_path,
        """
capture: {interface: lo, ports: [80]}
shadows:
  one: {percentage: 5, sample_by: client, upstreams: ["198.51.100.1:80"], methods: [GET]}
  two: {criteria: "header:X-Test and method:GET", sample_by: "cookie:id", upstreams: ["198.51.100.2:80"]}
  three: {sample_by: request}
""",
    )
    assert [line for line in lines if line.startswith(("mirrors", "replays"))] == [
        "mirrors  5 % of the clients to shadow one (198.51.100.1:80)",
        "mirrors  100 % of the requests by cookie:id with header:X-Test and method:GET to shadow two (198.51.100.2:80)",
        "mirrors  100 % of the requests for three, captured only",
        "replays  GET to one",
        "replays  GET, HEAD, OPTIONS to two",
    ]


def test_geography_is_opened(tmp_path: Path) -> None:
    shadows = "capture: {interface: lo, ports: [80]}\nshadows: {a: {criteria: geo:DE}}\n"
    with pytest.raises(ConfigError, match=r"none\.mmdb: No such file or directory: give a country"):
        checked(tmp_path, f"{shadows}geo: {{database: {tmp_path}/none.mmdb}}\n")
    database = write(tmp_path / "some.mmdb", [("8.0.0.0/8", {"country": {"iso_code": "US"}})])
    lines = checked(tmp_path, f"{shadows}geo: {{database: {database}}}\n")
    assert "mirrors  100 % of the connections with geo:DE for a, captured only" in lines


def test_a_disabled_shadow_is_valid_and_noted(tmp_path: Path) -> None:
    lines = checked(tmp_path, TEXT.replace("percentage", "enabled: false, percentage"))
    assert "mirrors  2.5 % of the connections to shadow candidate (198.51.100.1:80) (disabled)" in lines
    assert "replays  GET, HEAD, OPTIONS to candidate" in lines
    assert lines[-1] == "note     shadow candidate is disabled: nothing will be mirrored to it"


def test_what_is_allowed_and_hardly_meant_is_a_note(tmp_path: Path) -> None:
    lines = checked(tmp_path, TEXT.replace("interface: lo", "interface: lo, ring_kib: 64"))
    assert lines[-1].startswith("note     capture.ring_kib 64: large segments will not fit")


def test_what_cannot_work_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: capture\.interface: no 'nope0' on this host; there are: .*lo"):
        checked(tmp_path, TEXT.replace("interface: lo", "interface: nope0"))
    with pytest.raises(UpstreamError, match=r"is the production address 127\.0\.0\.1:443"):
        checked(tmp_path, TEXT.replace("198.51.100.1:80", "127.0.0.1:443"))
    with pytest.raises(ConfigError, match="the port is missing"):
        checked(tmp_path, TEXT.replace("198.51.100.1:80", "198.51.100.1"))
    with pytest.raises(LoadError, match="no user 'no-such-user' on this host"):
        checked(tmp_path, TEXT + "user: no-such-user\n")
    with pytest.raises(ConfigError, match="missing"):
        checked(tmp_path, "shadows: {a: {}}")


HAPROXY = """
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
frontend web
    bind *:80
    default_backend app
backend app
    server web1 198.51.100.10:8080
"""
BALANCED = """
capture: {interface: lo, ports: [80]}
shadows: {candidate: {balancer: {engine: haproxy, from: FILE, servers: {"*": "198.51.100.20:8080"}}}}
"""


def with_program(tmp_path: Path, haproxy: str = HAPROXY, text: str = BALANCED) -> list[str]:
    file = tmp_path / "haproxy.cfg"
    file.write_text(haproxy)
    return checked(tmp_path, text.replace("FILE", str(file)))


def test_a_balancer_program_is_derived_and_checked(tmp_path: Path) -> None:
    lines = with_program(tmp_path)
    (balances,) = [line for line in lines if line.startswith("balances")]
    assert balances.startswith(f"balances candidate by haproxy: {tmp_path}/haproxy.cfg with ")
    assert balances.endswith(" changes, for *:80")
    assert f"mirrors  100 % of the connections to shadow candidate (haproxy with {tmp_path}/haproxy.cfg)" in lines


@pytest.mark.parametrize(
    ("change", "text", "says"),
    [
        (("mode http", "mode nonsense"), BALANCED, r"haproxy\.cfg: refused by haproxy: .*nonsense"),
        (("mode http", "mode tcp"), BALANCED, "no frontend speaks HTTP: name one with balancer.bind"),
        (("", ""), BALANCED.replace('"*"', '"web9"'), "web1"),
        (("", ""), BALANCED.replace("198.51.100.20:8080", "198.51.100.10:8080"), "is production's 198.51.100.10:8080"),
        (("", ""), BALANCED.replace("from:", "bind: '81', from:"), r"nothing listens on balancer\.bind '81'"),
        (("", ""), BALANCED.replace("from:", "tls: {ca: /no/ca.pem}, from:"), r"tls ca '/no/ca\.pem': no such file"),
    ],
)
def test_a_balancer_program_that_cannot_work(tmp_path: Path, change: tuple[str, str], text: str, says: str) -> None:
    with pytest.raises(UpstreamError, match=says):
        with_program(tmp_path, HAPROXY.replace(*change), text)


def test_files_for_tls_are_read(tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match=r"tls ca '/no/ca\.pem': no such file or directory"):
        checked(tmp_path, TEXT.replace("percentage", "balancer: {tls: {ca: /no/ca.pem}}, percentage"))


def test_upstreams_are_looked_up_once(tmp_path: Path) -> None:
    pool = tmp_path / "pool.json"
    pool.write_text(json.dumps([{"targets": ["198.51.100.2:80", "198.51.100.1:80"]}]))
    user = "root" if os.geteuid() == 0 else ""  # pytest's directories are for their owner alone
    found = f"shadows: {{one: {{discovery: {{file: {pool}}}}}, two: {{discovery: {{file: {tmp_path}/none.json}}}}}}"
    lines = checked(tmp_path, "capture: {interface: lo, ports: [80]}\n" + found + (f"\nuser: {user}" if user else ""))
    assert "finds    198.51.100.1:80, 198.51.100.2:80 for one" in lines
    assert "finds    no upstreams for two" in lines
    assert any(line.startswith(f"note     two: {tmp_path}/none.json: ") for line in lines)
    assert f"mirrors  100 % of the connections to shadow one (as {pool} says)" in lines
