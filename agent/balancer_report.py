"""What a shadow's balancer program would run and how that differs from production; what a certificate is worth."""

from __future__ import annotations

import difflib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import config as configuration
from agent.config import Config
from agent.errors import ConfigError
from agent.pools import program_of
from replay.balancer.address import resolve
from replay.balancer.derive.change import render_changes
from replay.balancer.program import Plan, ProgramSettings, check_text, listener_for, make_plan, production_lines
from replay.balancer.settings import TlsSettings
from replay.certificate import as_lines, inspect
from replay.proxy_header import LOCAL

CONNECT_LIMIT_S = 5.0


def print_diff(path: Path, name: str | None, *, whole: bool) -> int:
    """What the shadow's program would run, and how that differs; `whole`: the text itself. Exit status."""
    name, settings = _program(configuration.load(path), name)
    with tempfile.TemporaryDirectory(prefix="shadowtap-") as directory:
        plan = make_plan(settings, Path(directory))
        if whole:
            print(plan.derived.text, end="")
            return 0
        for line in _lines(name, settings, plan, Path(directory)):
            print(line)
        problem = check_text(settings, plan, Path(directory))
    print(f"{settings.kind} refuses it: {problem}" if problem else f"{settings.kind} accepts it")
    if problem:
        return 1
    listener_for(settings, plan.derived)  # traffic has to have somewhere to go
    return 0


def _program(config: Config, name: str | None) -> tuple[str, ProgramSettings]:
    found = {each: settings for each in config.shadows if (settings := program_of(config, each)) is not None}
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name is None or name not in found:
        raise ConfigError(
            f"no shadow {name!r} with a balancer program; there is {', '.join(found) or 'none'}"
            if name
            else f"which shadow? {', '.join(found) or 'none has a balancer program: set balancer.engine'}"
        )
    return name, found[name]


def _lines(name: str, settings: ProgramSettings, plan: Plan, directory: Path) -> Iterator[str]:
    derived = plan.derived
    if settings.production:
        before = production_lines(settings, directory)
        yield f"the experiment: {settings.source} against {settings.production}"
        files = (settings.production, settings.source)
        yield from list(difflib.unified_diff(before, plan.source_lines, *files, n=1, lineterm="")) or [
            "  no difference"
        ]
        yield ""
    yield f"shadow {name} runs {settings.source} with {len(derived.changes)} changes"
    yield from render_changes(derived.changes)
    yield ""
    for server in derived.servers:
        yield f"server   {server.name}: {server.production} -> {server.shadow}"
    for each in derived.listeners:
        yield f"listens  {each.production} -> {each.private_host} (a free port){' TLS' if each.tls else ''}"
    for note in derived.notes:
        yield f"note     {note}"


def print_certificates(address: str, names: Sequence[str], ca: Path | None, *, proxy: bool) -> int:
    """What an address presents for each name; by default for its own. Exit status 1 when one is not valid."""
    endpoint = resolve(address)[0]
    names = names or [address.rpartition(":")[0].strip("[]")]
    settings = TlsSettings(ca=str(ca or ""))
    before = LOCAL if proxy else b""
    good = True
    for name in names:
        report = inspect(endpoint.sockaddr, endpoint.family, name, settings, CONNECT_LIMIT_S, time.time(), None, before)
        good = good and report.valid
        print("\n".join(as_lines(report)))
    return 0 if good else 1
