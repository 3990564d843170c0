"""Decides exactly whether a request fits criteria: a tree becomes one function, made of a closure for each node.

It runs for every request of live traffic: regular expressions are compiled once, a tree is left at the first answer,
and nothing of a request is looked at before a test asks for it. Whatever a request holds, nothing is raised.

A regular expression sees whole values: one that backtracks without end, such as `(a+)+$`, can be made to run for hours
by whoever sends requests. Cutting values would not do: the kernel's filter, which takes all that is taken here, does
not cut them. So regular expressions are trusted as the rest of the configuration is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from agent.select.client_address import Address
from agent.select.criteria import Always, And, Cidr, Criteria, Field, Geo, Head, Match, Network, Not
from replay.exchange import Request
from replay.http1 import ABSOLUTE, header_values, target_path

Decide = Callable[[Request, Address | None], bool]  # the client as `client_of` gives it; None: it is not known
Locate = Callable[[Address], frozenset[str]]  # the `code`s of Geo that an address has; asked once for each test reached
_Read = Callable[[Request], Sequence[str]]  # the values of a field, as latin-1

_BLANK = " \t"


def compile_criteria(criteria: Criteria, locate: Locate | None) -> Decide:
    """The function that decides. Without `locate` no client is anywhere: set-up must refuse criteria with Geo then."""
    if isinstance(criteria, Head):
        return _head(criteria)
    if isinstance(criteria, Geo):
        return _geo(criteria.code, locate) if locate is not None else _never
    if isinstance(criteria, Cidr):
        return _cidr(criteria.network)
    if isinstance(criteria, Always):
        return _always
    if isinstance(criteria, Not):
        return _not(compile_criteria(criteria.child, locate))
    tests = tuple(compile_criteria(child, locate) for child in criteria.children)
    return _and(tests) if isinstance(criteria, And) else _or(tests)


def _always(request: Request, client: Address | None) -> bool:
    return True


def _never(request: Request, client: Address | None) -> bool:
    return False


def _not(test: Decide) -> Decide:
    return lambda request, client: not test(request, client)


def _and(tests: tuple[Decide, ...]) -> Decide:
    def decide(request: Request, client: Address | None) -> bool:
        for test in tests:  # noqa: SIM110, all() costs a generator for each request
            if not test(request, client):
                return False
        return True

    return decide


def _or(tests: tuple[Decide, ...]) -> Decide:
    def decide(request: Request, client: Address | None) -> bool:
        for test in tests:  # noqa: SIM110, see above
            if test(request, client):
                return True
        return False

    return decide


def _geo(code: str, locate: Locate) -> Decide:
    return lambda request, client: client is not None and code in locate(client)


def _cidr(network: Network) -> Decide:
    """Numbers compare much faster than the objects of `ipaddress`."""
    version, mask, wanted = network.version, int(network.netmask), int(network.network_address)
    return lambda request, client: client is not None and client.version == version and int(client) & mask == wanted


def _head(test: Head) -> Decide:
    read, wanted = _reader(test), test.value
    if test.match is Match.PRESENT:
        return lambda request, client: bool(read(request))
    if test.match is Match.EQUAL:
        return lambda request, client: wanted in read(request)
    if test.match is Match.GLOB:
        return _any(read, _glob(wanted))
    search = re.compile(wanted, re.IGNORECASE if test.field is Field.HOST else 0).search
    return _any(read, search)


def _any(read: _Read, fits: Callable[[str], object]) -> Decide:
    def decide(request: Request, client: Address | None) -> bool:
        for value in read(request):  # noqa: SIM110, see above
            if fits(value):
                return True
        return False

    return decide


def _glob(pattern: str) -> Callable[[str], bool]:
    """Each part at its first place behind the one before: no worse than the length of the value times that of the
    pattern, which a regular expression with several `.*` is not."""
    first, star, rest = pattern.partition("*")
    if not star:
        return pattern.__eq__
    *middle, last = rest.split("*")
    shortest = len(first) + len(last)

    def fits(value: str) -> bool:
        if len(value) < shortest or not value.startswith(first) or not value.endswith(last):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:
            at = value.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    return fits


def _reader(test: Head) -> _Read:
    name = test.name
    if test.field is Field.HEADER:
        key = name.encode("latin-1")
        return lambda request: [value.decode("latin-1") for value in header_values(request.head, key)]
    if test.field is Field.COOKIE:
        return lambda request: cookies(request.head, name)
    if test.field is Field.QUERY:
        return lambda request: parameters(request.target, name)
    if test.field is Field.PATH:
        return lambda request: (target_path(request.target),)
    if test.field is Field.HOST:
        return lambda request: hosts(request)
    return lambda request: (request.method,)


def cookies(head: bytes, name: str) -> list[str]:
    """Values of a cookie in all Cookie headers, without the double quotes around them. What has no "=" is no cookie
    (RFC 6265 section 5.2)."""
    found = []
    for header in header_values(head, b"cookie"):
        for pair in header.decode("latin-1").split(";"):
            key, equals, value = pair.partition("=")
            if equals and key.strip(_BLANK) == name:
                found.append(_unquoted(value.strip(_BLANK)))
    return found


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def parameters(target: str, name: str) -> list[str]:
    """Values of a parameter behind "?", "" where it has no "="; not decoded."""
    at = target.find("?")
    if at < 0:
        return []
    query = target[at + 1 :].partition("#")[0]
    return [value for key, _, value in (pair.partition("=") for pair in query.split("&")) if key == name]


def hosts(request: Request) -> list[str]:
    """The authority of an absolute target, else the Host headers (of several, each); in lower case, without port. A
    user's name in front of "@" stays."""
    absolute = None if request.target.startswith("/") else ABSOLUTE.match(request.target)
    if absolute is not None:
        return [_host(absolute[1].encode("latin-1"))]
    return [_host(value) for value in header_values(request.head, b"host")]


def _host(authority: bytes) -> str:
    """Bytes have only the letters A to Z in lower case, as names in DNS do; strings would turn others too."""
    text = authority.lower().decode("latin-1")
    if not text.startswith("["):
        return text.partition(":")[0]
    return text[: text.find("]") + 1] or text
