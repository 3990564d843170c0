"""Shows a report as text for a terminal or a pipe."""

from __future__ import annotations

import io
import shutil

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.compare.render_behaviour import behaviour_tables, tls_lines
from replay.compare.report import Report, RouteReport, Timing
from replay.compare.statistics import Ratio
from replay.compare.tables import milliseconds, new_table
from replay.compare.tally import DIFFERENT, EQUAL, NOT_COMPARABLE
from replay.compare.verdict import reasons

PIPE_WIDTH = 140  # columns when the output is no terminal
SHOWN_STATUSES = 12  # columns of the status matrix
SHOWN_CHANGES = 20  # rows of the table of changed statuses
SHOWN_COUNTERS = 40
TIME_TITLE = "Milliseconds from the request's end, production -> shadow; shadow / production with a 95 % interval"


def render(report: Report, width: int | None = None) -> str:
    """The report as text, without colours or markup; `width` in columns, by default the terminal's."""
    out = io.StringIO()
    wide = width or shutil.get_terminal_size((PIPE_WIDTH, 40)).columns
    console = Console(file=out, width=wide, color_system=None, force_terminal=False, highlight=False, markup=False)
    _head(console, report)
    _show(console, "Requests", _count_table(report))
    _show(console, TIME_TITLE, _time_table(report))
    if report.all.counts.statuses:
        _show(console, "Status of production (down) and of the shadow (across)", _matrix(report.all))
    changes = _change_table(report)
    if changes.row_count:
        _show(console, "Changed statuses", changes)
    for title, shown in behaviour_tables(report.behaviour):
        _show(console, title, shown)
    for line in tls_lines(report.behaviour.tls):
        console.print(line)
    _account(console, report)
    console.print(f"Verdict: {report.verdict}")
    for caution in report.cautions:
        console.print(f"  - {caution}")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _head(console: Console, report: Report) -> None:
    seen = report.seen
    runs = ", ".join(seen.runs[:3]) + (f" and {len(seen.runs) - 3} more" if len(seen.runs) > 3 else "")
    console.print(f"Recording {seen.directory}, shadow {seen.shadow or '?'}")
    console.print(f"Rows: {seen.rows}, workers: {seen.workers}")
    console.print(f"Runs: {runs or 'unknown'}")


def _show(console: Console, title: str, table: Table) -> None:
    console.print("\n" + title)
    console.print(table)


def _rows(report: Report) -> list[RouteReport]:
    return [*report.routes, report.all]


def _count_table(report: Report) -> Table:
    table = new_table(
        "route", "seen", "replayed", "incomplete", "skipped", "dropped", "no answer", "differ", "bodies = / != / ?"
    )
    for route in _rows(report):
        counts, account = route.counts, route.counts.account
        bodies = counts.bodies
        numbers = [
            account.seen,
            account.replayed,
            account.incomplete.total(),
            account.skipped.total(),
            account.dropped.total(),
            counts.failed.total(),
        ]
        differ = f"{100 * counts.differing / counts.compared:.1f} %" if counts.compared else "-"
        table.add_row(
            Text(route.route),
            *map(str, numbers),
            differ,
            f"{bodies[EQUAL]} / {bodies[DIFFERENT]} / {bodies[NOT_COMPARABLE]}",
        )
    return table


def _time_table(report: Report) -> Table:
    table = new_table("route", "to", "pairs", "p50", "p90", "p99", "ratio")
    for route in _rows(report):
        for name, timing in (("first byte", route.first_byte), ("last byte", route.total)):
            label = Text(route.route if name == "first byte" else "")
            table.add_row(label, name, str(timing.production.n), *_quantiles(timing), _ratio(timing.ratio))
    return table


def _quantiles(timing: Timing) -> list[str]:
    pairs = zip(timing.production[1:], timing.shadow[1:], strict=True)
    return [
        f"{milliseconds(ours)} -> {milliseconds(theirs)}" if ours is not None else "too few" for ours, theirs in pairs
    ]


def _ratio(ratio: Ratio) -> str:
    if ratio.value is None:
        return ratio.why
    return f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]"


def _matrix(total: RouteReport) -> Table:
    statuses = total.counts.statuses
    by_column = sorted({theirs for _, theirs in statuses}, key=_last_none)[:SHOWN_STATUSES]
    table = new_table("", *map(_status, by_column))
    for ours in sorted({ours for ours, _ in statuses}, key=_last_none):
        table.add_row(_status(ours), *(str(statuses[ours, theirs] or "") for theirs in by_column))
    return table


def _change_table(report: Report) -> Table:
    changes = [
        (n, route.route, ours, theirs)
        for route in report.routes
        for (ours, theirs), n in route.counts.statuses.items()
        if ours != theirs
    ]
    table = new_table("route", "production", "shadow", "requests")
    for n, name, ours, theirs in sorted(changes, key=lambda change: -change[0])[:SHOWN_CHANGES]:
        table.add_row(Text(name), _status(ours), _status(theirs), str(n))
    return table


def _status(status: int | None) -> str:
    return "none" if status is None else str(status)


def _last_none(status: int | None) -> int:
    return 1000 if status is None else status


def _account(console: Console, report: Report) -> None:
    seen = report.seen
    console.print("\nAccount (from the rows; in flight from the workers' last word)")
    for line in report.all.counts.account.lines()[:-1]:
        console.print(f"  {line}")
    console.print(f"    in flight {max(seen.account.in_flight, 0):>10}")
    console.print(f"  by the workers' own count: {seen.account.seen} seen")
    if seen.not_meant:
        count, why = sum(seen.not_meant.values()), reasons(seen.not_meant)
        console.print(f"  of them never meant for this shadow, and without a row: {count} ({why})")
    console.print(f"  lost before it could be counted: {reasons(seen.lost) or 'nothing known'}")
    told = [f"{name} {value:g}" for name, value in sorted(seen.counters.items()) if value]
    if told:
        console.print(f"  counters: {', '.join(told[:SHOWN_COUNTERS])}")
    console.print("")
