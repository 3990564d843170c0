"""Configurations of HAProxy in tests: derived, checked by HAProxy itself, and run with upstreams of the test's own."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from replay.balancer.derive.change import Derived, DeriveOptions
from replay.balancer.derive.haproxy import derive_haproxy
from replay.balancer.derive.haproxy_via import FORMAT, parse_via
from replay.balancer.derive.mapping import ServerMap
from replay.via import Via

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
with_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
CORPUS = Path(__file__).parent / "haproxy"
NAMES = sorted(path.stem for path in CORPUS.glob("*.cfg"))
ENVIRONMENT = {"WEB_ADDR": "192.0.2.80", "STATIC_HOST": "10.8.2.10"}
SHADOWS = ("198.18.0.1:9001", "198.18.0.2:9002")
VIA_LINE = f'http-after-response set-header X-Shadowtap-Upstream "{FORMAT}"'
HTTP = "defaults\n mode http\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n"

Places = Callable[[], tuple[str, int]]


def counted() -> Places:
    """Private addresses that a test can foretell."""
    ports = itertools.count(20001)
    return lambda: ("127.0.0.1", next(ports))


def derive(
    text: str,
    servers: Mapping[str, str | Sequence[str]] | None = None,
    source: str = "haproxy.cfg",
    places: Places | None = None,
    **options: Any,
) -> Derived:
    entries = {"*": SHADOWS} if servers is None else servers
    return derive_haproxy(
        text, source, ServerMap(entries), places or counted(), DeriveOptions("/run/shadow", **options)
    )


def check(file: str) -> subprocess.CompletedProcess[str]:
    assert HAPROXY is not None
    environment = {**os.environ, **ENVIRONMENT}
    command = [HAPROXY, "-c", "-f", file]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


def warnings(text: str) -> list[str]:
    """What HAProxy warns of, wherever it stands."""
    found = re.findall(r"\[(?:WARNING|ALERT)\].*?: (.*)", text)
    return [re.sub(r"\[[\w.]+:\d+\]|\d+", "", line) for line in found]


def derive_file(name: str, **options: Any) -> tuple[str, Derived]:
    text = Path(f"{name}.cfg").read_bytes().decode()
    return text, derive(text, source=f"{name}.cfg", environment=ENVIRONMENT, **options)


class Upstream:
    """Answers each request after a while with its name, the path, and what it was told of the client."""

    def __init__(self, name: str, delay_s: float = 0.0) -> None:
        self._name = name
        self._delay_s = delay_s
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.socket.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            received = b""
            while data := connection.recv(65536):
                received += data
                if b"\r\n\r\n" in received:
                    time.sleep(self._delay_s)
                    body = f"{self._name} ".encode() + received
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nCache-Control: max-age=60\r\n\r\n" % len(body)
                    connection.sendall(head + body)
                    received = b""


def free_port() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host, port = probe.getsockname()
    return host, port


RUNNING = (
    HTTP
    + """
global
 localpeer lb1
 daemon
 log 10.0.0.1:514 local0
 log-send-hostname
peers mates
 peer lb1 10.0.0.1:1024
 peer lb2 10.0.0.2:1024
 table by_src type ip size 1k store http_req_cnt
cache small
 total-max-size 1
frontend web
 bind 203.0.113.1:80
 bind 203.0.113.1:443 ssl crt {folder}/certs/site.pem alpn h2,http/1.1
 option forwardfor
 option httplog
 tcp-request connection track-sc1 src table conns
 tcp-request connection reject if {{ sc1_conn_cnt gt 3 }}
 http-request track-sc0 src table mates/by_src
 http-request set-header X-Seen "%[sc_http_req_cnt(0)] %[src] %[dst]:%[dst_port]"
 http-request redirect location /elsewhere if {{ path /redirect }}
 http-request return status 200 content-type text/plain string mine if {{ path /return }}
 http-request deny if {{ path /deny }}
 stats uri /stats
 use_backend slow if {{ path /slow }}
 use_backend refused if {{ path /refused }}
 use_backend empty if {{ path /empty }}
 use_backend cached if {{ path /cached }}
 use_backend chained if {{ path /chained }}
 use_backend old if {{ path /dispatch }}
 default_backend app
backend app
 balance roundrobin
 server a1 10.0.0.11:80 check inter 100ms
 server a2 10.0.0.12:80 check inter 100ms
backend slow
 server s 10.0.0.13:80 maxconn 1
backend refused
 retries 0
 server gone 10.0.0.14:80
backend empty
 server off 10.0.0.15:80 disabled
backend cached
 http-request cache-use small
 http-response cache-store small
 server c 10.0.0.16:80
backend chained
 server loop abns@inner send-proxy
backend old
 dispatch 10.0.0.17:80
frontend inner
 bind abns@inner accept-proxy
 default_backend last
backend last
 server final 10.0.0.18:80
backend conns
 stick-table type ip size 1k store conn_cnt peers mates
"""
)


class Running:
    """The derived configuration, run as the supervisor does, with upstreams for its servers."""

    def __init__(self, folder: Path) -> None:
        assert HAPROXY is not None
        names = ("a1", "a2", "c", "dispatch", "final")
        upstreams = {name: Upstream(name) for name in names} | {"s": Upstream("s", delay_s=0.15)}
        self.addresses = {name: upstream.address for name, upstream in upstreams.items()}
        servers = {**self.addresses, "gone": "127.0.0.1:1", "off": "127.0.0.1:1"}
        self.derived = derive(RUNNING.format(folder=folder), servers, str(folder / "running.cfg"), free_port)
        (folder / "derived.cfg").write_text(self.derived.text)
        command = [HAPROXY, "-W", "-db", "-f", str(folder / "derived.cfg")]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.ports = {each.production: each.private_port for each in self.derived.listeners}
        self._await()

    def _await(self) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports["203.0.113.1:80"]), 1):
                return
            time.sleep(0.02)
        raise AssertionError(f"haproxy does not run: {self._process.poll()}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def ask(self, path: str, client: str = "192.0.2.1") -> tuple[bytes, Via | None]:
        """One request of that client: the whole response, and what its header says."""
        with socket.create_connection(("127.0.0.1", self.ports["203.0.113.1:80"]), 5) as connection:
            return speak(proxied(connection, client, 80), path)


def speak(connection: socket.socket, path: str) -> tuple[bytes, Via | None]:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n".encode())
    received = b""
    while data := connection.recv(65536):
        received += data
    found = re.findall(rb"(?im)^x-shadowtap-upstream: (.*)\r$", received)
    assert len(found) <= 1
    return received, parse_via(found[0]) if found else None


def proxied(connection: socket.socket, client: str, port: int) -> socket.socket:
    """PROXY protocol, version 2, as the replay client sends it."""
    addresses = socket.inet_aton(client) + socket.inet_aton("203.0.113.1") + (4000).to_bytes(2) + port.to_bytes(2)
    connection.sendall(b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + len(addresses).to_bytes(2) + addresses)
    return connection
