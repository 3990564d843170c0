"""Production's nginx.conf and the shadow's, on configurations after real ones: nginx takes both, and the difference is
the list of changes."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import crossplane
import pytest

from replay.balancer.derive.change import Derived, render_changes, unexplained
from replay.balancer.derive.nginx import baseline, derive_nginx, files_of
from replay.balancer.derive.nginx_edits import Reason
from replay.balancer.derive.nginx_tree import read, walk_all
from replay.errors import UpstreamError
from tests.replay.balancer.derive.nginx_site import CHECKED, NAMES, Site, check, counted, fill, write

PRODUCTION = re.compile(r"\b10\.\d+\.\d+\.\d+\b|\[2001:db8:7::3\]|/run/[a-z0-9.-]+\.sock")


def lines(text: str | None) -> list[str]:
    return [] if text is None else text.split("\n")


def own_reasons(derived: Derived) -> set[str]:
    return {reason for change in derived.changes for reason in change.reason.split("; ")}


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: nginx -t wants to listen on port 80")
@pytest.mark.parametrize("name", CHECKED)
def test_nginx_takes_production_s(name: str, tmp_path: Path) -> None:
    site = fill(name, tmp_path)
    (tmp_path / "baseline.conf").write_text(baseline(site.path))  # beside production's, as relative paths want it
    assert check(site.path) == ""
    assert check(tmp_path / "baseline.conf") == ""


@pytest.mark.parametrize("name", CHECKED)
def test_nginx_takes_the_shadow_s(name: str, tmp_path: Path) -> None:
    site = fill(name, tmp_path)
    (site.run / "nginx.conf").write_text(site.derive().text)
    assert check(site.run / "nginx.conf") == ""


@pytest.mark.parametrize("name", NAMES)
def test_differs_by_its_changes_alone(name: str, tmp_path: Path) -> None:
    site = fill(name, tmp_path)
    source, derived = baseline(site.path), site.derive()
    assert unexplained(source.split("\n"), derived.text.split("\n"), derived.changes) == []
    left = Counter(source.split("\n"))
    left.subtract(line for change in derived.changes for line in lines(change.before))
    left.update(line for change in derived.changes for line in lines(change.after))
    assert +left == Counter(derived.text.split("\n"))
    assert min(left.values()) >= 0
    assert own_reasons(derived) <= {str(reason) for reason in Reason}
    assert derived.changes == tuple(sorted(derived.changes, key=lambda change: change.line))


@pytest.mark.parametrize("name", NAMES)
def test_no_server_of_production_is_left(name: str, tmp_path: Path) -> None:
    site = fill(name, tmp_path)
    derived = site.derive()
    (site.run / "nginx.conf").write_text(derived.text)
    named = 0
    for each in walk_all(read(site.run / "nginx.conf").http):
        if (each.name == "server" and each.block is None) or each.name.endswith("_pass"):
            named += 1
            assert not PRODUCTION.search(each.first), each
        elif each.name not in ("allow", "resolver", "set_real_ip_from") and not each.name.endswith("_set_header"):
            assert not any(PRODUCTION.search(word) for word in each.args), each
    assert named
    assert all(PRODUCTION.search(server.production) for server in derived.servers)
    assert not any(PRODUCTION.search(server.shadow) for server in derived.servers)


@pytest.mark.parametrize("name", NAMES)
def test_one_private_address_for_each_listener(name: str, tmp_path: Path) -> None:
    site = fill(name, tmp_path)
    derived = site.derive(private=counted())
    assert [each.private_port for each in derived.listeners] == [20001 + n for n in range(len(derived.listeners))]
    assert len({each.production for each in derived.listeners}) == len(derived.listeners)
    assert site.derive(private=counted()) == derived


@pytest.mark.parametrize("name", NAMES)
def test_baseline_is_what_crossplane_writes(name: str, tmp_path: Path) -> None:
    """Only that crossplane combines files itself."""
    site = fill(name, tmp_path)
    payload = crossplane.parse(str(site.path), combine=True, check_ctx=False, check_args=False)
    assert baseline(site.path) == crossplane.build(payload["config"][0]["parsed"]) + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_deriving_again_changes_no_server(name: str, tmp_path: Path) -> None:
    """The baseline as the source gives the same shadow."""
    site = fill(name, tmp_path)
    derived = site.derive()
    other = Site(tmp_path)
    other.path = tmp_path / "whole.conf"
    other.path.write_text(baseline(site.path))
    assert other.derive().text == derived.text


def test_a_person_can_read_the_changes(tmp_path: Path) -> None:
    site = fill("debian_sites", tmp_path)
    shown = render_changes(site.derive().changes)
    at = shown.index(f"{tmp_path}/conf.d/upstreams.conf:2, in one file:28  shadow server instead of production's")
    assert shown[at + 1 : at + 3] == [
        "-         server 10.1.0.11:3000 weight=3 max_fails=2 fail_timeout=10s;",
        "+         server 127.0.0.1:9101 weight=3 max_fails=2 fail_timeout=10s;",
    ]


def test_files_are_those_it_is_made_of(tmp_path: Path) -> None:
    site = fill("debian_sites", tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in files_of(site.path)}
    assert names == {
        "nginx.conf",
        "mime.types",
        "conf.d",
        "conf.d/upstreams.conf",
        "modules-enabled",
        "sites-enabled",
        "sites-enabled/00-default",
        "sites-enabled/blog.example",
        "sites-enabled/docs.example",
        "snippets/proxy.conf",
    }


def test_a_file_that_is_included_twice_is_changed_twice(tmp_path: Path) -> None:
    text = "server { listen 80; location /a { include pass; } location /b { include pass; } }"
    site = write(tmp_path, text, **{"pass": "proxy_set_header Host $host; proxy_pass http://10.0.0.1:8080;"})
    derived = site.derive({"10.0.0.1:8080": "192.0.2.9:80"})
    changed = [change for change in derived.changes if change.reason == Reason.SERVER]
    assert [change.after for change in changed] == ["            proxy_pass http://192.0.2.9:80;"] * 2
    assert len({change.line for change in changed}) == 2
    assert all(change.file.startswith(f"{tmp_path}/pass:1") for change in changed)


def test_the_working_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = fill("websocket", tmp_path)
    whole = site.derive()
    monkeypatch.chdir(tmp_path)
    site.path = Path("nginx.conf")
    assert site.derive() == whole


def test_no_http_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text("events {}\nstream { server { listen 1; } }\n")
    with pytest.raises(UpstreamError, match=r"nginx\.conf: there is no http block"):
        Site(tmp_path).derive()


def test_parse_nginx_via_is_here_too() -> None:
    from replay.balancer.derive import nginx, nginx_via

    assert nginx.parse_nginx_via is nginx_via.parse_nginx_via
    assert nginx.derive_nginx is derive_nginx
