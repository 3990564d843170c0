"""The configuration of a shadow pool: its upstreams, how they are found, and the balancer in front of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from agent.fields import Directory, Model, Port, Seconds
from replay.balancer.address import UNIX, parse_host_port
from replay.balancer.policy import POLICIES
from replay.balancer.settings import STATUS_MAX, STATUS_MIN
from replay.errors import UpstreamError

Ratio = Annotated[float, Field(ge=0, le=1)]
Statuses = tuple[tuple[int, int], ...]
KEPT = ("lua", "spoe", "peers", "log", "external-check", "opentracing", "js", "perl")  # what `balancer.keep` may name
EMBEDDED = "embedded"
PROGRAMS = ("haproxy", "nginx")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_EMBEDDED_ONLY = (
    "policy",
    "hash_by",
    "slow_start_s",
    "sticky_cookie",
    "sticky_entries",
    "panic_percent",
    "max_requests",
    "health_check",
    "outlier",
    "proxy_protocol",
    "forwarded_for",
)
_PROGRAM_ONLY = ("from", "production", "servers", "bind", "keep", "program")


def _statuses(value: Any) -> Any:
    """ "200-399, 404", or a number: ranges with both ends."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return value
    ranges = []
    for part in str(value).split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError('give statuses like "200-399, 404"')
        ranges.append((int(low[:4]), int((high or low)[:4])))
    return tuple(ranges)


def _in_range(ranges: Statuses) -> Statuses:
    if any(not STATUS_MIN <= low <= high <= STATUS_MAX for low, high in ranges):
        raise ValueError(f"give statuses from {STATUS_MIN} to {STATUS_MAX}, the lower one first")
    return ranges


StatusRanges = Annotated[Statuses, BeforeValidator(_statuses), AfterValidator(_in_range)]


def check_address(text: str) -> str:
    """The text again, if it is the address of an upstream; ValueError."""
    if not text.startswith(UNIX):
        try:
            parse_host_port(text)
        except UpstreamError as error:
            raise ValueError(str(error)) from None
    return text


class UpstreamConfig(Model):
    """One upstream; an address alone says the same."""

    address: Annotated[str, AfterValidator(check_address)]
    weight: Annotated[int, Field(ge=0, le=1000)] = 1
    cookie: Annotated[str, Field(pattern=r"^[!#-+\--:<-\[\]-~]*$", max_length=64)] = ""  # RFC 6265's cookie-octet

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @property
    def plain(self) -> str | dict[str, Any]:
        """As it is written shortest."""
        return self.address if (self.weight, self.cookie) == (1, "") else self.model_dump()


