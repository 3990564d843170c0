"""`shadowtap trip` and `shadowtap reset`: switch a shadow off until a person says otherwise, and say so."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from agent.control.client import ask
from agent.control.command import add_command, add_name, add_reason, named, printable, with_reason
from agent.control.wording import duration, when

if TYPE_CHECKING:
    from agent.control.command import SubParsers


def add_parsers(commands: SubParsers) -> None:
    """Add both."""
    trip = add_command(
        commands,
        "trip",
        trip_shadow,
        "switch a shadow off until it is reset",
        "Switch a shadow off at once. Its settings stay as they are; it stays off, also over restarts, until "
        "`shadowtap reset`.",
    )
    add_name(trip)
    add_reason(trip, needed=True)
    reset = add_command(
        commands,
        "reset",
        reset_shadow,
        "let a shadow that was tripped take traffic again",
        "Let a shadow that was tripped, by hand or by itself, take traffic again at once.",
    )
    add_name(reset)
    add_reason(reset)


def trip_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap trip`."""
    return _post(arguments, "trip")


def reset_shadow(arguments: argparse.Namespace) -> str:
    """`shadowtap reset`."""
    return _post(arguments, "reset")


def _post(arguments: argparse.Namespace, action: str) -> str:
    name = named(arguments.socket, arguments.name)
    return guard_line(name, ask(arguments.socket, "POST", f"/v1/shadows/{name}/{action}", with_reason({}, arguments)))


def guard_line(name: str, guard: dict[str, Any]) -> str:
    """A guard in one line."""
    state = printable(guard.get("state", "?"))
    if state != "tripped":
        return f"{name}: {state} since {when(guard.get('since_ns'))}"
    ends = f"until `shadowtap reset {name}`" if guard.get("permanent") else "until a probe"
    left = "" if guard.get("permanent") else f" in {duration(guard.get('cooldown_left_s'))}"
    return f"{name}: tripped ({printable(guard.get('cause'))}: {printable(guard.get('reason'))}), off {ends}{left}"
