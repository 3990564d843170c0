"""A balancer program as the shadow's engine: its configuration derived, checked, run, and followed when it changes.

    production's file ──derive──► private file ──the program's own check──► started, or reloaded
                                                    └── refused: what runs, runs on

`Plan` says what would be run, and why it differs; `Engine` runs it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replay.balancer.address import Endpoint, Production, resolve, show
from replay.balancer.child import Child, check, free_port
from replay.balancer.derive.change import Derived, DeriveOptions, Listener, unexplained
from replay.balancer.derive.haproxy import derive_haproxy
from replay.balancer.derive.mapping import ServerMap
from replay.balancer.derive.nginx import baseline, derive_nginx, files_of
from replay.errors import UpstreamError

HAPROXY, NGINX = "haproxy", "nginx"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # sbin is not on everybody's PATH

NAMED_MAX = 4096  # paths in a configuration that are looked at
_LOG = re.compile(r"\s*\w*log\s")  # log, access_log, error_log, slow_log
_USER = re.compile(r"^\s*(?:user|uid)\s+\S+\s*(?:#.*)?$", re.MULTILINE)  # in a userlist, a password follows the name
_PATH = re.compile(r"(?<![\w.])/[\w.+@-]+(?:/[\w.+@-]+)+")

Private = Callable[[], tuple[str, int]]
Stamp = tuple[int, int, int]  # by which a file that has changed is known


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """One shadow's balancer program."""

    kind: str
    source: str  # path of the configuration to run: production's, or a candidate's
    production: str = ""  # path of production's own, where `source` is a candidate
    servers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    bind: str = ""
    keep: tuple[str, ...] = ()
    allow_production: bool = False
    binary: str = ""
    addresses: tuple[str, ...] = ()  # of production, beside the servers that the file names


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. `source_lines` is what `derived` is compared with."""

    source_lines: tuple[str, ...]
    derived: Derived
    files: tuple[Path, ...]  # everything it was made from


def make_plan(settings: ProgramSettings, directory: Path, private: Private = free_port) -> Plan:
    """Derive the shadow's configuration; nothing is written or started. UpstreamError, in one line."""
    derived, source, files = _derive(settings, settings.source, directory, private, bool(settings.production))
    if strange := unexplained(source, derived.text.split("\n"), derived.changes):
        raise UpstreamError(
            f"{settings.source}: the derived file differs where it must not: {strange[0]!r}: please report this"
        )
    if not settings.allow_production:
        _refuse_production(settings, derived, directory)
    return Plan(tuple(source), derived, (*files, *_named(derived.text, directory)))


def production_lines(settings: ProgramSettings, directory: Path) -> list[str]:
    """Production's own file, where the source is a candidate, as `Plan.source_lines` has it. UpstreamError."""
    return _derive(settings, settings.production, directory, free_port, True)[1]


def listener_for(settings: ProgramSettings, derived: Derived) -> list[Listener]:
    """The listeners that traffic goes to, the default first. UpstreamError when there is none."""
    usable = [listener for listener in derived.listeners if listener.http]
    if settings.bind:
        usable = [listener for listener in derived.listeners if _is_bind(settings.bind, listener)]
        if not usable:
            raise UpstreamError(
                f"{settings.source}: nothing listens on balancer.bind {settings.bind!r}; "
                f"there is {', '.join(listener.production for listener in derived.listeners) or 'nothing at all'}"
            )
    if not usable:
        raise UpstreamError(f"{settings.source}: no frontend speaks HTTP: name one with balancer.bind")
    return usable


def argv_for_check(settings: ProgramSettings, path: Path) -> list[str]:
    """The program's own check of a configuration."""
    binary = binary_of(settings)
    return [binary, "-c", "-f", str(path)] if settings.kind == HAPROXY else [binary, "-t", "-q", *_nginx(path)]


def check_text(settings: ProgramSettings, plan: Plan, directory: Path) -> str:
    """The program's words about a derived configuration, written into the directory; "" when it accepts it."""
    draft = directory / "derived.conf"
    draft.write_text(plan.derived.text, newline="")
    return check(argv_for_check(settings, draft))


