"""`shadowtap check`: everything about a configuration that can be known without attaching."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from agent import config, privileges
from agent.config import Config
from agent.describe import describe
from agent.discovery.scout import discover_each
from agent.errors import ConfigError
from agent.order import Order
from agent.pools import program_of, source_of
from agent.select.geo import GeoDatabase
from replay.balancer.program import ProgramSettings, check_text, listener_for, make_plan
from replay.errors import UpstreamError
from replay.tls import make_context

LOOK_UP_S = 10.0


def check(path: Path) -> list[str]:
    """What the configuration means, a line each. ConfigError or UpstreamError when it cannot work here."""
    found = config.load(path)
    capture = found.capture
    interfaces = [name for _, name in socket.if_nameindex()]
    if capture.interface not in interfaces:
        raise ConfigError(
            f"{path}: capture.interface: no {capture.interface!r} on this host; there are: {', '.join(interfaces)}"
        )
    order = Order.of(found).resolved()
    if found.geo is not None:
        GeoDatabase(found.geo.database)
    user = privileges.service_user(found.user).pw_name
    ports = ", ".join(map(str, capture.ports))
    lines = [f"{path}: valid", f"copies   on {capture.interface}, port {ports}, {capture.workers} worker(s) as {user}"]
    lines += [f"mirrors  {describe(name, shadow)}" for name, shadow in found.shadows.items()]
    replayed = {name: ", ".join(shadow.methods) for name, shadow in found.shadows.items() if not shadow.captures_only}
    lines += [f"replays  {methods} to {name}" for name, methods in replayed.items()]
    lines += [
        f"records  {found.recording.directory if found.recording else 'nothing'}",
        f"metrics  {'http://' + found.metrics.listen + '/metrics' if found.metrics else 'none'}",
        f"control  {found.control.socket if found.control else 'none'}",
    ]
    lines += _pools(found, order)
    for name, shadow in found.shadows.items():
        if not shadow.enabled:
            lines.append(f"note     shadow {name} is disabled: nothing will be mirrored to it")
    return lines + [f"note     {note}" for note in found.notes]


def _pools(found: Config, order: Order) -> list[str]:
    """What the shadows' pools come to: programs are derived and checked, upstreams looked up once."""
    lines = []
    sources = {name: source for name, shadow in found.shadows.items() if (source := source_of(shadow)) is not None}
    for name, looked in discover_each(sources, LOOK_UP_S, found.user or "").items() if sources else ():
        addresses = ", ".join(spec.address for spec in looked.upstreams) or "no upstreams"
        lines.append(f"finds    {addresses} for {name}")
        lines += [f"note     {name}: {looked.problem}"] if looked.problem else []
    for name in found.shadows:
        if (settings := program_of(found, name)) is not None:
            lines += _program(name, settings)
    for shadow in order.shadows:
        if shadow.pool.balancer.tls is not None:
            make_context(shadow.pool.balancer.tls)  # its files are read
    return lines


def _program(name: str, settings: ProgramSettings) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="shadowtap-") as directory:
        plan = make_plan(settings, Path(directory))
        if problem := check_text(settings, plan, Path(directory)):
            raise UpstreamError(f"{settings.source}: refused by {settings.kind}: {problem}")
    taken = ", ".join(front.production for front in listener_for(settings, plan.derived))
    return [
        f"balances {name} by {settings.kind}: {settings.source} with {len(plan.derived.changes)} changes, for {taken}",
        *(f"note     {name}: {note}" for note in plan.derived.notes),
    ]
