"""Shows what the shadow and its balancer did: upstreams, failures, TLS."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from replay.compare.behaviour import Behaviour
from replay.compare.failures import Change, Failure, by_whom
from replay.compare.tables import milliseconds, new_table
from replay.compare.tls import Tls
from replay.compare.upstreams import Balancing, Upstream, Waited
from replay.compare.verdict import share

SHOWN_UPSTREAMS = 32
SHOWN_GROUPS = 20
SHOWN_TLS = 8


def behaviour_tables(behaviour: Behaviour) -> Iterator[tuple[str, Table]]:
    """Tables with their titles; those without rows are left out."""
    balancing = behaviour.balancing
    if balancing.upstreams:
        yield "Upstreams of the shadow, milliseconds", _upstream_table(balancing)
    if balancing.own:
        yield "What the balancer answered itself", _own_table(balancing)
    failures = _failure_table(behaviour)
    if failures.row_count:
        yield "Failures and changed statuses, with an example of each", failures


def tls_lines(tls: Tls) -> list[str]:
    """A paragraph on TLS; nothing when there was none."""
    if not tls:
        return []
    lines = ["", "TLS to the shadow"]
    lines += [f"  {name}: {n} requests" for name, n in list(tls.agreed.items())[:SHOWN_TLS]]
    if tls.ends is not None:
        whose = ", ".join(part for part in (tls.ends.host, tls.ends.upstream) if part)
        warning = "WARNING: " if tls.ends.soon else ""
        lines.append(f"  {warning}certificate {tls.ends.words} at the last request ({whose})")
    elif tls.agreed:
        lines.append("  certificates were not verified: when they end is not known")
    lines += [f"  failed: {reason or 'no reason given'}: {n}" for reason, n in list(tls.failures.items())[:SHOWN_TLS]]
    return lines


def _upstream_table(balancing: Balancing) -> Table:
    shown, rest = balancing.upstreams[:SHOWN_UPSTREAMS], balancing.upstreams[SHOWN_UPSTREAMS:]
    waited = any(each.queue.n or each.connect.n for each in balancing.upstreams)
    times = ("queue p50/p99/max", "connect p50/p99/max") if waited else ()
    table = new_table("upstream", "requests", "share", "no answer", "5xx", "p50", "p99", *times)
    for each in shown:
        cells = [*_counted((each,), balancing.requests), milliseconds(each.time.p50), milliseconds(each.time.p99)]
        table.add_row(Text(each.label), *cells, *((_waited(each.queue), _waited(each.connect)) if waited else ()))
    if rest:
        table.add_row(f"{len(rest)} others", *_counted(rest, balancing.requests))
    return table


def _counted(upstreams: tuple[Upstream, ...], total: int) -> list[str]:
    requests = sum(each.requests for each in upstreams)
    failed = sum(sum(each.failed.values()) for each in upstreams)
    return [str(requests), share(requests, total), str(failed), str(sum(each.server_errors for each in upstreams))]


def _waited(waited: Waited) -> str:
    return " / ".join(map(milliseconds, waited[1:])) if waited.n else "-"


def _own_table(balancing: Balancing) -> Table:
    table = new_table("status", "requests", "share", "worse than production", "as far as is known")
    for own in balancing.own[:SHOWN_GROUPS]:
        known = own.why or "no upstream named"
        table.add_row(
            str(own.status), str(own.requests), share(own.requests, balancing.requests), str(own.worse), known
        )
    return table


def _failure_table(behaviour: Behaviour) -> Table:
    """Failures and changed statuses together, the most frequent first."""
    own, total = behaviour.balancing.itself, behaviour.balancing.requests
    failures: list[tuple[Failure | Change, str]] = [
        (each, f"{each.answer}: {each.reason}" if each.reason else each.answer) for each in behaviour.failures.failures
    ]
    changes = [(each, f"{each.production} -> {each.shadow}") for each in behaviour.failures.changes]
    groups = sorted([*failures, *changes], key=lambda group: -group[0].requests)
    table = new_table("what", "requests", "share", "by", "for example")
    for column in table.columns[3:]:
        column.justify, column.no_wrap = "left", False
    for each, what in groups[:SHOWN_GROUPS]:
        whom = Text(by_whom(each.upstreams, own))
        table.add_row(Text(what), str(each.requests), share(each.requests, total), whom, Text(each.example))
    if (more := len(groups) - SHOWN_GROUPS) > 0:
        table.add_row(f"{more} more", str(sum(each.requests for each, _ in groups[SHOWN_GROUPS:])))
    return table
