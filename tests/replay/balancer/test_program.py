"""HAProxy and nginx as a shadow's engine: derived, checked, run, followed; and what they are never made to do."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replay.balancer import program as module
from replay.balancer.derive.change import HEADER
from replay.balancer.program import (
    HAPROXY,
    NGINX,
    Engine,
    Plan,
    ProgramSettings,
    _named,
    binary_of,
    check_text,
    listener_for,
    make_plan,
    production_lines,
)
from replay.errors import UpstreamError
from replay.proxy_header import proxy_v2
from tests.replay.scripted_server import ScriptedServer

KINDS = (HAPROXY, NGINX)
PRODUCTION = "198.51.100.10:8080"
TEXTS = {
    HAPROXY: """
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend web
    bind 203.0.113.1:8000
    http-response set-header X-Number 1
    default_backend app
backend app
    server web1 198.51.100.10:8080
""",
    NGINX: """
worker_processes 1;
events { worker_connections 64; }
http {
    access_log off;
    upstream app { server 198.51.100.10:8080; }
    server {
        listen 203.0.113.1:8000;
        location / { proxy_pass http://app; add_header X-Number 1; }
    }
}
""",
}
BROKEN = {HAPROXY: ("mode http", "mode nonsense"), NGINX: ("add_header X-Number 1;", "no_such_thing 1;")}
WORDS = {HAPROXY: "unknown proxy mode 'nonsense'", NGINX: 'unknown directive "no_such_thing"'}
NUMBER = {HAPROXY: "set-header X-Number", NGINX: "add_header X-Number"}


class Site:
    """Production's file, and an engine run from it."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.path = directory / "production.conf"
        self.run = directory / "run"
        self.write(TEXTS[kind])
        self._engines: list[Engine] = []

    def write(self, text: str) -> None:
        """As it is done: a new file, renamed."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def edit(self, old: str, new: str) -> None:
        text = self.path.read_text()
        assert old in text
        self.write(text.replace(old, new))

    def settings(self, shadow: str = "127.0.0.1:9", **fields: Any) -> ProgramSettings:
        return ProgramSettings(self.kind, str(self.path), **{"servers": {"*": shadow}, **fields})

    def plan(self, shadow: str = "127.0.0.1:9", **fields: Any) -> Plan:
        return make_plan(self.settings(shadow, **fields), self.run)

    def engine(self, shadow: str, **fields: Any) -> Engine:
        self._engines.append(Engine(self.settings(shadow, **fields), self.run))
        return self._engines[-1]

    def started(self, shadow: str, **fields: Any) -> Engine:
        made = self.engine(shadow, **fields)
        made.start()
        return made

    def close(self) -> None:
        for engine in self._engines:
            engine.stop()


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def shadow() -> Iterator[ScriptedServer]:
    with ScriptedServer(lambda peer: peer.serve()) as server:
        yield server


def front(engine: Engine) -> tuple[str, int]:
    assert engine.plan is not None
    (listener,) = listener_for(engine.settings, engine.plan.derived)
    return listener.private_host, listener.private_port


def ask(engine: Engine) -> str:
    """The head of the answer to one request."""
    with socket.create_connection(front(engine), timeout=5) as sock:
        sock.sendall(proxy_v2("203.0.113.7:4321", "203.0.113.1:8000"))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")[0].decode()


def number(engine: Engine) -> str:
    """What the configuration in force adds to each answer."""
    match = re.search(r"^x-number: (\d+)", ask(engine), re.IGNORECASE | re.MULTILINE)
    return match[1] if match else ""


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


# Run


def test_it_runs_from_production_s_file(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    head = ask(engine)
    assert head.startswith("HTTP/1.1 200 ")
    assert re.search(rf"^{HEADER}: .*{re.escape(shadow.address)}", head, re.IGNORECASE | re.MULTILINE)
    assert len(shadow.requests) == 1
    assert engine.alive() and engine.pid and engine.reloads == 0 and not engine.changed()
    address = front(engine)
    engine.stop()
    assert not engine.alive() and not accepts(address) and not site.run.exists()
    assert site.path.read_text() == TEXTS[site.kind], "production's file is only read"


def test_one_that_is_killed_is_started_again(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    address, pid = front(engine), engine.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not engine.alive())
    assert not engine.restart()
    assert engine.alive() and engine.pid != pid
    assert front(engine) == address
    assert ask(engine).startswith("HTTP/1.1 200 ")


def test_a_change_is_followed_at_the_same_address(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    address, pid = front(engine), engine.pid
    assert number(engine) == "1"
    site.edit(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 2")
    assert engine.changed()
    engine.follow()
    assert not engine.changed()
    assert (front(engine), engine.pid, engine.reloads) == (address, pid, 1)
    until(lambda: number(engine) == "2")


def test_no_request_fails_while_changes_are_followed(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    heads: list[str] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            heads.append(ask(engine))

    loads = [threading.Thread(target=load) for _ in range(2)]
    for each in loads:
        each.start()
    for count in range(2, 5):
        site.edit(f"{NUMBER[site.kind]} {count - 1}", f"{NUMBER[site.kind]} {count}")
        engine.follow()
        time.sleep(0.1)
    stop.set()
    for each in loads:
        each.join()
    assert len(heads) > 20
    assert {head.split(" ")[1] for head in heads} == {"200"}


def test_a_change_that_is_refused_leaves_the_old_one(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    before = engine.plan
    site.edit(*BROKEN[site.kind])
    with pytest.raises(UpstreamError, match=f"production.conf: refused by {site.kind}: .*{WORDS[site.kind]}"):
        engine.follow()
    assert not engine.changed(), "it is not tried again"
    assert engine.alive() and engine.plan is before and engine.reloads == 0
    assert ask(engine).startswith("HTTP/1.1 200 ")
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not engine.alive())
    engine.restart()
    assert ask(engine).startswith("HTTP/1.1 200 "), "it is the old one that is started again"
    site.write(TEXTS[site.kind].replace(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 3"))
    engine.follow()
    until(lambda: number(engine) == "3")


@pytest.mark.parametrize(
    ("wanted", "old", "new", "says"),
    [
        ("8000", "203.0.113.1:8000", "203.0.113.1:8001", "nothing listens on balancer.bind '8000'"),
        ("", PRODUCTION, "127.0.0.1:9", "which is production's 127.0.0.1:9"),
        ("", "", "", "(?i:no such file or directory)"),
    ],
)
def test_a_change_that_cannot_be_leaves_the_old_one(
    site: Site, shadow: ScriptedServer, wanted: str, old: str, new: str, says: str
) -> None:
    engine = site.started(shadow.address, bind=wanted)
    if old:
        site.edit(old, new.replace("127.0.0.1:9", shadow.address))
    else:
        site.path.unlink()
    with pytest.raises(UpstreamError, match=says.replace("127.0.0.1:9", shadow.address)):
        engine.follow()
    assert not engine.changed()
    assert ask(engine).startswith("HTTP/1.1 200 ")
    site.write(TEXTS[site.kind])
    assert engine.changed()
    engine.follow()
    assert ask(engine).startswith("HTTP/1.1 200 ")


def test_a_change_while_a_change_is_looked_at_is_not_missed(
    site: Site, shadow: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = site.started(shadow.address)
    checked = module.check

    def check(argv: Any) -> str:
        site.edit(f"{NUMBER[site.kind]} 2", f"{NUMBER[site.kind]} 3")
        return checked(argv)

    site.edit(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 2")
    monkeypatch.setattr(module, "check", check)
    engine.follow()
    monkeypatch.setattr(module, "check", checked)
    assert engine.changed()
    engine.follow()
    until(lambda: number(engine) == "3")


def test_a_dead_one_is_started_with_the_change_that_mends_it(site: Site, shadow: ScriptedServer) -> None:
    """What it ran with cannot be started any more; what stands in production's file can."""
    engine = site.started(shadow.address)
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not engine.alive())
    (site.run / f"{site.kind}.conf").write_text("nonsense\n")
    with pytest.raises(UpstreamError, match="ended at once"):
        engine.restart()
    site.edit(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 2")
    assert engine.restart()
    assert number(engine) == "2" and not engine.changed()


def test_a_dead_one_is_not_started_with_a_change_that_is_refused(site: Site, shadow: ScriptedServer) -> None:
    engine = site.started(shadow.address)
    site.edit(*BROKEN[site.kind])
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not engine.alive())
    assert not engine.restart()
    assert number(engine) == "1"
    assert engine.changed(), "and it is still to be told"
    with pytest.raises(UpstreamError, match=WORDS[site.kind]):
        engine.follow()


