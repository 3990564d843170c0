"""Criteria: which requests a shadow takes, as a tree of tests. `agent.select.language` reads the text that users write.

A tree is plain data: workers get it as JSON (`as_json`, `from_json`), need no parser. `agent.select.exact` decides on
a request with it, exactly; `agent.select.automaton` and `agent.select.prefixes` make the kernel's generous part of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Field(StrEnum):
    """What of a request's head is looked at."""

    METHOD = "method"  # as on the request line
    HOST = "host"  # the Host header (of an absolute target: its authority), in lower case, without port
    PATH = "path"  # the target up to "?" or "#", without scheme and authority; not decoded
    QUERY = "query"  # a parameter behind "?", by name; not decoded
    HEADER = "header"  # a header, by name in lower case; of a repeated one, any
    COOKIE = "cookie"  # a cookie, by name


class Match(StrEnum):
    """How a value is compared."""

    PRESENT = "present"  # it is there, whatever it is
    EQUAL = "equal"
    GLOB = "glob"  # the whole value; * stands for any characters
    REGEX = "regex"  # Python's re.search


@dataclass(frozen=True, slots=True)
class Head:
    """A test on the request's head."""

    field: Field
    name: str  # of the header (in lower case), the cookie, the parameter; "" for the other fields
    match: Match
    value: str = ""  # of a host: in lower case, unless a regular expression (that one ignores case)


@dataclass(frozen=True, slots=True)
class Geo:
    """The client's address is in a country ("US") or continent ("continent:EU")."""

    code: str


@dataclass(frozen=True, slots=True)
class Cidr:
    """The client's address is in a network."""

    network: Network


@dataclass(frozen=True, slots=True)
class Always:
    """Every request; the percentage alone decides. Written `random`."""


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    child: Criteria


@dataclass(frozen=True, slots=True)
class And:
    """All of them."""

    children: tuple[Criteria, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of them."""

    children: tuple[Criteria, ...]


Criteria = Head | Geo | Cidr | Always | Not | And | Or


def leaves(criteria: Criteria) -> Iterator[Head | Geo | Cidr | Always]:
    """The tests of a tree, from left to right."""
    if isinstance(criteria, Not):
        yield from leaves(criteria.child)
    elif isinstance(criteria, And | Or):
        for child in criteria.children:
            yield from leaves(child)
    else:
        yield criteria


def as_json(criteria: Criteria) -> Any:
    """Nested lists, the kind of the node first; `from_json` reads them back."""
    if isinstance(criteria, Head):
        return ["head", criteria.field, criteria.name, criteria.match, criteria.value]
    if isinstance(criteria, Geo):
        return ["geo", criteria.code]
    if isinstance(criteria, Cidr):
        return ["cidr", str(criteria.network)]
    if isinstance(criteria, Always):
        return ["always"]
    if isinstance(criteria, Not):
        return ["not", as_json(criteria.child)]
    return ["and" if isinstance(criteria, And) else "or", *map(as_json, criteria.children)]


def from_json(data: Any) -> Criteria:
    """Inverse of `as_json`."""
    kind, *rest = data
    if kind == "head":
        field, name, match, value = rest
        return Head(Field(field), name, Match(match), value)
    if kind == "geo":
        return Geo(rest[0])
    if kind == "cidr":
        return Cidr(ipaddress.ip_network(rest[0]))
    if kind == "always":
        return Always()
    if kind == "not":
        return Not(from_json(rest[0]))
    children = tuple(map(from_json, rest))
    return And(children) if kind == "and" else Or(children)


def read_criteria(text: str) -> Criteria:
    """ValueError says what is wrong, and where."""
    if text.strip().lower() == "random":
        return Always()  # the language costs 10 MB of memory: only where it is needed
    from agent.select.language import CriteriaError, parse

    try:
        return parse(text)
    except CriteriaError as error:
        raise ValueError(f"{error}, at column {error.column}") from None
