"""`shadowtap status` and `shadowtap verdict`: what the running agent does, and what it thinks of a shadow."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.control.client import NoAnswerError, ask
from agent.control.command import add_command, add_name, named

if TYPE_CHECKING:
    from agent.control.command import SubParsers

STATUS = "/v1/status"
REFRESH_S = 1.0


def add_parsers(commands: SubParsers) -> None:
    """Add both."""
    status = add_command(
        commands,
        "status",
        show_status,
        "show what the running agent does",
        "Show the running agent's shadows, how they compare, its alerts and what it has counted.",
    )
    status.add_argument("--watch", action="store_true", help="show it anew each second, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="print the agent's answer as JSON")
    status.set_defaults(run=run_status)
    verdict = add_command(
        commands,
        "verdict",
        show_verdict,
        "say how a shadow compares, and why",
        "Explain the judge's verdict on a shadow: each metric with its numbers, floors, evidence, and examples.",
    )
    add_name(verdict)
    verdict.add_argument("--json", action="store_true", help="print the agent's answer as JSON")


def run_status(arguments: argparse.Namespace) -> int:
    """Exit status; with --watch it ends with Ctrl-C."""
    if not arguments.watch:
        print(_encodable(show_status(arguments)))
        return 0
    try:
        if arguments.json or not sys.stdout.isatty():
            _repeat(arguments)
        else:
            _live(arguments.socket)
    except KeyboardInterrupt:
        pass
    return 0


def show_status(arguments: argparse.Namespace) -> str:
    """Once, as text."""
    answer = ask(arguments.socket, "GET", STATUS)
    if arguments.json:
        return json.dumps(answer, indent=None if arguments.watch else 2)
    from agent.control.status_view import PIPE_WIDTH, text, view

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return text(view(answer), shutil.get_terminal_size((PIPE_WIDTH, 40)).columns, colour)


def show_verdict(arguments: argparse.Namespace) -> str:
    """Of one shadow."""
    name = named(arguments.socket, arguments.name)
    answer = ask(arguments.socket, "GET", f"/v1/shadows/{name}/verdict")
    if arguments.json:
        return json.dumps(answer, indent=2)
    from agent.control.verdict_view import lines

    return _encodable("\n".join(lines(answer)))


def _repeat(arguments: argparse.Namespace) -> None:
    """For a pipe: one status after the other, JSON in a line each."""
    while True:
        print(_encodable(show_status(arguments)), end="\n" if arguments.json else "\n\n", flush=True)
        time.sleep(REFRESH_S)


def _live(path: Path) -> None:
    """In place. An agent that is gone is waited for: it may be restarting."""
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    from agent.control.status_view import view

    shown: RenderableType = view(ask(path, "GET", STATUS))
    console = Console(highlight=False, markup=False, emoji=False)
    with Live(shown, console=console, auto_refresh=False) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(REFRESH_S)
            try:
                answer: dict[str, Any] = ask(path, "GET", STATUS)
            except NoAnswerError as error:
                shown = Group(Text(str(error), "bold red"))
            else:
                shown = view(answer)


def _encodable(text: str) -> str:
    """Where the terminal has not all characters, "?" stands for the others."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