def test_what_cannot_be_started_says_so(site: Site, tmp_path: Path) -> None:
    site.edit(*BROKEN[site.kind])
    engine = site.engine("127.0.0.1:9")
    with pytest.raises(UpstreamError, match=WORDS[site.kind]):
        engine.start()
    assert not engine.alive() and engine.pid == 0 and engine.last_words() == ""
    engine.stop()
    assert not site.run.exists()


def test_included_files_are_followed(tmp_path: Path, shadow: ScriptedServer) -> None:
    site = Site(NGINX, tmp_path)
    part = tmp_path / "part.conf"
    part.write_text("add_header X-Number 1;")
    site.edit("add_header X-Number 1;", f"include {tmp_path}/part.co*;")
    engine = site.started(shadow.address)
    try:
        assert number(engine) == "1"
        part.write_text("no_such_thing 2;")
        assert engine.changed()
        with pytest.raises(UpstreamError, match="no_such_thing"):
            engine.follow()
        part.write_text("add_header X-Number 2;")
        assert engine.changed()
        engine.follow()
        until(lambda: number(engine) == "2")
    finally:
        site.close()


# What is asked for


def test_a_plan_writes_and_starts_nothing(site: Site) -> None:
    plan = site.plan()
    assert [(server.production, server.shadow) for server in plan.derived.servers] == [(PRODUCTION, "127.0.0.1:9")]
    assert plan.files == (site.path,)
    assert PRODUCTION not in plan.derived.text and "127.0.0.1:9" in plan.derived.text
    assert not site.run.exists()


