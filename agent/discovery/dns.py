"""Upstreams out of the DNS: A and AAAA records of a name, or an SRV record's targets (RFC 2782).

A record's time to live says when it is asked for again. /etc/hosts is not looked at: this is about the DNS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import dns.exception
import dns.nameserver
import dns.resolver

from agent.discovery.settings import WEIGHT_MAX, Answers, Clock, DnsSource, Found, found, read_nameserver
from replay.balancer.address import resolve, show
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

QUESTION_S = 5.0  # until a question counts as not answered, over all nameservers
RETRY_S, RETRY_MAX_S = 2.0, 60.0
ADDRESS_TYPES = ("A", "AAAA")
SERVICE = "SRV"


class Host(NamedTuple):
    """A name whose addresses are upstreams."""

    name: str
    port: int
    weight: int = 1


class Dns:
    """A name's upstreams."""

    def __init__(self, settings: DnsSource, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._type = record_type(settings)
        self._services: Answers[str, list[Any]] = Answers(self._ask_for(SERVICE), clock, RETRY_S, RETRY_MAX_S)
        self._addresses: dict[str, Answers[str, list[Any]]] = {
            kind: Answers(self._ask_for(kind), clock, RETRY_S, RETRY_MAX_S) for kind in ADDRESS_TYPES
        }
        self._last: tuple[UpstreamSpec, ...] = ()

    def look(self) -> Found:
        """See `Source`."""
        hosts = self._hosts()
        names = list(dict.fromkeys(host.name for host in hosts))
        addresses = self._either(names) if self._type == SERVICE else self._all(names)
        specs, problems = upstreams_of(hosts, addresses)
        answers = [self._services, *self._addresses.values()]
        problems = [problem for each in answers for problem in each.problems] + problems
        if not specs:  # an answer that says nothing of use: nobody empties a pool by taking all records away
            specs = list(self._last)
            problems = problems or [f"{self._settings.name} has no {self._type.replace('+', ' or ')} record"]
        result = found(specs, min(each.again_in_s for each in answers), problems)
        self._last = result.upstreams
        return result

    def _hosts(self) -> list[Host]:
        name, port = self._settings.name, self._settings.port
        if self._type != SERVICE:
            return [Host(name, port)]
        return first_group(self._services.look([name]).get(name, ()))

    def _all(self, names: list[str]) -> dict[str, list[Any]]:
        """Every address of each name."""
        looked = [self._addresses[kind].look(names) for kind in self._type.split("+")]
        return {name: [record for each in looked for record in each.get(name, ())] for name in names}

    def _either(self, names: list[str]) -> dict[str, list[Any]]:
        """Each name's IPv4 addresses; where it has none, its IPv6 addresses. An SRV record stands for one server, which
        would count twice if it were taken by both."""
        old = self._addresses["A"].look(names)
        return {**old, **self._addresses["AAAA"].look([name for name in names if not old.get(name)])}

    def _ask_for(self, kind: str) -> Callable[[str], tuple[list[Any], float]]:
        def ask(name: str) -> tuple[list[Any], float]:
            try:
                resolver = open_resolver(self._settings.nameservers)
                search = not self._settings.nameservers  # as the system does: relative to its own domains, too
                answer = resolver.resolve(name, kind, raise_on_no_answer=False, lifetime=QUESTION_S, search=search)
            except (dns.exception.DNSException, OSError, ValueError) as error:
                raise UpstreamError(_reason(name, kind, error)) from None
            return list(answer), float(answer.chaining_result.minimum_ttl)

        return ask


def record_type(settings: DnsSource) -> str:
    """What is asked for: "A", "AAAA", "A+AAAA" or "SRV"."""
    if settings.type != "auto":
        return settings.type
    return SERVICE if settings.name.startswith("_") else "+".join(ADDRESS_TYPES)


def first_group(records: Iterable[Any]) -> list[Host]:
    """The SRV records of the lowest priority. The others are for when none of these can be reached: a pool that has
    lost all its hosts is what the shadow is there to show.

    Weight 0 counts as 1: by RFC 2782's own draw it has one chance in the sum of all weights and one.
    """
    usable = [record for record in records if record.target.to_text() != "."]  # ".": the service is not offered
    lowest = min((record.priority for record in usable), default=0)
    group = [record for record in usable if record.priority == lowest]
    heaviest = max((record.weight for record in group), default=0)
    scale = WEIGHT_MAX / heaviest if heaviest > WEIGHT_MAX else 1
    return [Host(r.target.to_text(), r.port, max(1, round(r.weight * scale))) for r in group]


def upstreams_of(hosts: Iterable[Host], addresses: dict[str, list[Any]]) -> tuple[list[UpstreamSpec], list[str]]:
    """The upstreams, and what is wrong with addresses that cannot be one."""
    specs, problems = [], []
    for host in hosts:
        for record in addresses.get(host.name, ()):
            text = f"[{record.address}]" if ":" in record.address else record.address
            try:
                specs.append(UpstreamSpec(show(resolve(f"{text}:{host.port}")[0]), host.weight))
            except UpstreamError as error:
                problems.append(f"{host.name}: {error}")
    return specs, problems


def open_resolver(nameservers: Sequence[str]) -> dns.resolver.Resolver:
    """Made afresh for each question, as resolv.conf changes while the agent runs."""
    resolver = dns.resolver.Resolver(configure=not nameservers)
    if nameservers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*read_nameserver(text)) for text in nameservers]
    return resolver


def _reason(name: str, kind: str, error: Exception) -> str:
    """What went wrong, in words that stay the same as long as it does."""
    if isinstance(error, dns.resolver.NXDOMAIN):
        return f"{name} does not exist (NXDOMAIN)"
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"{name} {kind}: no nameserver answers within {QUESTION_S:g} s"
    if isinstance(error, dns.resolver.NoNameservers):
        said = sorted({str(each[3]) or type(each[3]).__name__ for each in error.kwargs.get("errors", ())})
        return f"{name} {kind}: every nameserver fails: {', '.join(said)}"
    return f"{name} {kind}: {error}"
