"""Exact decisions: every field and every way of comparing, odd heads, and a second reading of heads to agree with."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.select.client_address import Address
from agent.select.criteria import Always, And, Cidr, Criteria, Field, Geo, Head, Match, Not, Or
from agent.select.exact import compile_criteria, cookies, hosts, parameters
from agent.select.language import parse
from replay.exchange import Request
from replay.http1 import target_path
from tests.agent.select.trees import cases, clients, criteria, locate
from tests.replay.examples import make_request

US = ipaddress.ip_address("192.0.2.1")  # see trees.CODES


def fits(text: str, request: Request, client: Address | None = None) -> bool:
    return compile_criteria(parse(text), locate)(request, client)


HEADERS = (
    b"hOsT : Shop.Example:8080\r\nX-A: a  \r\nx-a:\tab\nX-Fold: one\r\n\t two\nX-Empty:\r\nX-Long: x-missing: yes\r\n"
    b'Cookie: id=1; theme="dark" ;x= a=b;lonely; Id=2\r\nX-Accent: \xe9t\xe9\r\ncookie:id=3\r\nUser-Agent: curl/8.5.0\n'
)
REQUEST = make_request("/api/v1?id=5&q=&flag&id=6&a=b=c&e=%41#x&y=1", "GET", headers=HEADERS)


@pytest.mark.parametrize(
    "text",
    [
        "header:x-a",
        "header:X-A=a",
        "header:x-a=ab",  # any of them
        'header:x-fold="one two"',
        "header:x-empty",
        'header:x-empty=""',
        "header:x-empty=*",
        "header:x-a=~b$",
        "header:x-accent=\xe9t\xe9",
        r"header:x-accent=~^\wt",
        "header:host=Shop.Example:8080",
        "user-agent:curl/8.5.0",
        "user-agent:curl/*",
        "user-agent:*8*5*",
        "user-agent:**0",
        "cookie:id",
        "cookie:id=1",
        "cookie:id=3",  # from the second header
        "cookie:Id=2",
        "cookie:theme=dark",
        "cookie:x=a=b",
        "query:id=5",
        "query:id=6",
        'query:q=""',
        "query:flag",
        'query:flag=""',
        "query:a=b=c",
        "query:e=%41",
        "path:/api/v1",
        "path:/api/*",
        "path:~v1$",
        "method:GET",
        "method:~^G",
        "host:shop.example",
        "host:*.EXAMPLE",
        "host:~^SHOP[.]",
        "geo:US",
        "geo:north-america",
        "cidr:192.0.2.0/24",
        "cidr:192.0.2.1",
        "random",
        "header:x-missing or geo:US",
        "header:x-a and not header:x-missing",
    ],
)
def test_what_fits(text: str) -> None:
    assert fits(text, REQUEST, US)
    assert not fits(f"not ({text})", REQUEST, US)


@pytest.mark.parametrize(
    "text",
    [
        "header:x-missing",
        "header:x",
        "header:x-a=A",
        "header:x-a=b",
        'header:x-a="a, ab"',
        "header:x-a=b*",
        "header:x-a=~^b",
        "user-agent:curl",
        "user-agent:curl/8.5.0*0",  # the parts may not overlap
        "user-agent:*8*8*",
        "user-agent:c?rl/8.5.0",
        "cookie:theme=da",
        "cookie:ID",
        "cookie:lonely",  # no "=": no cookie
        "cookie:i",
        "query:y",  # behind "#"
        "query:e=A",  # not decoded
        "query:q=x",
        "path:/api",
        "path:/API/*",
        "method:get",
        "host:shop.example.com",
        "host:~8080",
        "geo:DE",
        "geo:europe",
        "cidr:192.0.2.2",
        "cidr:::/0",
        "not random",
        "header:x-missing and random",
    ],
)
def test_what_does_not_fit(text: str) -> None:
    assert not fits(text, REQUEST, US)
    assert fits(f"not ({text})", REQUEST, US)


@pytest.mark.parametrize("text", ["geo:US", "cidr:0.0.0.0/0", "cidr:::/0"])
def test_a_client_that_is_not_known_is_nowhere(text: str) -> None:
    assert not fits(text, REQUEST, None)


def test_without_a_database_clients_are_in_no_country() -> None:
    assert not compile_criteria(Geo("US"), None)(REQUEST, US)


def test_the_database_is_asked_only_when_needed() -> None:
    asked = []

    def noting(address: Address) -> frozenset[str]:
        asked.append(address)
        return frozenset()

    decide = compile_criteria(parse("header:x-missing and geo:US or method:GET or geo:DE"), noting)
    assert decide(REQUEST, US)
    assert asked == []
    assert not decide(make_request(method="PUT"), US)
    assert asked == [US]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "/"),
        ("/a?b", "/a"),
        ("/a#b?c", "/a"),
        ("//a/b", "//a/b"),
        ("http://h", "/"),
        ("HTTP://h:80?q", "/"),
        ("https://h/a//b?q=http://x/y", "/a//b"),
        ("/http://h/a", "/http://h/a"),
        ("1http://h/a", "1http://h/a"),
        ("*", "*"),
        ("h:443", "h:443"),
    ],
)
def test_path(target: str, expected: str) -> None:
    assert target_path(target) == expected


@pytest.mark.parametrize(
    ("target", "headers", "expected"),
    [
        ("/", b"Host: A.example:80\r\n", ["a.example"]),
        ("/", b"Host: [2001:DB8::1]:80\r\n", ["[2001:db8::1]"]),
        ("/", b"Host: [::1]\r\n", ["[::1]"]),
        ("/", b"Host: [::1\r\n", ["[::1"]),
        ("/", b"Host:\r\n", [""]),
        ("/", b"Host: \xc0\r\n", ["\xc0"]),  # no other letters than those of ASCII have a case
        ("/", b"", []),
        ("/", b"Host: a\r\nHost: b\r\n", ["a", "b"]),
        ("http://A:80/", b"Host: b\r\n", ["a"]),
        ("http://a?h", b"Host: b\r\n", ["a"]),
        ("http://u@a/", b"Host: b\r\n", ["u@a"]),
        ("http:///", b"Host: b\r\n", [""]),
        ("a:443", b"Host: b\r\n", ["b"]),
    ],
)
def test_host(target: str, headers: bytes, expected: list[str]) -> None:
    assert hosts(make_request(target, headers=headers)) == expected


def test_cookies_and_parameters_one_by_one() -> None:
    assert cookies(REQUEST.head, "id") == ["1", "3"]
    assert cookies(b'G / \r\nCookie: a="; a=" ; a="";a=;=a\r\n\r\n', "a") == ['"', '"', "", ""]
    assert parameters("/?a&b=1&a=&&a==?#a=2", "a") == ["", "", "=?"]
    assert parameters("/a", "a") == []


def test_nothing_decides_slowly_on_long_values() -> None:
    """A glob is no regular expression: with many stars, that would take years."""
    request = make_request(headers=b"X-A: " + b"a" * 60_000 + b"\r\nCookie: " + b"a=b;" * 10_000 + b"\r\n")
    assert not fits("header:x-a=" + "a*" * 200 + "b*", request)
    assert not fits("cookie:a=" + "*a" * 200, request)


@settings(max_examples=500, deadline=None)
@given(cases(), clients)
def test_decisions_are_those_of_a_second_reading(case: tuple[Criteria, Request], client: Address | None) -> None:
    tree, request = case
    assert compile_criteria(tree, locate)(request, client) == plainly(tree, request, client)


@settings(max_examples=500, deadline=None)
@given(cases(max_leaves=1))
def test_single_tests_are_those_of_a_second_reading(case: tuple[Criteria, Request]) -> None:
    tree, request = case
    assert compile_criteria(tree, None)(request, None) == plainly(tree, request, None)


@settings(max_examples=300, deadline=None)
@given(criteria(), st.binary(max_size=60), st.text(st.characters(max_codepoint=255), max_size=30), clients)
def test_no_request_raises(tree: Criteria, data: bytes, target: str, client: Address | None) -> None:
    head = b"GET / HTTP/1.1\nHost: " + data + b"\nCookie: " + data + b"\nx-a" + data
    request = Request(target[:3], target, 11, head, b"", 0, None, 0, 0)
    assert compile_criteria(tree, locate)(request, client) in (True, False)


def plainly(tree: Criteria, request: Request, client: Address | None) -> bool:
    """The same decision, written for reading only."""
    if isinstance(tree, Always):
        return True
    if isinstance(tree, Not):
        return not plainly(tree.child, request, client)
    if isinstance(tree, And):
        return all(plainly(child, request, client) for child in tree.children)
    if isinstance(tree, Or):
        return any(plainly(child, request, client) for child in tree.children)
    if isinstance(tree, Geo):
        return client is not None and tree.code in locate(client)
    if isinstance(tree, Cidr):
        return client is not None and client in tree.network
    return any(compare(tree, value) for value in values(tree, request))


def compare(test: Head, value: str) -> bool:
    if test.match is Match.PRESENT:
        return True
    if test.match is Match.EQUAL:
        return value == test.value
    if test.match is Match.GLOB:
        return re.fullmatch(".*".join(map(re.escape, test.value.split("*"))), value, re.DOTALL) is not None
    return re.search(test.value, value, re.IGNORECASE if test.field is Field.HOST else 0) is not None


def values(test: Head, request: Request) -> list[str]:
    fields = fields_of(request.head.decode("latin-1"))
    absolute = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#]*)(.*)", request.target, re.IGNORECASE)
    if test.field is Field.METHOD:
        return [request.method]
    if test.field is Field.HEADER:
        return [value for name, value in fields if name == test.name]
    if test.field is Field.HOST:
        found = [absolute[2]] if absolute else [value for name, value in fields if name == "host"]
        return [re.match(r"\[[^]]*\]|[^:]*", host)[0] for host in lowered(found)]  # type: ignore[index]
    rest = request.target if absolute is None else absolute[3] if absolute[3].startswith("/") else "/" + absolute[3]
    if test.field is Field.PATH:
        return [re.split(r"[?#]", rest)[0]]
    if test.field is Field.QUERY:
        pairs = re.split("#", rest[rest.index("?") + 1 :])[0].split("&") if "?" in rest else []
        return [pair.partition("=")[2] for pair in pairs if pair.split("=")[0] == test.name]
    parts = [part.strip(" \t") for name, value in fields if name == "cookie" for part in value.split(";")]
    split = [re.split(r"[ \t]*=[ \t]*", part, maxsplit=1) for part in parts if "=" in part]
    return [re.sub(r'\A"(.*)"\Z', r"\1", value) for name, value in split if name == test.name]


def lowered(texts: list[str]) -> list[str]:
    return [re.sub("[A-Z]", lambda match: match[0].lower(), text) for text in texts]


def fields_of(head: str) -> list[tuple[str, str]]:
    """Names in lower case and values; folds become spaces."""
    lines = re.sub(r"\r?\n[ \t]+", " ", head.rstrip("\r\n")).replace("\r\n", "\n").split("\n")[1:]
    pairs = [line.partition(":") for line in lines]
    return [(name.strip(" \t").lower(), value.strip(" \t")) for name, _, value in pairs]
