"""Compares what production and the shadow answered, from a recording directory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.account import Account
from replay.compare.balancing import own_addresses
from replay.compare.behaviour import COLUMNS as BEHAVIOUR_COLUMNS
from replay.compare.behaviour import BehaviourTally
from replay.compare.read import Recording, open_recording
from replay.compare.report import Counts, Report, RouteReport, Seen, Timing
from replay.compare.routes import OTHER, SHOWN_LIMIT
from replay.compare.statistics import paired_ratio, quantiles
from replay.compare.tally import COLUMNS, Pairs, Tally, feed
from replay.compare.tls import warnings
from replay.compare.verdict import cautions, verdict
from replay.errors import RecordingError
from replay.runfile import RunFile


def compare(directory: Path, *, seed: int = 1) -> Report:
    """Compare everything in a directory; it may be in use. Nothing in it is changed.

    RecordingError: no recording there, one of a newer shadowtap, or one of several shadows.
    """
    recording = open_recording(Path(directory))
    watcher = BehaviourTally()
    tally = feed(watcher.watch(recording.batches(list(dict.fromkeys([*COLUMNS, *BEHAVIOUR_COLUMNS])))))
    if len(tally.shadows) > 1:
        names = ", ".join(sorted(tally.shadows))
        raise RecordingError(f"{directory}: holds several shadows ({names}); record each to a directory of its own")
    pairs = tally.pairs()
    seen = _seen(recording, tally, pairs)
    places, routes = _by_route(tally)
    total = _route_report("all", _sum(tally), pairs, seen.speed, seed)
    shown = [
        _route_report(name, counts, _of(pairs, places, at), seen.speed, seed)
        for at, (name, counts) in enumerate(routes)
    ]
    behaviour = watcher.report(own_addresses(recording.run_files))
    said = (*warnings(behaviour.tls), *cautions(seen, total, behaviour))
    return Report(seen, total, tuple(shown), behaviour, verdict(total, behaviour), said, seed)


def _by_route(tally: Tally) -> tuple[NDArray[np.int32], list[tuple[str, Counts]]]:
    """The routes to show, most frequent first, and for each number of the tally its place among them."""
    counts: defaultdict[int, Counts] = defaultdict(Counts)
    for kind, n in tally.kinds.items():
        counts[kind.route].add(kind, n)
    order = sorted((number for number in counts if number), key=lambda number: -counts[number].account.seen)
    shown = order[:SHOWN_LIMIT]
    places = np.full(len(tally.routes.names), len(shown), dtype=np.int32)
    places[shown] = np.arange(len(shown), dtype=np.int32)
    routes = [(tally.routes.names[number], counts[number]) for number in shown]
    other = Counts()
    for kind, n in tally.kinds.items():
        if places[kind.route] == len(shown):
            other.add(kind, n)
    if other.account.seen:
        routes.append((OTHER, other))
    return places, routes


def _sum(tally: Tally) -> Counts:
    total = Counts()
    for kind, n in tally.kinds.items():
        total.add(kind, n)
    return total


def _of(pairs: Pairs, places: NDArray[np.int32], at: int) -> Pairs:
    """The pairs of the route at one place."""
    mask = places[pairs.route] == at
    return Pairs._make(column[mask] for column in pairs)


def _route_report(name: str, counts: Counts, pairs: Pairs, speed: float, seed: int) -> RouteReport:
    def timing(production: NDArray[np.float32], shadow: NDArray[np.float32]) -> Timing:
        both = ~np.isnan(production) & ~np.isnan(shadow)
        ours, theirs = production[both].astype(np.float64), shadow[both].astype(np.float64)
        ratio = paired_ratio(ours, theirs, pairs.at_s[both], speed=speed, seed=seed)
        return Timing(quantiles(ours), quantiles(theirs), ratio)

    first = timing(pairs.production_first, pairs.shadow_first)
    return RouteReport(name, counts, first, timing(pairs.production_total, pairs.shadow_total))


def _seen(recording: Recording, tally: Tally, pairs: Pairs) -> Seen:
    account = Account()
    own: Counter[str] = Counter()
    for file in recording.run_files:
        account.add(file.account)
        own.update(file.recording)
    counters = _extra(recording.run_files)
    lost = {name.removeprefix("lost."): int(counters.pop(name)) for name in list(counters) if name.startswith("lost.")}
    speed = tally.span_s / tally.shadow_span_s if len(pairs.at_s) > 1 and tally.shadow_span_s > 0 else 1.0
    return Seen(
        directory=str(recording.directory),
        shadow=next(iter(tally.shadows), recording.run_files[0].shadow if recording.run_files else ""),
        runs=tuple(dict.fromkeys(file.run for file in recording.run_files)),
        workers=len(recording.run_files),
        workers_not_ended=sum(file.state != "ended" for file in recording.run_files),
        rows=recording.rows,
        account=account,
        lost=lost,
        counters=counters,
        recording=dict(own),
        torn_bytes=recording.torn_bytes,
        unreadable=tuple(recording.unreadable),
        every=tally.every,
        speed=speed,
    )


def _extra(files: list[RunFile]) -> dict[str, float]:
    """The numbers of all run files under their dotted names, added up.

    "capture" and "lost" are totals of one kernel program, which goes on when the worker that is told them starts again:
    within a run the largest counts.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    largest: defaultdict[tuple[str, str], float] = defaultdict(float)
    for file in files:
        for name, value in _leaves(file.extra):
            if name.startswith(("capture.", "lost.")):
                largest[file.run, name] = max(largest[file.run, name], value)
            else:
                totals[name] += value
    for (_, name), value in largest.items():
        totals[name] += value
    return dict(totals)


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested dicts, under its dotted name."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value
