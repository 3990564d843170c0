"""What all tables of a report look like."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table


def new_table(*columns: str) -> Table:
    """A table whose first column is text, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 else "right", overflow="fold", no_wrap=at != 0)
    return table


def milliseconds(value: float | None) -> str:
    """A time; "-" when there is none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if math.isfinite(value) else "timeout"