def test_what_is_derived_can_be_checked(site: Site) -> None:
    site.run.mkdir()
    assert check_text(site.settings(), site.plan(), site.run) == ""
    site.edit(*BROKEN[site.kind])
    assert WORDS[site.kind] in check_text(site.settings(), site.plan(), site.run)


@pytest.mark.parametrize("wanted", ["203.0.113.1:8000", "8000", ""])
def test_where_traffic_goes_in(site: Site, wanted: str) -> None:
    settings = site.settings(bind=wanted)
    (found,) = listener_for(settings, site.plan().derived)
    assert (found.host, found.port, found.tls, found.http) == ("203.0.113.1", 8000, False, True)
    with pytest.raises(UpstreamError, match=r"nothing listens on balancer.bind '8'; there is 203\.0\.113\.1:8000"):
        listener_for(replace(settings, bind="8"), site.plan().derived)


def test_a_frontend_can_be_named(tmp_path: Path) -> None:
    site = Site(HAPROXY, tmp_path)
    site.write(TEXTS[HAPROXY] + "frontend other\n    bind :8443,:8444\n    default_backend app\n")
    derived = site.plan().derived
    assert [each.port for each in listener_for(site.settings(), derived)] == [8000, 8443, 8444]
    assert [each.port for each in listener_for(site.settings(bind="other"), derived)] == [8443, 8444]


def test_there_has_to_be_a_frontend_that_speaks_http(tmp_path: Path) -> None:
    site = Site(HAPROXY, tmp_path)
    site.edit("mode http", "mode tcp")
    site.edit("    http-response set-header X-Number 1\n", "")
    with pytest.raises(UpstreamError, match=r"no frontend speaks HTTP: name one with balancer\.bind"):
        listener_for(site.settings(), site.plan().derived)
    with pytest.raises(UpstreamError, match="no frontend speaks HTTP"):
        site.engine("127.0.0.1:9").start()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no such file or directory"), (b"\xff\xfe", "not UTF-8 text"), ("directory", "is a directory")],
)
def test_a_file_that_cannot_be_read(kind: str, tmp_path: Path, content: bytes | str | None, says: str) -> None:
    site = Site(kind, tmp_path)
    site.path.unlink()
    if content == "directory":
        site.path.mkdir()
    elif isinstance(content, bytes):
        site.path.write_bytes(content)
    with pytest.raises(UpstreamError, match=f"production.conf.*(?i:{says})"):
        site.plan()


def test_a_program_that_is_not_there(site: Site) -> None:
    with pytest.raises(UpstreamError, match=f"{site.kind}-99 is not installed here: install it, or name it in"):
        binary_of(site.settings(binary=f"{site.kind}-99"))
    assert binary_of(site.settings(binary=binary_of(site.settings()))) == binary_of(site.settings())


