"""Adding up what several workers report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Report = dict[str, Any]


def add_up(reports: Iterable[Report]) -> Report:
    """Nested dicts of numbers (or lists of numbers) summed key by key; other values are left out."""
    total: Report = {}
    for report in reports:
        for key, value in report.items():
            total[key] = _sum(total.get(key), value)
    return {key: value for key, value in total.items() if value is not None}


def _sum(so_far: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return add_up([so_far or {}, value])
    if isinstance(value, list):
        return [a + b for a, b in zip(so_far or [0] * len(value), value, strict=True)]
    if isinstance(value, int | float):
        return (so_far or 0) + value
    return so_far
