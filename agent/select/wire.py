"""Where on the wire the parts of a request lie that tests are for, as states of an automaton (`agent.select.nfa`).

Lines end with LF, with or without CR before it. They are not unfolded: the kernel takes every head with folded ones.
"""

from __future__ import annotations

from agent.select.criteria import Field, Head, Match
from agent.select.nfa import (
    ALL,
    BLANK,
    COLON,
    CR,
    DIGIT,
    GAP,
    LF,
    LINE,
    SPACE,
    TOKEN,
    Nfa,
    add_value,
    backwards,
    reachable,
    some,
)

_LETTER = some(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_SCHEME = _LETTER | DIGIT | some(b"+.-")
_TARGET_ENDS = some(b"?#") | SPACE
VERSION = [some(pair) for pair in (b"Hh", b"Tt", b"Tt", b"Pp", b"/", b"1", b".", b"0123456789")]
VERSION_END = some(b"\r ")


class Wire:
    """The parts of a request on the wire that tests are for, as states of an Nfa that begins at the method."""

    def __init__(self, nfa: Nfa) -> None:
        self.nfa = nfa
        self.start = nfa.state()
        self.line = nfa.state()  # where a line begins, but the first
        nfa.step(nfa.skip(self.start, ALL), LF, self.line)
        self.target = nfa.state(SPACE)
        nfa.step(nfa.step(self.start, TOKEN, nfa.state(TOKEN)), SPACE, self.target)

    def header(self, name: str) -> int:
        """The state behind the colon of a header."""
        return self.nfa.step(self.nfa.skip(self.nfa.text(self.line, name, any_case=True), GAP), COLON)

    def add(self, head: Head, output: int) -> None:
        """Give `output`, before the blank line at the end of the head, if the test may be true."""
        nfa, accept = self.nfa, self.nfa.state(outputs=output)
        if head.field is Field.HEADER:
            tail = nfa.state(BLANK)
            nfa.step(tail, LF, accept)
            name = self._line(head.name, accept)
            self._begin(name, add_value(nfa, head, LINE & ~CR, tail, accept), ALL & ~BLANK, tail, accept)
        elif head.field is Field.COOKIE:
            self._add_cookie(head, accept)
        elif head.field is Field.QUERY:
            self._add_query(head, accept)
        elif head.match is Match.PRESENT:  # of the others, each request has one
            nfa.step(self.start, ALL, accept)
        elif head.field is Field.METHOD:
            self._add_method(head, accept)
        elif head.field is Field.PATH:
            self._add_path(head, accept)
        else:
            self._add_host(head, accept)
        if head.field in (Field.PATH, Field.QUERY, Field.HOST):
            self._add_odd_target(accept)

    def _add_method(self, head: Head, accept: int) -> None:
        nfa, tail = self.nfa, self.nfa.state()
        nfa.step(tail, SPACE, accept)
        entry = add_value(nfa, head, TOKEN, tail, accept)
        nfa.jump(self.start, entry)
        if accept in nfa.closure([entry]):  # nothing is given for the start itself
            nfa.step(self.start, ALL, accept)

    def _add_path(self, head: Head, accept: int) -> None:
        nfa, tail = self.nfa, self.nfa.state()
        nfa.step(tail, _TARGET_ENDS, accept)
        entry = add_value(nfa, head, LINE & ~_TARGET_ENDS, tail, accept)
        nfa.jump(self.target, entry)
        behind = nfa.skip(self._authority(), LINE & ~_TARGET_ENDS & ~some(b"/"))
        self._begin(behind, entry, some(b"/"), None, accept)
        slash = nfa.closure([entry])
        slash = nfa.closure(to for state in slash for over, to in nfa.steps[state] if over & some(b"/")) | slash
        if accept in slash or tail in slash:  # the path of http://name is "/"
            nfa.jump(behind, tail)

    def _add_query(self, head: Head, accept: int) -> None:
        nfa, tail, ends = self.nfa, self.nfa.state(), some(b"&#") | SPACE
        nfa.step(tail, ends, accept)
        query = nfa.step(nfa.skip(self.target, LINE & ~some(b"?")), some(b"?"))
        nfa.step(nfa.skip(query, LINE & ~some(b"#") & ~SPACE), some(b"&"), query)
        name, entry = nfa.text(query, head.name), add_value(nfa, head, LINE & ~ends, tail, accept)
        nfa.step(name, some(b"="), entry)
        if nfa.closure([entry]) & {tail, accept}:  # without "=", the value is ""
            nfa.jump(name, tail)

    def _add_cookie(self, head: Head, accept: int) -> None:
        nfa, quote = self.nfa, some(b'"')
        tail = nfa.state(BLANK | quote)
        nfa.step(tail, LF | some(b";"), accept)
        cookie = self._line("cookie", accept)
        nfa.step(nfa.skip(cookie, LINE), some(b";"), cookie)
        name = nfa.skip(nfa.text(nfa.skip(cookie, GAP), head.name), GAP)
        value = nfa.skip(nfa.step(name, some(b"=")), GAP | quote)
        self._begin(value, add_value(nfa, head, LINE & ~CR & ~some(b";"), tail, accept), ALL & ~BLANK, tail, accept)

    def _add_host(self, head: Head, accept: int) -> None:
        nfa = self.nfa
        target_ends = some(b"/") | _TARGET_ENDS
        for begin, allowed, ends, blank in (
            (self._authority(), LINE & ~target_ends, target_ends, 0),
            (self._line("host", accept), LINE & ~CR, LF, BLANK),
        ):
            tail = nfa.state(blank)
            nfa.step(tail, ends | COLON, accept)
            entry = add_value(nfa, head, allowed & ~COLON, tail, accept)
            self._begin(begin, entry, ALL & ~blank, tail, accept)
            whole = nfa.state(blank)
            nfa.step(whole, ends, accept)
            self._begin(begin, self._bracketed(head, allowed, whole, accept), some(b"["), None, accept)

    def _bracketed(self, head: Head, allowed: int, tail: int, accept: int) -> int:
        """Where a host such as [2001:db8::1] begins: its end is the bracket, or `tail`; its colons belong to it."""
        nfa, bracket = self.nfa, some(b"]")
        made = len(nfa.steps)
        entry = add_value(nfa, head, allowed, tail, accept)
        ended = reachable([tail, accept], backwards(nfa.jumps))
        for steps in nfa.steps[made:]:
            if any(over & bracket and target in ended for over, target in steps):
                steps.append((bracket, accept))
        return entry

    def _authority(self) -> int:
        """The state behind the "://" of an absolute target."""
        scheme = self.nfa.step(self.target, _LETTER, self.nfa.state(_SCHEME))
        return self.nfa.text(scheme, "://")

    def _line(self, name: str, accept: int) -> int:
        """The state behind the colon of a header and the blanks there. As no more than a line's end can be told from a
        CR in time, a value's bytes are without: any line with a CR elsewhere is accepted."""
        nfa, colon = self.nfa, self.header(name)
        nfa.step(nfa.step(nfa.skip(colon, LINE & ~CR), CR, nfa.state(BLANK)), LINE & ~BLANK, accept)
        return nfa.skip(colon, GAP)

    def _begin(self, at: int, entry: int, over: int, tail: int | None, accept: int) -> None:
        """Jump from `at` to `entry` if the value begins with one of these bytes, or is empty (not without `tail`)."""
        nfa = self.nfa
        closure, first = nfa.closure([entry]), nfa.skip(at)
        if accept in closure:
            nfa.jump(at, accept)
        if tail is not None and tail in closure:
            nfa.jump(at, tail)
        for state in closure:
            for whole, target in nfa.steps[state]:
                nfa.step(first, whole & over, target)

    def _add_odd_target(self, accept: int) -> None:
        """Accept any target with a space in it. Whether what follows a space is the version is known too late for
        tests: they end values of the target at the first space."""
        nfa, before = self.nfa, LINE & ~SPACE
        at = nfa.step(nfa.step(self.target, before, nfa.state(before)), SPACE, nfa.state(SPACE))
        for expected in VERSION:
            nfa.step(at, before & ~expected, accept)
            at = nfa.step(at, expected)
        nfa.step(nfa.skip(at, VERSION_END), LINE & ~VERSION_END, accept)
