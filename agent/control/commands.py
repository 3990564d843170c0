"""The commands to a running agent. Here are those that change a shadow: `shadowtap set`, `enable`, `disable`, `pool`.

Each takes parsed arguments, asks over the control socket and returns the text to print.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agent.control import guard_commands, history_commands, ramp_commands, status_commands
from agent.control.client import ask
from agent.control.command import CommandError, add_command, add_name, add_reason, named, printable, with_reason
from agent.control.pool import add_arguments, show_pool
from agent.control.shadow_line import shadow_line

if TYPE_CHECKING:
    from agent.control.command import SubParsers

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", re.IGNORECASE)
_SWITCH = {"true": True, "false": False}


def add_parsers(commands: SubParsers) -> None:
    """Add the commands to those of the command line; `run` of each prints and returns the exit status."""
    _add_changes(commands)
    status_commands.add_parsers(commands)
    ramp_commands.add_parsers(commands)
    guard_commands.add_parsers(commands)
    history_commands.add_parsers(commands)


def _add_changes(commands: SubParsers) -> None:
    change = add_command(
        commands,
        "set",
        change_shadow,
        "change a shadow of the running agent",
        "Change what a shadow takes while the agent runs; the configuration file stays as it is. "
        "Keys: percentage (5, 0.1%), criteria (text, quoted for the shell), sample_by (connection, client), "
        "enabled (true, false). "
        "Example: shadowtap set candidate percentage=5 'criteria=path:/api/* and not geo:US'",
    )
    change.usage = "shadowtap set [-h] [--socket PATH] [--reason TEXT] [NAME] KEY=VALUE [KEY=VALUE ...]"
    change.add_argument(
        "words", nargs="+", metavar="KEY=VALUE", help="what to change; a shadow's NAME first if there are several"
    )
    add_reason(change)
    for name, command, what in (
        ("enable", enable_shadow, "let a shadow take traffic again"),
        ("disable", disable_shadow, "stop a shadow at once: the next packet is not copied for it"),
    ):
        switch = add_command(commands, name, command, what, f"{what[0].upper()}{what[1:]}. Its other settings stay.")
        add_name(switch)
        add_reason(switch)
    pool = add_command(
        commands,
        "pool",
        change_pool,
        "show or change a shadow's upstreams",
        "Show the upstreams of a shadow and how they are; with options, change them while the agent runs. "
        "The configuration file stays as it is.",
    )
    add_arguments(pool)
    add_reason(pool)


def change_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap set`: `words` are an optional name and KEY=VALUE."""
    name, changes = parse_words(arguments.words)
    return _patch(arguments, name, changes)


def enable_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap enable`."""
    return _patch(arguments, arguments.name, {"enabled": True})


def disable_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap disable`."""
    return _patch(arguments, arguments.name, {"enabled": False})


def change_pool(arguments: argparse.Namespace) -> str:
    """`shadowtap pool`."""
    return show_pool(arguments.socket, named(arguments.socket, arguments.name), arguments)


def parse_words(words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Name, if given, and changed fields from `[NAME] KEY=VALUE ...`."""
    name = words[0] if words and "=" not in words[0] else None
    changes: dict[str, Any] = {}
    for word in words[name is not None :]:
        key, equals, text = word.partition("=")
        if not equals:
            raise CommandError(f"{word!r} is no KEY=VALUE: put a value with spaces in quotes, like 'criteria=A and B'")
        if key not in _VALUES:
            raise CommandError(f"{key!r} cannot be set: there are {', '.join(_VALUES)}")
        if key in changes:
            raise CommandError(f"{key} is given twice: give it once")
        changes[key] = _VALUES[key](key, text)
    if not changes:
        raise CommandError(f"nothing to change: give KEY=VALUE, of {', '.join(_VALUES)}")
    return name, changes


def _percentage(key: str, text: str) -> float:
    number = text.strip().removesuffix("%").rstrip()
    value = float(number) if _NUMBER.fullmatch(number) else -1.0
    if not 0 <= value <= 100:
        raise CommandError(f"{key}={text}: give a number from 0 to 100, like 5 or 0.1%")
    return value


def _switch(key: str, text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise CommandError(f"{key}={text}: give true or false")
    return _SWITCH[text.lower()]


def _text(key: str, text: str) -> str:
    return text


_VALUES: dict[str, Callable[[str, str], Any]] = {
    "percentage": _percentage,
    "criteria": _text,
    "enabled": _switch,
    "sample_by": _text,
}


def _patch(arguments: argparse.Namespace, name: str | None, changes: dict[str, Any]) -> str:
    name = named(arguments.socket, name)
    changed = ask(arguments.socket, "PATCH", f"/v1/shadows/{name}", with_reason(changes, arguments))
    return printable(shadow_line({"name": name} | changed))
