"""Strategies for criteria, requests and clients from small shared alphabets, so that criteria often fit.

`criteria()` makes trees as `agent.select.language.parse` does, `requests()` heads in all the ways that servers take:
repeated and folded headers, bare LF, white space around colons, absolute targets, names in any case.
"""

from __future__ import annotations

import ipaddress
import re

from hypothesis import strategies as st

from agent.select.criteria import Always, And, Cidr, Criteria, Field, Geo, Head, Match, Not, Or, leaves
from replay.exchange import Request
from replay.http1 import request_line

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Draw = st.DrawFn

METHODS = ("GET", "HEAD", "POST", "PURGE", "get")
HEADERS = ("x-a", "x-ab", "user-agent", "x-shadow-test", "cookie", "host")
VALUES = (
    "a",
    "b",
    "ab",
    "a b",
    "aab ba",
    "yes",
    "",
    "curl/8.5.0",
    "Mozilla/5.0 (X11) Chrome/126.0",
    '"q"',
    "~x",
    "\xe9t\xe9",
)
COOKIES = ("id", "ID", "theme", "i")
COOKIE_VALUES = ("1", "a", "ab", "a b", "dark", "x=y", "", "\xe9")
PARAMETERS = ("id", "q", "q[]", "%71", "a b")
PARAMETER_VALUES = ("1", "a", "ab", "a+b", "x=y", "", "%61")
HOSTS = ("a", "a.example", "b.a.example", "example", "[::1]", "[2001:db8::1]", "")
PATHS = ("/", "/a", "/a/b", "/ab", "//a/b", "/a%20b", "*", "/api/v1/items")
REGEXES = (
    "^a", "b$", "^$", "a.?b", "[a-c]+", "[^a]", r"\d", r"\ba", "a|b", "(?i)CHROME", "x{2,3}|y", r"\s", "(a)\\1", "a*?b",
    "", ".", "(?=a)ab", r"\xe9", r"^[\w.]+\Z", "(?:ab?)+$", r"^/a(/|\Z)", "Example", "(?m)^b",
)  # fmt: skip
CODES = {
    "192.0.2.1": frozenset({"US", "continent:NA"}),
    "10.1.2.3": frozenset({"DE", "continent:EU"}),
    "2001:db8::1": frozenset({"DE", "continent:EU"}),
}
NETWORKS = ("10.0.0.0/8", "10.1.2.3/32", "192.0.2.0/25", "0.0.0.0/0", "2001:db8::/32", "::/0", "2001:db8::1/128")

clients = st.none() | st.sampled_from([*CODES, "10.200.0.1", "2001:db8:1::1"]).map(ipaddress.ip_address)


def locate(address: Address) -> frozenset[str]:
    """A geographic database of three addresses."""
    return CODES.get(str(address), frozenset())


def criteria(max_leaves: int = 8) -> st.SearchStrategy[Criteria]:
    """Trees that a text stands for: And and Or have two children or more, values are such as their fields can have."""

    def larger(child: st.SearchStrategy[Criteria]) -> st.SearchStrategy[Criteria]:
        children = st.lists(child, min_size=2, max_size=4).map(tuple)
        return st.builds(Not, child) | st.builds(And, children) | st.builds(Or, children)

    places = st.sampled_from([Geo(code) for code in ("US", "DE", "NA", "continent:EU", "continent:NA", "continent:OC")])
    networks = st.sampled_from([Cidr(ipaddress.ip_network(network)) for network in NETWORKS])
    others: st.SearchStrategy[Criteria] = places | networks | st.just(Always())
    return st.recursive(heads() | heads() | others, larger, max_leaves=max_leaves)


def heads() -> st.SearchStrategy[Head]:
    """Single tests on a request's head."""
    return st.one_of(
        _head(Field.HEADER, HEADERS, (*VALUES, *HOSTS)),
        _head(Field.COOKIE, COOKIES, COOKIE_VALUES),
        _head(Field.QUERY, PARAMETERS, PARAMETER_VALUES),
        _head(Field.METHOD, (), METHODS),
        _head(Field.HOST, (), HOSTS),
        _head(Field.PATH, (), PATHS),
    )


@st.composite
def _head(draw: Draw, field: Field, names: tuple[str, ...], values: tuple[str, ...]) -> Head:
    name = draw(st.sampled_from(names)) if names else ""
    match = draw(st.sampled_from([*Match] if names else [Match.EQUAL, Match.GLOB, Match.REGEX]))
    value = draw(st.sampled_from(values))
    start, end = sorted((draw(st.integers(0, len(value))), draw(st.integers(0, len(value)))))
    if match is Match.PRESENT:
        return Head(field, name, match)
    if match is Match.EQUAL and "*" not in value:
        return Head(field, name, match, value)
    if match is Match.REGEX:
        part = re.escape(value[start:end])
        own = st.sampled_from([part, f"^{part}", rf"{part}\Z", f"[{part}x]+" if part else "x?"])
        return Head(field, name, match, draw(st.sampled_from(REGEXES) | own))
    if field is Field.HOST and "[" in value:
        start, end = 1, len(value) - 1  # brackets come in pairs
    glob = value[:start] + draw(st.sampled_from(["*", "**", "*a*"])) + value[end:]
    return Head(field, name, Match.GLOB, glob)


