"""The process that runs the shadows' balancer programs, and follows production's configuration files.

`python -m agent.balancing CHANNEL_FD`, started by the service while it is still root: production's files and keys are
often root's alone, and the programs themselves start as root and give it up as production's file says. It keeps the few
capabilities that this takes. It parses configuration files, never anybody's traffic. When the channel ends, so do the
programs; should this process be killed, the kernel ends them.

    service ──order──► here ──{"shadow", "fronts", "state", "problem", ...}──► service, now and at every change
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import messages, privileges
from agent.child import Child, start_with_order
from agent.priority import lower_priority
from replay.balancer.program import Engine, ProgramSettings, listener_for
from replay.errors import UpstreamError

LOOK_S = 1.0  # how often programs and files are looked at
RESTART_MIN_S = 0.5
RESTART_MAX_S = 30.0
DIRECTORY = "shadowtap-balancer-"  # begins the name of a run directory; the service's process id follows
# CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID, NET_BIND_SERVICE, SYS_CHROOT, SYS_RESOURCE
KEPT = (0, 1, 3, 5, 6, 7, 10, 18, 24)
RUNNING, DEAD = "running", "dead"


@dataclass(slots=True)
class Watched:
    """One program, and what was told of it last."""

    name: str
    engine: Engine
    died: str = ""  # what is told of its death, until it has run well for long enough
    refused: str = ""  # why a changed configuration is not taken over, until one is
    restarts: int = 0
    pause_s: float = RESTART_MIN_S
    dead: bool = False
    again_s: float = 0.0  # when to start it again; once it runs, when it would have been next
    told: dict[str, Any] | None = None

    @property
    def problem(self) -> str:
        """What is wrong, in one line; "" when it is well."""
        return "; ".join(filter(None, (self.died, self.refused)))

    def report(self) -> dict[str, Any]:
        """What the service is to know."""
        assert self.engine.plan is not None
        derived = self.engine.plan.derived
        fronts = [
            {
                "port": each.port,
                "address": f"{each.private_host}:{each.private_port}",
                "tls": each.tls,
                "host": each.host,
            }
            for each in listener_for(self.engine.settings, derived)
        ]
        return {
            "shadow": self.name,
            "fronts": fronts,
            "state": RUNNING if self.engine.alive() else DEAD,
            "problem": self.problem,
            "restarts": self.restarts,
            "reloads": self.engine.reloads,
            "changes": len(derived.changes),
        }

    def look(self, now_s: float) -> None:
        """Start it again when it died, take a changed configuration over."""
        engine = self.engine
        if not engine.alive():
            self._revive(now_s)
        elif engine.changed():
            try:
                engine.follow()
                self.refused = ""
            except UpstreamError as error:
                self.refused = f"the changed configuration is not taken over: {error}"
        elif self.pause_s > RESTART_MIN_S and now_s - self.again_s > RESTART_MAX_S:
            self.died, self.pause_s = "", RESTART_MIN_S  # it has run well for long enough

    def _revive(self, now_s: float) -> None:
        if not self.dead:
            self.dead, self.again_s = True, now_s + self.pause_s
            self.died = f"{self.engine.settings.kind} died: {self.engine.last_words() or 'it said nothing'}"
        if now_s < self.again_s:
            return
        self.pause_s = min(2 * self.pause_s, RESTART_MAX_S)
        self.again_s = now_s + self.pause_s
        try:
            if self.engine.restart():
                self.refused = ""
        except UpstreamError as error:
            self.died = str(error)
        else:
            self.dead = False
            self.restarts += 1


def settings_as_json(settings: ProgramSettings) -> dict[str, Any]:
    """Plain dict for JSON; `settings_from_json` reads it back."""
    data = {name: getattr(settings, name) for name in settings.__slots__}
    return {**data, "servers": dict(settings.servers)}


def settings_from_json(data: dict[str, Any]) -> ProgramSettings:
    """Inverse of `settings_as_json`."""
    return ProgramSettings(**{**data, "keep": tuple(data["keep"]), "addresses": tuple(data["addresses"])})


def start(programs: Mapping[str, ProgramSettings], user: str = "", nice: int = 0, scheduler: str = "") -> Child:
    """Start the process, which is to be waited for in the end, with programs by shadow; and our end of its channel.
    `user` is whom a program runs as that would stay root, `nice` and `scheduler` are as of the workers."""
    settings = {name: settings_as_json(each) for name, each in programs.items()}
    order = {"service": os.getpid(), "programs": settings, "user": user, "nice": nice, "scheduler": scheduler}
    return start_with_order("agent.balancing", order)


def main() -> None:
    """Start the programs, say how that went, then look after them until the channel ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service hears it and tells us
    channel = socket.socket(fileno=int(sys.argv[1]))
    order = messages.receive(channel)
    if order is None:
        return
    lower_priority(order.get("nice", 0), order.get("scheduler", ""))
    if os.geteuid() == 0:
        held = privileges.effective_capabilities()
        privileges.drop(pwd.getpwuid(0), keep=[each for each in KEPT if held >> each & 1])
    signal.signal(signal.SIGTERM, _end)
    remove_stale()
    directory = Path(tempfile.gettempdir() if os.geteuid() else "/run", f"{DIRECTORY}{order['service']}")
    programs = [
        Watched(name, Engine(settings_from_json(data), directory / name, order.get("user", "")))
        for name, data in order["programs"].items()
    ]
    try:
        if _start(programs, channel):
            _serve(programs, channel)
    finally:
        for program in programs:
            program.engine.stop()
        if directory.exists():
            directory.rmdir()


def remove_stale(below: Path = Path("/run")) -> None:
    """Take away run directories of services that are gone."""
    for directory in below.glob(f"{DIRECTORY}*"):
        owner = directory.name.removeprefix(DIRECTORY)
        if owner.isdecimal() and not Path("/proc", owner).exists():
            shutil.rmtree(directory, ignore_errors=True)


def _end(number: int, frame: object) -> None:
    sys.exit(0)


def _start(programs: list[Watched], channel: socket.socket) -> bool:
    for program in programs:
        try:
            program.engine.start()
            _tell(program, channel)
        except UpstreamError as error:
            messages.send(channel, {"shadow": program.name, "error": f"shadows.{program.name}: {error}"})
            return False
    return True


def _serve(programs: list[Watched], channel: socket.socket) -> None:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while not poll.poll(LOOK_S * 1000):  # nothing is ever sent to us: what comes is the end
        now_s = time.monotonic()
        for program in programs:
            program.look(now_s)
            _tell(program, channel)


def _tell(program: Watched, channel: socket.socket) -> None:
    """Say what has changed; left out when the service is behind, the next look says it again."""
    report = program.report()
    if report == program.told:
        return
    try:
        channel.setblocking(False)
        messages.send(channel, report)
        program.told = report
    except BlockingIOError:
        pass
    except OSError:
        sys.exit(0)  # the service is gone


if __name__ == "__main__":
    main()
