"""Shadow servers: real nginx, one process each, that say who they are and what they saw, and write down each request.

    /            200        500 while it is `broken`
    /slow        200        after SLOW_S at least
    /alone       200        as /slow; 429 when there is another such request at the same time
    /status/500  500
    /health      200        503 while it is `sick`

Ports are chosen below those that the kernel gives to clients: no client can take one while its server is dead, nor be
connected to itself there.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from replay.balancer.address import resolve

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
HEALTH = "/health"
SLOW_S = 0.1
STARTS_WITHIN_S = 20.0
PORTS = range(10_240, 32_000)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_SLOW_BYTES = 2560  # with the head three pieces of 1 KiB, 50 ms apart
_MODULES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_SEEN = {
    "forwarded": "$http_x_forwarded_for",
    "proxied": "$proxy_protocol_addr",
    "host": "$http_host",
    "sni": "$ssl_server_name",
    "marked": "$http_x_shadowtap",
    "method": "$request_method",
    "length": "$http_content_length",
    "front_sni": "$http_x_front_sni",
}
_CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    {temporary}
    log_format seen '$msec $status $request_uri';
    access_log {directory}/access.log seen;
    default_type application/json;
    limit_conn_zone $server_port zone=alone:1m;
    server {{
        listen {address} {parameters};
        {tls}
        set $seen '{seen}';
        location / {{
            if (-f {directory}/broken) {{ return 500 $seen; }}
            return 200 $seen;
        }}
        location /status/500 {{ return 500 $seen; }}
        location {health} {{
            if (-f {directory}/sick) {{ return 503 $seen; }}
            return 200 $seen;
        }}
        location /slow {{
            limit_rate 20k;
            sendfile_max_chunk 1k;
            alias {directory}/slow.json;
        }}
        location /alone {{
            limit_conn alone 1;
            limit_conn_status 429;
            limit_rate 20k;
            sendfile_max_chunk 1k;
            alias {directory}/slow.json;
        }}
    }}
}}
"""


class Asked(NamedTuple):
    """One request as the server's log has it."""

    at_s: float  # when it was answered
    status: int
    target: str

    @property
    def is_check(self) -> bool:
        return self.target == HEALTH


class Shadow:
    """One server. `tls` is the path of a PEM file with key and chain; `proxied` expects a PROXY header. `host` may also
    be "[::1]", or "unix" for a socket in `directory`."""

    def __init__(
        self, name: str, directory: Path, tls: str = "", *, proxied: bool = False, host: str = "127.0.0.1"
    ) -> None:
        self.name = name
        self.address = f"unix:{directory}/socket" if host == "unix" else f"{host}:{_own_port()}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        (directory / "slow.json").write_text(json.dumps({"name": name}).ljust(_SLOW_BYTES))
        (directory / "nginx.conf").write_text(self._configuration(tls, proxied))

    @property
    def asked(self) -> list[Asked]:
        """All requests in their order, health checks too. A request is written down when it has been answered."""
        try:
            lines = (self._directory / "access.log").read_text().split("\n")
        except FileNotFoundError:
            return []
        fields = [line.split(" ", 2) for line in lines[:-1]]
        return [Asked(float(at), int(status), target) for at, status, target in fields]

    @property
    def checks(self) -> list[Asked]:
        return [each for each in self.asked if each.is_check]

    @property
    def requests(self) -> list[Asked]:
        """Without the health checks."""
        return [each for each in self.asked if not each.is_check]

    def forget(self) -> None:
        """What it was asked. The log is appended to, so it may go on."""
        os.truncate(self._directory / "access.log", 0)

    def be(self, state: str, *, so: bool = True) -> None:
        """`broken` or `sick`, or not any more."""
        flag = self._directory / state
        flag.touch() if so else flag.unlink(missing_ok=True)

    def start(self) -> None:
        """Unless it runs; wait until it accepts."""
        if self._process is not None:
            return
        assert NGINX is not None
        command = [NGINX, "-e", "stderr", "-c", str(self._directory / "nginx.conf")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_end_with_parent
        )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._accepts():
            assert self._process.poll() is None and time.monotonic() < deadline, self._words()
            time.sleep(0.005)

    def kill(self) -> None:
        """At once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reset(self) -> None:
        """As it was in the beginning."""
        for state in ("broken", "sick"):
            self.be(state, so=False)
        self.start()
        self.forget()

    def _configuration(self, tls: str, proxied: bool) -> str:
        parameters = (["ssl"] if tls else []) + (["proxy_protocol"] if proxied else [])
        return _CONFIGURATION.format(
            address=self.address,
            directory=self._directory,
            health=HEALTH,
            parameters=" ".join(parameters),
            seen=json.dumps({"name": self.name, **_SEEN}),
            temporary="".join(f"{module}_temp_path {self._directory}/{module};" for module in _MODULES),
            tls=nginx_certificate(tls) if tls else "",
        )

    def _accepts(self) -> bool:
        endpoint = resolve(self.address)[0]
        with socket.socket(endpoint.family) as probe:
            return probe.connect_ex(endpoint.sockaddr) == 0

    def _words(self) -> str:
        return f"{self.name} does not start: {(self._directory / 'error.log').read_text()}"


def nginx_certificate(path: str) -> str:
    """Directives for TLS; by itself nginx 1.22 knows no TLS 1.3."""
    return f"ssl_certificate {path}; ssl_certificate_key {path}; ssl_protocols TLSv1.2 TLSv1.3;"


def _end_with_parent() -> None:
    """Between fork and exec: a test run that is killed leaves nothing behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _own_port() -> int:
    """One that nobody listens on now."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
