"""What `shadowtap status` shows, on a pipe and on a terminal, of whatever an agent answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from agent.control.status_view import text, view
from tests.agent.control.full_status import NOW_NS, full


def shown(answer: dict[str, Any], width: int = 140) -> list[str]:
    return text(view(answer, NOW_NS), width).splitlines()


def test_a_shadow_that_goes_up_a_ramp() -> None:
    lines = shown(full())
    assert lines[: lines.index("")] == [
        "candidate: enabled, 25 % of the clients, criteria path:/api/*",
        "  state    ACTIVE since 2026-01-01 00:00:00Z (12 min 5 s); 2 trips so far",
        "  ramp     running, step 2 of 2, 25 %, held 3 min 5 s of 10 min",
        "  verdict  INCONCLUSIVE: tail: too few blocks (42 blocks, 12345 pairs)",
        "           latency: pass; shadow +0.1% over 42 blocks",
        "  traffic             req/s    p50     p90   p99 errors      CPU/req       memory",
        "           production   118 5.1 ms 9.12 ms 1.2 s 0.12 %      0.81 ms     3.00 GiB",
        "           shadow       118 5.6 ms 9.12 ms 1.2 s 0.12 % not measured not measured",
        "             response            - 9.12 ms 1.2 s",
        "           1.2 % of the answers differ, 99 of 100 requests leave within 0.31 ms of their time, "
        "1.5 requests/s are not compared (last 1 min)",
        "  account  seen 1000: replayed 985, incomplete 3 (gap), skipped 0, dropped 2 (queue_full), in flight 10",
        "  pool     embedded, 1 upstreams; problem: one is ejected",
    ]


def test_shadows_that_are_off_say_why_and_for_how_long() -> None:
    lines = [line for line in shown(full()) if "TRIPPED" in line]
    since = "  state    TRIPPED since 2026-01-01 00:00:00Z (12 min 5 s); "
    assert lines == [
        since + "judge: latency: +20.1%; is tried again in 7 min",
        since + "manual: \\x1b[2Jby hand; stays off until `shadowtap reset third`",
    ]


def test_a_verdict_of_failure_has_the_sentences_of_what_failed() -> None:
    lines = shown(full())
    at = lines.index("  verdict  FAIL at the rollback level: latency (42 blocks, 12345 pairs)")
    assert lines[at + 1].startswith("           latency: fail; shadow +20.1% [+15.0%, +25.0%] over 42 blocks;")


def test_what_concerns_all_shadows_comes_last() -> None:
    lines = shown(full())
    assert lines[-8:] == [
        "  loss     10 of 12000 segments lost in the kernel (0.083 %): 7 found the ring full, 3 over the budget",
        "  harm     PASS (42 blocks, 12345 pairs)",
        "  gaps     candidate 10.0.0.21:9100: connection refused",
        "  version  12 of the configuration (`shadowtap history`)",
        "  restarts 1 of workers",
        "  alert    critical ShadowTripped [second]: shadow second is off (12 min 5 s)",
        "  alert    warning StateNotKept: no space left",
        "  problem  /var/lib/shadowtap: No space left on device",
    ]


def test_a_terminal_of_80_columns_has_room_for_the_table() -> None:
    lines = shown(full(), 80)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_colours_are_for_terminals_only() -> None:
    assert all(line.isprintable() for line in shown(full()))
    coloured = text(view(full(), NOW_NS), 140, colour=True)
    assert "\x1b[32mACTIVE\x1b[0m" in coloured
    assert "\x1b[2J" not in coloured, "not what a stranger wrote"


def test_many_alerts_are_cut() -> None:
    answer = {"alerts": [{"name": f"A{n}", "severity": "info", "summary": "x"} for n in range(30)]}
    assert shown(answer)[-2:] == ["  alert    info A19: x", "  alert    and 10 more"]


@pytest.mark.parametrize("answer", [{}, {"shadows": None}, {"shadows": [{}]}, {"resources": None, "alerts": {}}])
def test_an_agent_that_says_little(answer: dict[str, Any]) -> None:
    assert all(line.isprintable() for line in shown(answer))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every part of an answer."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(each, (*path, key))


def of_one() -> dict[str, Any]:
    """Of the first shadow alone, and as if that one was tripped."""
    answer = {key: dict(each) if isinstance(each, dict) else each for key, each in full().items()}
    answer["shadows"] = answer["shadows"][:1]
    answer["guards"] = {"candidate": answer["guards"]["second"]}
    answer["verdicts"].pop("second")
    answer["verdicts"]["candidate"].pop("left_out")
    return answer


@pytest.mark.parametrize("gone", [True, False])
def test_any_part_may_be_missing_or_null(gone: bool) -> None:
    for path in paths(of_one()):
        if "examples" in path:
            continue  # not shown here
        answer = copy.deepcopy(of_one())
        place: Any = answer
        for key in path[:-1]:
            place = place[key]
        if gone:
            del place[path[-1]]
        else:
            place[path[-1]] = None
        assert all(line.isprintable() for line in shown(answer)), path
