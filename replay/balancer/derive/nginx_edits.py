"""What is to be different in nginx's configuration, and both files written from it: production's and the shadow's.

A change is asked of one statement of the tree, and the tree itself stays. One walk then writes both texts and the list
of changes, so that the list is the difference and nothing else can differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from replay.balancer.derive.change import Change
from replay.balancer.derive.nginx_tree import INDENT, Statement, Tree, check_words, head, words
from replay.balancer.derive.nginx_words import Words
from replay.errors import UpstreamError


class Reason(StrEnum):
    """Why something differs; there are no others."""

    LISTEN = "private address instead of production's"
    PROXY_HEADER = "the client's address comes in a PROXY header"
    IMPLIED_LISTEN = "a private address for the one that production's server listens on without saying so"
    PARAMETER = "the private address cannot have this parameter"
    QUIC = "QUIC is not replayed"
    INSIDE = "nginx asks itself, so the shadow does too"
    REAL_IP = "the replay client's PROXY header is believed"
    CLIENT_PORT = "the address that production's client asked for, not the private one"
    NO_PORT = "redirects name no port, as on production's"
    SERVER = "shadow server instead of production's"
    RESOLVE = "the shadow server is named directly"
    HOST = "the Host header that production's server gets"
    ACCESS_LOG = "access logs are production's"
    ERROR_LOG = "errors are shown from the run directory"
    RUN_FILE = "own file in the run directory"
    FOREGROUND = "runs in the foreground, under supervision"
    CACHE = "own cache, not production's"
    TEMPORARY = "own temporary files, not production's"
    STORE = "stored files are production's"
    TWICE = "would happen twice"
    NO_TRAFFIC = "no replayed traffic goes there"
    CODE = "code that may call out"
    VIA = "names the upstream that answered"
    ABSOLUTE = "relative to production's file, which this one is not beside"


@dataclass(frozen=True, slots=True)
class Texts:
    """Production's configuration in one file, the shadow's, and what differs. The file of a change says where
    production has it, its line is counted in `source`."""

    source: str
    derived: str
    changes: tuple[Change, ...]


class Edits:
    """Changes by statement. What has been taken out stays out, whatever else is asked of it."""

    def __init__(self) -> None:
        self._now: dict[Statement, tuple[Statement, ...]] = {}
        self._reasons: dict[Statement, list[Reason]] = {}
        self._added: dict[Statement, list[tuple[Statement, Reason]]] = {}

    def now(self, statement: Statement) -> tuple[Statement, ...]:
        """What stands in its place."""
        return self._now.get(statement, (statement,))

    def replace(self, statement: Statement, after: Iterable[Statement], *reasons: Reason) -> None:
        """Let other directives take the place of one. Not for blocks, unless `after` is empty."""
        if self.now(statement):
            self._now[statement] = tuple(after)
            self._explain(statement, reasons)

    def remove(self, statement: Statement, reason: Reason) -> None:
        """Take a directive out, with its block."""
        self.replace(statement, (), reason)

    def change(self, statement: Statement, args: Iterable[str], *reasons: Reason) -> None:
        """Other arguments. A block keeps what is in it, and may still be changed there."""
        fresh = Statement(statement.name, tuple(args), statement.block, statement.file, statement.line)
        if fresh.args != statement.args or statement in self._now:
            self.replace(statement, (fresh,), *reasons)

    def add(self, block: Statement, name: str, *args: str, reason: Reason) -> None:
        """Put a directive at the beginning of a block, after what was put there before."""
        self._added.setdefault(block, []).append((Statement(name, args), reason))

    def added(self, block: Statement) -> list[tuple[Statement, Reason]]:
        """What is put at the beginning of a block, in order."""
        return self._added.get(block, [])

    def reasons(self, statement: Statement) -> list[Reason]:
        """Why it is not what it was; empty if it is."""
        return self._reasons.get(statement, [])

    def _explain(self, statement: Statement, reasons: Iterable[Reason]) -> None:
        known = self._reasons.setdefault(statement, [])
        known += [reason for reason in reasons if reason not in known]


def write(tree: Tree, edits: Edits) -> Texts:
    """Both texts. UpstreamError where crossplane does not write what nginx would have to read."""
    writer = _Writer(edits)
    writer.block(tree.root, 0)
    source, derived = writer.source.text(), writer.derived.text()
    check_words(writer.source.words, source, _file(tree.root))
    check_words(writer.derived.words, derived, _file(tree.root))
    return Texts(source, derived, tuple(writer.changes))


class _Side:
    """One of the two texts, as it grows."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.words: list[tuple[Words, str]] = []

    def put(self, text: str, statement: Statement) -> None:
        self.lines += text.split("\n")
        self.words.append((words(statement), statement.place))

    def end(self, depth: int, place: str) -> None:
        self.lines.append(f"{INDENT * depth}}}")
        self.words.append((("}",), place))

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


class _Writer:
    def __init__(self, edits: Edits) -> None:
        self._edits = edits
        self.source = _Side()
        self.derived = _Side()
        self.changes: list[Change] = []

    def block(self, parent: Statement, depth: int) -> None:
        """What is in a block whose head is written, first of all what is added there."""
        line = len(self.source.lines)
        for reason, group in itertools.groupby(self._edits.added(parent), key=lambda pair: pair[1]):
            start = len(self.derived.lines)
            for added, _ in group:
                self.derived.put(INDENT * depth + head(added), added)
            self.changes.append(Change(_file(parent), line, None, "\n".join(self.derived.lines[start:]), reason))
        for each in parent.block or ():
            self._statement(each, depth)

    def _statement(self, statement: Statement, depth: int) -> None:
        margin = INDENT * depth
        line = len(self.source.lines) + 1
        before = margin + head(statement)
        versions = self._edits.now(statement)
        if statement.block is not None and not versions:
            self._put_old(statement, depth)
            before = "\n".join(self.source.lines[line - 1 :])
        else:
            self.source.put(before, statement)
        texts = [margin + head(each) for each in versions]
        for text, version in zip(texts, versions, strict=True):
            self.derived.put(text, version)
        if texts != [before]:
            after = "\n".join(texts) if texts else None
            why = "; ".join(self._edits.reasons(statement))
            if not why:
                raise UpstreamError(f"{statement.place}: changed without a reason: please report this")
            self.changes.append(Change(_file(statement), line, before, after, why))
        if statement.block is not None and versions:
            self.block(statement, depth + 1)
            self.source.end(depth, statement.place)
            self.derived.end(depth, statement.place)

    def _put_old(self, statement: Statement, depth: int) -> None:
        """A whole block that only production has."""
        self.source.put(INDENT * depth + head(statement), statement)
        for each in statement.block or ():
            self._put_old(each, depth + 1)
        if statement.block is not None:
            self.source.end(depth, statement.place)


def _file(statement: Statement) -> str:
    """Where production says it, and that the line which follows is counted with all files in one."""
    return f"{statement.place}, in one file" if statement.line else f"{statement.file}, in one file"
