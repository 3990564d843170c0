"""`shadowtap pool`: show and change the upstreams of a shadow of the running agent."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from typing import Any

from agent.control.client import ask
from agent.control.command import add_name, with_reason
from replay.errors import ShadowtapError

_WEIGHT = re.compile(r"[0-9]{1,3}|1000")


class PoolError(ShadowtapError):
    """A change of a pool that cannot be meant."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_name(parser)
    for option, text in (
        ("--add", "take it into the pool, as ADDRESS or ADDRESS=WEIGHT; with a weight also for one that is there"),
        ("--drain", "give it nothing new; what is under way there ends as usual"),
        ("--remove", "take it out of the pool"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="ADDRESS", help=text)


def changed(upstreams: list[Any], arguments: argparse.Namespace) -> list[Any] | None:
    """The pool as the options have it, None when they ask for nothing."""
    if not (arguments.add or arguments.drain or arguments.remove):
        return None
    pool = {_address(each): each for each in upstreams}
    added = [_to_add(text) for text in arguments.add]
    for address in arguments.remove + arguments.drain:
        if address not in pool:
            raise PoolError(f"{address} is not in the pool: there is {', '.join(pool) or 'none'}")
    asked = Counter([*arguments.remove, *arguments.drain, *(address for address, _ in added)])
    if twice := [address for address, count in asked.items() if count > 1]:
        raise PoolError(f"{twice[0]} is given more than once: add, drain or remove it")
    for address in arguments.remove:
        del pool[address]
    for address in arguments.drain:
        pool[address] = _weighted(pool[address], 0)
    for address, weight in added:
        pool[address] = _weighted(pool.get(address, address), weight)
    return list(pool.values())


def lines(name: str, pool: dict[str, Any], states: dict[str, dict[str, int]]) -> list[str]:
    """A pool for people: each upstream with what the workers say of it."""
    shown = [f"{name}: engine {pool.get('engine', '?')}"]
    if problem := pool.get("problem"):
        shown.append(f"  problem: {problem}")
    for address in pool.get("upstreams", []):
        said = ", ".join(f"{state} ({count})" for state, count in states.get(address, {}).items())
        shown.append(f"  {address:<28} {said or 'not used yet'}")
    return shown if pool.get("upstreams") else [*shown, "  no upstreams"]


def show_pool(path: Path, name: str, arguments: argparse.Namespace) -> str:
    """Change the pool, if so asked, and show it."""
    upstreams = changed(ask(path, "GET", f"/v1/shadows/{name}")["upstreams"], arguments)
    if upstreams is not None:
        ask(path, "PATCH", f"/v1/shadows/{name}", with_reason({"upstreams": upstreams}, arguments))
    status = ask(path, "GET", "/v1/status")
    return "\n".join(lines(name, status["pools"].get(name, {}), status["pools"].get(name, {}).get("states", {})))


def _to_add(text: str) -> tuple[str, int]:
    """Address and weight of ADDRESS or ADDRESS=WEIGHT."""
    address, equals, weight = text.partition("=")
    if not address or (equals and not _WEIGHT.fullmatch(weight)):
        raise PoolError(f"--add {text[:100]}: give ADDRESS or ADDRESS=WEIGHT, the weight from 0 to 1000")
    return address, int(weight) if equals else 1


def _address(upstream: Any) -> str:
    return str(upstream["address"] if isinstance(upstream, dict) else upstream)


def _weighted(upstream: Any, weight: int) -> dict[str, Any]:
    whole = upstream if isinstance(upstream, dict) else {"address": upstream}
    return {**whole, "weight": weight}