def test_a_run_directory_without_room_is_told(
    site: Site, shadow: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = site.started(shadow.address)

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    site.edit(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 2")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UpstreamError, match="no space left on device"):
        engine.follow()
    assert engine.alive() and number(engine) == "1"


# Production is never sent to


def test_a_server_without_an_entry_is_refused(site: Site) -> None:
    with pytest.raises(UpstreamError, match=r"198\.51\.100\.10:8080"):
        site.plan(servers={"other": "127.0.0.1:9"})


@pytest.mark.parametrize(
    ("production", "shadow", "found"),
    [
        (PRODUCTION, PRODUCTION, PRODUCTION),
        ("127.0.0.1:8080", "localhost:8080", "127.0.0.1:8080"),
        ("localhost:8080", "127.0.0.1:8080", "127.0.0.1:8080"),
        ("localhost:8080", "localhost:8080", "127.0.0.1:8080"),
    ],
)
def test_production_s_own_servers_are_refused(site: Site, production: str, shadow: str, found: str) -> None:
    site.edit(PRODUCTION, production)
    with pytest.raises(UpstreamError, match=f"would be {shadow}, which is production's .*8080: map it in") as caught:
        site.plan(shadow)
    assert found in str(caught.value) or "[::1]:8080" in str(caught.value)
    assert site.plan(shadow, allow_production=True).derived.servers[0].shadow == shadow


@pytest.mark.parametrize("address", ["127.0.0.1:9", "*:9", "0.0.0.0:9", "[::]:9"])
def test_other_addresses_of_production_are_refused(site: Site, address: str) -> None:
    with pytest.raises(UpstreamError, match=r"which is production's 127\.0\.0\.1:9"):
        site.plan("127.0.0.1:9", addresses=("198.51.100.77:80", address))
    assert site.plan("127.0.0.1:8", addresses=(address,))


def test_one_bad_server_among_many_is_found(site: Site) -> None:
    more = {HAPROXY: "    server web2 198.51.100.11:8080\n", NGINX: "server 198.51.100.11:8080;"}[site.kind]
    line = {HAPROXY: f"    server web1 {PRODUCTION}\n", NGINX: f"server {PRODUCTION};"}[site.kind]
    site.edit(line, line + more)
    assert len(site.plan().derived.servers) == 2
    with pytest.raises(UpstreamError, match=r"which is production's 198\.51\.100\.11:8080"):
        site.plan(servers={PRODUCTION: "127.0.0.1:9", "198.51.100.11:8080": "198.51.100.11:8080"})
    with pytest.raises(UpstreamError, match=r"which is production's 198\.51\.100\.10:8080"):
        site.plan(servers={PRODUCTION: "127.0.0.1:9", "198.51.100.11:8080": PRODUCTION})


def test_a_name_that_resolves_to_nothing_may_be_production_s(site: Site) -> None:
    with pytest.raises(UpstreamError, match=r"no-such-host\.invalid:8080, which does not resolve"):
        site.plan("no-such-host.invalid:8080")


def test_files_that_are_read_are_followed_and_logs_are_not(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("site.pem", "app.log", "said.log", "own.txt", "x.map")]
    for file in files:
        file.touch()
    own = tmp_path / "own"
    text = f"""# see {files[1]}
    bind :443 ssl crt {files[0]}  # renewed; {files[2]}
    access_log {files[1]};
    log {files[2]} local0
    use_backend %[req.hdr(host),map({files[4]},app)]
    stats {own}/file /no/such.pem
"""
    assert _named(text, own) == [files[0], files[4]]


# A candidate


def candidate(site: Site, text: str) -> dict[str, Any]:
    """Settings for a candidate of this text beside production's file."""
    path = site.path.with_name("candidate.conf")
    path.write_text(text)
    return {"source": str(path), "production": str(site.path)}


def test_a_candidate_is_run_and_production_s_file_is_what_it_is_compared_with(site: Site, tmp_path: Path) -> None:
    text = TEXTS[site.kind].replace(f"{NUMBER[site.kind]} 1", f"{NUMBER[site.kind]} 2")
    settings = replace(site.settings(), **candidate(site, text))
    plan = make_plan(settings, site.run)
    assert f"{NUMBER[site.kind]} 2" in plan.derived.text
    different = set(plan.source_lines) ^ set(production_lines(settings, tmp_path))
    assert len(different) == 2 and all(NUMBER[site.kind] in line for line in different)


def test_a_candidate_s_own_servers_may_stay(site: Site) -> None:
    """It was written for the shadow: what it names is asked, unless production has it, too."""
    fields = candidate(site, TEXTS[site.kind].replace(PRODUCTION, "198.51.100.20:8080"))
    plan = make_plan(replace(site.settings(), **fields, servers={}), site.run)
    assert [server.shadow for server in plan.derived.servers] == ["198.51.100.20:8080"]


@pytest.mark.parametrize("servers", [{}, {"*": PRODUCTION}])
def test_a_candidate_is_not_to_ask_production(site: Site, servers: dict[str, str]) -> None:
    fields = candidate(site, TEXTS[site.kind])
    with pytest.raises(UpstreamError, match=r"candidate\.conf: server .* which is production's 198\.51\.100\.10:8080"):
        make_plan(replace(site.settings(), **fields, servers=servers), site.run)


def test_a_candidate_without_production_s_file(site: Site) -> None:
    fields = candidate(site, TEXTS[site.kind])
    site.path.unlink()
    with pytest.raises(UpstreamError, match=r"production\.conf.*(?i:no such file or directory)"):
        make_plan(replace(site.settings(), **fields), site.run)
