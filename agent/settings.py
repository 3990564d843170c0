"""From the configuration to the settings of each stage; shared by the live worker and the offline replay."""

from __future__ import annotations

from agent.config import Config, Recording
from agent.http.limits import HttpLimits
from agent.mirror import Selector
from replay.balancer.address import Production
from replay.balancer.engine import Embedded
from replay.balancer.upstream import make_pool
from replay.recording import RecordingSettings
from replay.settings import ReplaySettings


def http_limits(config: Config) -> HttpLimits:
    """Limits of the HTTP stage."""
    return HttpLimits(body_limit_bytes=config.http.body_limit_bytes, hash_bodies=config.http.hash_bodies)


def balancer(config: Config) -> Embedded:
    """The balancer over the shadow's pool (resolves names: blocks). UpstreamError when an upstream is production's."""
    _, shadow = config.shadow
    own = [f"*:{port}" for port in config.capture.ports]
    return Embedded(make_pool(shadow.upstreams, Production([*config.production, *own])))


def replay_settings(config: Config) -> ReplaySettings:
    """Limits and marks of the replay client."""
    _, shadow = config.shadow
    return ReplaySettings(
        connect_timeout_s=shadow.connect_timeout_s,
        timeout_s=shadow.timeout_s,
        queue_timeout_s=shadow.queue_timeout_s,
        max_connections=shadow.max_connections,
        queue_entries=shadow.queue_entries,
        queue_bytes=shadow.queue_mib << 20,
        body_limit_bytes=config.http.body_limit_bytes,
    )


def selector(config: Config) -> Selector:
    """The exact choice."""
    _, shadow = config.shadow
    return Selector(shadow.methods, replay_settings(config).mark)


def recording_settings(recording: Recording) -> RecordingSettings:
    """Rotation and limits of the recording."""
    return RecordingSettings(
        rotate_bytes=recording.rotate_mib << 20,
        rotate_seconds=recording.rotate_s,
        directory_bytes=recording.limit_mib << 20,
        exemplars=recording.exemplars,
    )
