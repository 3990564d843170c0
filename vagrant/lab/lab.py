"""The lab as a whole: built on entering, usable in between, gone on leaving, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vagrant.lab import network
from vagrant.lab.counters import HAProxyCounters, NginxCounter, OriginCounter
from vagrant.lab.network import ADDRESSES, ADDRESSES6, LabError, Network
from vagrant.lab.processes import EndingSignals, Guests, Servers, undisturbed
from vagrant.lab.servers import (
    PRODUCTION,
    Options,
    Server,
    mood_socket,
    production_servers,
    require_programs,
    shadow_servers,
)
from vagrant.lab.traffic import Traffic

READY_SECONDS = 15.0
RUN_TIMEOUT_SECONDS = 60.0
MOOD_SECONDS = 5.0

_numbers = itertools.count()


class Lab(Traffic):
    """A context manager. One process may have several labs, one after the other or at once."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options if options is not None else Options()
        self.network = Network(f"shadowtap-{os.getpid()}-{next(_numbers)}")
        self.directory = Path(tempfile.gettempdir(), self.network.prefix)
        self.guests = Guests()
        self.shadow_upstream = f"{ADDRESSES['shadow']}:80"
        self._servers = Servers(self.directory)
        self._signals = EndingSignals()
        self._shadow: list[Server] = []
        self._haproxy = HAProxyCounters(self.directory / "haproxy.sock")
        self._shadow_counter = self._counter()

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("the lab needs root for its network namespaces: run it as root")
        require_programs()
        remove_stale()
        self._signals.on()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything and remove everything; signals wait meanwhile. May be called twice."""
        try:
            with undisturbed():
                self.guests.kill_all()
                self._servers.stop_all()
                self.network.destroy()
                shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            self._signals.off()

    def _counter(self) -> NginxCounter | OriginCounter | MoodControl:
        if self.options.shadow == "mood":
            return MoodControl(mood_socket(self.directory, "shadow"))
        counter = OriginCounter if self.options.shadow == "origin" else NginxCounter
        return counter(self.directory / "shadow-status.sock")

    def _build(self) -> None:
        self.directory.mkdir(mode=0o755)
        self.network.build()
        self._start(production_servers(self.directory, self.options))
        if self.options.shadow != "down":
            self.start_shadow()
        self._haproxy.clear()

    # Where things are

    def address(self, name: str) -> str:
        """IPv4 address of a namespace; "lb" is the client's side of the balancer, "back" its other side."""
        return ADDRESSES[name]

    def address6(self, name: str) -> str:
        """IPv6 address; only the client and the balancer have one."""
        return ADDRESSES6[name]

    def netns(self, namespace: str) -> str:
        """Path of the namespace's file."""
        return str(self.network.path(namespace))

    def log(self, server: str) -> str:
        """What a server ("haproxy", "prod1", "shadow" ...) has said so far."""
        path = self._servers.log(server)
        return path.read_text(errors="replace") if path.exists() else ""

    # Running things

    def argv_in(self, namespace: str, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs a command in a namespace; it dies with the thread that starts it."""
        return self.network.argv_in(namespace, argv)

    def run_in(
        self,
        namespace: str,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        timeout: float = RUN_TIMEOUT_SECONDS,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command in a namespace and wait; output is captured as text unless `options` say otherwise."""
        options.setdefault("text", True)
        return self.guests.run(self.argv_in(namespace, argv), check=check, timeout=timeout, **options)

    def popen_in(self, namespace: str, argv: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in a namespace; it is killed when the lab ends."""
        return self.guests.popen(self.argv_in(namespace, argv), **options)

    @contextlib.contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """The calling thread is in the namespace for the block."""
        with self.network.inside(namespace):
            yield

    # The shadow's moods

    def stop_shadow(self) -> None:
        """From now on connections to the shadow are refused."""
        for server in reversed(self._shadow):
            self._servers.stop(server.name)

    def start_shadow(self) -> None:
        """Start the shadow, or start it again; its count of requests begins at zero."""
        if not self._shadow:
            self._shadow = shadow_servers(self.directory, self.options)
        self._start([server for server in self._shadow if not self._servers.running(server.name)])
        self._until(self._counting, "shadow")

    def hang_shadow(self) -> None:
        """The shadow still accepts (its kernel does) but answers nothing."""
        self._servers.signal("shadow", signal.SIGSTOP)

    def unhang_shadow(self) -> None:
        """It answers again, late requests included."""
        self._servers.signal("shadow", signal.SIGCONT)

    # Moods

    def mood(self, pool: str, **changes: Any) -> dict[str, dict[str, Any]]:
        """Change the mood of a pool, "production" or "shadow", or of one server; what each server answers, by its name.

        The moods are those of `vagrant.lab.mood.Mood`; without any it is only asked for the mood and the counts.
        """
        names = PRODUCTION if pool == "production" else (pool,)
        kinds = {**dict.fromkeys(PRODUCTION, self.options.production), "shadow": self.options.shadow}
        if any(kinds.get(name) != "mood" for name in names):
            raise LabError(f'{pool} has no mood: make it one with Options(production="mood", shadow="mood")')
        return {name: MoodControl(mood_socket(self.directory, name)).change(**changes) for name in names}

    # Counting

    def production_requests(self) -> int:
        """Requests the balancer took from clients since the lab was ready."""
        return self._haproxy.requests()

    def production_statuses(self) -> dict[str, int]:
        """What clients were answered, e.g. {"2xx": 10}."""
        return self._haproxy.statuses()

    def production_failures(self) -> int:
        """Requests that went wrong between the balancer and production."""
        return self._haproxy.failures()

    def shadow_requests(self) -> int:
        """Requests the shadow was asked since it started; 0 while it is down."""
        return self._shadow_counter.requests() if self._servers.running("shadow") else 0

    # Readiness

    def _start(self, servers: list[Server]) -> None:
        """Start servers; each may need the one before it."""
        for server in servers:
            self._servers.start(server.name, self.argv_in(server.namespace, server.argv))
            self._until(functools.partial(self._accepts, server), server.name)

    def _accepts(self, server: Server) -> bool:
        """Whether it can be connected to; the connection asks for nothing, so no request is counted."""
        if isinstance(server.listens, Path):
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(server.listens)) == 0
        with self.inside(server.namespace), socket.socket() as probe:
            return probe.connect_ex((server.listens, 80)) == 0

    def _counting(self) -> bool:
        try:
            self._shadow_counter.start()
        except OSError:
            return False
        return True

    def _until(self, ready: Callable[[], bool], server: str) -> None:
        end = time.monotonic() + READY_SECONDS
        while not ready():
            self._servers.check(server)
            if time.monotonic() > end:
                last = self.log(server)[-200:]
                raise LabError(f"the lab's {server} is not ready after {READY_SECONDS:.0f} s: {last}")
            time.sleep(0.01)


class MoodControl:
    """The control socket of a server with moods; its counts begin at its start."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self) -> None:
        """It has counted from its start; raises OSError until it can be asked."""
        self.change()

    def requests(self) -> int:
        """Requests so far, answered or not."""
        return int(self.change()["requests"])

    def change(self, **changes: Any) -> dict[str, Any]:
        """Change the mood; the present one ("mood") and the counts. LabError when there is no such mood."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(MOOD_SECONDS)
            connection.connect(str(self._path))
            connection.sendall(json.dumps(changes).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline() or b'{"problem": "it said nothing"}')
        if "problem" in answer:
            raise LabError(f"the mood cannot be changed: {answer['problem']}")
        return answer


def remove_stale() -> list[str]:
    """Remove the labs whose process is gone; what was removed."""
    stale = network.stale_prefixes()
    for prefix in stale:
        network.remove(prefix)
        shutil.rmtree(Path(tempfile.gettempdir(), prefix), ignore_errors=True)
    return stale
