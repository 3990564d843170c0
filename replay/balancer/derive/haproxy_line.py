"""Lines of an HAProxy configuration taken apart into words, and put together again with some of them changed.

A word knows where it stands, so that whatever is not replaced stays byte for byte: spacing, quotes, comments, the end
of the line. The rules are those of HAProxy 2.6's `parse_line`, which differ from a shell's: a backslash escapes only
some characters, variables count only within double quotes, and a carriage return ends a line wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPACES = " \t\n\v\f\r"  # isspace() in the C locale
ENDS = "\r\n\0"
_ESCAPED = {" ": " ", "\\": "\\", "t": "\t", "n": "\n", "r": "\r", "#": "#", "'": "'", '"': '"'}
_HEX = re.compile(r"[0-9A-Fa-f]{2}")
_NAME = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_]*|\.")


class LineError(Exception):
    """HAProxy would not read this line either. Says why."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a line: where it stands, and what it says without quotes, with variables filled in."""

    start: int
    end: int
    value: str
    unset: str = ""  # a variable in it that is not known, taken as empty
    several: bool = False  # holds "${NAME[*]}", which may stand for any number of words


def split_line(line: str, environment: Mapping[str, str]) -> tuple[Word, ...]:
    """The words of one line, without its comment. LineError for what HAProxy refuses to read."""
    words = []
    at = 0
    while at < len(line) and line[at] in SPACES:
        at += 1  # here alone a carriage return is a space
    while at < len(line) and line[at] not in ENDS and line[at] != "#":
        reader = _Reader(line, at, environment)
        reader.read()
        words.append(Word(at, reader.at, "".join(reader.value), reader.unset, reader.several))
        at = reader.at
        while at < len(line) and line[at] in SPACES and line[at] not in ENDS:
            at += 1
    return tuple(words)


def rewrite(line: str, words: Sequence[Word], changed: Mapping[int, str | None], added: Sequence[str] = ()) -> str:
    """The line with some words changed, or taken off together with the space before them (None), and others added
    after the last. The first word stays."""
    parts = []
    at = 0
    for index, word in enumerate(words):
        if index in changed:
            text = changed[index]
            gap = line[at : word.start] if text is not None else ""
            parts += [gap, text or ""]
        else:
            parts.append(line[at : word.end])
        at = word.end
    return "".join(parts) + "".join(f" {word}" for word in added) + line[at:]


def is_plain(text: str) -> bool:
    """Whether it is one word as it stands, without quotes."""
    return bool(text) and not any(char in SPACES or char in "\"'\\#\0" for char in text)


class _Reader:
    """Reads one word, from its first character up to the space, comment or end behind it."""

    def __init__(self, line: str, at: int, environment: Mapping[str, str]) -> None:
        self.line = line
        self.at = at
        self.value: list[str] = []
        self.unset = ""
        self.several = False
        self._environment = environment

    def read(self) -> None:
        quote = ""
        while self.at < len(self.line) and self.line[self.at] not in ENDS:
            char = self.line[self.at]
            if not quote and (char in SPACES or char == "#"):
                break
            if char in ("'", '"') and quote in ("", char):
                quote = "" if quote else char
                self.at += 1
            elif char == "\\" and quote != "'":
                self._escape(quote)
            elif char == "$" and quote == '"':
                self._variable()
            else:
                self.value.append(char)
                self.at += 1
        if quote:
            raise LineError(f"the quote {quote} is not closed")

    def _escape(self, quote: str) -> None:
        """A backslash that escapes nothing stands for itself: "\\1" keeps both of its characters."""
        following = self.line[self.at + 1 : self.at + 2]
        if following == "x":
            digits = _HEX.match(self.line, self.at + 2)
            if digits is None:
                raise LineError("\\x takes two hexadecimal digits")
            self.value.append(chr(int(digits[0], 16)))
            self.at += 4
        elif following in _ESCAPED:
            self.value.append(_ESCAPED[following])
            self.at += 2
        elif following == "$" and quote:
            self.value.append("$")
            self.at += 2
        else:
            self.value.append("\\")
            self.at += 1

    def _variable(self) -> None:
        braces = self.line.startswith("{", self.at + 1)
        name = _NAME.match(self.line, self.at + 1 + braces)
        if name is None:
            raise LineError("a variable is written $NAME or ${NAME}, and a dollar sign within double quotes \\$")
        self.at = name.end()
        value = self._environment.get(name[0])
        if braces:
            if self.line.startswith("[", self.at):
                if not self.line.startswith("[*]", self.at):
                    raise LineError("a list of values is written ${NAME[*]}")
                self.several = True
                self.at += 3
            value = self._default(value)
        if value is None:
            self.unset = name[0]
        self.value.append(value or "")

    def _default(self, value: str | None) -> str | None:
        if self.line.startswith("-", self.at):
            end = self.line.find("}", self.at)
            value = self.line[self.at + 1 : end] if value is None else value
            self.at = max(end, self.at)
        if not self.line.startswith("}", self.at):
            raise LineError("the brace of a variable is not closed")
        self.at += 1
        return value
