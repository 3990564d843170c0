"""What a variable of nginx's configuration can be, where the configuration itself gives it all of its values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from replay.balancer.derive.nginx_tree import Statement, walk, walk_all

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
EXPANSION_LIMIT = 256  # combinations of values that are looked at

_CAPTURE = re.compile(r"\(\?P?<(\w+)>")
_CODE = re.compile(r"^(?!init).*_by_lua|^js_|^perl")
_ASSIGNED = re.compile(r"\bvar\.(\w+)\s*=(?!=)")  # ngx.var.name = ...
_COMPUTED = re.compile(r"\bvar\s*\[|\bngx\.var\b(?!\s*\.)")
_PARAMETERS = {  # statements in such a block that are no values
    "map": {"hostnames", "volatile"},
    "geo": {"ranges", "delete", "proxy", "proxy_recursive"},
    "split_clients": set(),
}


class Place(NamedTuple):
    """One argument of a statement."""

    statement: Statement
    argument: int

    @property
    def text(self) -> str:
        """What production has there."""
        return self.statement.args[self.argument]


class Variables:
    """Variables by their values: those of `set`, `map`, `geo` and `split_clients`. What anything else may set as well
    (a named group of a regular expression, a module, code) can be anything."""

    def __init__(self, http: Statement, gone: Callable[[Statement], bool]) -> None:
        """`gone` says which statements the shadow does not have."""
        self._values: dict[str, list[Place]] = {}
        self._open: set[str] = set()
        self._all_open = False  # there is code that may set any
        for statement, _ in walk(http):
            if not gone(statement):
                self._learn(statement)
        for each in walk_all(http):
            for word in (each.name, *each.args):
                self._open.update(name.lower() for name in _CAPTURE.findall(word))

    def values(self, variable: str) -> list[Place] | None:
        """Where the values of "$name" are written; None if it can be anything."""
        name = variable.strip("${}").lower()
        return None if self._all_open or name in self._open else self._values.get(name)

    def expand(self, text: str) -> list[str] | None:
        """All that `text` can be, its variables put in; None if it can be anything, or too much."""
        parts: list[list[str]] = []
        at = 0
        for match in VARIABLE.finditer(text):
            values = self.values(match[0])
            if values is None or any(VARIABLE.search(each.text) for each in values):
                return None
            parts += [[text[at : match.start()]], list(dict.fromkeys(each.text for each in values))]
            at = match.end()
        parts.append([text[at:]])
        found = list(itertools.islice(map("".join, itertools.product(*parts)), EXPANSION_LIMIT + 1))
        return found if len(found) <= EXPANSION_LIMIT else None

    def _learn(self, statement: Statement) -> None:
        if statement.name == "set" and len(statement.args) == 2:
            self._put(statement.first, [Place(statement, 1)])
        elif statement.name in _PARAMETERS and statement.args:
            self._put(statement.args[-1], list(_values(statement)))
        elif statement.name == "auth_request_set":
            self._open.add(statement.first.strip("${}").lower())
        elif _CODE.search(statement.name):
            self._learn_code(statement)

    def _learn_code(self, statement: Statement) -> None:
        """Code that is somewhere else, or computes the name, may set any variable."""
        self._open.add(statement.first.strip("${}").lower())  # of a set_by_lua, js_set, perl_set
        code = " ".join(statement.args)
        self._open.update(name.lower() for name in _ASSIGNED.findall(code))
        if "_by_lua" not in statement.name or statement.name.endswith("_file") or _COMPUTED.search(code):
            self._all_open = True

    def _put(self, variable: str, places: list[Place]) -> None:
        self._values.setdefault(variable.strip("${}").lower(), []).extend(places)


def _values(block: Statement) -> Iterator[Place]:
    for each in block.block or ():
        if each.name not in _PARAMETERS[block.name] and each.args:
            yield Place(each, 0)
