"""The exact choice of one shadow, in user space: which whole requests are meant for it.

Criteria first, then the percentage, then what can be replayed at all. What the kernel has decided exactly already (a
percentage of connections or of clients, where no other shadow widens what it copies) is not asked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agent.select.client_address import PROXY_PROTOCOL, Address, ClientAddress, client_of
from agent.select.criteria import Always, Criteria, as_json, from_json
from agent.select.exact import Locate, compile_criteria, cookies
from agent.select.sampling import EVERYTHING, By, Window, client_hash, flow_hash, request_hash, value_hash
from replay.exchange import Exchange, Skipped
from replay.http1 import asks_for_tunnel, header_values

CONNECTIONS_REMEMBERED = 65_536  # their places, so that one is not computed for each request


@dataclass(frozen=True, slots=True)
class Rule:
    """What one shadow takes. Plain data."""

    enabled: bool = True
    criteria: Criteria = field(default_factory=Always)
    by: By = By.CONNECTION
    name: str = ""  # of the header (in lower case) or the cookie
    window: Window = EVERYTHING
    methods: tuple[str, ...] = ("GET", "HEAD", "OPTIONS")
    mark: bytes = b""  # header line of our own traffic
    dry_run: bool = False  # nothing is to be replayed


class Choice:
    """Decides for one shadow; `rule` may be replaced at any time."""

    def __init__(
        self, rule: Rule, seed: int, client: ClientAddress, locate: Locate | None = None, *, in_kernel: bool = False
    ) -> None:
        """`in_kernel`: a percentage of connections or clients was decided before the exchange came here."""
        self._seed = seed
        self._client = client
        self._locate = locate
        self.change(rule, in_kernel=in_kernel)

    def change(self, rule: Rule, *, in_kernel: bool) -> None:
        """Decide by another rule from now on."""
        self.rule = rule
        everything = isinstance(rule.criteria, Always)
        self._wanted = None if everything else compile_criteria(rule.criteria, self._locate)
        exact_there = in_kernel and rule.by in (By.CONNECTION, By.CLIENT)
        self._sampled = None if rule.window == EVERYTHING or exact_there else self._sampler(rule)
        self._methods = frozenset(rule.methods)
        self._mark = b"\n" + rule.mark.lower() if rule.mark else b""

    def __call__(self, exchange: Exchange) -> Skipped | None:
        """Why the request is skipped, or None."""
        request, rule = exchange.request, self.rule
        assert request is not None
        if not rule.enabled:
            return Skipped.DISABLED
        if self._wanted is not None and not self._wanted(request, self.client(exchange)):
            return Skipped.CRITERIA
        if self._sampled is not None and not rule.window.has(self._sampled(exchange)):
            return Skipped.UNSAMPLED
        if rule.dry_run:
            return Skipped.DRY_RUN
        lower = request.head.lower()
        if asks_for_tunnel(request.method, lower):
            return Skipped.TUNNEL
        if request.method not in self._methods:
            return Skipped.METHOD
        return Skipped.SHADOW_TRAFFIC if self._mark and self._mark in lower else None

    def client(self, exchange: Exchange) -> Address | None:
        """The client's address, by the settings; None where a PROXY header would name it and its place was not seen."""
        request = exchange.request
        assert request is not None
        if self._client.source == PROXY_PROTOCOL:
            return exchange.forwarded
        return client_of(request.head, address_of(exchange.client), self._client)

    def _sampler(self, rule: Rule) -> Callable[[Exchange], int]:
        seed = self._seed
        if rule.by is By.CONNECTION:
            return lambda exchange: _connection(exchange.client, exchange.server, seed)
        if rule.by is By.CLIENT:
            return lambda exchange: _client(str(self.client(exchange) or address_of(exchange.client)), seed)
        if rule.by is By.REQUEST:
            return lambda exchange: request_hash(_connection(exchange.client, exchange.server, seed), exchange.index)
        values = _cookie if rule.by is By.COOKIE else _header
        return lambda exchange: _value(values(exchange, rule.name), exchange, seed)


def _header(exchange: Exchange, name: str) -> bytes | None:
    assert exchange.request is not None
    return next(iter(header_values(exchange.request.head, name.encode())), None)


def _cookie(exchange: Exchange, name: str) -> bytes | None:
    assert exchange.request is not None
    found = cookies(exchange.request.head, name)
    return found[0].encode("latin-1") if found else None


def _value(value: bytes | None, exchange: Exchange, seed: int) -> int:
    """Whoever carries no value is taken by connection."""
    return _connection(exchange.client, exchange.server, seed) if value is None else value_hash(value, seed)


@lru_cache(CONNECTIONS_REMEMBERED)
def _connection(client: str, server: str, seed: int) -> int:
    return flow_hash(key_of(client, server), seed)


@lru_cache(CONNECTIONS_REMEMBERED)
def _client(address: str, seed: int) -> int:
    return client_hash(address, seed)


@lru_cache(CONNECTIONS_REMEMBERED)
def address_of(end: str) -> Address:
    """The address of "192.0.2.1:80" or "[2001:db8::1]:80"."""
    return ipaddress.ip_address(end.rpartition(":")[0].strip("[]"))


def key_of(client: str, server: str) -> bytes:
    """The key of a connection's segments, from its ends as exchanges write them."""
    ports = b"".join(int(end.rpartition(":")[2]).to_bytes(2, "big") for end in (client, server))
    return address_of(client).packed + address_of(server).packed + ports


def rule_as_json(rule: Rule) -> dict[str, Any]:
    """For the workers; `rule_from_json` reads it back."""
    return {
        "enabled": rule.enabled,
        "criteria": as_json(rule.criteria),
        "by": rule.by.value,
        "name": rule.name,
        "window": list(rule.window),
        "methods": list(rule.methods),
        "mark": rule.mark.decode("latin-1"),
        "dry_run": rule.dry_run,
    }


def rule_from_json(data: dict[str, Any]) -> Rule:
    """Inverse of `rule_as_json`."""
    return Rule(
        enabled=data["enabled"],
        criteria=from_json(data["criteria"]),
        by=By(data["by"]),
        name=data["name"],
        window=Window(*data["window"]),
        methods=tuple(data["methods"]),
        mark=data["mark"].encode("latin-1"),
        dry_run=data["dry_run"],
    )
