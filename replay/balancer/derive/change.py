"""What differs between production's configuration and the shadow's, and the check that nothing else does.

Lines are counted from 1 and end at LF alone. A change is about whole lines: what the check compares is the text between
two ends of lines, a carriage return included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

HEADER = "X-Shadowtap-Upstream"


@dataclass(frozen=True, slots=True)
class Change:
    """One place where the derived text differs from the source.

    `before` and `after` are whole lines without the end of the last one; several lines, where one statement takes
    several, are joined by LF.
    """

    file: str
    line: int  # in the source, the first one of `before`; an added line names the line it stands after, 0 for none
    before: str | None  # None: added
    after: str | None  # None: taken out
    reason: str  # one short clause for a person; more than one are joined by "; "


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that production listens on, and where the shadow balancer listens instead."""

    production: str  # as written, "*:443"; of a list or a range of ports the one part
    host: str  # as written; "*" for every way to write all addresses, the path for a Unix socket
    port: int  # 0 for a Unix socket
    private_host: str
    private_port: int
    tls: bool  # expects TLS
    frontend: str  # the proxy's name
    http: bool  # HTTP mode


@dataclass(frozen=True, slots=True)
class Server:
    """One server of production, and the shadow that stands in for it."""

    name: str  # "backend/server"
    production: str  # address as in the source
    shadow: str  # "host:port", "[address]:port" or "unix:/path" that it has now


@dataclass(frozen=True, slots=True)
class Derived:
    """The shadow's configuration, and everything that a person or the replay client must know of it."""

    text: str
    changes: tuple[Change, ...]  # in the order of the source
    listeners: tuple[Listener, ...]
    servers: tuple[Server, ...]
    notes: tuple[str, ...]  # for a person: what was disabled, what may differ all the same


@dataclass(frozen=True, slots=True)
class DeriveOptions:
    """What can be asked of a derivation."""

    run_directory: str  # of the shadow balancer: its own sockets, pid file and state
    header: str = HEADER  # response header that names the upstream; the replay client takes it off again
    keep: frozenset[str] = frozenset()  # what stays although it may act twice: "lua", "spoe", "peers", "log"
    environment: Mapping[str, str] = field(default_factory=dict)  # what variables in the file stand for
    allow_unmapped: bool = False  # servers without an entry in the mapping keep production's address


def render_changes(changes: Iterable[Change]) -> list[str]:
    """Lines to print: of each change its place and reason, then what was there and what is there now."""
    lines = []
    for change in changes:
        lines.append(f"{change.file}:{change.line}  {change.reason}")
        lines += [f"- {_printable(line)}" for line in _split(change.before)]
        lines += [f"+ {_printable(line)}" for line in _split(change.after)]
    return lines


def unexplained(source_lines: Sequence[str], derived_lines: Sequence[str], changes: Iterable[Change]) -> list[str]:
    """Lines of a diff that no change accounts for, empty if the changes tell the whole difference.

    The changes are those of this one file. They are carried out on the source, so that a change in the wrong place, or
    one whose `before` is not what stands there, shows as well.
    """
    expected = list(_carry_out(source_lines, changes))
    if expected == list(derived_lines):
        return []
    return [line for line in difflib.ndiff(expected, derived_lines) if line[:2] in ("- ", "+ ")]


def _carry_out(source: Sequence[str], changes: Iterable[Change]) -> Iterator[str]:
    added: dict[int, list[str]] = {}
    replaced: dict[int, Change] = {}
    for change in changes:
        if change.before is None:
            added.setdefault(change.line, []).extend(_split(change.after))
        elif list(source[max(change.line - 1, 0) :][: change.before.count("\n") + 1]) == _split(change.before):
            replaced[change.line] = change
    yield from added.get(0, ())
    covered = 0  # the last line that a change of several lines has taken
    for number, line in enumerate(source, 1):
        found = replaced.get(number)
        if found is not None and number > covered:
            yield from _split(found.after)
            covered = number + len(_split(found.before)) - 1
        elif number > covered:
            yield line
        yield from added.get(number, ())


def _split(text: str | None) -> list[str]:
    return [] if text is None else text.split("\n")


def _printable(line: str) -> str:
    return line.rstrip("\r")
