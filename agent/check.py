"""`shadowtap check`: everything about a configuration that can be known without attaching."""

from __future__ import annotations

import socket
from pathlib import Path

from agent import config, privileges
from agent.errors import ConfigError
from agent.order import Order


def check(path: Path) -> list[str]:
    """What the configuration means, a line each. ConfigError or UpstreamError when it cannot work here."""
    found = config.load(path)
    capture = found.capture
    interfaces = [name for _, name in socket.if_nameindex()]
    if capture.interface not in interfaces:
        raise ConfigError(
            f"{path}: capture.interface: no {capture.interface!r} on this host; there are: {', '.join(interfaces)}"
        )
    name, shadow = found.shadow
    if (order := Order.of(found)).upstreams:
        order.balancer()
    user = privileges.service_user(found.user).pw_name
    lines = [
        f"{path}: valid",
        f"copies   {shadow.percentage:g} % of the {shadow.sample_by}s on {capture.interface}, "
        f"port {', '.join(map(str, capture.ports))}, {capture.workers} worker(s) as {user}",
        f"replays  {', '.join(shadow.methods)} to {', '.join(shadow.upstreams) or 'nobody (capture only)'}"
        + ("" if shadow.enabled else " (disabled)"),
        f"records  {found.recording.directory if found.recording else 'nothing'}",
        f"metrics  {'http://' + found.metrics.listen + '/metrics' if found.metrics else 'none'}",
    ]
    if not shadow.enabled:
        lines.append(f"note     shadow {name} is disabled: nothing will be mirrored")
    return lines + [f"note     {note}" for note in found.notes]
