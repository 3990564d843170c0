"""`shadowtap check`: everything about a configuration that can be known without attaching."""

from __future__ import annotations

import socket
from pathlib import Path

from agent import config, privileges
from agent.describe import describe
from agent.errors import ConfigError
from agent.order import Order
from agent.select.geo import GeoDatabase


def check(path: Path) -> list[str]:
    """What the configuration means, a line each. ConfigError or UpstreamError when it cannot work here."""
    found = config.load(path)
    capture = found.capture
    interfaces = [name for _, name in socket.if_nameindex()]
    if capture.interface not in interfaces:
        raise ConfigError(
            f"{path}: capture.interface: no {capture.interface!r} on this host; there are: {', '.join(interfaces)}"
        )
    Order.of(found).resolved()
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
    for name, shadow in found.shadows.items():
        if not shadow.enabled:
            lines.append(f"note     shadow {name} is disabled: nothing will be mirrored to it")
    return lines + [f"note     {note}" for note in found.notes]