def argv_to_run(settings: ProgramSettings, path: Path) -> list[str]:
    """The program in the foreground, with a master process that reloads."""
    binary = binary_of(settings)
    if settings.kind == HAPROXY:
        return [binary, "-W", "-db", "-f", str(path)]
    return [binary, *_nginx(path)]


def binary_of(settings: ProgramSettings) -> str:
    """Path of the program. UpstreamError when it is not installed."""
    name = settings.binary or settings.kind
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH_PATH}")
    if found is None:
        raise UpstreamError(f"{name} is not installed here: install it, or name it in balancer.program")
    return found


class Engine:
    """Runs one program and follows its configuration. Not for more than one thread."""

    def __init__(self, settings: ProgramSettings, directory: Path, account: str = "") -> None:
        """`account` is whom HAProxy runs as where root starts it and its file names no user: workers parse traffic."""
        self.settings = settings
        self._account = pwd.getpwnam(account) if account and os.geteuid() == 0 else None
        self.reloads = 0
        self._directory = directory
        self._path = directory / f"{settings.kind}.conf"
        self._ports: dict[str, tuple[str, int]] = {}  # private address by production's, so that they stay
        self._stamps: dict[Path, Stamp] = {}
        self._child: Child | None = None
        self._written: Plan | None = None  # what stands in the file; is to run, or runs
        self.plan: Plan | None = None

    @property
    def pid(self) -> int:
        """Of the program, 0 when it does not run."""
        return self._child.pid if self._child is not None else 0

    def start(self) -> None:
        """Derive, check, run. UpstreamError when any of that fails, with the program's own words."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directory.chmod(0o711)  # workers reach what is theirs in it; the rest may hold production's secrets
        plan = self._prepare()
        reload_signal = signal.SIGUSR2 if self.settings.kind == HAPROXY else signal.SIGHUP
        argv, output = argv_to_run(self.settings, self._path), self._directory / "output.log"
        self._child = Child(argv, reload_signal, output, self._account_for(plan))
        self._child.start(_addresses(plan))
        self.plan = plan

    def restart(self) -> bool:
        """Start it again after it died; True with a changed configuration, if there is a good one. UpstreamError."""
        assert self._child is not None
        before, stamps = self._written, self._stamps
        if self.changed():
            try:
                self._prepare()
            except UpstreamError:
                self._stamps = stamps  # `follow` tells it once the old one runs
        assert self._written is not None
        self._child.start(_addresses(self._written))
        self.plan = self._written
        return self._written is not before

    def alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.alive()

    def last_words(self) -> str:
        """What it said last."""
        return self._child.tail() if self._child is not None else ""

    def changed(self) -> bool:
        """Whether a file that the configuration was made from is another one now."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())

    def follow(self) -> None:
        """Take a changed configuration over. UpstreamError when it cannot be; then the old one runs on, and this is
        not tried again until the files change once more."""
        assert self._child is not None
        plan = self._prepare()
        self._child.reload()
        self.reloads += 1
        self._child.wait_ready(_addresses(plan))
        self.plan = plan

    def stop(self) -> None:
        """End the program, remove its directory."""
        if self._child is not None:
            self._child.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _prepare(self) -> Plan:
        """A plan that has passed the program's check, in its place. What changes meanwhile is a change yet to come."""
        stamps = {path: _stamp(path) for path in self._stamps or [Path(self.settings.source)]}
        self._stamps = stamps
        plan = self._plan()
        self._stamps = {path: stamps.get(path) or _stamp(path) for path in plan.files}
        fresh = self._path.with_suffix(".new")
        try:
            fresh.touch(0o600)
            fresh.write_text(plan.derived.text, newline="")
            if (account := self._account_for(plan)) is not None:
                os.chown(fresh, account.pw_uid, account.pw_gid)
        except OSError as error:
            raise UpstreamError(f"{fresh}: {(error.strerror or str(error)).lower()}: make room there") from None
        if problem := check(argv_for_check(self.settings, fresh)):
            raise UpstreamError(f"{self.settings.source}: refused by {self.settings.kind}: {problem}")
        listener_for(self.settings, plan.derived)  # traffic has to have somewhere to go
        fresh.replace(self._path)
        self._ports = {each.production: (each.private_host, each.private_port) for each in plan.derived.listeners}
        self._written = plan
        return plan

    def _account_for(self, plan: Plan) -> pwd.struct_passwd | None:
        """Whom to run it as from the start; None where it gives root up by itself, or has none."""
        return self._account if self.settings.kind == HAPROXY and not _USER.search(plan.derived.text) else None

    def _plan(self) -> Plan:
        """Listeners that there were before keep their private addresses: requests go there all the time."""
        places: list[tuple[str, int]] = []  # also of what is reached from inside alone, which is no listener

        def fresh() -> tuple[str, int]:
            places.append(free_port())
            return places[-1]

        plan = make_plan(self.settings, self._directory, fresh)
        if not self._ports:
            return plan
        named = {(each.private_host, each.private_port): each.production for each in plan.derived.listeners}
        again = iter([self._ports.get(named.get(place, ""), place) for place in places])
        return make_plan(self.settings, self._directory, lambda: next(again, None) or free_port())


