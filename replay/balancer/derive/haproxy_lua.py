"""Lua that calls out is disabled, together with the lines that use it; Lua that only computes stays.

Whether a file calls out is read off its text, with more caution than understanding: one that loads other code, or
cannot be read, counts as calling out. Lines that only set something can go alone. Where Lua decides (in a condition, an
ACL, the choice of a backend) the shadow would decide differently without it, and the configuration is refused: that is
for a person to say, with `keep: lua`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_source import PROXIES, Statement

KEEP = "lua"
_LOADS = ("lua-load", "lua-load-per-thread")
_CALLS_OUT = re.compile(
    r"""\bcore\s*(?:\.\s*|\[\s*["'])(?:tcp|httpclient)\b | \bsocket\b | \bhttpclient\b
      | \bio\s*(?:\.|\[) | \bos\s*(?:\.\s*|\[\s*["'])(?:execute|remove|rename|tmpname|exit)\b
      | \b(?:require|dofile|loadfile|loadstring|package|_G|_ENV)\b | \bload\s*\(""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"^\s*--(?!\[=*\[).*$", re.MULTILINE)  # whole lines alone: elsewhere "--" may be within a string
_REGISTERS = re.compile(r"""\bregister_(?:action|service|fetches|converters)\b(?:\s*\(\s*(["'])([^"'\\]+)\1)?""")
_USE = re.compile(r"(?<![\w.])lua\.([A-Za-z0-9_.-]+)")
_RULES = frozenset(("http-request", "http-response", "http-after-response", "tcp-request", "tcp-response"))
_PHASES = frozenset(("connection", "content", "session"))  # of tcp rules, before the action
_SETS = ("use-service", "add-header", "set-header", "set-var(", "set-var-fmt(", "capture", "lua.")
_LOG_FORMATS = frozenset(("log-format", "log-format-sd", "error-log-format", "unique-id-format"))


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file: what it registers, and whether it calls out. `names` is None if that cannot be told."""

    names: frozenset[str] | None
    calls_out: bool
    why: str  # what speaks for calling out


def read_script(text: str | None) -> Script:
    """`text` is None for a file that could not be read."""
    if text is None:
        return Script(None, True, "it cannot be read")
    text = _COMMENT.sub("", text)
    found = _CALLS_OUT.search(text)
    registered = [match[2] for match in _REGISTERS.finditer(text)]
    names = None if None in registered else frozenset(registered)
    return Script(names, found is not None, f"it says {' '.join(found[0].split())!r}" if found else "")


def disable_lua(draft: Draft) -> None:
    """Take out the files that call out, and what uses them. UpstreamError if something cannot be decided without."""
    source = draft.source
    harmless: set[str] = set()
    banned: set[str] = set()
    loads = []
    unknown = False
    for at in source.within("global"):
        if at.values[0] not in _LOADS or len(at.words) < 2:
            continue
        script = read_script(_read(source.folder / at.values[1]))
        if not script.calls_out:
            harmless |= script.names or set()
            continue
        loads.append(at)
        banned |= script.names or set()
        unknown = unknown or script.names is None
        draft.take_out(at, Reason.LUA_FILE)
        draft.note(f"Lua {at.values[1]}: disabled, because {script.why}; `keep: lua` lets it run")
    if loads:
        _disable_uses(draft, banned, harmless, unknown)


def _disable_uses(draft: Draft, banned: set[str], harmless: set[str], unknown: bool) -> None:
    """`unknown`: names that no harmless file registers may be those of a disabled one."""
    for at in draft.source.within(*PROXIES):
        used = {name for value in at.values for name in _USE.findall(value)}
        wrong = {name for name in used if name in banned or (unknown and name not in harmless)}
        if not wrong or draft.is_out(at):
            continue
        if not _only_sets(at):
            what = f"lua.{min(wrong)} decides here, and its file calls out"
            raise draft.source.error(at, f"{what}; write `keep: lua` to have it run all the same")
        draft.take_out(at, Reason.LUA_USE)
        where = f"line {at.number}, {at.section.kind} {at.section.name}"
        draft.note(f"{where}: what Lua set or answered there is missing")


def _only_sets(at: Statement) -> bool:
    """Whether the line can go without another one being without its ACL, or a condition being decided otherwise."""
    values = at.values
    if values[0] in _LOG_FORMATS:
        return True
    if values[0] not in _RULES or _uses(_condition(values)):
        return False
    action = next((value for value in values[1:] if value not in _PHASES), "")
    return action.startswith(_SETS)


def _condition(values: tuple[str, ...]) -> Iterable[str]:
    for index, value in enumerate(values):
        if value in ("if", "unless"):
            return values[index + 1 :]
    return ()


def _uses(values: Iterable[str]) -> bool:
    return any(_USE.search(value) for value in values)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None
