"""From a test on the head to a nondeterministic automaton over its bytes; `agent.select.automaton` makes it a table.

Whatever `agent.select.exact` takes is accepted: where a detail is left out, more is accepted, never less. Values may
have blanks around them, lines are not unfolded (the kernel takes every head with folded lines), and parts of regular
expressions that look around, count far or refer back stand for more than they say (`Nfa.loose` names them). A regular
expression is parsed by Python's own parser, and which bytes a character class has is found by asking `re` about each.
"""

from __future__ import annotations

from collections.abc import Iterable
from re import IGNORECASE, _compiler, _parser  # type: ignore[attr-defined]  # one dialect: that of the exact test
from typing import Any

from agent.select.criteria import Field, Head, Match

STATES_LIMIT = 4096  # of an Nfa
TEXT_LIMIT_CHARS = 256  # of a value; what is behind is not looked at
REPEAT_LIMIT = 64  # a repeat that counts further has no upper bound

ALL = (1 << 256) - 1  # a set of bytes: bit b stands for byte b


def some(chars: bytes) -> int:
    """The set of these bytes."""
    return sum(1 << byte for byte in set(chars))


LF, CR, SPACE, COLON = some(b"\n"), some(b"\r"), some(b" "), some(b":")
LINE = ALL ^ LF
GAP = some(b" \t")
BLANK = GAP | CR
DIGIT = some(b"0123456789")
TOKEN = some(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 9110 section 5.6.2


class TooLargeError(Exception):
    """More than STATES_LIMIT states."""


class Nfa:
    """States are numbers from 0 on. A step takes one byte of a set, a jump none. `outputs` are the bits of the mask
    that are given when a state is reached."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[int, int]]] = []  # of each state: set of bytes, state
        self.jumps: list[list[int]] = []
        self.outputs: list[int] = []
        self.loose: dict[str, None] = {}  # what of a regular expression was left out, for people; in order

    def state(self, loop: int = 0, outputs: int = 0) -> int:
        """A new state, which stays on the bytes of `loop`."""
        number = len(self.steps)
        if number == STATES_LIMIT:
            raise TooLargeError
        self.steps.append([(loop, number)] if loop else [])
        self.jumps.append([])
        self.outputs.append(outputs)
        return number

    def step(self, source: int, over: int, target: int | None = None) -> int:
        """Its target: a new state unless given."""
        if target is None:
            target = self.state()
        if over:
            self.steps[source].append((over, target))
        return target

    def jump(self, source: int, target: int) -> None:
        self.jumps[source].append(target)

    def skip(self, source: int, over: int = 0) -> int:
        """A new state behind any number of bytes of a set."""
        state = self.state(over)
        self.jump(source, state)
        return state

    def text(self, source: int, text: str, *, any_case: bool = False) -> int:
        """The state behind a text. `any_case`: of the letters A to Z; as elsewhere in heads, others have no case."""
        for char in text:
            over = 1 << ord(char) if char <= "\xff" else 0
            if any_case and char.isascii():
                over |= some((char.lower() + char.upper()).encode())
            source = self.step(source, over)
        return source

    def closure(self, sources: Iterable[int]) -> set[int]:
        """The states with all that jumps lead to."""
        return reachable(sources, self.jumps)


def reachable(sources: Iterable[int], ways: list[list[int]]) -> set[int]:
    """The sources and all states behind them; `ways` lists the states next to each."""
    found = set(sources)
    todo = list(found)
    while todo:
        for target in ways[todo.pop()]:
            if target not in found:
                found.add(target)
                todo.append(target)
    return found


def backwards(ways: list[list[int]]) -> list[list[int]]:
    """The same ways from their other ends."""
    back: list[list[int]] = [[] for _ in ways]
    for source, targets in enumerate(ways):
        for target in targets:
            back[target].append(source)
    return back


def _with(ways: list[list[int]], more: Iterable[tuple[int, int]]) -> list[list[int]]:
    joined = list(map(list, ways))
    for source, target in more:
        joined[source].append(target)
    return joined


class _Regex:
    """States of one regular expression. Where it asserts the begin or the end of the value, it is cut in two states;
    `search` joins them where a value begins and ends."""

    def __init__(self, nfa: Nfa, allowed: int, lowered: bool) -> None:
        self._nfa = nfa
        self._allowed = allowed  # no value has other bytes
        self._lowered = lowered  # the exact test sees values in lower case
        self._begins: list[tuple[int, int]] = []
        self._ends: list[tuple[int, int]] = []
        self._classes: dict[tuple[str, int], int] = {}

    def search(self, pattern: str, tail: int, accept: int) -> int:
        """The state where a value begins; `tail` is where one has ended."""
        nfa = self._nfa
        parsed = _parser.parse(pattern, IGNORECASE if self._lowered else 0)
        entry = nfa.state()
        start = nfa.skip(nfa.skip(entry, self._allowed))
        found = self._sequence(parsed, parsed.state.flags, start)
        nfa.jump(found, accept)
        at_begin, at_end = _with(nfa.jumps, self._begins), _with(nfa.jumps, self._ends)
        for state in reachable([start], at_begin):
            nfa.jump(entry, state)
        matched = reachable([accept], backwards(at_end))
        for source, target in self._ends:
            if target in matched:
                nfa.jump(source, tail)
        if accept in reachable([start], _with(at_begin, self._ends)):  # a value of nothing begins where it ends
            nfa.jump(entry, tail)
        return entry

    def _sequence(self, items: Any, flags: int, at: int) -> int:
        for operator, argument in items:
            at = self._item(str(operator), argument, flags, at)
        return at

    def _item(self, operator: str, argument: Any, flags: int, at: int) -> int:
        match operator:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._nfa.step(at, self._class(operator, argument, flags))
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most, inner = argument
                return self._repeat(int(least), int(most), inner, flags, at)
            case "SUBPATTERN":
                _, added, dropped, inner = argument
                kept = flags & ~_parser.TYPE_FLAGS if added & _parser.TYPE_FLAGS else flags
                return self._sequence(inner, (kept | added) & ~dropped, at)
            case "ATOMIC_GROUP":  # it forgets ways to match, but adds none
                return self._sequence(argument, flags, at)
            case "BRANCH":
                return self._branch(argument[1], flags, at)
            case "GROUPREF_EXISTS":
                return self._branch([argument[1], argument[2] or []], flags, at)
            case "AT":
                return self._anchor(str(argument), at)
            case "ASSERT" | "ASSERT_NOT":
                self._nfa.loose["looks ahead or behind"] = None
                return at
            case "FAILURE":
                return self._nfa.state()
        self._nfa.loose["refers to a group"] = None
        return self._nfa.skip(at, self._allowed)

    def _class(self, operator: str, argument: Any, flags: int) -> int:
        key = repr((operator, argument)), flags
        if key not in self._classes:
            state = _parser.State()
            state.flags = flags
            item = getattr(_compiler, operator), argument
            one = _compiler.compile(_parser.SubPattern(state, [item])).fullmatch
            seen = (bytes(range(256)).lower() if self._lowered else bytes(range(256))).decode("latin-1")
            self._classes[key] = sum(1 << byte for byte, char in enumerate(seen) if one(char)) & self._allowed
        return self._classes[key]

    def _branch(self, ways: Iterable[Any], flags: int, at: int) -> int:
        end = self._nfa.state()
        for way in ways:
            self._nfa.jump(self._sequence(way, flags, at), end)
        return end

    def _repeat(self, least: int, most: int, inner: Any, flags: int, at: int) -> int:
        nfa = self._nfa
        if REPEAT_LIMIT < most < _parser.MAXREPEAT or least > REPEAT_LIMIT:
            nfa.loose[f"counts above {REPEAT_LIMIT}"] = None
            least, most = min(least, REPEAT_LIMIT), _parser.MAXREPEAT
        for _ in range(least):  # with a new state even for what is empty, so that Nfa's limit holds
            at = self._sequence(inner, flags, nfa.skip(at))
        end = nfa.skip(at)
        if most == _parser.MAXREPEAT:
            nfa.jump(self._sequence(inner, flags, end), end)
            return end
        for _ in range(most - least):
            at = self._sequence(inner, flags, nfa.skip(at))
            nfa.jump(at, end)
        return end

    def _anchor(self, kind: str, at: int) -> int:
        if "BOUNDARY" in kind:
            self._nfa.loose["looks at the bounds of words"] = None
            return at
        state = self._nfa.state()
        (self._ends if kind.startswith("AT_END") else self._begins).append((at, state))
        return state


def add_value(nfa: Nfa, head: Head, allowed: int, tail: int, accept: int) -> int:
    """The state where a value begins that the test is for: it leads to `accept` as soon as nothing more matters, or to
    `tail`, where the value must have ended. `allowed`: what values are made of."""
    host = head.field is Field.HOST
    if head.match is Match.REGEX:
        return _Regex(nfa, allowed, host).search(head.value, tail, accept)
    entry = at = nfa.state()
    if head.match is Match.PRESENT:
        nfa.jump(at, accept)
        return entry
    if len(head.value) > TEXT_LIMIT_CHARS:
        nfa.loose[f"is longer than {TEXT_LIMIT_CHARS} characters"] = None
    parts = head.value[:TEXT_LIMIT_CHARS].split("*") if head.match is Match.GLOB else [head.value[:TEXT_LIMIT_CHARS]]
    for part in parts[:-1]:
        at = nfa.skip(nfa.text(at, part, any_case=host), allowed)
    at = nfa.text(at, parts[-1], any_case=host)
    nfa.jump(at, accept if len(head.value) > TEXT_LIMIT_CHARS or (len(parts) > 1 and not parts[-1]) else tail)
    return entry
