"""Production: its configuration in the languages of all three engines, and its addresses, which nobody may contact.

A `Setup` says one thing three times, as those who run production would say it in each language. What the three say must
come to the same where the engines can do the same; where they cannot, the tests say so.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from replay.balancer.settings import BalancerSettings
from tests.replay.balancer.conformance.shadows import nginx_certificate

EMBEDDED, HAPROXY, NGINX = "embedded", "haproxy", "nginx"
ENGINES = (EMBEDDED, HAPROXY, NGINX)
SITE = "shop.example"

_HAPROXY = """
global
    log {syslog} local0
    stats socket {directory}/admin.sock mode 600 level admin
    daemon

defaults
    mode http
    log global
    option httplog
    option forwardfor
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout queue 30s

frontend web
    bind {address}
    {secure}
    {frontend}
    default_backend app

backend app
    {backend}
{servers}

{sections}
"""
_NGINX = """
worker_processes 2;
events {{ worker_connections 512; }}
http {{
    access_log syslog:server={syslog};
    upstream app {{
        zone app 128k;
        {upstream}
{servers}
        keepalive 8;
    }}
{sites}
    {blocks}
}}
"""
_NGINX_SITE = """
    server {{
        listen {address};
        {secure}
        server_name {name};
        location / {{
            proxy_pass {scheme}://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            {location}
        }}
    }}
"""


class Member(NamedTuple):
    """One server of the pool, by its place among production's servers. With weight 0 it takes nothing new."""

    place: int
    weight: int = 1
    cookie: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """What production does, in each language. Lines of configurations are joined by LF."""

    members: tuple[Member, ...] = (Member(0), Member(1), Member(2))
    embedded: BalancerSettings = field(default_factory=lambda: BalancerSettings(outlier=None))
    sections: str = ""  # haproxy: further sections
    frontend: str = ""  # ... lines of the frontend
    backend: str = "balance roundrobin"  # ... and of the backend
    server: str = ""  # ... and what stands behind each server's address
    blocks: str = ""  # nginx: further blocks
    upstream: str = ""  # ... lines of the upstream block
    peer: str = ""  # ... and what stands behind each server's address
    location: str = ""  # ... and lines of the location
    scheme: str = "http"  # ... and how it speaks to the servers
    certificates: tuple[tuple[str, str], ...] = ()  # each a site, and its PEM file with key and chain


class Production:
    """Addresses with nobody behind them, that can tell whether anybody came: of the balancer (`address` in the clear,
    `secure` for TLS, `inner` for itself), of its servers, and of the place its logs go to."""

    def __init__(self, servers: int = 3) -> None:
        self._fronts = [_listening() for _ in range(3)]
        self._servers = [_listening() for _ in range(servers)]
        self._syslog = socket.socket(type=socket.SOCK_DGRAM)
        self._syslog.bind(("127.0.0.1", 0))
        self._syslog.setblocking(False)

    @property
    def address(self) -> str:
        return _address(self._fronts[0])

    @property
    def secure(self) -> str:
        return _address(self._fronts[1])

    @property
    def inner(self) -> str:
        return _address(self._fronts[2])

    @property
    def servers(self) -> list[str]:
        return [_address(each) for each in self._servers]

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.address, self.secure, self.inner, *self.servers)

    @property
    def syslog(self) -> str:
        return _address(self._syslog)

    def contacts(self) -> list[str]:
        """Who was contacted since the last time."""
        came = [_address(each) for each in (*self._fronts, *self._servers) if _came(each)]
        with contextlib.suppress(BlockingIOError):
            came.append(f"{self.syslog}: {self._syslog.recv(2048).decode()}")
        return came

    def close(self) -> None:
        for each in (*self._fronts, *self._servers, self._syslog):
            each.close()


def haproxy_text(setup: Setup, production: Production, directory: Path) -> str:
    """Production's haproxy.cfg."""
    servers = []
    for place, weight, cookie in setup.members:
        line = f"    server s{place + 1} {production.servers[place]} weight {weight} {setup.server}"
        servers.append(f"{line} cookie {cookie}" if cookie else line)
    files = " ".join(f"crt {path}" for _, path in setup.certificates)
    return _HAPROXY.format(
        address=production.address,
        syslog=production.syslog,
        directory=directory,
        secure=f"bind {production.secure} ssl {files} alpn h2,http/1.1" if files else "",
        frontend=_indented(setup.frontend),
        backend=_indented(setup.backend),
        servers="\n".join(servers),
        sections=setup.sections,
    )


def nginx_text(setup: Setup, production: Production) -> str:
    """Production's nginx.conf."""
    servers = [
        f"        server {production.servers[place]} {f'weight={weight}' if weight else 'down'} {setup.peer};"
        for place, weight, _ in setup.members
    ]
    sites = [
        _NGINX_SITE.format(
            address=production.address,
            name=name,
            secure=f"listen {production.secure} ssl http2; {nginx_certificate(path)}" if path else "",
            scheme=setup.scheme,
            location=setup.location,
        )
        for name, path in setup.certificates or ((SITE, ""),)
    ]
    return _NGINX.format(
        syslog=production.syslog,
        upstream=setup.upstream,
        servers="\n".join(servers),
        sites="".join(sites),
        blocks=setup.blocks,
    )


def mapping(production: Production, shadows: Sequence[str]) -> dict[str, str]:
    """Which shadow stands in for which of production's servers."""
    return dict(zip(production.servers, shadows, strict=False))


def _indented(lines: str) -> str:
    return "\n    ".join(line.strip() for line in lines.strip().split("\n"))


def _listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()
    return f"{host}:{port}"


def _came(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