def _derive(
    settings: ProgramSettings, source: str, directory: Path, private: Private, unmapped: bool
) -> tuple[Derived, list[str], tuple[Path, ...]]:
    path = Path(source)
    options = DeriveOptions(
        run_directory=str(directory),
        keep=frozenset(settings.keep),
        environment=dict(os.environ),
        allow_unmapped=unmapped or settings.allow_production,
    )
    servers = ServerMap(settings.servers)
    try:
        if settings.kind == NGINX:
            return derive_nginx(path, servers, private, options), baseline(path).split("\n"), files_of(path)
        with path.open(newline="") as file:
            text = file.read()
    except OSError as error:
        raise UpstreamError(f"balancer.from {source}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UpstreamError(f"balancer.from {source}: not UTF-8 text") from None
    return derive_haproxy(text, source, servers, private, options), text.split("\n"), (path,)


def _refuse_production(settings: ProgramSettings, derived: Derived, directory: Path) -> None:
    """UpstreamError when a server of the shadow resolves to what a server of production resolves to."""
    if settings.production:
        known = _derive(settings, settings.production, directory, free_port, True)[0].servers
    else:
        known = derived.servers
    addresses = {show(endpoint) for server in known for endpoint in _endpoints(server.production)}
    production = Production((*settings.addresses, *addresses))
    for server in derived.servers:
        found = _endpoints(server.shadow)
        if not found:
            raise UpstreamError(
                f"{settings.source}: server {server.name} would be {server.shadow}, which does not resolve: "
                "nobody can say that it is not production's: give an address, or set balancer.allow_production"
            )
        for endpoint in found:
            if production.has(endpoint):
                raise UpstreamError(
                    f"{settings.source}: server {server.name} would be {server.shadow}, which is production's "
                    f"{show(endpoint)}: map it in balancer.servers to a shadow host, or set balancer.allow_production"
                )


def _named(text: str, directory: Path) -> list[Path]:
    """Files that a derived configuration reads, certificates and maps above all: they may be renewed. Logs are written,
    and what it writes itself lies in the run directory."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    reading = [line for line in lines if not _LOG.match(line)]
    found = dict.fromkeys(name for line in reading for name in _PATH.findall(line))
    paths = [Path(name) for name in found if not name.startswith(f"{directory}/")]
    return [path for path in paths[:NAMED_MAX] if path.is_file()]


def _endpoints(address: str) -> list[Endpoint]:
    """What an address stands for; nothing when it does not resolve."""
    try:
        return resolve(address)
    except UpstreamError:
        return []


def _is_bind(wanted: str, listener: Listener) -> bool:
    return wanted in (listener.production, f"{listener.host}:{listener.port}", str(listener.port), listener.frontend)


def _nginx(path: Path) -> list[str]:
    """Options that have nginx take a file; its prefix stays the one it was built with, which is production's."""
    return ["-e", "stderr", "-c", str(path)]


def _addresses(plan: Plan) -> list[tuple[str, int]]:
    return [(listener.private_host, listener.private_port) for listener in plan.derived.listeners]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