def cases(max_leaves: int = 8) -> st.SearchStrategy[tuple[Criteria, Request]]:
    """Criteria, and a request that is likely to have what they ask for."""
    return criteria(max_leaves).flatmap(lambda tree: st.tuples(st.just(tree), requests(tree)))


@st.composite
def requests(draw: Draw, wanted: Criteria | None = None) -> Request:
    """Requests without a body, parsed from the head that they carry. Half of what is in them is what `wanted` asks."""
    hints = [] if wanted is None else [leaf for leaf in leaves(wanted) if isinstance(leaf, Head)]
    method = _pair(draw, hints, Field.METHOD, (), METHODS)[1] or "GET"
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0"]))
    lines = [f"{method} {_target(draw, hints)} {version}"]
    lines += [_field(draw, hints) for _ in range(draw(st.integers(0, 6)))]
    ends = st.sampled_from(["\r\n", "\r\n", "\n"])
    head = "".join(text + draw(ends) for text in (*lines, "")).encode("latin-1")
    parsed = request_line(head)
    assert parsed is not None, head
    return Request(*parsed, head, b"", 0, None, 0, 0)


def _pair(
    draw: Draw, hints: list[Head], field: Field, names: tuple[str, ...], values: tuple[str, ...]
) -> tuple[str, str]:
    """Name and value of a field, every other time as one of the hints has them."""
    own = [hint for hint in hints if hint.field is field]
    hint = draw(st.sampled_from(own)) if len(own) > 0 and draw(st.booleans()) else None
    name = hint.name if hint is not None else draw(st.sampled_from(names or ("",)))
    if hint is None or hint.match in (Match.PRESENT, Match.REGEX):
        return name, draw(st.sampled_from(values))
    return name, hint.value.replace("*", draw(st.sampled_from(["", "a", "ba"])))


def _target(draw: Draw, hints: list[Head]) -> str:
    """A target in origin-form or absolute-form."""
    path = _pair(draw, hints, Field.PATH, (), PATHS)[1] or "/"
    if draw(st.integers(0, 3)) == 0:
        scheme = draw(st.sampled_from(["http://", "https://", "HTTP://", "x+y://", "1http://"]))
        path = scheme + _host(draw, hints) + (path if path.startswith("/") and draw(st.booleans()) else "")
    pairs = []
    for _ in range(draw(st.integers(0, 3))):
        name, value = _pair(draw, hints, Field.QUERY, PARAMETERS, PARAMETER_VALUES)
        pairs.append(draw(st.sampled_from([f"{name}={value}"] * 3 + [name, ""])))
    query = "?" + "&".join(pairs) if len(pairs) > 0 or draw(st.booleans()) else ""
    ends = st.sampled_from(["", "", "", "#", "#?q=1", "?id=1", "&id"])
    return (path + query + draw(ends)).replace(" ", "+")


def _field(draw: Draw, hints: list[Head]) -> str:
    """A header as it is written, without its last line end."""
    name, value = _pair(draw, hints, Field.HEADER, (*HEADERS, *HEADERS, "x-a-b", "ax-a", "accept"), VALUES)
    special = [hint.field.value for hint in hints if hint.field in (Field.COOKIE, Field.HOST)]
    if len(special) > 0 and draw(st.booleans()):
        name = draw(st.sampled_from(special))
    if name == "cookie":
        value = _cookies(draw, hints)
    elif name == "host":
        value = _host(draw, hints)
    folds = st.sampled_from([" ", " ", " ", "\r\n ", "\n\t", "\r\n  \t "])
    value = "".join(draw(folds) if c == " " else c for c in value)
    spaces = st.sampled_from(["", " ", " ", "\t", "  "])
    before = draw(st.sampled_from(["", "", "", " ", "\t"]))
    after = draw(spaces | st.just("\r\n "))
    return f"{_any_case(draw, name)}{before}:{after}{value}{draw(spaces)}"


def _cookies(draw: Draw, hints: list[Head]) -> str:
    pairs = []
    for _ in range(draw(st.integers(0, 3))):
        name, value = _pair(draw, hints, Field.COOKIE, COOKIES, COOKIE_VALUES)
        form = draw(st.sampled_from(["{}={}", "{}={}", '{}="{}"', "{} = {}", "{}", ' {}={}"']))
        pairs.append(form.format(name, value))
    return draw(st.sampled_from(["; ", "; ", ";", " ;\t"])).join(pairs)


def _host(draw: Draw, hints: list[Head]) -> str:
    host = _pair(draw, hints, Field.HOST, (), HOSTS)[1]
    return _any_case(draw, host) + draw(st.sampled_from(["", "", ":80", ":"]))


def _any_case(draw: Draw, text: str) -> str:
    return draw(st.sampled_from([text, text, text.upper(), text.title()]))
