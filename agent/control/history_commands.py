"""`shadowtap history` and `shadowtap rollback`: which configurations there were, and back to one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from agent.control.client import ask
from agent.control.command import CommandError, add_command, add_reason, printable, with_reason
from agent.control.wording import when

if TYPE_CHECKING:
    from agent.control.command import SubParsers

LIMIT_DEFAULT, LIMIT_MAX = 20, 1000


def add_parsers(commands: SubParsers) -> None:
    """Add both."""
    history = add_command(
        commands,
        "history",
        show_history,
        "list the configurations there were, or what was done",
        "List the versions of the configuration, the newest first: when, by whom, why, and what changed. With VERSION, "
        "show that one; with --audit, list everything that was done, by people and by the agent itself.",
    )
    history.add_argument("version", nargs="?", type=_number("a version", None), metavar="VERSION", help="show this one")
    history.add_argument("--audit", action="store_true", help="what was done instead of versions")
    history.add_argument(
        "--limit", type=_number("--limit", LIMIT_MAX), default=LIMIT_DEFAULT, metavar="N", help="how many (default 20)"
    )
    history.add_argument("--json", action="store_true", help="print the agent's answer as JSON")
    rollback = add_command(
        commands,
        "rollback",
        roll_back,
        "put an older configuration in force",
        "Put an older version of the configuration in force: VERSION of `shadowtap history`, or the one before the "
        "present. The configuration file stays as it is.",
    )
    rollback.add_argument("version", nargs="?", type=_number("a version", None), metavar="VERSION")
    add_reason(rollback)


def show_history(arguments: argparse.Namespace) -> str:
    """`shadowtap history`."""
    path = arguments.socket
    if arguments.version is not None:
        if arguments.audit:
            raise CommandError("--audit lists what was done: give it without VERSION")
        target = f"/v1/history/{arguments.version}"
    else:
        target = f"/v1/{'audit' if arguments.audit else 'history'}?limit={arguments.limit}"
    answer = ask(path, "GET", target)
    if arguments.json:
        return json.dumps(answer, indent=2)
    if arguments.version is not None:
        return "\n".join(_whole_version(answer))
    if arguments.audit:
        return "\n".join(map(audit_line, answer["entries"])) or "nothing was done yet"
    versions = answer["versions"]
    return "\n".join(line for version in versions for line in version_lines(version)) or "no version is kept"


def roll_back(arguments: argparse.Namespace) -> str:
    """`shadowtap rollback`."""
    body = {} if arguments.version is None else {"version": arguments.version}
    done = ask(arguments.socket, "POST", "/v1/rollback", with_reason(body, arguments))
    shown = [printable(f"version {done.get('version')} is in force, with what version {done.get('restored')} said")]
    return "\n".join([*shown, *(f"  {printable(line)}" for line in done.get("diff") or ())])


def version_lines(version: dict[str, Any]) -> Iterator[str]:
    """One version: who, when and why in a line, then what changed."""
    mark = "*" if version.get("current") else " "
    reason = f": {version['reason']}" if version.get("reason") else ""
    who = printable(f"{version.get('author') or 'the agent'}{reason}")
    yield f"{mark}{printable(version.get('id')):>5}  {when(version.get('at_ns'))}  {who}"
    for shadow, why in (version.get("bad") or {}).items():
        yield f"        bad for {printable(shadow)}: {printable(why)}"
    for line in version.get("diff") or ():
        yield f"        {printable(line)}"


def audit_line(entry: dict[str, Any]) -> str:
    """One entry of the audit."""
    about = f" {entry['shadow']}" if entry.get("shadow") else ""
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    who = entry.get("author") or "the agent"
    return printable(f"{when(entry.get('at_ns'))} {who} {entry.get('action')}{about}{reason}")


def _whole_version(version: dict[str, Any]) -> Iterator[str]:
    yield from version_lines(version)
    yield ""
    yield json.dumps(version.get("config"), indent=2)  # ASCII: fit for any terminal


def _number(what: str, most: int | None) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 15 else 0
        if not 1 <= number <= (most or number):
            ends = f"from 1 to {most}" if most else "of `shadowtap history`"
            raise argparse.ArgumentTypeError(f"{text[:50]!r}: {what} is a number {ends}")
        return number

    return read
