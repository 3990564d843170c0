"""What the service orders a worker to do, as plain data: the worker needs no configuration library (12 MB of memory).

Also used by the offline replay, so that both set the stages up alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.http.limits import HttpLimits
from agent.pool_order import PoolOrder, pool_order
from agent.select.choice import Rule, rule_as_json, rule_from_json
from agent.select.client_address import CONNECTION, PROXY_PROTOCOL, ClientAddress, client_address
from agent.select.criteria import Geo, leaves
from agent.select.sampling import By
from replay.balancer.address import parse_host_port
from replay.settings import ReplaySettings

if TYPE_CHECKING:
    from agent.config import Config


@dataclass(frozen=True, slots=True)
class ShadowOrder:
    """One shadow: what it takes, and where that goes."""

    name: str = "shadow"
    rule: Rule = field(default_factory=Rule)
    pool: PoolOrder = field(default_factory=PoolOrder)
    replay: ReplaySettings = field(default_factory=ReplaySettings)

    def as_json(self) -> dict[str, Any]:
        """Plain dict for JSON; `from_json` reads it back."""
        return {
            "name": self.name,
            "rule": rule_as_json(self.rule),
            "pool": self.pool.as_json(),
            "replay": asdict(self.replay),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShadowOrder:
        """Inverse of `as_json`."""
        rule, settings = rule_from_json(data["rule"]), ReplaySettings(**data["replay"])
        return cls(data["name"], rule, PoolOrder.from_json(data["pool"]), settings)


@dataclass(frozen=True, slots=True)
class Order:
    """Settings of every stage of one worker, the same for all workers of a run."""

    shadows: tuple[ShadowOrder, ...] = (ShadowOrder(),)
    production: tuple[str, ...] = ()  # addresses that no upstream may have
    ports: tuple[int, ...] = ()  # server ports; none: find out
    seed: int = 0
    client: ClientAddress = field(default_factory=ClientAddress)
    geo_database: str | None = None
    poll_s: float = 0.004
    stop_timeout_s: float = 10.0
    nice: int = 10
    scheduler: str = "batch"
    http: HttpLimits = field(default_factory=HttpLimits)
    recording_directory: str | None = None
    recording: dict[str, int] = field(default_factory=dict)  # fields of replay.recording.RecordingSettings

    @classmethod
    def of(cls, config: Config) -> Order:
        """The part of a configuration that a worker needs."""
        capture, recording = config.capture, config.recording
        return cls(
            shadows=tuple(shadow_order(config, name) for name in config.shadows),
            production=production_of(config),
            ports=tuple(capture.ports),
            seed=config.seed,
            client=config.client.settings,
            geo_database=str(config.geo.database) if config.geo else None,
            poll_s=capture.poll_ms / 1000,
            stop_timeout_s=config.stop_timeout_s,
            nice=capture.nice,
            scheduler=capture.scheduler,
            http=HttpLimits(
                body_limit_bytes=config.http.body_limit_bytes,
                hash_bodies=config.http.hash_bodies,
                proxy_protocol=config.client.settings.source == PROXY_PROTOCOL,
            ),
            recording_directory=str(recording.directory) if recording else None,
            recording=recording.limits(len(config.shadows)) if recording else {},
        )

    @property
    def replays(self) -> bool:
        """Some shadow is asked; else nothing but capturing is done."""
        return any(shadow.pool.replays for shadow in self.shadows)

    @property
    def upstream_hosts(self) -> list[str]:
        """Numeric addresses of the shadow hosts there are now, each once."""
        pools = [shadow.pool for shadow in self.shadows]
        addresses = [each.address for pool in pools for each in pool.upstreams]
        addresses += [front.address for pool in pools for front in pool.fronts]
        return list(dict.fromkeys(parse_host_port(text).host for text in addresses if not text.startswith("unix:")))

    @property
    def peer_is_client(self) -> bool:
        """The connection's address is the client's, so that the kernel can decide by it."""
        return self.client.source == CONNECTION

    def samples_in_kernel(self, rule: Rule) -> bool:
        """The kernel decides on the percentage of this rule."""
        return rule.by is By.CONNECTION or (rule.by is By.CLIENT and self.peer_is_client)

    @property
    def in_kernel(self) -> bool:
        """The kernel's choice by connection or client is the whole choice: no other shadow widens what it copies."""
        return len(self.shadows) == 1 and self.peer_is_client

    @property
    def needs_geography(self) -> bool:
        """Some criteria ask for a country."""
        return any(isinstance(leaf, Geo) for shadow in self.shadows for leaf in leaves(shadow.rule.criteria))

    def resolved(self) -> Order:
        """With names replaced by addresses: what was checked is what every worker uses. Blocks; UpstreamError."""
        return replace(
            self,
            shadows=tuple(replace(shadow, pool=shadow.pool.resolved(self.production)) for shadow in self.shadows),
        )

    def directory_of(self, shadow: str) -> Path | None:
        """Where a shadow is recorded: of several, each has a directory of its own. None for nowhere."""
        if self.recording_directory is None:
            return None
        directory = Path(self.recording_directory)
        return directory if len(self.shadows) == 1 else directory / shadow

    def as_json(self) -> dict[str, Any]:
        """Plain dict for JSON; `from_json` reads it back."""
        data = {name: getattr(self, name) for name in self.__slots__}
        data["shadows"] = [shadow.as_json() for shadow in self.shadows]
        data["client"] = {"source": self.client.source, "trusted": [str(network) for network in self.client.trusted]}
        data["http"] = asdict(self.http)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Order:
        """Inverse of `as_json`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        plain["shadows"] = tuple(map(ShadowOrder.from_json, data["shadows"]))
        plain["client"] = client_address(**data["client"])
        plain["http"] = HttpLimits(**data["http"])
        return cls(**plain)


def production_of(config: Config) -> tuple[str, ...]:
    """Addresses that no upstream may have: those that are named, and the captured ports of this host."""
    return (*config.production, *(f"*:{port}" for port in config.capture.ports))


def shadow_order(config: Config, name: str) -> ShadowOrder:
    """One shadow of a configuration."""
    shadow = config.shadows[name]
    by, value_name = shadow.sampling
    settings = ReplaySettings(
        connect_timeout_s=shadow.connect_timeout_s,
        first_byte_timeout_s=shadow.first_byte_timeout_s,
        idle_timeout_s=shadow.idle_timeout_s,
        timeout_s=shadow.timeout_s,
        keepalive_s=shadow.keepalive_s,
        retries=shadow.retries,
        requests_per_connection=shadow.requests_per_connection,
        queue_timeout_s=shadow.queue_timeout_s,
        max_connections=shadow.max_connections,
        queue_entries=shadow.queue_entries,
        queue_bytes=shadow.queue_mib << 20,
        body_limit_bytes=config.http.body_limit_bytes,
    )
    rule = Rule(
        enabled=shadow.enabled,
        criteria=shadow.tree,
        by=by,
        name=value_name,
        window=config.windows[name],
        methods=tuple(shadow.methods),
        mark=settings.mark,
        dry_run=shadow.captures_only,
    )
    return ShadowOrder(name, rule, pool_order(shadow, config.seed), settings)
