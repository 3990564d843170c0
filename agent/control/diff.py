"""What is different between two configurations, in lines such as `shadows.candidate.percentage: 5.0 -> 25.0`.

The lines go into the history and the log, so what may be secret is left out: values of keys that sound like it and of
headers, and of a URL everything but the host (a webhook's path is its password).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

VALUE_CHARACTERS = 60
LINES_LIMIT = 100
UNSAID = "changed (not shown)"

_SECRET = re.compile(
    r"passw|passphrase|secret|token|authorization|cookie$|api_?key|credential", re.ASCII | re.IGNORECASE
)
_HEADERS = re.compile(r"(^|_)headers$", re.ASCII | re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)([^/?#]*)(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_NOT_SECRET = frozenset({"sticky_cookie"})  # a name, not a value


class _Missing:
    """The type of _MISSING: nothing stands there."""


_MISSING = _Missing()


def diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each setting that is not the same, in the order of their names; at most LINES_LIMIT and one."""
    lines = list(_differences("", old, new))
    if len(lines) > LINES_LIMIT:
        lines[LINES_LIMIT:] = [f"and {len(lines) - LINES_LIMIT} more"]
    return lines


def _differences(path: str, old: Any, new: Any, *, hidden: bool = False) -> Iterator[str]:
    if _same(old, new):
        return
    parts = _parts(old, new)
    if not parts:
        yield f"{path}: {UNSAID if hidden else _change(old, new)}"
    for name, before, after in parts:
        yield from _differences(_below(path, name), before, after, hidden=hidden or _is_secret(name))


def _parts(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """What is compared one by one instead of the whole; [] where the whole is. A mapping that comes or goes is taken
    apart, too, so that its settings are named."""
    if isinstance(old, dict | _Missing) and isinstance(new, dict | _Missing):
        before, after = (side if isinstance(side, dict) else {} for side in (old, new))
        names = sorted({*before, *after}, key=str)
        return [(str(name), before.get(name, _MISSING), after.get(name, _MISSING)) for name in names]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [(f"[{place}]", *pair) for place, pair in enumerate(zip(old, new, strict=True))]
    return []


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, bool) is not isinstance(new, bool):  # True == 1
        return False
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    return bool(old == new)


def _below(path: str, name: str) -> str:
    if name.startswith("["):
        return path + name
    shown = name if name.isprintable() and len(name) <= VALUE_CHARACTERS else ascii(name)[:VALUE_CHARACTERS]
    return f"{path}.{shown}" if path else shown


def _change(old: Any, new: Any) -> str:
    before, after = _short(old), _short(new)
    return UNSAID if before == after else f"{before} -> {after}"


def _is_secret(name: str) -> bool:
    return name not in _NOT_SECRET and bool(_SECRET.search(name) or _HEADERS.search(name))


def _short(value: Any) -> str:
    if isinstance(value, _Missing):
        return "not set"
    text = json.dumps(_shown(value), default=str, sort_keys=True).replace("\x7f", "\\u007f")
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 3] + "..."


def _shown(value: Any) -> Any:
    """The same without what may be secret."""
    if isinstance(value, dict):
        return {str(key): "..." if _is_secret(str(key)) else _shown(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(part) for part in value]
    if isinstance(value, str) and (found := _URL.fullmatch(value)):
        scheme, authority, rest = found.groups()
        return f"{scheme}{authority.rpartition('@')[2]}{'/...' if rest not in ('', '/') else rest}"
    return value
