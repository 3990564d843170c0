"""Adding up what several workers report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Report = dict[str, Any]

# What a report tells of the present: path in the report, name of the metric, help.
GAUGES = (
    ("ring.waiting_bytes", "ring_waiting_bytes", "Bytes in the rings that are not read yet"),
    ("ring.size_bytes", "ring_size_bytes", "Size of the rings"),
    ("ring.high_water_bytes", "ring_high_water_bytes", "Most that was ever waiting at a read"),
    ("flows.open", "flows_open", "TCP connections being followed"),
    ("flows.buffered_bytes", "flows_buffered_bytes", "Bytes held for segments that are still missing"),
    ("http.open", "exchanges_open", "Requests and responses being followed"),
    ("spacing.held", "spacing_requests", "Requests held until their time, so that the original spacing is kept"),
    ("replay.queue_entries", "queue_requests", "Requests waiting in front of the shadow"),
    ("replay.queue_bytes", "queue_bytes", "Their bytes"),
    ("replay.queue_peak_entries", "queue_peak_requests", "Longest the queue has been"),
    ("replay.open_connections", "connections_open", "Connections to the shadow"),
)
_PRESENT = frozenset(path for path, _, _ in GAUGES) | {"memory_bytes", "accounts", "pool"}


def add_up(reports: Iterable[Report]) -> Report:
    """Nested dicts of numbers (or lists of numbers) summed key by key; other values are left out."""
    total: Report = {}
    for report in reports:
        for key, value in report.items():
            total[key] = _sum(total.get(key), value)
    return {key: value for key, value in total.items() if value is not None}


def counters_of(report: Report) -> Report:
    """A report without the state of the present (GAUGES): what stays true once the reporter is gone."""
    return {
        key: {name: number for name, number in value.items() if f"{key}.{name}" not in _PRESENT}
        if isinstance(value, dict)
        else value
        for key, value in report.items()
        if key not in _PRESENT
    }


def _sum(so_far: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return add_up([so_far or {}, value])
    if isinstance(value, list):
        return [a + b for a, b in zip(so_far or [0] * len(value), value, strict=True)]
    if isinstance(value, int | float):
        return (so_far or 0) + value
    return so_far
