"""What the service orders a worker to do, as plain data: the worker needs no configuration library (12 MB of memory).

Also used by the offline replay, so that both set the stages up alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.http.limits import HttpLimits
from agent.mirror import Selector
from replay.balancer.address import Production
from replay.balancer.engine import Embedded
from replay.balancer.upstream import make_pool
from replay.settings import ReplaySettings

if TYPE_CHECKING:
    from agent.config import Config


@dataclass(frozen=True, slots=True)
class Order:
    """Settings of every stage of one worker, the same for all workers of a run."""

    shadow: str = "shadow"
    upstreams: tuple[str, ...] = ()  # none: nothing is replayed
    production: tuple[str, ...] = ()  # addresses that no upstream may have
    methods: tuple[str, ...] = ("GET", "HEAD", "OPTIONS")
    ports: tuple[int, ...] = ()  # server ports; none: find out
    poll_s: float = 0.004
    stop_timeout_s: float = 10.0
    nice: int = 10
    scheduler: str = "batch"
    http: HttpLimits = field(default_factory=HttpLimits)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    recording_directory: str | None = None
    recording: dict[str, int] = field(default_factory=dict)  # fields of replay.recording.RecordingSettings

    @classmethod
    def of(cls, config: Config) -> Order:
        """The part of a configuration that a worker needs."""
        name, shadow = config.shadow
        capture, recording = config.capture, config.recording
        return cls(
            shadow=name,
            upstreams=tuple(shadow.upstreams) if shadow.enabled else (),
            production=(*config.production, *(f"*:{port}" for port in capture.ports)),
            methods=tuple(shadow.methods),
            ports=tuple(capture.ports),
            poll_s=capture.poll_ms / 1000,
            stop_timeout_s=config.stop_timeout_s,
            nice=capture.nice,
            scheduler=capture.scheduler,
            http=HttpLimits(body_limit_bytes=config.http.body_limit_bytes, hash_bodies=config.http.hash_bodies),
            replay=ReplaySettings(
                connect_timeout_s=shadow.connect_timeout_s,
                timeout_s=shadow.timeout_s,
                queue_timeout_s=shadow.queue_timeout_s,
                max_connections=shadow.max_connections,
                queue_entries=shadow.queue_entries,
                queue_bytes=shadow.queue_mib << 20,
                body_limit_bytes=config.http.body_limit_bytes,
            ),
            recording_directory=str(recording.directory) if recording else None,
            recording=recording.limits() if recording else {},
        )

    def as_json(self) -> dict[str, Any]:
        """Plain dict for JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Order:
        """Inverse of `as_json`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        plain["http"], plain["replay"] = HttpLimits(**data["http"]), ReplaySettings(**data["replay"])
        return cls(**plain)

    def balancer(self) -> Embedded:
        """The balancer over the pool (resolves names: blocks). UpstreamError when an upstream is production's."""
        return Embedded(make_pool(self.upstreams, Production(self.production)))

    def selector(self) -> Selector:
        """The exact choice in user space."""
        return Selector(self.methods, self.replay.mark, dry_run=not self.upstreams)

    @property
    def directory(self) -> Path | None:
        """Where to record, None for nowhere."""
        return Path(self.recording_directory) if self.recording_directory else None
