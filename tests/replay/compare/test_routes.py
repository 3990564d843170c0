"""Route templates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.compare import routes
from replay.compare.routes import PATH_LIMIT_CHARS, TABLE_LIMIT, Routes, template


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "/"),
        ("/users/4711", "/users/{id}"),
        ("/users/4711/", "/users/{id}/"),
        ("/users/4711?page=2&q=/a/b", "/users/{id}"),
        ("/users/me", "/users/me"),
        ("/orders/0b2f9a44-5b1c-4f0e-9a53-8a6e1f1c2d3e/items", "/orders/{id}/items"),
        ("/days/2024-05-06", "/days/{id}"),
        ("/order-4711", "/order-{id}"),
        ("/blobs/3f2a9c1b77", "/blobs/{id}"),
        ("/deadbeef", "/deadbeef"),  # a word: no digit in it
        ("/static/app.3f2a9c1b.js", "/static/app.{id}.js"),
        ("/img/1234.png", "/img/{id}.png"),
        ("/t/dGhpcyBpcyBhIHRva2VuMTIz", "/t/{id}"),
        ("/annual-report-of-the-company", "/annual-report-of-the-company"),
        ("/internationalization", "/internationalization"),
        ("/api/v2/items", "/api/v2/items"),
        ("/a//b", "/a//b"),
        ("http://shop.example/users/1?x", "/users/{id}"),
        ("https://shop.example", "/"),
        ("shop.example:443", "(authority)"),
        ("*", "*"),
        ("", ""),
        ("/a#b", "/a"),
        ("/" + "a/" * 30, "/" + "a/" * 12 + "..."),
    ],
)
def test_template(target: str, expected: str) -> None:
    assert template(target) == expected


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_any_target_has_a_short_template(target: str) -> None:
    assert len(template(target)) <= PATH_LIMIT_CHARS + 3
    assert template("/a?" + target) == "/a"


@settings(max_examples=100)
@given(st.integers(min_value=0), st.uuids())
def test_identifiers_never_make_routes(number: int, uuid: object) -> None:
    assert template(f"/x/{number}/{uuid}/y") == "/x/{id}/{id}/y"


def test_numbers_are_stable_and_bounded() -> None:
    table = Routes()
    assert table.number("GET", "/a") == table.number("GET", "/a?b") == 1
    assert table.number("POST", "/a") == 2
    assert table.number(None, "/a") == table.number("GET", None) == 0
    for n in range(TABLE_LIMIT + 10):
        table.number("GET", "/" + "".join(chr(97 + n // 26**i % 26) for i in range(4)))
    assert len(table.names) == TABLE_LIMIT
    assert table.number("GET", "/one/more") == 0
    assert table.number("GET", "/a") == 1


def test_names_cannot_control_the_terminal() -> None:
    table = Routes()
    table.number("GET", "/\x1b[31mred\x9b\u202e")
    assert table.names[1] == "GET /?[31mred??"


def test_a_hostile_path_costs_little() -> None:
    for target in ("/" + "1-" * 1000, "/" + "a1B" * 680, "/" + "." * 2000, "/" + "0" * 2000 + "x"):
        routes.template.cache_clear()
        assert len(template(target)) <= PATH_LIMIT_CHARS + 3
