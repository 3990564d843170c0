"""What the commands to a running agent share: the socket they ask at, the shadow that is meant, and text that a
terminal can show. Where a shadow's name is left out and the agent has but one, it is that one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.control.client import DEFAULT_SOCKET, ask
from replay.errors import ShadowtapError

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

TEXT_LIMIT_CHARS = 1000
_NAME = re.compile(r"[A-Za-z0-9._~-]+")  # more than is allowed, and safe in a path: the agent says what there is


class CommandError(ShadowtapError):
    """A command that cannot be sent as it was typed."""


def add_command(
    commands: SubParsers, name: str, command: Callable[[argparse.Namespace], str], what: str, description: str
) -> argparse.ArgumentParser:
    """Add a command that prints the text which `command` returns."""

    def run(arguments: argparse.Namespace) -> int:
        print(command(arguments))
        return 0

    parser = commands.add_parser(name, help=what, description=description)
    parser.add_argument(
        "--socket",
        type=Path,
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"the agent's control socket (default {DEFAULT_SOCKET})",
    )
    parser.set_defaults(run=run)
    return parser


def add_name(parser: argparse.ArgumentParser) -> None:
    """The shadow's name, which may be left out."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the shadow; may be left out if there is but one")


def add_reason(parser: argparse.ArgumentParser, needed: bool = False) -> None:
    """Why; it is kept in the history."""
    parser.add_argument("--reason", metavar="TEXT", required=needed, help="why, for `shadowtap history`")


def with_reason(body: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is sent, with the reason if one is given."""
    return body if arguments.reason is None else {**body, "reason": arguments.reason}


def named(path: Path, name: str | None) -> str:
    """The shadow that is meant; fit for a path."""
    if name is None:
        name = _only_shadow(path)
    if not _NAME.fullmatch(name):
        raise CommandError(f"{name!r} is no name of a shadow: letters, digits and hyphens")
    return name


def _only_shadow(path: Path) -> str:
    names = [str(shadow["name"]) for shadow in ask(path, "GET", "/v1/shadows")["shadows"]]
    if len(names) != 1:
        raise CommandError(f"which shadow? give one of {', '.join(names)}" if names else "the agent has no shadow")
    return names[0]


def printable(value: object, limit: int = TEXT_LIMIT_CHARS) -> str:
    """As one line that does nothing to a terminal, whoever wrote it."""
    line = " ".join(str(value).split())
    line = line if len(line) <= limit else line[: limit - 3] + "..."
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
