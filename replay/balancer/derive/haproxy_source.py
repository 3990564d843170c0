"""An HAProxy configuration as sections of statements, each with its place in the file. Nothing is judged here.

Conditional blocks (`.if`) are not decided: the statements of every branch belong to the section that they stand in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from replay.balancer.derive.haproxy_line import LineError, Word, split_line
from replay.errors import UpstreamError

PROXIES = frozenset(("defaults", "frontend", "backend", "listen"))
SECTIONS = PROXIES | {
    "global", "peers", "mailers", "resolvers", "userlist", "cache", "program", "http-errors", "ring", "log-forward",
    "fcgi-app", "namespace_list", "crt-store", "traces", "log-profile", "acme", "healthcheck",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """One section. `base` is the defaults section that it takes its defaults from."""

    kind: str  # "" before the first one
    name: str
    number: int  # of the line that begins it
    base: Section | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """One line that says something."""

    number: int
    text: str  # the whole line
    words: tuple[Word, ...]  # at least one
    section: Section

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(word.value for word in self.words)

    def says(self, *values: str) -> bool:
        """Whether it begins with these words."""
        return self.values[: len(values)] == values

    @property
    def begins_section(self) -> bool:
        return self.number == self.section.number


@dataclass(frozen=True, slots=True)
class Source:
    """The whole file. `environment` is what it would be after the last line."""

    file: str
    lines: tuple[str, ...]  # cut at LF alone
    statements: tuple[Statement, ...]
    sections: tuple[Section, ...]
    _modes: dict[Section, str] = field(default_factory=dict)
    _by_section: dict[int, list[Statement]] = field(default_factory=dict)

    def of(self, section: Section) -> list[Statement]:
        """The section's statements, the line that begins it first."""
        if not self._by_section:
            for each in self.statements:
                self._by_section.setdefault(each.section.number, []).append(each)
        return self._by_section.get(section.number, [])

    def indent(self, section: Section) -> str:
        """What an added line begins with."""
        following = self.of(section)[1:2]
        return following[0].text[: following[0].words[0].start] if following else "    "

    def error(self, at: Statement, what: str) -> UpstreamError:
        return UpstreamError(f"{self.file}:{at.number}: {what}")

    def within(self, *kinds: str) -> Iterator[Statement]:
        """The statements of all sections of these kinds, without the lines that begin them."""
        return (each for each in self.statements if each.section.kind in kinds and not each.begins_section)

    @property
    def folder(self) -> Path:
        """Where relative names of files start."""
        folder = Path()
        for at in self.within("global"):
            policy = at.values[1:3] if at.says("default-path") else ()
            if policy == ("current",):
                folder = Path()
            elif policy == ("config",):
                folder = Path(self.file).parent
            elif policy == ("parent",):
                folder = Path(self.file).parent / ".."
            elif policy[:1] == ("origin",):
                folder = Path(*policy[1:])
        return folder

    def mode(self, section: Section) -> str:
        """Of a proxy; where a conditional block sets it, what the last line says."""
        while section not in self._modes:
            if section.base is None:
                return "tcp"
            section = section.base
        return self._modes[section]


def read_source(text: str, file: str, environment: Mapping[str, str]) -> Source:
    """UpstreamError for a line that HAProxy itself would not read."""
    lines = tuple(text.split("\n"))
    statements: list[Statement] = []
    sections = _Sections()
    modes: dict[Section, str] = {}
    known = dict(environment)
    for number, line in enumerate(lines, 1):
        try:
            words = split_line(line, known | sections.variables(file, number))
        except LineError as error:
            raise UpstreamError(f"{file}:{number}: {error}; mend it, haproxy does not read it either") from None
        if not words:
            continue
        values = tuple(word.value for word in words)
        section = sections.take(number, values)
        statements.append(Statement(number, line, words, section))
        if section.kind == "global":
            _set_variables(known, values)
        elif values[0] == "mode" and len(values) > 1 and section.kind in PROXIES:
            modes[section] = values[1]
    return Source(file, lines, tuple(statements), tuple(sections.all), modes)


class _Sections:
    """Which section a line belongs to, and which defaults a proxy takes."""

    def __init__(self) -> None:
        self.all: list[Section] = []
        self._current = Section("", "", 0)
        self._defaults: Section | None = None  # the last one, named or not
        self._named: dict[str, Section] = {}

    def take(self, number: int, values: tuple[str, ...]) -> Section:
        if values[0] not in SECTIONS:
            return self._current
        kind, rest = values[0], values[1:]
        base = self._defaults if kind in PROXIES and kind != "defaults" else None
        if kind in PROXIES and "from" in rest and rest[-1] != "from":
            base = self._named.get(rest[rest.index("from") + 1])
        name = rest[0] if rest and rest[0] != "from" else ""
        self._current = Section(kind, name, number, base)
        self.all.append(self._current)
        if kind == "defaults":
            self._defaults = self._current
            self._named[name] = self._current
        return self._current

    def variables(self, file: str, number: int) -> dict[str, str]:
        return {".FILE": file, ".LINE": str(number), ".SECTION": self._current.name or self._current.kind}


def _set_variables(known: dict[str, str], values: tuple[str, ...]) -> None:
    """What the global section does to the variables that the following lines see."""
    if values[0] == "setenv" and len(values) == 3:
        known[values[1]] = values[2]
    elif values[0] == "presetenv" and len(values) == 3:
        known.setdefault(values[1], values[2])
    elif values[0] == "unsetenv":
        for name in values[1:]:
            known.pop(name, None)
    elif values[0] == "resetenv":
        for name in [each for each in known if each not in values[1:]]:
            del known[name]
