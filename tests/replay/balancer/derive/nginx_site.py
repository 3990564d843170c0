"""Configurations for the tests of nginx: those in `nginx/`, filled in and with their certificates, and short ones."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import trustme

from replay.balancer.derive.change import Derived, DeriveOptions
from replay.balancer.derive.mapping import ServerMap
from replay.balancer.derive.nginx import derive_nginx

CONFIGURATIONS = Path(__file__).parent / "nginx"
NEEDS_MODULES = {"openresty"}  # that are not installed: checked by its tree alone
NAMES = sorted(each.name for each in CONFIGURATIONS.iterdir() if (each / "nginx.conf").exists())
CHECKED = [name for name in NAMES if name not in NEEDS_MODULES]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "nginx"
SHADOWS = {
    "*": ["127.0.0.1:9101", "127.0.0.1:9102", "[::1]:9103"],
    "10.8.2.1:8080": "127.0.0.1",
    "10.8.2.2:8080": "127.0.0.2",
}

_CERTIFICATE = re.compile(r"\bssl_certificate\s+(\S+);")
_TICKET_KEY_BYTES = 80

Private = Callable[[], tuple[str, int]]


class Site:
    """A directory that production's nginx could be run from, and the shadow's run directory beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "nginx.conf"
        self.run = directory / "shadow"
        for name in ("cache", "log", "modules-enabled", "run", "shadow", "tmp", "www"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    def derive(
        self,
        entries: Mapping[str, str | Sequence[str]] | None = None,
        private: Private | None = None,
        keep: Sequence[str] = (),
        allow_unmapped: bool = False,
    ) -> Derived:
        """The shadow's configuration; private addresses are 127.0.0.1:20001 and on."""
        options = DeriveOptions(str(self.run), keep=frozenset(keep), allow_unmapped=allow_unmapped)
        servers = ServerMap(SHADOWS if entries is None else entries)
        return derive_nginx(self.path, servers, private or counted(), options)


def fill(name: str, directory: Path) -> Site:
    """One of the configurations, in a directory of its own."""
    shutil.copytree(CONFIGURATIONS / name, directory, dirs_exist_ok=True)
    for path in directory.rglob("*"):
        if path.is_file():
            text = path.read_text().replace("@{dir}", str(directory))
            path.write_text(text)
            for certificate in _CERTIFICATE.findall(text):
                _make_certificate(directory / certificate)
    return Site(directory)


def write(directory: Path, text: str, **files: str) -> Site:
    """A site of a few lines: what is in its http block; or a whole file, if it has one. Further files by name, in which
    "__" stands for a dot."""
    site = Site(directory)
    site.path.write_text(text if "http {" in text else f"events {{}}\nhttp {{\n{text}\n}}\n")
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return site


def counted(host: str = "127.0.0.1") -> Private:
    """Private addresses in turn."""
    ports = itertools.count(20001)
    return lambda: (host, next(ports))


def check(path: Path) -> str:
    """nginx's own words on a configuration, "" if it would run it."""
    done = subprocess.run([NGINX, "-e", "stderr", "-t", "-q", "-c", path], capture_output=True, timeout=30)
    return "" if done.returncode == 0 else done.stderr.decode()


@cache
def authority() -> trustme.CA:
    """Who signs the certificates."""
    return trustme.CA()


def _make_certificate(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    issued = authority().issue_cert(path.stem, f"*.{path.stem}")
    path.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(path.with_suffix(".key"))
    authority().cert_pem.write_to_path(path.with_name("ca.pem"))
    path.with_name("ticket.key").write_bytes(bytes(_TICKET_KEY_BYTES))
