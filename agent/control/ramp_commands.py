"""`shadowtap ramp`: start, steer and show a shadow's ramp."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from agent.control.client import ask
from agent.control.command import CommandError, add_command, add_name, named, printable
from agent.control.wording import duration

if TYPE_CHECKING:
    from agent.control.command import SubParsers

_STEP = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%? ?: ?([0-9]+(?:\.[0-9]+)?) ?(s|min|m|h|d)?", re.ASCII)
_UNIT_S = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_EXAMPLE = "1%:5m,5%:5m,25%:10m,100%:10m"


def add_parsers(commands: SubParsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "ramp",
        steer,
        "give a shadow more and more traffic while it is well",
        "Show a shadow's ramp; with options, start or steer it. Each step is held for its time and left only with the "
        "verdict PASS; FAIL switches the shadow off.",
    )
    add_name(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--steps", metavar="P:TIME,...", help=f"start a ramp, like {_EXAMPLE.replace('%', '%%')}")
    for action, text in (
        ("pause", "stay at the present step"),
        ("resume", "go on"),
        ("abort", "end it; the shadow goes back to the percentage that is configured"),
    ):
        what.add_argument(f"--{action}", dest="action", action="store_const", const=action, help=text)
    parser.add_argument(
        "--inconclusive",
        type=int,
        metavar="N",
        help="with --steps: leave a step after so many further hold times without a verdict, too (default 0: never)",
    )


def steer(arguments: argparse.Namespace) -> str:
    """What the options ask for, and the ramp as it is then."""
    if arguments.inconclusive is not None and arguments.steps is None:
        raise CommandError("--inconclusive is for a ramp that starts: give --steps, too")
    body: dict[str, Any] | None = None
    method = "GET"
    if arguments.steps is not None:
        method, body = "PUT", {"steps": parse_steps(arguments.steps), "inconclusive": arguments.inconclusive or 0}
    elif arguments.action is not None:
        method, body = "PATCH", {"action": arguments.action}
    name = named(arguments.socket, arguments.name)
    return "\n".join(lines(name, ask(arguments.socket, method, f"/v1/shadows/{name}/ramp", body)))


def parse_steps(text: str) -> list[dict[str, float]]:
    """From 1%:5m,5%:300."""
    steps = []
    for part in text.split(","):
        found = _STEP.fullmatch(part.strip())
        if found is None:
            raise CommandError(f"{part.strip()[:100]!r} is no step: give PERCENTAGE:TIME,..., like {_EXAMPLE}")
        percentage, hold_s = float(found[1]), float(found[2]) * _UNIT_S[found[3]]
        if not 0 < percentage <= 100:
            raise CommandError(f"{part.strip()[:100]}: give a percentage above 0, up to 100")
        if not 1 <= hold_s <= 30 * 86_400:
            raise CommandError(f"{part.strip()[:100]}: give a time from 1s to 30d")
        steps.append({"percentage": percentage, "hold_s": hold_s})
    return steps


def lines(name: str, ramp: dict[str, Any]) -> list[str]:
    """The ramp with a line for each step."""
    state = printable(ramp.get("state", "none"))
    if state == "none":
        return [f"{name}: no ramp; start one like `shadowtap ramp {name} --steps {_EXAMPLE}`"]
    reason = f": {printable(ramp['reason'])}" if ramp.get("reason") else ""
    patience = ramp.get("inconclusive")
    after = f", without a verdict on after {patience} further hold times" if patience else ""
    shown = [f"{name}: ramp {state}{reason}{after}"]
    present = ramp.get("step", 0)
    steps = ramp.get("steps")
    for number, step in enumerate(steps if isinstance(steps, list) else [], 1):
        mark = _mark(number, present, state)
        held = f", held {duration(ramp.get('held_s'))}" if mark == "now" else ""
        shown.append(f"  {mark:<5} {step.get('percentage', 0):>6g} %  for {duration(step.get('hold_s'))}{held}")
    return shown


def _mark(number: int, present: Any, state: str) -> str:
    if not isinstance(present, int):
        return ""
    if number < present or state == "done":
        return "done"
    if number > present:
        return ""
    return "now" if state in ("running", "paused") else "ended"