class HealthCheckConfig(Model):
    """Active checks of every upstream."""

    type: Literal["tcp", "http"] = "http"
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/"
    host: Annotated[str, Field(pattern=r"^[!-~]*$")] = ""
    statuses: StatusRanges = ((200, 399),)
    body: str = ""
    interval_s: Seconds = 2.0
    jitter_percent: Annotated[float, Field(ge=0, le=50)] = 10.0
    timeout_s: Seconds = 1.0
    rise: Annotated[int, Field(ge=1, le=100)] = 2
    fall: Annotated[int, Field(ge=1, le=100)] = 3

    @field_validator("body")
    @classmethod
    def _body(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:  # a{99999999999}, ((((...
            raise ValueError(f"not a regular expression: {error}") from None
        return value


class OutlierConfig(Model):
    """Passive ejection for errors in a row."""

    consecutive_errors: Annotated[int, Field(ge=0, le=1_000_000)] = 5  # 0: never
    statuses: StatusRanges = ((500, 599),)
    ejection_s: Seconds = 10.0
    ejection_max_s: Seconds = 300.0
    ejected_max_percent: Annotated[float, Field(ge=0, le=100)] = 50.0


class Tls(Model):
    """TLS to the upstreams, or to the balancer program's frontend."""

    verify: bool = True
    server_name: str = "host"
    ca: Directory | None = None
    certificate: Directory | None = None
    key: Directory | None = None

    @model_validator(mode="after")
    def _key_of_something(self) -> Tls:
        if self.key is not None and self.certificate is None:
            raise ValueError("tls.key without tls.certificate: name the certificate that it belongs to")
        return self


class Balancer(Model):
    """What stands in front of the pool."""

    engine: Literal["embedded", "haproxy", "nginx"] = "embedded"
    policy: str = "round_robin"
    hash_by: str = "client"
    slow_start_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    sticky_cookie: str = ""
    sticky_entries: Annotated[int, Field(ge=1, le=10_000_000)] = 65_536
    panic_percent: Annotated[float, Field(ge=0, le=100)] = 50.0
    max_requests: Annotated[int, Field(ge=0)] = 0
    health_check: HealthCheckConfig | None = None
    outlier: OutlierConfig = OutlierConfig()
    proxy_protocol: bool = False
    forwarded_for: bool = True
    tls: Tls | None = None
    from_: Annotated[Directory | None, Field(alias="from")] = None  # what the shadow balancer is to run
    production: Directory | None = None  # production's own file, where `from` is a candidate
    servers: dict[str, str | list[str]] = {}  # production's server -> shadow's
    bind: str = ""  # which of production's addresses takes the traffic; default: by the port it came to
    keep: list[str] = []
    allow_production: bool = False
    program: Directory | None = None  # the binary, where it is not on PATH

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"no policy of that name; there are {', '.join(POLICIES)}")
        return value

    @field_validator("hash_by")
    @classmethod
    def _hash_by(cls, value: str) -> str:
        what, colon, name = value.partition(":")
        named = what in ("header", "cookie")
        if not (what in ("client", "path") and not colon) and not (named and _HEADER.fullmatch(name)):
            raise ValueError("give client, path, header:NAME or cookie:NAME")
        return value

    @field_validator("sticky_cookie")
    @classmethod
    def _sticky_cookie(cls, value: str) -> str:
        if value and not _HEADER.fullmatch(value):
            raise ValueError("not the name of a cookie")
        return value

    @field_validator("keep")
    @classmethod
    def _keep(cls, value: list[str]) -> list[str]:
        if unknown := sorted(set(value) - set(KEPT)):
            named = ", ".join(each if each.isprintable() else ascii(each) for each in unknown)
            raise ValueError(f"{named}: what can be kept is {', '.join(KEPT)}")
        return value

    @model_validator(mode="after")
    def _of_one_engine(self) -> Balancer:
        fields = self.__class__.model_fields
        given = {field.alias or name for name, field in fields.items() if getattr(self, name) != field.default}
        wrong = given & set(_PROGRAM_ONLY if self.engine == EMBEDDED else _EMBEDDED_ONLY)
        if wrong:
            why = f"only for engine {' or '.join(PROGRAMS)}" if self.engine == EMBEDDED else "that is for `from` to say"
            raise ValueError(f"balancer.{min(wrong)} with engine {self.engine}: {why}")
        if self.engine != EMBEDDED and self.from_ is None:
            raise ValueError(f"balancer.from: name the configuration file that {self.engine} is to run")
        return self

    @property
    def is_program(self) -> bool:
        """Another program balances."""
        return self.engine != EMBEDDED


class Dns(Model):
    """Upstreams by name, looked up again as its TTL says."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    type: Literal["auto", "A", "AAAA", "SRV"] = "auto"
    port: Port | None = None
    nameservers: list[str] = []


class Discovery(Model):
    """Where upstreams come from, if not from the list; one of these."""

    dns: Dns | None = None
    file: Directory | None = None  # Prometheus file_sd form
    endpoint_url: str | None = None  # of AWS, for a target group, where it is not the usual one

    @model_validator(mode="after")
    def _one(self) -> Discovery:
        if self.dns is not None and self.file is not None:
            raise ValueError("give dns or file, not both")
        if (
            self.dns is not None
            and self.dns.port is None
            and self.dns.type not in ("SRV",)
            and not self.dns.name.startswith("_")
        ):
            raise ValueError("dns.port: missing; only SRV records name a port")
        return self
