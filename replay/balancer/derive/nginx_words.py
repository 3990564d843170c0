"""nginx's own way to take a configuration apart, used to check crossplane's.

crossplane parses and writes the file, but reads some things differently than nginx: white space of Unicode, a `}` in a
word, "#" in quotes (which it writes without them), bytes that are not UTF-8, brackets in Lua. So each file is also read
here, word by word as ngx_conf_read_token() does it (src/core/ngx_conf_file.c, nginx 1.22), and so is what crossplane
writes. Both must be the words of the tree; a file that fails is refused, never run as something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from crossplane.builder import register_external_builder
from crossplane.ext.lua import LuaBlockPlugin
from crossplane.lexer import register_external_lexer

from replay.errors import UpstreamError

LUA_BLOCK = re.compile(r"\w+_by_lua_block")
LUA_BLOCKS = tuple(
    f"{phase}_by_lua_block"
    for phase in (
        *("access", "balancer", "body_filter", "content", "exit_worker", "header_filter", "init", "init_worker", "log"),
        *("precontent", "proxy_ssl_certificate", "proxy_ssl_verify", "rewrite", "server_rewrite", "set"),
        *("ssl_certificate", "ssl_client_hello", "ssl_session_fetch", "ssl_session_store"),
    )
)
SET_LUA = "set_by_lua_block"  # the only one with a word before its block

Words = tuple[
    str, ...
]  # of one statement or the head of a block, then how it ends: ";" or "{"; ("}",) for a block's end

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\n]+ | \#[^\n]*)
    | (?P<mark>[{};])
    | "(?P<double>(?:[^"\\]|\\.)*)"
    | '(?P<single>(?:[^'\\]|\\.)*)'
    | (?P<word>(?:\\.|\$\{?|[^ \t\r\n;{\\$"'}])(?:\\.|\$\{?|[^ \t\r\n;{\\$])*)
    """,
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\([\"'\\trn])")
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n"}
# Strings and comments that do not end yet reach to the end of the text: brackets in them do not count either.
_LUA = re.compile(
    r"""
      --\[(=*)\[.*?(?:\]\1\]|\Z) | --[^\n]*
    | \[(=*)\[.*?(?:\]\2\]|\Z)
    | "(?:\\.|[^"\\])*(?:"|\\?\Z) | '(?:\\.|[^'\\])*(?:'|\\?\Z)
    | (?P<bracket>[{}])
    """,
    re.DOTALL | re.VERBOSE,
)


def words_of(text: str, file: str) -> Iterator[Words]:
    """The statements of a file, their words as nginx has them, without quotes and escapes. UpstreamError where nginx
    would not go on either."""
    at = 0
    words: list[str] = []
    while match := _TOKEN.match(text, at):
        at = match.end()
        if match.lastgroup == "mark":
            yield (*words, match[0])
            words = []
        elif match.lastgroup != "space":
            words.append(decode(match[match.lastgroup or 0]))
            if match.lastgroup != "word":
                _check_quoted(text, at, file)
            if len(words) == (2 if words[0] == SET_LUA else 1) and LUA_BLOCK.fullmatch(words[0]):
                block, at = _lua_block(text, at, file)
                yield (*words, block, ";")
                words = []
    if at < len(text) or words:
        raise UpstreamError(f"{_place(file, text, at)}: nginx does not read on here: check quotes and ';'")


def decode(word: str) -> str:
    """A word without its escapes: \\" \\' \\\\ \\t \\r \\n; every other backslash stays."""
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), word) if "\\" in word else word


def without_parentheses(words: Words) -> Words:
    """The condition of an "if" as crossplane has it, "(" and ")" taken off however they were spaced."""
    if words[0] != "if" or len(words) < 3 or not (words[1].startswith("(") and words[-2].endswith(")")):
        return words
    name, *condition, end = words
    condition[0] = condition[0].removeprefix("(")
    condition[-1] = condition[-1].removesuffix(")")
    if not condition[0]:
        del condition[0]
    if condition and not condition[-1]:
        del condition[-1]
    return (name, *condition, end)


def lua_end(text: str) -> int:
    """Index of the bracket that ends the Lua block whose code this is, -1 if there is more to come."""
    depth = 1
    for match in _LUA.finditer(text):
        if match["bracket"]:
            depth += 1 if match["bracket"] == "{" else -1
            if not depth:
                return match.start()
    return -1


class LuaBlocks(LuaBlockPlugin):  # type: ignore[misc]
    """Lua blocks for crossplane: more of them than its own plugin knows, and read by Lua's rules for strings."""

    directives = dict.fromkeys(LUA_BLOCKS, ())

    def register_extension(self) -> None:
        """Take the place of crossplane's own plugin, for this whole process."""
        register_external_lexer(directives=self.directives, lexer=self.lex)
        register_external_builder(directives=self.directives, builder=self.build)

    def lex(self, char_iterator: Iterator[tuple[str, int]], directive: str) -> Iterator[tuple[str, int, bool]]:
        """Called after the directive's name; yields what crossplane makes words of. The input may come two characters
        at once, as an escape."""
        code, argument = "", ""
        for chars, line in char_iterator:
            if chars == "{":
                if argument.strip():
                    yield argument.strip(), line, False
                break
            argument += chars
        for chars, line in char_iterator:
            code += chars
            if chars == "}" and lua_end(code) == len(code) - 1:
                yield code[:-1], line, True
                yield ";", line, False
                return


def _lua_block(text: str, at: int, file: str) -> tuple[str, int]:
    start = text.find("{", at)
    if start < 0 or text[at:start].strip(" \t\r\n"):
        raise UpstreamError(f"{_place(file, text, at)}: a Lua block begins with '{{'")
    end = lua_end(text[start + 1 :])
    if end < 0:
        raise UpstreamError(f"{_place(file, text, at)}: the Lua block does not end")
    return text[start + 1 : start + 1 + end], start + 1 + end + 1


def _check_quoted(text: str, at: int, file: str) -> None:
    if at < len(text) and text[at] not in " \t\r\n;{)":
        raise UpstreamError(f"{_place(file, text, at)}: nginx wants a space after the closing quote")


def _place(file: str, text: str, at: int) -> str:
    return f"{file}:{text.count(chr(10), 0, at) + 1}"


LuaBlocks().register_extension()
