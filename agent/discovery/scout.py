"""The scout: the process that finds out who the upstreams of shadow pools are, and tells the service what changes.

`python -m agent.discovery.scout CHANNEL_FD`. It keeps slow name servers and large libraries out of the agent, and holds
no privilege. The channel brings one order,

    {"user": "", "parent": 1234, "shadows": {"candidate": {"kind": "dns", "name": "shadow.example", "port": 8080, ...}}}

and takes a message for each shadow once it has been looked at, and again whenever something is different:

    {"shadow": "candidate", "upstreams": [{"address": "192.0.2.1:8080", "weight": 1, "cookie": ""}], "problem": ""}

Each shadow has a thread, so none waits for another. The end of the channel ends the process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agent import messages, privileges
from agent.child import Child, start_with_order
from agent.discovery.settings import DnsSource, FileSource, Found, Settings, Source, as_json, from_json
from replay.balancer.settings import UpstreamSpec

NICE = 10  # production wins the CPU


def main() -> None:
    """Take the order, give up privileges, then look and tell until the channel ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service hears it, and ends the channel
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    order = messages.receive(channel)
    if order is None:
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    privileges.drop(privileges.service_user(order["user"]))
    privileges.die_with_parent()
    if os.getppid() != order["parent"]:
        return  # the service died before it could be seen dying
    threading.excepthook = _die
    for name, settings in order["shadows"].items():
        threading.Thread(target=watch, args=(name, from_json(settings), channel), daemon=True).start()
    while messages.receive(channel) is not None:
        pass


def watch(shadow: str, settings: Settings, channel: socket.socket) -> None:
    """Look at one shadow's source whenever it is due, and tell what is new, until nobody listens."""
    source = open_source(settings)
    told: dict[str, Any] = {}
    while True:
        found = source.look()
        message = as_message(shadow, found)
        if message != told:
            try:
                messages.send(channel, message)
            except OSError:
                return
            told = message
        time.sleep(found.again_in_s)


def open_source(settings: Settings) -> Source:
    """What the settings ask for. Each kind brings libraries of its own, so only those are loaded that are used."""
    if isinstance(settings, DnsSource):
        from agent.discovery.dns import Dns

        return Dns(settings)
    if isinstance(settings, FileSource):
        from agent.discovery.file_sd import FileSd

        return FileSd(settings)
    from agent.discovery.target_group import Targets

    return Targets(settings)


def as_message(shadow: str, found: Found) -> dict[str, Any]:
    """As it is told; `from_message` reads it back."""
    return {"shadow": shadow, "upstreams": [asdict(each) for each in found.upstreams], "problem": found.problem}


def from_message(message: dict[str, Any]) -> tuple[str, Found]:
    """The shadow, and what was found. When it will be looked at again is not told."""
    specs = tuple(UpstreamSpec(**each) for each in message["upstreams"])
    return message["shadow"], Found(specs, 0.0, message["problem"])


def start(shadows: Mapping[str, Settings], user: str = "") -> Child:
    """Start a scout: the process, which is to be waited for in the end, and our end of its channel, which blocks."""
    settings = {name: as_json(each) for name, each in shadows.items()}
    order = {"user": user, "parent": os.getpid(), "shadows": settings}
    return start_with_order("agent.discovery.scout", order)


def discover_once(settings: Settings, timeout_s: float, user: str = "") -> Found:
    """Find out once, in a process of its own as always: it may be root who asks. Blocks for `timeout_s` at most."""
    return discover_each({"": settings}, timeout_s, user)[""]


def discover_each(shadows: Mapping[str, Settings], timeout_s: float, user: str = "") -> dict[str, Found]:
    """The same for several shadows at once."""
    answers: dict[str, Found] = {}
    until_s = time.monotonic() + timeout_s
    problem = f"nothing was found out within {timeout_s:g} s"
    process, channel = start(shadows, user)
    try:
        while len(answers) < len(shadows) and (left_s := until_s - time.monotonic()) > 0:
            channel.settimeout(left_s)
            try:
                message = messages.receive(channel)
            except BlockingIOError:
                break
            if message is not None:
                answers.update([from_message(message)])
            elif process.poll() is not None:
                problem = f"the process that looks for upstreams ended by itself, with status {process.returncode}"
                break
    finally:
        channel.close()
        process.kill()
        process.wait()
    return {name: answers.get(name, Found((), 0.0, problem)) for name in shadows}


def _die(arguments: threading.ExceptHookArgs) -> None:
    """An exception in a thread is our bug: show it and end, so that the service notices. A shadow that nobody looks
    after any more would seem well."""
    threading.__excepthook__(arguments)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
