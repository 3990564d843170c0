"""Pairs of latencies for tests of the judge."""

from __future__ import annotations

import numpy as np

from replay.judge.blocks import Pair

S = 1_000_000_000
MS = 1_000_000
T0 = 1_700_000_000 * S


def pairs(
    count: int,
    seed: int = 1,
    *,
    factor: float = 1.0,
    rate: float = 250.0,
    errors: float = 0.0,
    start_ns: int = T0,
    routes: tuple[str, ...] = ("GET /a",),
) -> list[Pair]:
    """Lognormal latencies, correlated within a pair, the shadow's `factor` times as long; `errors` of the shadow."""
    random = np.random.default_rng(seed)
    shared = random.normal(0, 0.5, count)
    production, shadow = (10 * MS * np.exp(shared + random.normal(0, 0.3, count)) for _ in range(2))
    failed = random.random(count) < errors
    return [
        Pair(
            start_ns + int(at * S / rate),
            routes[at % len(routes)],
            int(production[at]),
            int(shadow[at] * factor),
            shadow_error=bool(failed[at]),
            different=False,
            reference=f"row {at}",
        )
        for at in range(count)
    ]
