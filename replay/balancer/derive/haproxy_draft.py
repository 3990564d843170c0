"""The shadow's HAProxy configuration while it is worked out: what has been decided of each line, and why.

Every reason there is stands in `Reason`: nothing else may differ from production.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from replay.balancer.derive.change import Change, Listener, Server
from replay.balancer.derive.haproxy_line import rewrite
from replay.balancer.derive.haproxy_source import Source, Statement


class Reason(StrEnum):
    """Why a line differs, as a person reads it."""

    # Listeners
    BIND = "the shadow listens on a private address"
    PROXY = "a PROXY header names the real client"
    PLAIN = "the replay client speaks HTTP/1.1"
    LOOPBACK = "the replay client comes over loopback"
    NETSCALER = "a PROXY header stands in for NetScaler's"
    QUIC = "the replay client does not speak QUIC"
    INNER = "the shadow's own servers reach this proxy here"
    SESSION = "the client is known only after the PROXY header"
    OUTER = "judges the balancer in front of production, which the shadow does not see"
    # Servers
    SERVER = "the shadow's server stands in for production's"
    OWN = "goes to the shadow's own listener"
    NOWHERE = "serves only what is disabled, so nothing listens there"
    CHECK = "health checks go to the shadow's server itself"
    AGENT = "agents speak for production's servers"
    INIT = "would fall back to an address of production"
    SOCKS = "the shadow's server is reached directly"
    SPOOF = "connections to the shadow do not bear the client's address"
    # What must not happen twice
    LOG = "logs stay in the shadow's memory"
    LOG_SINK = "logs do not leave the shadow"
    STATS = "the socket is production's"
    PEERS = "tables are kept here alone, and no peer is called"
    MAIL = "no mail about the shadow"
    PROGRAM = "would run a second time"
    EXTERNAL = "would run a program, where connecting is a check too"
    STATE = "the state of servers is production's"
    SUPERVISED = "shadowtap runs the process in the foreground"
    ACME = "certificates are asked for by production alone"
    LUA_FILE = "Lua that calls out would do so twice"
    LUA_USE = "uses Lua that is disabled"
    AGENTS = "agents would be called twice"
    # The file itself
    PATHS = "relative names stay those of production's file"
    VIA = "names the upstream for the replay client, which takes it off again"


@dataclass(slots=True)
class _Edit:
    """What becomes of one line. Words count from 0; None takes one off."""

    changed: dict[int, str | None] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    out: bool = False
    reasons: list[Reason] = field(default_factory=list)


class Draft:
    """Decisions for each line of one source. A line that was taken out stays out, whatever else is decided of it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.listeners: list[Listener] = []
        self.servers: list[Server] = []
        self.notes: list[str] = []
        self._edits: dict[int, _Edit] = {}
        self._following: dict[int, list[tuple[str, Reason]]] = {}

    def is_out(self, at: Statement) -> bool:
        edit = self._edits.get(at.number)
        return edit is not None and edit.out

    def take_out(self, at: Statement, reason: Reason) -> None:
        if not self.is_out(at):
            self._edits[at.number] = _Edit(out=True, reasons=[reason])

    def change(self, at: Statement, words: Mapping[int, str | None], reason: Reason, added: Sequence[str] = ()) -> None:
        """Replace words or take them off, and put others behind the last. Nothing to do is nothing done."""
        changed = {index: text for index, text in words.items() if text != at.text[slice(*_span(at, index))]}
        if not changed and not added:
            return
        edit = self._edits.setdefault(at.number, _Edit())
        edit.changed.update(changed)
        edit.added += added
        if reason not in edit.reasons:
            edit.reasons.append(reason)

    def follow(self, at: Statement, text: str, reason: Reason) -> None:
        """Add a line behind this one."""
        ending = "\r" if at.text.endswith("\r") else ""
        self._following.setdefault(at.number, []).append((text + ending, reason))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def changes(self) -> tuple[Change, ...]:
        """In the order of the source."""
        statements = {each.number: each for each in self.source.statements}
        changes = []
        for number in sorted(self._edits.keys() | self._following.keys()):
            if number in self._edits:
                edit = self._edits[number]
                before = statements[number].text
                reason = "; ".join(edit.reasons)
                changes.append(Change(self.source.file, number, before, _after(statements[number], edit), reason))
            for text, why in self._following.get(number, ()):
                changes.append(Change(self.source.file, number, None, text, str(why)))
        return tuple(changes)

    def text(self) -> str:
        statements = {each.number: each for each in self.source.statements}
        lines = []
        for number, line in enumerate(self.source.lines, 1):
            edit = self._edits.get(number)
            after = line if edit is None else _after(statements[number], edit)
            lines += [after] if after is not None else []
            lines += [text for text, _ in self._following.get(number, ())]
        return "\n".join(lines)


def _span(at: Statement, index: int) -> tuple[int, int]:
    return at.words[index].start, at.words[index].end


def _after(at: Statement, edit: _Edit) -> str | None:
    return None if edit.out else rewrite(at.text, at.words, edit.changed, edit.added)
