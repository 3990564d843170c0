"""The commands to a running agent: `shadowtap set`, `enable`, `disable` and `status`.

Each takes parsed arguments, asks over the control socket and returns the text to print. Where a shadow's name is left
out and the agent has but one, it is that one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.control.client import DEFAULT_SOCKET, ask
from agent.control.pool import add_arguments, show_pool
from replay.errors import ShadowtapError

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9._~-]+")  # more than is allowed, and safe in a path: the agent says what there is
_SWITCH = {"true": True, "false": False}


class CommandError(ShadowtapError):
    """A command that cannot be sent as it was typed."""


def add_parsers(commands: SubParsers) -> None:
    """Add the commands to those of the command line; `run` of each prints and returns the exit status."""
    change = _parser(
        commands,
        "set",
        change_shadow,
        "change a shadow of the running agent",
        "Change what a shadow takes while the agent runs; the configuration file stays as it is. "
        "Keys: percentage (5, 0.1%), criteria (text, quoted for the shell), sample_by (connection, client), "
        "enabled (true, false). "
        "Example: shadowtap set candidate percentage=5 'criteria=path:/api/* and not geo:US'",
    )
    change.usage = "shadowtap set [-h] [--socket PATH] [NAME] KEY=VALUE [KEY=VALUE ...]"
    change.add_argument(
        "words", nargs="+", metavar="KEY=VALUE", help="what to change; a shadow's NAME first if there are several"
    )
    for name, command, what in (
        ("enable", enable_shadow, "let a shadow take traffic again"),
        ("disable", disable_shadow, "stop a shadow at once: the next packet is not copied for it"),
    ):
        switch = _parser(commands, name, command, what, f"{what[0].upper()}{what[1:]}. Its other settings stay.")
        switch.add_argument("name", nargs="?", metavar="NAME", help="the shadow; may be left out if there is but one")
    add_arguments(
        _parser(
            commands,
            "pool",
            change_pool,
            "show or change a shadow's upstreams",
            "Show the upstreams of a shadow and how they are; with options, change them while the agent runs. "
            "The configuration file stays as it is.",
        )
    )
    status = _parser(
        commands,
        "status",
        show_status,
        "show what the running agent does",
        "Show the running agent's shadows and what it has counted.",
    )
    status.add_argument("--json", action="store_true", help="print the agent's answer as JSON")


def _parser(
    commands: SubParsers, name: str, command: Callable[[argparse.Namespace], str], what: str, description: str
) -> argparse.ArgumentParser:
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


def change_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap set`: `words` are an optional name and KEY=VALUE."""
    name, changes = parse_words(arguments.words)
    return _patch(arguments.socket, name, changes)


def enable_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap enable`."""
    return _patch(arguments.socket, arguments.name, {"enabled": True})


def disable_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap disable`."""
    return _patch(arguments.socket, arguments.name, {"enabled": False})


def change_pool(arguments: argparse.Namespace) -> str:
    """`shadowtap pool`."""
    return show_pool(arguments.socket, _named(arguments.socket, arguments.name), arguments)


def show_status(arguments: argparse.Namespace) -> str:
    """`shadowtap status`."""
    answer = ask(arguments.socket, "GET", "/v1/status")
    return json.dumps(answer, indent=2) if arguments.json else "\n".join(_lines(answer))


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


def _patch(path: Path, name: str | None, changes: dict[str, Any]) -> str:
    name = _named(path, name)
    return shadow_line({"name": name} | ask(path, "PATCH", f"/v1/shadows/{name}", changes))


def _named(path: Path, name: str | None) -> str:
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


def shadow_line(shadow: dict[str, Any]) -> str:
    """A shadow in one line, from what the agent says of it."""
    parts = ["enabled" if shadow.get("enabled") else "disabled"]
    if "percentage" in shadow:
        by = shadow.get("sample_by", "connection")
        parts.append(f"{shadow['percentage']:g} % of the {f'requests by {by}' if ':' in by else f'{by}s'}")
    if shadow.get("criteria"):
        parts.append(f"criteria {shadow['criteria']}")
    return f"{shadow.get('name', '?')}: {', '.join(parts)}"


def _lines(answer: dict[str, Any], indent: str = "") -> Iterator[str]:
    """An answer for people: one line a value, what lies deeper is indented, shadows as everywhere."""
    for key, value in answer.items():
        title = f"{indent}{key.replace('_', ' ')}:"
        if key == "shadows" and isinstance(value, list):
            yield title
            yield from (f"{indent}  {shadow_line(shadow)}" for shadow in value)
        elif isinstance(value, dict) and value:
            yield title
            yield from _lines(value, indent + "  ")
        else:
            yield f"{title} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return ", ".join(_value(each) for each in value) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
