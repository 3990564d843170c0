"""The configuration of what CPU and memory of both pools are read from: hosts and processes, or a Prometheus server."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from agent.fields import Directory, Model, Seconds
from agent.monitor.exposition import Selector, parse_selector

TARGETS_LIMIT = 256  # of a pool
QUERY_LIMIT = 4096  # characters; it goes into a URL
PRODUCTION = "production"
DEFAULT_PATH = "/metrics"
_RANGE = re.compile(r"\[\s*((?:[0-9]+(?:ms|[smhdwy]))+)")
_PART = re.compile(r"([0-9]+)(ms|[smhdwy])")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_FORMS = "write host:port, host:port/path, or a URL with http or https"


class Target(NamedTuple):
    """Where something is fetched with GET."""

    secure: bool
    host: str
    port: int
    path: str  # with the query, if there is one


def parse_target(text: str, path: str = DEFAULT_PATH) -> Target:
    """Of "10.0.0.11:9100", "[2001:db8::1]:9100/metrics" or a URL, which may leave out the port; ValueError."""
    has_scheme = "://" in text
    if not re.fullmatch("[!-~]+", text):
        raise ValueError(f"not an address: {_FORMS}")
    try:
        parts = urlsplit(text if has_scheme else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not an address ({error}): {_FORMS}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or port == 0:
        raise ValueError(f"not an address: {_FORMS}")
    if "@" in parts.netloc:
        raise ValueError("a name and password cannot stand in an address here")
    if port is None and not has_scheme:
        raise ValueError(f"the port is missing: {_FORMS}")
    secure = parts.scheme == "https"
    where = (parts.path if parts.path not in ("", "/") else path) + (f"?{parts.query}" if parts.query else "")
    return Target(secure, parts.hostname, port or (443 if secure else 80), where)


def _target(text: str) -> str:
    parse_target(text)
    return text


def _selector(text: str) -> str:
    parse_selector(text)
    return text


def _server(text: str) -> str:
    if "?" in text or "://" not in text:
        raise ValueError("give the server's URL, like http://127.0.0.1:9090")
    parse_target(text, "")
    return text


TargetText = Annotated[str, Field(max_length=1024), AfterValidator(_target)]
SelectorText = Annotated[str, Field(max_length=1024), AfterValidator(_selector)]
Query = Annotated[str, Field(max_length=QUERY_LIMIT)]


class RequestCounter(Model):
    """A counter, somewhere, of the requests that a pool has had."""

    target: TargetText
    metric: SelectorText

    @property
    def selector(self) -> Selector:
        """Of the series to add up."""
        return parse_selector(self.metric)


class PoolSources(Model):
    """Of one pool: targets, or queries for a Prometheus server."""

    targets: Annotated[tuple[TargetText, ...], Field(max_length=TARGETS_LIMIT)] = ()
    cpu: Query = ""  # gives cores
    memory: Query = ""  # gives bytes
    requests: RequestCounter | Query = ""  # a query gives requests a second; default: as the agent counts them
    hosts: Annotated[int, Field(ge=1, le=100_000)] = 1  # behind the queries
    idle_cores: Annotated[float, Field(ge=0, le=100_000)] = 0.0  # that the whole pool uses without any request

    @model_validator(mode="after")
    def _one_way(self) -> PoolSources:
        if self.targets and (self.cpu or self.memory):
            raise ValueError("give targets, or the queries cpu and memory, not both")
        if not (self.targets or self.cpu or self.memory):
            raise ValueError("name targets, or give the queries cpu and memory")
        if self.targets and self.hosts != 1:
            raise ValueError("hosts is for queries: targets are counted")
        if len(set(map(parse_target, self.targets))) < len(self.targets):
            raise ValueError("a target is named twice")
        return self

    @property
    def queries(self) -> dict[str, str]:
        """By what they give."""
        found = {"cpu": self.cpu, "memory": self.memory}
        if isinstance(self.requests, str):
            found["requests"] = self.requests
        return {what: query for what, query in found.items() if query}

    @property
    def window_s(self) -> float:
        """The longest range that a query of a rate looks back over, as [1m] does; 0 without one. Numbers closer to
        one another than this share what they are made of."""
        rates = [query for what, query in self.queries.items() if what != "memory"]
        return max((_seconds(found[1]) for query in rates for found in _RANGE.finditer(query)), default=0.0)


def _seconds(duration: str) -> float:
    """Of a duration as PromQL writes it, like 1m30s."""
    return sum(min(float(number), 1e9) * _UNIT_S[unit] for number, unit in _PART.findall(duration))


class Resources(Model):
    """What is read, how often, and when it is good enough to judge by."""

    interval_s: Annotated[float, Field(ge=0.2, le=3600)] = 5.0
    timeout_s: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    prometheus: Annotated[str, AfterValidator(_server)] | None = None
    ca: Directory | None = None  # certificates that https is checked with; default: the system's
    production: PoolSources
    shadows: dict[str, PoolSources] = {}
    least_requests: Annotated[int, Field(ge=1)] = 20  # of each pool in an interval, to judge CPU
    least_load_percent: Annotated[float, Field(ge=0, le=100)] = 50.0  # of the load of one of production's hosts
    warm_up_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0  # in which memory may grow
    memory_step_s: Seconds = 30.0

    @model_validator(mode="after")
    def _told_apart(self) -> Resources:
        if self.prometheus is None and any(pool.queries for pool in (self.production, *self.shadows.values())):
            raise ValueError("prometheus: missing; say which server is to answer the queries")
        if self.memory_step_s < self.interval_s:
            raise ValueError("memory_step_s: must not be shorter than interval_s")
        own = set(map(parse_target, self.production.targets))
        for name, pool in self.shadows.items():
            if name == PRODUCTION:
                raise ValueError(f"shadows.{name}: a shadow of that name cannot be told from production")
            if pool.requests:
                raise ValueError(f"shadows.{name}.requests: the agent counts what it sends; leave it out")
            if own & set(map(parse_target, pool.targets)):
                raise ValueError(f"shadows.{name}: a target is production's, too; the two could not be told apart")
        return self
