"""Production's nginx configuration as one tree: read with crossplane, its includes put in their places, and checked.

Words are kept as crossplane has them: quotes taken off, but escapes still there. What is compared or looked up goes
through `nginx_words.decode` where that matters. Comments are left out; they would stand in wrong places once the files
are one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crossplane

from replay.balancer.derive.nginx_words import LUA_BLOCK, Words, decode, without_parentheses, words_of
from replay.errors import UpstreamError

INDENT = "    "
SHOWN_CHARACTERS = 80  # of a statement in an error
# Blocks whose statements are data, whatever their first words are.
DATA_BLOCKS = frozenset({"charset_map", "geo", "map", "otel_exporter", "split_clients", "types"})


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """A directive, with its block if it has one. Every place in the tree is an object of its own, even where one file
    is included twice, so that each can be changed alone."""

    name: str
    args: tuple[str, ...] = ()
    block: tuple[Statement, ...] | None = None
    file: str = ""  # where production says it
    line: int = 0

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.file}:{self.line}"

    @property
    def first(self) -> str:
        """The first argument, "" without one."""
        return self.args[0] if self.args else ""

    def children(self, *names: str) -> list[Statement]:
        """The statements of its own block with one of these names; of any name when none is given."""
        return [each for each in self.block or () if not names or each.name in names]


@dataclass(frozen=True, slots=True)
class Tree:
    """`root` is no statement of the file, but what holds its outermost ones. `files` are those read, and the
    directories in which a pattern looked for more."""

    root: Statement
    files: tuple[Path, ...]

    @property
    def http(self) -> Statement:
        """The one http block. UpstreamError without any."""
        for each in self.root.children("http"):
            return each
        raise UpstreamError(f"{self.root.file}: there is no http block, so nothing to send requests to")


def read(path: Path) -> Tree:
    """Parse a configuration and all that it includes. UpstreamError in one line, with file and line, where it cannot be
    read, or would not be the same when written again."""
    path = path.absolute()
    payload = crossplane.parse(str(path), check_ctx=False, check_args=False)
    for error in payload["errors"]:
        raise UpstreamError(_describe(error))
    configs: list[dict[str, Any]] = payload["config"]
    for config in configs:
        _check_source(config["file"], config["parsed"])
    root = Statement("", (), tuple(_combine(configs, 0, ())), str(path), 0)
    patterns = (path.parent / each for config in configs for each in _patterns(config["parsed"]))
    files = [*(Path(config["file"]) for config in configs), *(each.parent for each in patterns)]
    return Tree(root, tuple(dict.fromkeys(files)))


def walk(
    statement: Statement, parents: tuple[Statement, ...] = ()
) -> Iterator[tuple[Statement, tuple[Statement, ...]]]:
    """Every directive below, in order, with the blocks around it, the outermost first; what is data is left out."""
    around = (*parents, statement)
    for each in statement.block or ():
        yield each, around
        if each.block is not None and each.name not in DATA_BLOCKS:
            yield from walk(each, around)


def walk_all(statement: Statement) -> Iterator[Statement]:
    """Every statement below, data as well."""
    for each in statement.block or ():
        yield each
        yield from walk_all(each)


def head(statement: Statement) -> str:
    """A directive as it is written, of a block the line that opens it. UpstreamError if crossplane cannot write it."""
    name, block = statement.name, statement.block
    if name == "#" or (name == "if" and block is None):
        raise UpstreamError(f"{statement.place}: crossplane cannot write {name!r} here: take it out of the file")
    payload: dict[str, Any] = {"directive": name, "args": list(statement.args)}
    if block is not None:
        payload["block"] = []
    text: str = crossplane.build([payload])
    return text.removesuffix("\n}") if block is not None else text


def words(statement: Statement) -> Words:
    """What nginx shall read for this directive, or for the head of this block."""
    end = ";" if statement.block is None else "{"
    if LUA_BLOCK.fullmatch(statement.name):
        return (statement.name, *statement.args, end)
    return (decode(statement.name), *map(decode, statement.args), end)


def check_words(expected: Sequence[tuple[Words, str]], text: str, file: str) -> None:
    """UpstreamError unless nginx would read exactly these statements, each with its place, in `text`."""
    found = (without_parentheses(each) for each in words_of(text, file))
    for wanted, got in itertools.zip_longest(expected, found):
        if wanted is None or wanted[0] != got:
            place = file if wanted is None else wanted[1]
            shown = " ".join(wanted[0] if wanted is not None else got or ())[:SHOWN_CHARACTERS]
            raise UpstreamError(
                f"{place}: crossplane and nginx do not read this as the same: {shown!r}: write it another way, "
                "or derive from a copy without it"
            )


def _check_source(file: str, parsed: Sequence[Mapping[str, Any]]) -> None:
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            text = opened.read()
    except UnicodeDecodeError:
        raise UpstreamError(f"{file}: not UTF-8 text") from None
    except OSError as error:
        raise UpstreamError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    check_words(list(_flat(file, parsed)), text, file)


def _flat(file: str, parsed: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Words, str]]:
    for each in parsed:
        block = each.get("block")
        one = Statement(each["directive"], tuple(each["args"]), None if block is None else (), file, each["line"])
        yield words(one), one.place
        if block is not None:
            yield from _flat(file, block)
            yield ("}",), one.place


def _combine(configs: Sequence[Mapping[str, Any]], index: int, stack: tuple[int, ...]) -> Iterator[Statement]:
    """crossplane's own way to combine gives the statements after an include the wrong file, and makes what is included
    twice one object."""
    if index in stack:
        raise UpstreamError(f"{configs[index]['file']}: includes itself")
    yield from _statements(configs, configs[index]["parsed"], configs[index]["file"], (*stack, index))


def _statements(
    configs: Sequence[Mapping[str, Any]], parsed: Sequence[Mapping[str, Any]], file: str, stack: tuple[int, ...]
) -> Iterator[Statement]:
    for each in parsed:
        if "includes" in each:
            for index in each["includes"]:
                yield from _combine(configs, index, stack)
            continue
        block = each.get("block")
        inner = None if block is None else tuple(_statements(configs, block, file, stack))
        yield Statement(each["directive"], tuple(each["args"]), inner, file, each["line"])


def _patterns(parsed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of the includes that look for files by pattern."""
    for each in parsed:
        if "includes" in each and any(magic in each["args"][0] for magic in "*?["):
            yield each["args"][0]
        yield from _patterns(each.get("block") or ())


def _describe(error: Mapping[str, Any]) -> str:
    """crossplane says the place at the end of some errors."""
    place = f"{error['file']}:{error['line']}" if error["line"] else str(error["file"])
    text = str(error["error"]).removesuffix(f" in {place}")
    if text.startswith("[Errno "):
        text = text.partition("] ")[2]
    return f"{place}: {text}"
