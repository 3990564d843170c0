"""What the agent's parts know of themselves, made fit for an answer: times that people can read, and numbers that JSON
can hold. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

TIMES = {"at_ns": "at", "since_ns": "since", "started_ns": "started", "ended_ns": "ended", "failed_at_ns": "failed_at"}
_LAST_NS = 253_402_300_799 * 10**9  # of the year 9999


def readable(value: Any) -> Any:
    """A copy in which an RFC 3339 time stands beside each of TIMES, and null for what is not finite."""
    if isinstance(value, dict):
        made = {key: _inner(each) for key, each in value.items()}
        for key, name in TIMES.items():
            if key in made:
                made.setdefault(name, rfc3339(made[key]))
        return made
    if isinstance(value, list | tuple):
        return [_inner(each) for each in value]
    return _inner(value)


def _inner(value: Any) -> Any:
    """Most values are neither: the service's loop waits meanwhile."""
    if isinstance(value, dict | list | tuple):
        return readable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rfc3339(at_ns: Any) -> str | None:
    """In UTC, to the millisecond: "2026-03-01T12:00:00.000Z". None when it is no time."""
    if not isinstance(at_ns, int) or isinstance(at_ns, bool) or not 0 <= at_ns <= _LAST_NS:
        return None
    whole = datetime.fromtimestamp(at_ns // 10**9, UTC)
    return f"{whole.isoformat()[:19]}.{at_ns % 10**9 // 10**6:03}Z"
