"""The tables of what the shadow did."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from replay.compare.behaviour import Behaviour
from replay.compare.failures import Change, Failure, Failures
from replay.compare.render_behaviour import SHOWN_GROUPS, SHOWN_UPSTREAMS, behaviour_tables, tls_lines
from replay.compare.statistics import Quantiles
from replay.compare.tables import milliseconds
from replay.compare.tls import Ends, Tls
from replay.compare.upstreams import NO_UPSTREAM, Balancing, Own, Upstream, Waited

NOTHING = Waited(0, None, None, None)


def upstream(name: str, requests: int = 10, itself: bool = False, queue: Waited = NOTHING) -> Upstream:
    return Upstream(name, itself, requests, {"reset": 2}, {200: 5, 502: 3}, Quantiles(10, 1.5, 2, None), queue, queue)


def shown(balancing: Balancing, failures: Failures | None = None) -> dict[str, list[str]]:
    """Lines of each table by its title, with single spaces."""
    out = {}
    for title, table in behaviour_tables(Behaviour(balancing, Tls(), failures or Failures())):
        file = io.StringIO()
        Console(file=file, width=140, color_system=None).print(table)
        out[title] = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    return out


def test_without_anything_there_is_no_table() -> None:
    assert shown(Balancing()) == {}


def test_queue_and_connect_are_columns_only_where_somebody_tells_them() -> None:
    (lines,) = shown(Balancing((upstream("a:1"),))).values()
    assert lines[1] == "upstream requests share no answer 5xx p50 p99"
    assert lines[3] == "a:1 10 100 % 2 3 1.50 -"
    (lines,) = shown(Balancing((upstream("a:1"), upstream("b:1", 30, queue=Waited(9, 1, None, 7.25))))).values()
    assert lines[1].endswith("p99 queue p50/p99/max connect p50/p99/max")
    assert lines[3] == "a:1 10 25.0 % 2 3 1.50 - - -"
    assert lines[4] == "b:1 30 75.0 % 2 3 1.50 - 1.00 / - / 7.25 1.00 / - / 7.25"


def test_many_upstreams_are_added_up() -> None:
    (lines,) = shown(Balancing(tuple(upstream(f"10.0.0.{n}:80") for n in range(SHOWN_UPSTREAMS + 8)))).values()
    assert "8 others 80 20.0 % 16 24" in lines


def test_own_answers_say_what_is_known() -> None:
    balancing = Balancing((upstream("f", itself=True),), (Own(503, NO_UPSTREAM, 6, 5), Own(301, NO_UPSTREAM, 2, 0)))
    lines = shown(balancing)["What the balancer answered itself"]
    assert lines[3] == "503 6 60.0 % 5 no upstream named, as when all health checks fail"
    assert lines[4] == "301 2 20.0 % 0 no upstream named"


def test_failures_and_changes_stand_together_by_number() -> None:
    failures = Failures(
        (
            Failure("tls", "bad [red]certificate[/]", 5, {"f": 5}, "GET /[bold]"),
            Failure("reset", "", 1, {"a:1": 1}, ""),
        ),
        (Change(200, 404, 3, {"a:1": 2, "f": 1}, "GET /x"),),
    )
    balancing = Balancing((upstream("f", itself=True), upstream("a:1")))
    lines = shown(balancing, failures)["Failures and changed statuses, with an example of each"]
    assert lines[3] == "tls: bad [red]certificate[/] 5 25.0 % the balancer itself GET /[bold]"
    assert lines[4] == "200 -> 404 3 15.0 % a:1, the balancer itself GET /x"
    assert lines[5] == "reset 1 5.0 % a:1"


def test_many_groups_end_in_a_number() -> None:
    changes = tuple(Change(200, 400 + n, 2, {"a:1": 2}, "") for n in range(SHOWN_GROUPS + 3))
    lines = shown(Balancing((upstream("a:1", 100),)), Failures(changes=changes))
    assert "3 more 6" in lines["Failures and changed statuses, with an example of each"]


def test_tls() -> None:
    ends = Ends(1_750_000_000, 3.2, "shop.example", "a:1")
    assert tls_lines(Tls({"TLSv1.3 X": 7}, ends, {"certificate has expired": 2, "": 1})) == [
        "",
        "TLS to the shadow",
        "  TLSv1.3 X: 7 requests",
        "  WARNING: certificate ends 2025-06-15 15:06:40 UTC, 3 days left at the last request (shop.example, a:1)",
        "  failed: certificate has expired: 2",
        "  failed: no reason given: 1",
    ]
    assert tls_lines(Tls({"X": 1}))[-1] == "  certificates were not verified: when they end is not known"
    assert tls_lines(Tls()) == []


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (1.234, "1.23"), (math.inf, "timeout")])
def test_milliseconds(value: float | None, text: str) -> None:
    assert milliseconds(value) == text
