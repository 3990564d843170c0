"""Puts selections into a tap that is under test."""

from __future__ import annotations

from agent.capture.layout import PPM, Control
from agent.capture.tap import Tap
from agent.select.criteria import Always, Criteria
from agent.select.language import parse
from agent.select.prefixes import GeoNetworks
from agent.select.sampling import Window
from agent.select.superset import Selection, Wanted, make_selection

SEED = 12345
LEASE_NS = 60_000_000_000


def wanted(text: str = "random", ppm: int = PPM, *, start: int = 0, by_client: bool = False) -> Wanted:
    """What one shadow wants."""
    criteria: Criteria = Always() if text == "random" else parse(text)
    return Wanted(criteria, Window(start, start + ppm), by_client)


def select(tap: Tap, *shadows: Wanted, geo: GeoNetworks | None = None) -> Selection:
    """All the shadows are on, and the tables are theirs."""
    selection = make_selection(shadows or (wanted(),), geo)
    tap.tables.select(selection)
    tap.tables.enabled = (1 << len(selection.windows)) - 1
    return selection


def arm(tap: Tap, workers: int, lease_ns: int = LEASE_NS, **changes: int) -> None:
    """Orders and lease; which tables decide, and who is on, stays as it is."""
    base = Control(SEED, 0, 0, tap.tables.word, tap.tables.enabled, workers, 0, 65535, 65535)
    tap.arm(base._replace(**changes), lease_ns)
