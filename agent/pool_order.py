"""What a worker is told of one shadow's pool and balancer, as plain data, and the engine it opens with that."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from replay.balancer.address import ANY, Production
from replay.balancer.derive.change import HEADER
from replay.balancer.engine import Embedded, Program
from replay.balancer.settings import (
    BalancerSettings,
    HashBy,
    HealthCheck,
    OutlierSettings,
    TlsSettings,
    UpstreamSpec,
)
from replay.balancer.upstream import PLAIN, Transport, Upstream, make_pool
from replay.tls import make_context
from replay.via import Via

if TYPE_CHECKING:
    from agent.shadow_config import Shadow

Statuses = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Front:
    """Where a balancer program listens for what production takes on an address; the first of a list is the default."""

    port: int
    address: str
    tls: bool = False
    host: str = "*"  # as production's file has it; "*" for all addresses

    @property
    def production(self) -> str:
        """As `Exchange.server` has it, if the host is numeric."""
        try:
            host = ipaddress.ip_address(self.host)
        except ValueError:
            return f"{self.host}:{self.port}"
        return f"{host}:{self.port}" if host.version == 4 else f"[{host}]:{self.port}"


@dataclass(frozen=True, slots=True)
class PoolOrder:
    """One shadow's pool. Without upstreams and fronts nothing is replayed, unless upstreams are still to be found."""

    upstreams: tuple[UpstreamSpec, ...] = ()
    balancer: BalancerSettings = field(default_factory=BalancerSettings)
    fronts: tuple[Front, ...] = ()
    program: str = ""  # "haproxy", "nginx"; "" for the embedded engine
    changes: bool = False  # upstreams are looked up at run time: there may be none yet
    allow_production: bool = False  # an upstream may be one of production's

    @property
    def replays(self) -> bool:
        """Somebody is asked, or will be."""
        return bool(self.upstreams or self.program or self.changes)

    @property
    def transport(self) -> Transport:
        """How requests travel. UpstreamError when a file for TLS is not as it must be."""
        settings = self.balancer
        tls = settings.tls or TlsSettings()
        if self.program:
            return Transport(
                make_context(tls) if any(front.tls for front in self.fronts) else None,
                tls.server_name,
                proxy_protocol=True,
                via_header=HEADER.lower().encode("ascii"),
                read_via=_reader_of(self.program),
            )
        context = None if settings.tls is None else make_context(settings.tls)
        return Transport(context, tls.server_name, settings.proxy_protocol, settings.forwarded_for)

    def pool(self, production: tuple[str, ...], transport: Transport = PLAIN) -> tuple[Upstream, ...]:
        """The upstreams (resolves names: blocks). UpstreamError when one is production's."""
        if not self.upstreams:
            return ()
        return make_pool(self.upstreams, Production(() if self.allow_production else production), transport=transport)

    def engine(self, production: tuple[str, ...], transport: Transport | None = None) -> Embedded | Program:
        """The balancer (resolves names: blocks). UpstreamError as above. `transport`: one that was made before."""
        transport = transport or self.transport
        if not self.program:
            return Embedded(self.pool(production, transport), self.balancer)
        return Program(*self.routes(transport))

    def routes(self, secured: Transport) -> tuple[dict[str, Upstream], Upstream]:
        """Of a program: the front for each address of production, or for its port on others ("*:80"); the default."""
        fronts: dict[str, Upstream] = {}
        made: list[Upstream] = []
        for front in self.fronts:
            transport = secured if front.tls else replace(secured, tls=None)
            made.append(make_pool([front.address], transport=transport)[0])
            fronts.setdefault(front.production, made[-1])
            fronts.setdefault(f"{ANY}:{front.port}", made[-1])
        return fronts, made[0]

    def resolved(self, production: tuple[str, ...]) -> PoolOrder:
        """With names replaced by the addresses that were checked. Blocks; UpstreamError."""
        pool = self.pool(production)
        specs = tuple(replace(spec, address=each.name) for spec, each in zip(self.upstreams, pool, strict=True))
        return replace(self, upstreams=specs)

    def as_json(self) -> dict[str, Any]:
        """Plain dict for JSON; `from_json` reads it back."""
        return {**asdict(self), "upstreams": specs_as_json(self.upstreams)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PoolOrder:
        """Inverse of `as_json`."""
        return cls(
            upstreams=specs_from_json(data["upstreams"]),
            balancer=_balancer(dict(data["balancer"])),
            fronts=tuple(Front(**front) for front in data["fronts"]),
            program=data["program"],
            changes=data["changes"],
            allow_production=data["allow_production"],
        )


def _reader_of(program: str) -> Callable[[bytes], Via | None]:
    """What reads that program's word on which upstream it chose."""
    if program == "haproxy":
        from replay.balancer.derive.haproxy_via import parse_via

        return parse_via
    from replay.balancer.derive.nginx_via import parse_nginx_via

    return parse_nginx_via


def specs_as_json(specs: Iterable[UpstreamSpec]) -> list[Any]:
    """Upstreams for a message, short: there may be many, and nearly all are an address alone."""
    return [spec.address if spec == UpstreamSpec(spec.address) else list(astuple(spec)) for spec in specs]


def specs_from_json(data: list[Any]) -> tuple[UpstreamSpec, ...]:
    """Inverse of `specs_as_json`."""
    return tuple(UpstreamSpec(spec) if isinstance(spec, str) else UpstreamSpec(*spec) for spec in data)


def pool_order(shadow: Shadow, seed: int = 0) -> PoolOrder:
    """The part of a shadow's configuration that is about its pool."""
    balancer = shadow.balancer
    what, _, name = balancer.hash_by.partition(":")
    check, outlier, tls = balancer.health_check, balancer.outlier, balancer.tls
    settings = BalancerSettings(
        policy=balancer.policy,
        seed=seed,
        hash_by=HashBy(what, name),
        slow_start_s=balancer.slow_start_s,
        sticky_cookie=balancer.sticky_cookie,
        sticky_entries=balancer.sticky_entries,
        panic_ratio=balancer.panic_percent / 100,
        max_requests=balancer.max_requests,
        health=None
        if check is None
        else HealthCheck(
            kind=check.type,
            path=check.path,
            host=check.host,
            statuses=check.statuses,
            body=check.body,
            interval_s=check.interval_s,
            jitter_ratio=check.jitter_percent / 100,
            timeout_s=check.timeout_s,
            rise=check.rise,
            fall=check.fall,
        ),
        outlier=OutlierSettings(
            consecutive_errors=outlier.consecutive_errors,
            statuses=outlier.statuses,
            ejection_s=outlier.ejection_s,
            ejection_max_s=outlier.ejection_max_s,
            ejected_max_ratio=outlier.ejected_max_percent / 100,
        ),
        tls=None
        if tls is None
        else TlsSettings(
            tls.verify, tls.server_name, *(str(path or "") for path in (tls.ca, tls.certificate, tls.key))
        ),
        proxy_protocol=balancer.proxy_protocol,
        forwarded_for=balancer.forwarded_for,
    )
    return PoolOrder(
        upstreams=tuple(UpstreamSpec(each.address, each.weight, each.cookie) for each in shadow.upstreams),
        balancer=settings,
        program=balancer.engine if balancer.is_program else "",
        changes=shadow.discovers,
        allow_production=balancer.allow_production,
    )


def _balancer(data: dict[str, Any]) -> BalancerSettings:
    """Out of JSON, where tuples have become lists."""
    data["hash_by"] = HashBy(**data["hash_by"])
    for name, kind in (("health", HealthCheck), ("outlier", OutlierSettings), ("tls", TlsSettings)):
        if data[name] is not None:
            fields = dict(data[name])
            if "statuses" in fields:
                fields["statuses"] = _pairs(fields["statuses"])
            data[name] = kind(**fields)
    return BalancerSettings(**data)


def _pairs(data: list[list[int]]) -> Statuses:
    return tuple((low, high) for low, high in data)
