"""nginx's words: quotes, escapes, comments and Lua as nginx and Lua read them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.balancer.derive.nginx_words import decode, lua_end, without_parentheses, words_of
from replay.errors import UpstreamError


def words(text: str) -> list[tuple[str, ...]]:
    return list(words_of(text, "f"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen 80;", [("listen", "80", ";")]),
        ("a{b;}", [("a", "{"), ("b", ";"), ("}",)]),
        ("a 'b c' \"d;{}\";", [("a", "b c", "d;{}", ";")]),
        (r"""a "\"\'\\\d" '\'\n';""", [("a", "\"'\\\\d", "'\n", ";")]),
        (r"a b\ c \;d \t\\;", [("a", r"b\ c", r"\;d", "\t\\", ";")]),
        ("a ${b}c d${e};", [("a", "${b}c", "d${e}", ";")]),
        ("a b}c;", [("a", "b}c", ";")]),
        ("a b#c #d;\n e;", [("a", "b#c", "e", ";")]),
        ("a '#b' \"\";", [("a", "#b", "", ";")]),
        ("a b\"c d'e;", [("a", 'b"c', "d'e", ";")]),
        ("a b\u00a0c;", [("a", "b\u00a0c", ";")]),
        ('if ($a = "b") {}', [("if", "($a", "=", "b", ")", "{"), ("}",)]),
        ("a\r\n\tb;", [("a", "b", ";")]),
        ("# only this", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[tuple[str, ...]]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [('a "b', "f:1"), ("a b", "f:1"), ("a;\n'b'c;", "f:2"), ("a 'b\nc", "f:1"), ("a;\nb \\", "f:2"), ("a $", "f:1")],
)
def test_what_nginx_does_not_read_is_refused(text: str, place: str) -> None:
    with pytest.raises(UpstreamError, match=f"^{place}: nginx "):
        words(text)


@pytest.mark.parametrize(
    "code",
    [
        "",
        ' return "}" ',
        " return '{\\'{' ",
        " t = {{}, {}} ",
        " -- don't }\n x = 1 ",
        " --[[ } ]] x = 1 ",
        " --[==[ } ]] ' ]==] x = 1 ",
        " s = [[ } ]] .. [=[ ]] { ]=] ",
        ' s = "\\\\" ',
        " a = b[c[1]] - -1 ",
    ],
)
def test_lua_ends_where_lua_says(code: str) -> None:
    assert lua_end(code + "} after }") == len(code)
    for end in range(len(code)):
        assert lua_end(code[:end]) == -1
    assert words(f"content_by_lua_block {{{code}}} b;") == [("content_by_lua_block", code, ";"), ("b", ";")]


def test_lua_with_a_variable() -> None:
    assert words("set_by_lua_block $x { return 1 }") == [("set_by_lua_block", "$x", " return 1 ", ";")]


@pytest.mark.parametrize("text", ["content_by_lua_block { return ", "content_by_lua_block x { }"])
def test_bad_lua_is_refused(text: str) -> None:
    with pytest.raises(UpstreamError, match="Lua block"):
        words(text)


def test_conditions_have_no_parentheses() -> None:
    spaced = [("if", "(", "$a", ")", "{"), ("if", "($a", ")", "{"), ("if", "(", "$a)", "{"), ("if", "($a)", "{")]
    assert {without_parentheses(each) for each in spaced} == {("if", "$a", "{")}
    assert without_parentheses(("if", "1", ";")) == ("if", "1", ";")
    assert without_parentheses(("location", "(a)", "{")) == ("location", "(a)", "{")


def quote(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.lists(st.text(), min_size=1), max_size=5))
def test_quoted_words_come_back(statements: list[list[str]]) -> None:
    text = "".join(" ".join(quote(word) for word in ["x", *each]) + ";" for each in statements)
    assert words(text) == [("x", *each, ";") for each in statements]


@given(st.text(alphabet="ab \t\n\\\"'{};#$()}"))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UpstreamError):
        assert all(each[-1] in ("{", "}", ";") for each in words(text))


@given(st.text(alphabet="\\\"'tnrx"))
def test_decoding_goes_from_left_to_right(text: str) -> None:
    out, rest = "", text
    while rest:
        if rest[0] == "\\" and rest[1:2] and rest[1] in "\"'\\tnr":
            out, rest = out + {"t": "\t", "n": "\n", "r": "\r"}.get(rest[1], rest[1]), rest[2:]
        else:
            out, rest = out + rest[0], rest[1:]
    assert decode(text) == out
