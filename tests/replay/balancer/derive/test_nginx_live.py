"""The shadow's nginx, run: who the client is to it, which server answers, and what it says of that."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from replay.balancer.child import free_port
from replay.balancer.derive.change import HEADER, Derived
from replay.balancer.derive.nginx import parse_nginx_via
from replay.proxy_header import proxy_v2
from replay.via import Via, take_off
from tests.replay.balancer.derive.nginx_site import NGINX, Site, authority, fill, write

CLIENT, SERVER = "203.0.113.7:4321", "198.51.100.1:80"
WAIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What came back, the header that names the upstream taken off."""

    status: int
    head: str
    body: str
    via: Via | None

    @property
    def seen(self) -> dict[str, Any]:
        """What the server behind says that it saw."""
        seen: dict[str, Any] = json.loads(self.body)
        return seen

    def header(self, name: str) -> str | None:
        match = re.search(rf"^{name}: (.*)\r$", self.head, re.MULTILINE | re.IGNORECASE)
        return match[1] if match else None


class Shadow(ThreadingHTTPServer):
    """A shadow server: says what it saw, and 401 to whoever has no pass."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.requests = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shadow

    def do_GET(self) -> None:
        self.server.requests += 1
        asks = self.path == "/oauth2/auth"
        status = 401 if asks and "pass" not in self.headers.get("X-Original-URI", "") else 200
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"path": self.path, "server": self.server.address, "headers": headers}).encode()
        self.send_response(status)
        self.send_header("X-Auth-Request-User", "ann")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Running:
    """A shadow's nginx."""

    def __init__(self, site: Site, derived: Derived) -> None:
        self.derived = derived
        path = site.run / "nginx.conf"
        path.write_text(derived.text)
        self.process = subprocess.Popen([NGINX, "-e", "stderr", "-c", path], stderr=subprocess.PIPE)
        self.wait(self._accepts)

    def ask(
        self,
        target: str = "/",
        host: str = "shop.example",
        listener: int = 0,
        client: str = CLIENT,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, over TLS where the listener wants that, behind a PROXY header."""
        to = self.derived.listeners[listener]
        lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with socket.create_connection((to.private_host, to.private_port), timeout=WAIT_S) as plain:
            plain.sendall(proxy_v2(client, SERVER))
            sock = _context().wrap_socket(plain, server_hostname=host) if to.tls else plain
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, body = data.partition(b"\r\n\r\n")
        head, value = take_off(head, HEADER.lower().encode())
        assert HEADER.lower().encode() not in head.lower()
        via = None if value is None else parse_nginx_via(value)
        return Answer(int(head.split(b" ")[1]), head.decode() + "\r\n", body.decode(), via)

    def certificate(self, host: str) -> set[str]:
        """The names in the certificate that it shows for this one."""
        to = self.derived.listeners[0]
        with socket.create_connection((to.private_host, to.private_port), timeout=WAIT_S) as plain:
            plain.sendall(proxy_v2(CLIENT, SERVER))
            with _context().wrap_socket(plain, server_hostname=host) as sock:
                names: Any = (sock.getpeercert() or {}).get("subjectAltName", ())
        return {name for _, name in names}

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=WAIT_S)

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            for each in self.derived.listeners:
                socket.create_connection((each.private_host, each.private_port), timeout=1).close()
            return True
        return False


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False  # some are asked for names that they have not
    authority().configure_trust(context)
    return context


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that nginx's workers, which are not root, may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def shadows() -> Iterator[list[Shadow]]:
    servers = [Shadow(), Shadow()]
    for each in servers:
        threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield servers
    for each in servers:
        each.shutdown()
        each.server_close()


Run = Callable[..., Running]


@pytest.fixture
def run() -> Iterator[Run]:
    with contextlib.ExitStack() as stack:

        def start(site: Site, entries: Mapping[str, str | list[str]]) -> Running:
            running = Running(site, site.derive(entries, private=free_port))
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture
def shop(directory: Path, run: Run, shadows: list[Shadow]) -> Running:
    """A short configuration with a bit of everything."""
    dead = f"127.0.0.1:{free_port()[1]}"
    text = """
        upstream app { server 10.0.0.1:80; }
        upstream half { server 10.0.0.9:80; server 10.0.0.2:80 backup; }
        upstream gone { server 10.0.0.9:80; }
        server {
            listen 80;
            server_name shop.example;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Port "$server_port $server_addr";
            location / { proxy_pass http://app; }
            location /own/ { add_header X-Own yes; proxy_pass http://app; }
            location /half/ { proxy_pass http://half; }
            location /gone/ { proxy_pass http://gone; }
            location /me { return 200 "$remote_addr $remote_port $proxy_protocol_addr $server_port"; }
            location /missing/ { root /nonexistent; }
            location /page/ { error_page 404 /oops; root /nonexistent; }
            location = /oops { internal; add_header X-Oops 1 always; return 404 "oops"; }
            location /closed/ { deny 203.0.113.0/24; allow all; proxy_pass http://app; }
            location /dir { return 301 /dir/; }
            location /literal/ { proxy_pass http://10.0.0.1:80; }
        }
        server { listen 80 default_server; server_name _; return 421; }
        server { listen 8080; server_name other.example; return 200 other; }
        """
    entries = {"10.0.0.1:80": shadows[0].address, "10.0.0.2:80": shadows[1].address, "10.0.0.9:80": dead}
    return run(write(directory, text), entries)


def test_the_client_is_production_s(shop: Running) -> None:
    seen = shop.ask("/x").seen
    assert seen["headers"]["x-real-ip"] == "203.0.113.7"
    assert seen["headers"]["x-port"] == "80 198.51.100.1"
    assert shop.ask("/me").body == "203.0.113.7 4321 203.0.113.7 80"
    assert shop.ask("/me", client="[2001:db8::9]:77").body == "2001:db8::9 77 2001:db8::9 80"
    assert shop.ask("/closed/").status == 403
    assert shop.ask("/closed/", client="192.0.2.1:1").status == 200


def test_the_answer_names_the_server(shop: Running, shadows: list[Shadow]) -> None:
    via = shop.ask("/x").via
    assert via is not None
    assert via == Via("app", shadows[0].address, shadows[0].address, -1, via.connect_ns)
    assert 0 <= via.connect_ns < 1_000_000_000
    own = shop.ask("/own/x")
    assert own.header("X-Own") == "yes"
    assert own.via is not None and own.via.address == shadows[0].address


def test_the_last_of_several_tries_answered(shop: Running, shadows: list[Shadow]) -> None:
    answer = shop.ask("/half/x")
    assert answer.seen["server"] == shadows[1].address
    assert answer.via is not None and answer.via.address == shadows[1].address


def test_pages_of_nginx_itself(shop: Running) -> None:
    for target, status in (("/missing/x", 404), ("/page/x", 404), ("/closed/", 403), ("/dir", 301)):
        answer = shop.ask(target)
        assert (answer.status, answer.via) == (status, Via("", "", "", -1, -1)), target
    assert shop.ask("/page/x").body == "oops"
    assert shop.ask("/x", headers={"Bad Header": "1"}).status == 400


def test_no_server_answered(shop: Running) -> None:
    answer = shop.ask("/gone/x")
    assert answer.status == 502
    assert answer.via is not None and answer.via.backend == "gone"
    again = shop.ask("/gone/x").via
    assert again is not None and again.backend == "gone"


def test_names_and_ports_choose_the_server_block(shop: Running) -> None:
    assert shop.ask("/dir", "shop.example").status == 301
    assert shop.ask("/dir", "nobody.example").status == 421
    assert shop.ask("/", "shop.example", listener=1).body == "other"
    assert [each.production for each in shop.derived.listeners] == ["*:80", "*:8080"]


def test_redirects_name_no_private_port(shop: Running) -> None:
    assert shop.ask("/dir").header("Location") == "http://shop.example/dir/"


def test_the_host_header_is_production_s(shop: Running) -> None:
    assert shop.ask("/x").seen["headers"]["host"] == "app"
    assert any("/literal/" not in note and "gets its own name as Host" in note for note in shop.derived.notes)


def test_names_show_their_certificates(directory: Path, run: Run, shadows: list[Shadow]) -> None:
    nginx = run(fill("sni_names", directory), {"*": shadows[0].address})
    assert nginx.certificate("shop.example") == {"shop.example", "*.shop.example"}
    assert nginx.certificate("wiki.example") == {"wiki.example", "*.wiki.example"}
    assert nginx.certificate("nobody.example") == {"fallback.example", "*.fallback.example"}
    answer = nginx.ask("/a", "acme.tenants.example")
    assert (answer.status, answer.seen["headers"]["x-tenant"]) == (200, "acme")
    assert nginx.ask("/a", "wiki.example").status == 403
    assert nginx.ask("/a", "nobody.example").status == 421


def test_a_cache_of_its_own_and_a_hop_inside(directory: Path, run: Run, shadows: list[Shadow]) -> None:
    site = fill("caching_proxy", directory)
    nginx = run(site, {"*": shadows[0].address})
    before = shadows[0].requests
    first = nginx.ask("/page", "www.cache.example")
    assert (first.status, first.header("X-Cache")) == (200, "MISS")
    assert first.via is not None
    assert (first.via.backend, first.via.address) == ("origin", shadows[0].address)  # not the hop in between
    second = nginx.ask("/page", "www.cache.example")
    assert (second.header("X-Cache"), second.via and second.via.upstream) == ("HIT", "")
    assert shadows[0].requests == before + 1  # the mirror asks nobody
    assert list((site.run / "proxy_cache-pages").rglob("*"))
    assert not list((directory / "cache").rglob("*"))
    assert nginx.ask("/x", listener=1).seen["server"] == shadows[0].address


def test_servers_in_variables(directory: Path, run: Run, shadows: list[Shadow]) -> None:
    one, two = (each.address for each in shadows)
    port = one.rpartition(":")[2]
    site = fill("canary", directory)
    site.path.write_text(site.path.read_text().replace("$reports:8080", f"$reports:{port}"))
    entries = {"10.8.3.1:9200": two, "10.8.1.2:8080": two, "app_canary/*": two, "app_green/*": two, "*": one}
    nginx = run(site, entries)
    assert nginx.ask("/search", "app.example").seen["server"] == two
    assert nginx.ask("/reports/x", "app.example").seen["server"] == one
    regional = [nginx.ask("/regional/x?a=b", headers={"X-Region": region}) for region in ("us", "eu", "legacy")]
    assert [each.seen["server"] for each in regional] == [two, one, one]
    assert regional[0].seen["path"] == "/regional/x?a=b"
    assert [each.via.address if each.via else None for each in regional] == [two, one, one]
    chosen = nginx.ask("/", headers={"Cookie": "release=canary"})
    assert (chosen.seen["server"], chosen.header("X-Release")) == (two, "app_canary")
    assert nginx.ask("/colors/x").seen["server"] == one
    assert nginx.ask("/scheme").via is not None


def test_who_may_come_in_is_asked_of_the_shadow(directory: Path, run: Run, shadows: list[Shadow]) -> None:
    nginx = run(fill("cdn_auth", directory), {"auth/*": shadows[1].address, "*": shadows[0].address})
    host = "admin.example"
    refused = nginx.ask("/private", host)
    assert refused.status == 302
    let_in = nginx.ask("/pass", host, headers={"CF-Connecting-IP": "192.0.2.77"})
    assert let_in.seen["server"] == shadows[0].address
    assert let_in.seen["headers"]["x-user"] == "ann"
    assert let_in.seen["headers"]["x-forwarded-for"] == "192.0.2.77"
    assert let_in.via is not None and let_in.via.address == shadows[0].address
    assert nginx.ask("/x", "direct.example", listener=1).status == 200


def test_reload_without_a_lost_request(directory: Path, run: Run, shadows: list[Shadow]) -> None:
    site = write(
        directory, "server { listen 80; location / { proxy_set_header Host $host; proxy_pass http://10.0.0.1; } }"
    )
    nginx = run(site, {"*": shadows[0].address})
    assert (site.run / "nginx.pid").read_text().strip() == str(nginx.process.pid)
    again = site.derive({"*": shadows[1].address}, private=lambda: _private(nginx.derived))
    (site.run / "nginx.conf").write_text(again.text)
    nginx.process.send_signal(1)  # SIGHUP
    nginx.wait(lambda: nginx.ask("/").seen["server"] == shadows[1].address)
    assert not any("emerg" in line for line in (site.run / "error.log").read_text().split("\n"))


def _private(derived: Derived) -> tuple[str, int]:
    return derived.listeners[0].private_host, derived.listeners[0].private_port
