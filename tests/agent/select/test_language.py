"""The language of criteria: every form, precedence, what is wrong and where, and texts of trees."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.select.criteria import (
    Always,
    And,
    Cidr,
    Criteria,
    Field,
    Geo,
    Head,
    Match,
    Not,
    Or,
    as_json,
    from_json,
)
from agent.select.language import (
    DEPTH_LIMIT,
    LEAF_LIMIT,
    REGEX_LIMIT_CHARS,
    REGEX_LIMIT_PARENTHESES,
    TEXT_LIMIT_CHARS,
    CriteriaError,
    parse,
    write,
)
from tests.agent.select.trees import criteria

A, B, C = (Head(Field.HEADER, name, Match.PRESENT) for name in "abc")


def header(match: Match, value: str, name: str = "x-a") -> Head:
    return Head(Field.HEADER, name, match, value)


def cidr(text: str) -> Cidr:
    return Cidr(ipaddress.ip_network(text))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("geo:US", Geo("US")),
        ("GEO:us", Geo("US")),
        ('geo:"de"', Geo("DE")),
        ("geo:NA", Geo("NA")),  # Namibia
        ("geo:eu", Geo("continent:EU")),
        ("geo:OC", Geo("continent:OC")),
        ("geo:Europe", Geo("continent:EU")),
        ("geo:asia", Geo("continent:AS")),
        ("geo:africa", Geo("continent:AF")),
        ("geo:north-america", Geo("continent:NA")),
        ("geo:south-america", Geo("continent:SA")),
        ("geo:oceania", Geo("continent:OC")),
        ("geo:antarctica", Geo("continent:AN")),
        ("cidr:10.0.0.0/8", cidr("10.0.0.0/8")),
        ("cidr:192.0.2.1", cidr("192.0.2.1/32")),
        ("CIDR:2001:db8::/32", cidr("2001:db8::/32")),
        ("cidr:::1", cidr("::1/128")),
        ("header:NAME", Head(Field.HEADER, "name", Match.PRESENT)),
        ("HEADER:X-Shadow-Test", Head(Field.HEADER, "x-shadow-test", Match.PRESENT)),
        ("header:X-A=b", header(Match.EQUAL, "b")),
        ("header:X-A=B=c", header(Match.EQUAL, "B=c")),
        ('header:X-A=""', header(Match.EQUAL, "")),
        ('header:X-A="a b"', header(Match.EQUAL, "a b")),
        ('header:"X-A"="a b"', header(Match.EQUAL, "a b")),
        ('header:X-A="~b"', header(Match.EQUAL, "~b")),
        (r'header:X-A="a \"b\" \\ \d"', header(Match.EQUAL, r'a "b" \ \d')),
        (r"header:X-A=\\", header(Match.EQUAL, r"\\")),
        ("header:X-A=b*", header(Match.GLOB, "b*")),
        ('header:X-A="b *"', header(Match.GLOB, "b *")),
        ("header:X-A=~^a", header(Match.REGEX, "^a")),
        ("header:X-A=~~a*", header(Match.REGEX, "~a*")),
        (r'header:X-A=~"\d (a|\")"', header(Match.REGEX, r'\d (a|")')),
        ("header:X-A=\xe9", header(Match.EQUAL, "\xe9")),
        ("cookie:Theme", Head(Field.COOKIE, "Theme", Match.PRESENT)),
        ("cookie:theme=dark", Head(Field.COOKIE, "theme", Match.EQUAL, "dark")),
        ("query:or", Head(Field.QUERY, "or", Match.PRESENT)),
        ("query:q[]=and", Head(Field.QUERY, "q[]", Match.EQUAL, "and")),
        ('query:"a b"=~not', Head(Field.QUERY, "a b", Match.REGEX, "not")),
        ("user-agent:curl/8.5.0", header(Match.EQUAL, "curl/8.5.0", "user-agent")),
        ('User-Agent:"curl/*"', header(Match.GLOB, "curl/*", "user-agent")),
        ('user-agent:~"Chrome/(1[2-9]|2)"', header(Match.REGEX, "Chrome/(1[2-9]|2)", "user-agent")),
        ("method:GET", Head(Field.METHOD, "", Match.EQUAL, "GET")),
        ("method:~^P", Head(Field.METHOD, "", Match.REGEX, "^P")),
        ("host:Shop.Example", Head(Field.HOST, "", Match.EQUAL, "shop.example")),
        ("host:*.Example", Head(Field.HOST, "", Match.GLOB, "*.example")),
        ("host:~A", Head(Field.HOST, "", Match.REGEX, "A")),
        ("host:[2001:DB8::1]", Head(Field.HOST, "", Match.EQUAL, "[2001:db8::1]")),
        ("path:/api/*", Head(Field.PATH, "", Match.GLOB, "/api/*")),
        ("path:/A%20b", Head(Field.PATH, "", Match.EQUAL, "/A%20b")),
        ("RANDOM", Always()),
        ("random", Always()),
    ],
)
def test_each_form(text: str, tree: Criteria) -> None:
    assert parse(text) == tree
    assert parse(f" \t\n{text}\r\n") == parse(f"({text})") == parse(f"(( {text} ))") == tree
    assert parse(write(tree)) == tree
    assert parse(f"NOT({text})and {text} OR random") == Or((And((Not(tree), tree)), Always()))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("header:a and header:b or header:c", Or((And((A, B)), C))),
        ("header:a or header:b and header:c", Or((A, And((B, C))))),
        ("header:a and (header:b or header:c)", And((A, Or((B, C))))),
        ("not header:a and header:b", And((Not(A), B))),
        ("not (header:a and header:b)", Not(And((A, B)))),
        ("not NOT header:a", Not(Not(A))),
        ("header:a AND header:b And header:c", And((A, B, C))),
        ("header:a and (header:b and header:c)", And((A, And((B, C))))),
        ("(header:a or header:b) or header:c", Or((Or((A, B)), C))),
        ("(header:a)or(header:b)and not(header:c)", Or((A, And((B, Not(C)))))),
        ("header:a\n  or header:b", Or((A, B))),
    ],
)
def test_precedence(text: str, tree: Criteria) -> None:
    assert parse(text) == tree
    assert parse(write(tree)) == tree


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", 1, "no criteria: write random"),
        (" \n", 1, "no criteria: write random"),
        ("geo", 1, "write geo:US"),
        ("geo:", 5, "write geo:US"),
        ("geo: US", 6, "write geo:US"),
        ("geo:~US", 5, "write geo:US"),
        ("header", 1, "write header:X-Name or header:X-Name=value"),
        ("random or HEADER:", 18, "write header:X-Name or header:X-Name=value"),
        ("header:=a", 8, "write header:X-Name"),
        ("header:X-A=", 12, "behind '='"),
        ("header:X-A= a", 13, "behind '='"),
        ("header:X-A =a", 12, "without space around"),
        ("header:X-A=~", 13, "behind '~'"),
        ("foo:bar", 1, "unknown predicate 'foo'"),
        ("random and country:US", 12, "geo, cidr, header, cookie, query, user-agent, method, host, path, random"),
        ("randomly", 1, "unknown predicate 'randomly'"),
        ("random:5", 1, "write random"),
        ("android", 1, "unknown predicate 'android'"),
        ('"a"', 1, "unknown predicate"),
        ("geo:US geo:DE", 8, "'and' or 'or' is missing"),
        ("geo:US and", 11, "missing at the end"),
        ("geo:US  not ", 9, "'and' or 'or' is missing"),
        ("not", 4, "missing at the end"),
        ("and geo:US", 1, "in front of 'and'"),
        ("geo:US or or geo:DE", 11, "in front of 'or'"),
        ("()", 2, "in front of ')'"),
        ("(geo:US", 8, "')' is missing"),
        ("geo:US)", 7, "no '('"),
        ("path:~^/(a|b)", 9, "in double quotes"),
        ('path:/a"b"', 8, "in double quotes"),
        ('random and path:"/a', 17, "never closed"),
        ('path:~"a\\"', 7, "never closed"),
        ("geo:UK", 5, "'UK'"),
        ("geo:AN", 5, "antarctica"),  # the Netherlands Antilles are no country any more
        ("geo:USA", 5, "two letters"),
        ("cidr:10.0.0.1/8", 6, "write 10.0.0.0/8"),
        ("cidr:2001:db8::1/32", 6, "write 2001:db8::/32"),
        ("cidr:10.0.0.0/33", 6, "is no network"),
        ("cidr:10", 6, "is no network"),
        ("cidr:fe80::1%eth0", 6, "zone"),
        ("cidr:::ffff:10.0.0.0/104", 6, "as IPv4"),
        ("header:X_\xe9", 8, "cannot be a header's name"),
        ("cookie:a,b=c", 8, "cannot be a cookie's name"),
        ("query:a&b", 7, "cannot be a parameter's name"),
        ('query:""', 7, "cannot be a parameter's name"),
        ("host:a.example:80", 6, "no port"),
        ("host:http://a", 6, "scheme"),
        ("host:2001:db8::1", 6, "host:[2001:db8::1]"),
        ("path:/a?b=c", 6, "query:name=value"),
        ("header:X-A=\u65e5", 12, "no head has the character '\u65e5'"),
        ("header:X-A=~[a", 13, "unterminated character set"),
        ('geo:US or user-agent:~"(a"', 23, "missing ), unterminated subpattern"),
        ("path:~a{99999999999}", 7, "too large"),
        ("path:~[[a]", 7, "nested set"),
        ('path:~"(?\n"', 7, r"\n"),
    ],
)
def test_what_is_wrong_and_where(text: str, column: int, says: str) -> None:
    with pytest.raises(CriteriaError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert caught.value.column == column
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        ("random".ljust(TEXT_LIMIT_CHARS), "random".ljust(TEXT_LIMIT_CHARS + 1), "characters"),
        (" or ".join(["random"] * LEAF_LIMIT), " or ".join(["random"] * (LEAF_LIMIT + 1)), "tests"),
        ("not " * (DEPTH_LIMIT - 1) + "random", "not " * DEPTH_LIMIT + "random", "deep"),
        ("path:~" + "a" * REGEX_LIMIT_CHARS, "path:~" + "a" * (REGEX_LIMIT_CHARS + 1), "characters"),
        (
            'path:~"' + "(" * REGEX_LIMIT_PARENTHESES + ")" * REGEX_LIMIT_PARENTHESES + '"',
            'path:~"' + "(" * (REGEX_LIMIT_PARENTHESES + 1) + ")" * (REGEX_LIMIT_PARENTHESES + 1) + '"',
            "parentheses",
        ),
    ],
)
def test_limits(good: str, bad: str, says: str) -> None:
    parse(good)
    with pytest.raises(CriteriaError, match=says):
        parse(bad)


def test_parentheses_alone_make_nothing_deep() -> None:
    assert parse("(" * 2000 + "random" + ")" * 2000) == Always()


@pytest.mark.parametrize(
    "text", ["(" * TEXT_LIMIT_CHARS, "not " * 1000, "not(" * 1000, '"' * 4000, "random and " * 300]
)
def test_much_of_the_same_is_an_error_like_others(text: str) -> None:
    with pytest.raises(CriteriaError):
        parse(text)


PIECES = [
    "geo:", "US", "europe", "cidr:", "10.0.0.0/8", "::", "header:", "X-A", "=", "~", "cookie:", "query:", "path:",
    "host:", "method:", "user-agent:", "random", " ", " and ", " or ", " not ", "(", ")", '"', "\\", "*", "a", "[",
    "]", "?", "{9}", "\n", "\xa0", "\u0130", "\ud800", "\x00", "(?", "a" * 600, "{4294967296}", "(?<", "(?P=",
    "\\N{", "\\u", "(?L)", "(?a)(?u)",
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@example('path:~"(?L)a"')
@example('path:~"(?au)a"')
@example('path:~"(?<=a+)"')
def test_any_text_is_criteria_or_an_error_of_ours(text: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = parse(text)
    except CriteriaError as error:
        assert 1 <= error.column <= len(text) + 1
        assert str(error).isprintable()
        assert str(error)
    else:
        assert parse(write(tree)) == tree
        assert write(parse(write(tree))) == write(tree)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_any_regular_expression_is_taken_or_refused(pattern: str) -> None:
    escaped = pattern.replace("\\", "\\\\").replace('"', '\\"')
    try:
        tree = parse(f'path:~"{escaped}"')
    except CriteriaError as error:
        assert error.column == 7
    else:
        assert tree == Head(Field.PATH, "", Match.REGEX, pattern)


@settings(max_examples=300, deadline=None)
@given(criteria(max_leaves=16))
def test_what_is_written_is_read_back(tree: Criteria) -> None:
    assert parse(write(tree)) == tree
    assert from_json(as_json(tree)) == tree


def test_writing_is_canonical() -> None:
    text = 'NOT(Geo:us OR geo:EU)AND (HEADER:User-Agent="curl/*" and cookie:"a"="b c")'
    assert write(parse(text)) == 'not (geo:US or geo:europe) and (user-agent:curl/* and cookie:a="b c")'
    assert write(parse('header:user-agent or query:q=~"a" or cidr:10.0.0.1')) == (
        "header:user-agent or query:q=~a or cidr:10.0.0.1/32"
    )


def test_only_parsing_needs_lark() -> None:
    code = "import sys, agent.select.language as l; assert 'lark' not in sys.modules; l.parse('geo:US')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'lark' in sys.modules"], check=True)
