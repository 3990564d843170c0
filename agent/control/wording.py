"""Numbers as people read them. Each takes whatever an agent may answer, and says "-" for what is no number."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

NOTHING = "-"
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def milliseconds(ns: Any) -> str:
    """Nanoseconds as "5.1 ms"."""
    return f"{ns / 1e6:.3g} ms" if _finite(ns) and abs(ns) < 1e9 else f"{ns / 1e9:.4g} s" if _finite(ns) else NOTHING


def per_request(seconds: Any) -> str:
    """CPU seconds as "0.81 ms"."""
    return milliseconds(seconds * 1e9) if _finite(seconds) else NOTHING


def percent(share: Any) -> str:
    """0.0123 as "1.2 %"."""
    return f"{100 * share:.2g} %" if _finite(share) and abs(share) < 0.1 else percentage(share)


def percentage(share: Any) -> str:
    """0.123 as "12.3 %"."""
    return f"{100 * share:.1f} %" if _finite(share) else NOTHING


def memory(count: Any) -> str:
    """Bytes as "212 MiB"."""
    if not _finite(count):
        return NOTHING
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def rate(per_s: Any) -> str:
    """Of requests a second."""
    return f"{per_s:.1f}" if _finite(per_s) and per_s < 100 else f"{per_s:.0f}" if _finite(per_s) else NOTHING


def duration(seconds: Any) -> str:
    """ "40 s", "5 min", "2 h 5 min": the two units that matter."""
    if not _finite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{max(seconds, 0):.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    for n, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            smaller = (*_UNITS, (1, "s"))[n + 1]
            more = rest // smaller[0]
            return f"{whole} {unit} {more} {smaller[1]}" if more else f"{whole} {unit}"
    return NOTHING


def when(at_ns: Any) -> str:
    """Unix nanoseconds as "2026-03-01 12:00:00Z"."""
    if not _finite(at_ns) or not 0 <= at_ns < 253_402_300_800e9:
        return NOTHING
    return f"{datetime.fromtimestamp(at_ns / 1e9, UTC):%Y-%m-%d %H:%M:%SZ}"


def floor(kind: Any, value: Any) -> str:
    """A floor or an effect of one of the judge's metrics, as `replay.judge.verdict.amount` words it; that one would
    cost the command line the import of numpy."""
    if not _finite(value):
        return NOTHING
    if kind == "ratio":
        return f"{math.expm1(value):+.1%}" if value < 3 else f"{math.exp(min(value, 700)):.3g} times"
    return f"{100 * value:+.3g} points" if kind == "rate" else f"{value:+.3g}"


def odds(log_e: Any) -> str:
    """Evidence as "20 to 1"."""
    if not _finite(log_e):
        return NOTHING
    return f"{math.exp(log_e):.3g} to 1" if log_e < 20 else "more than 1e8 to 1"
