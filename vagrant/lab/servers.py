"""The lab's servers: what may be chosen about them, their configuration files, and how each is started."""

from __future__ import annotations

import shutil
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vagrant.lab import shop
from vagrant.lab.network import ADDRESSES, ADDRESSES6, LabError

PRODUCTION = ("prod1", "prod2")
METRICS_PORT = 9100  # of servers with moods, in their namespaces
TEMPLATES = Path(__file__).parent / "templates"
_ROOT = Path(__file__).resolve().parents[2]
_NEEDED = ("ip", "nsenter", "setpriv", "haproxy", "nginx")

Argv = list[str]


@dataclass(frozen=True, slots=True)
class Options:
    """What a lab may be like. A shadow that is "origin" is `vagrant.lab.origin`, one that is "down" does not listen.

    What is "mood" is `vagrant.lab.mood`, whose mood `Lab.mood` changes; delays and faults are then moods, too.
    """

    haproxy_threads: int = 1
    access_logs: bool = True
    production: Literal["nginx", "mood"] = "nginx"
    production_delay_ms: float = 0.0
    shadow: Literal["nginx", "origin", "mood", "down"] = "nginx"
    shadow_delay_ms: float = 0.0
    shadow_faults: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """One process: the namespace it runs in, its command, and where it is reached: an IPv4 address or a Unix socket."""

    name: str
    namespace: str
    argv: Argv
    listens: str | Path


class _Config(string.Template):
    """Templates whose placeholders are @{name}, since nginx's own variables begin with a dollar sign."""

    delimiter = "@"


def require_programs() -> None:
    """Say which programs the lab lacks."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise LabError(f"the lab needs {', '.join(missing)}: run `make setup` as root")


def production_servers(directory: Path, options: Options) -> list[Server]:
    """Write the files of the balancer and both production servers; return what to start, in this order."""
    shop.write_site(directory / "site", faults=False)
    servers = []
    for name in PRODUCTION:
        if options.production == "mood":
            servers.append(_mood(directory, name))
            continue
        servers += _nginx(directory, name, directory / "site", options, delay_ms=options.production_delay_ms)
    return [*servers, _haproxy(directory, options)]


def shadow_servers(directory: Path, options: Options) -> list[Server]:
    """Write the shadow's files; return what to start."""
    if options.shadow == "mood":
        return [_mood(directory, "shadow")]
    if options.shadow == "origin":
        listen = f"{ADDRESSES['shadow']}:80"
        argv = _origin(listen, options.shadow_delay_ms, directory / "shadow-status.sock")
        return [Server("shadow", "shadow", argv, ADDRESSES["shadow"])]
    root = directory / "site-shadow"
    shop.write_site(root, faults=options.shadow_faults)
    return _nginx(directory, "shadow", root, options, delay_ms=options.shadow_delay_ms, faults=options.shadow_faults)


def _haproxy(directory: Path, options: Options) -> Server:
    path = directory / "haproxy.cfg"
    logs = options.access_logs
    _write(
        path,
        "haproxy.cfg",
        threads=str(options.haproxy_threads),
        directory=str(directory),
        address=ADDRESSES["lb"],
        address6=ADDRESSES6["lb"],
        prod1=ADDRESSES["prod1"],
        prod2=ADDRESSES["prod2"],
        log_target="log stdout format raw local0" if logs else "# no log: the load is high",
        log_requests="log global\n    option httplog" if logs else "",
    )
    return Server("haproxy", "lb", ["haproxy", "-db", "-f", str(path)], ADDRESSES["lb"])


def _nginx(
    directory: Path, name: str, root: Path, options: Options, *, delay_ms: float, faults: bool = False
) -> list[Server]:
    """One nginx, and the process that makes it wait if it shall."""
    (directory / "temp").mkdir(exist_ok=True)
    path = directory / f"{name}.conf"
    pause = directory / f"{name}-pause.sock"
    _write(
        path,
        "nginx.conf",
        name=name,
        directory=str(directory),
        site=str(root),
        access_log=f"{directory}/{name}-access.log lab" if options.access_logs else "off",
        upstream=f"upstream pause {{ server unix:{pause}; keepalive 256; }}" if delay_ms else "",
        pause=_PAUSE if delay_ms else "",
        redirect=shop.FAULTY_REDIRECT if faults else shop.REDIRECT,
        faults=shop.FAULT_LOCATIONS if faults else "",
    )
    argv = ["nginx", "-e", f"{directory}/{name}.log", "-p", str(directory), "-c", str(path)]
    nginx = Server(name, name, argv, ADDRESSES[name])
    if not delay_ms:
        return [nginx]
    return [Server(f"{name}-pause", name, _origin(f"unix:{pause}", delay_ms, None), pause), nginx]


# nginx cannot wait by itself: it asks another server for leave first, and that one takes its time.
_PAUSE = """auth_request /pause;
        location = /pause {
            internal;
            auth_request off;
            proxy_pass http://pause;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }"""


def mood_socket(directory: Path, name: str) -> Path:
    """Where a server's mood is changed."""
    return directory / f"{name}-mood.sock"


def _mood(directory: Path, name: str) -> Server:
    """No seed: each server draws its own service times, from the same distribution."""
    address = ADDRESSES[name]
    argv = [sys.executable, str(_ROOT / "vagrant/lab/mood.py"), "--listen", f"{address}:80"]
    argv += ["--control", f"unix:{mood_socket(directory, name)}", "--metrics-listen", f"{address}:{METRICS_PORT}"]
    return Server(name, name, argv, address)


def _origin(listen: str, delay_ms: float, status: Path | None) -> Argv:
    argv = [sys.executable, str(_ROOT / "vagrant/lab/origin.py"), "--listen", listen, "--delay-ms", str(delay_ms)]
    return argv if status is None else [*argv, "--status", str(status)]


def _write(path: Path, template: str, **values: str) -> None:
    path.write_text(_Config((TEMPLATES / template).read_text()).substitute(values))
