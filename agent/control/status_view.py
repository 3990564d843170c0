"""What `shadowtap status` shows: a compact block for each shadow, then what concerns all. Made from the agent's answer
alone, of which any part may be missing: the agent may be older, or not have been asked to watch it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.control.command import printable
from agent.control.shadow_line import shadow_line
from agent.control.wording import NOTHING, duration, memory, milliseconds, per_request, percent, rate, when

PIPE_WIDTH = 140  # columns where the output is no terminal
SENTENCES = 8
ALERTS = 20
NOT_MEASURED = "not measured"
STYLES = {
    "active": "green",
    "tripped": "bold red",
    "probing": "yellow",
    "pass": "green",
    "fail": "bold red",
    "inconclusive": "yellow",
    "critical": "bold red",
    "warning": "yellow",
    "failed": "bold red",
}


def view(answer: dict[str, Any], now_ns: int | None = None) -> Group:
    """All of it; `now_ns` is the present, for how long something is so."""
    now = time.time_ns() if now_ns is None else now_ns
    parts: list[RenderableType] = []
    for shadow in _dicts(answer.get("shadows")):
        parts += [_title(shadow), _grid(_shadow_rows(answer, str(shadow.get("name")), now)), Text("")]
    return Group(*parts, _grid(_common_rows(answer, now)))


def text(shown: RenderableType, width: int, colour: bool = False) -> str:
    """As text, by default without a single control character."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        color_system="standard" if colour else None,
        force_terminal=colour,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(shown)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()


def _title(shadow: dict[str, Any]) -> Text:
    return Text(printable(shadow_line(shadow)), style="bold")


def _grid(rows: Iterator[tuple[str, RenderableType]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for label, content in rows:
        grid.add_row(f"  {label}", content)
    return grid


def _shadow_rows(answer: dict[str, Any], name: str, now_ns: int) -> Iterator[tuple[str, RenderableType]]:
    if guard := _part(answer, "guards", name):
        yield "state", _guard(guard, name, now_ns)
    ramp = _part(answer, "ramps", name)
    if ramp.get("state", "none") != "none":
        yield "ramp", Text(ramp_words(ramp), STYLES.get(str(ramp["state"]), ""))
    if verdict := _part(answer, "verdicts", name):
        yield "verdict", verdict_words(verdict)
        yield from (("", Text(printable(line))) for line in sentences(verdict))
    traffic = _part(answer, "traffic", name)
    usages = answer.get("resources")
    if traffic or usages:
        yield "traffic", _sides(traffic, usages if isinstance(usages, dict) else {}, name)
    if traffic:
        yield "", Text(_compared(traffic))
    if account := _part(answer, "accounts", name):
        yield "account", Text(account_words(account))
    if pool := _part(answer, "pools", name):
        yield "pool", Text(_pool(pool))


def _guard(guard: dict[str, Any], name: str, now_ns: int) -> Text:
    state = printable(guard.get("state"))
    words = [f"since {when(guard.get('since_ns'))}"]
    if isinstance(guard.get("since_ns"), int) and now_ns > guard["since_ns"]:
        words[0] += f" ({duration((now_ns - guard['since_ns']) / 1e9)})"
    if state == "tripped":
        words.append(printable(f"{guard.get('cause')}: {guard.get('reason')}"))
        rest = f"until `shadowtap reset {name}`"
        left = guard.get("cooldown_left_s")
        words.append(f"stays off {rest}" if guard.get("permanent") else f"is tried again in {duration(left)}")
    elif guard.get("trips"):
        words.append(f"{guard['trips']} trips so far")
    return Text.assemble((state.upper(), STYLES.get(state, "")), " ", "; ".join(words))


def ramp_words(ramp: dict[str, Any]) -> str:
    """A ramp in one line."""
    steps, step = ramp.get("steps"), ramp.get("step")
    found = [f"{printable(ramp.get('state'))}, step {step} of {len(steps) if isinstance(steps, list) else steps}"]
    if isinstance(ramp.get("percentage"), int | float):
        found.append(f"{ramp['percentage']:g} %")
    present = steps[step - 1] if isinstance(steps, list) and isinstance(step, int) and 0 < step <= len(steps) else {}
    whole = f" of {duration(present['hold_s'])}" if isinstance(present, dict) and "hold_s" in present else ""
    if "held_s" in ramp:
        found.append(f"held {duration(ramp['held_s'])}{whole}")
    return ", ".join(found) + (f": {printable(ramp['reason'])}" if ramp.get("reason") else "")


def verdict_words(verdict: dict[str, Any]) -> Text:
    """The word, why, and from how much."""
    word = printable(verdict.get("word"))
    level = " at the rollback level" if verdict.get("rollback") else ""
    reason = f": {printable(verdict['reason'])}" if verdict.get("reason") else ""
    much = f" ({verdict.get('blocks', 0)} blocks, {verdict.get('pairs', 0)} pairs)"
    return Text.assemble((word.upper(), STYLES.get(word, "")), f"{level}{reason}{much}")


def sentences(verdict: dict[str, Any]) -> list[str]:
    """Of the findings that matter: what failed, else what was found of all requests together."""
    findings = _dicts(verdict.get("findings"))
    failed = [each for each in findings if each.get("word") == "fail"]
    of_all = [each for each in findings if each.get("route") == "all" and each.get("blocks")]
    return [str(each.get("sentence") or each.get("metric")) for each in failed or of_all][:SENTENCES]


def _sides(traffic: dict[str, Any], resources: dict[str, Any], name: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("", "req/s", "p50", "p90", "p99", "errors", "CPU/req", "memory"):
        table.add_column(column, justify="right" if column else "left", no_wrap=column not in ("CPU/req", "memory"))
    sides = {"production": resources.get("production"), "shadow": _part(resources, "shadows", name)}
    for side, usage in sides.items():
        table.add_row(side, *_latencies(traffic.get(side)), *_usage(usage, bool(resources)))
    response = traffic.get("shadow_response")  # from when the request should have left, not from when it did
    if isinstance(response, dict):
        table.add_row("  response", "", *_times(response))
    return table


def _latencies(side: Any) -> list[str]:
    found = side if isinstance(side, dict) else {}
    return [rate(found.get("requests_per_s")), *_times(found), percent(found.get("error_share"))]


def _times(side: dict[str, Any]) -> list[str]:
    return [milliseconds(side.get(f"p{n}_ns")) for n in (50, 90, 99)]


def _usage(usage: Any, asked_for: bool) -> list[str]:
    found = usage if isinstance(usage, dict) else {}
    numbers = [per_request(found.get("cpu_seconds_per_request")), memory(found.get("memory_bytes"))]
    return [NOT_MEASURED if number == NOTHING and asked_for else number for number in numbers]


def _compared(traffic: dict[str, Any]) -> str:
    parts = [f"{percent(traffic.get('different_share'))} of the answers differ"]
    if "lag_p99_ns" in traffic:
        parts.append(f"99 of 100 requests leave within {milliseconds(traffic['lag_p99_ns'])} of their time")
    if traffic.get("lost_per_s"):
        parts.append(f"{rate(traffic['lost_per_s'])} requests/s are not compared")
    return ", ".join(parts) + f" (last {duration(traffic.get('seconds', 60))})"


def account_words(account: dict[str, Any]) -> str:
    """The fates of the requests in one line, reasons with those that have some."""
    parts = [f"seen {account.get('seen', 0)}: replayed {account.get('replayed', 0)}"]
    for fate in ("incomplete", "skipped", "dropped"):
        reasons = account.get(fate)
        counts = {key: n for key, n in reasons.items() if isinstance(n, int)} if isinstance(reasons, dict) else {}
        why = f" ({', '.join(printable(key) for key in counts)})" if counts else ""
        parts.append(f"{fate} {sum(counts.values())}{why}")
    return ", ".join([*parts, f"in flight {account.get('in_flight', 0)}"])


def _pool(pool: dict[str, Any]) -> str:
    upstreams = pool.get("upstreams")
    found = f"{printable(pool.get('engine', '?'))}, {len(upstreams) if isinstance(upstreams, list) else 0} upstreams"
    return found + (f"; problem: {printable(pool['problem'])}" if pool.get("problem") else "")


def _common_rows(answer: dict[str, Any], now_ns: int) -> Iterator[tuple[str, RenderableType]]:
    if isinstance(kernel := answer.get("kernel"), dict) and kernel:
        yield "loss", Text(_loss(kernel))
    if isinstance(harm := answer.get("harm"), dict) and harm:
        yield "harm", verdict_words(harm)
        yield from (("", Text(printable(line))) for line in sentences(harm))
    if usage_gaps := _gaps(answer.get("resources")):
        yield "gaps", Text(usage_gaps)
    if answer.get("version") is not None:
        yield "version", Text(f"{printable(answer['version'])} of the configuration (`shadowtap history`)")
    if answer.get("restarts"):
        yield "restarts", Text(f"{printable(answer['restarts'])} of workers")
    alerts = _dicts(answer.get("alerts"))
    for alert in alerts[:ALERTS]:
        yield "alert", _alert(alert, now_ns)
    if len(alerts) > ALERTS:
        yield "alert", Text(f"and {len(alerts) - ALERTS} more")
    problems = answer.get("problems")
    for problem in problems if isinstance(problems, list) else ():
        yield "problem", Text(printable(problem), "yellow")


def _loss(kernel: dict[str, Any]) -> str:
    copied, full, over = (kernel.get(key) or 0 for key in ("copied", "ring_full", "over_budget"))
    lost = full + over
    share = percent(lost / (copied + lost)) if copied + lost else NOTHING
    why = f": {full} found the ring full, {over} over the budget" if lost else ""
    return f"{lost} of {copied + lost} segments lost in the kernel ({share}){why}"


def _gaps(resources: Any) -> str:
    """Why CPU and memory of a pool are not measured."""
    if not isinstance(resources, dict):
        return ""
    pools = {"production": resources.get("production"), **(resources.get("shadows") or {})}
    lines = []
    for name, usage in pools.items():
        missing = usage.get("missing") if isinstance(usage, dict) else None
        for target in (missing or [])[:2]:
            lines.append(printable(f"{name} {': '.join(map(str, target)) if isinstance(target, list) else target}"))
    return "; ".join(lines)


def _alert(alert: dict[str, Any], now_ns: int) -> Text:
    severity = printable(alert.get("severity"))
    started = alert.get("started_ns")
    since = f" ({duration((now_ns - started) / 1e9)})" if isinstance(started, int) and now_ns > started else ""
    about = f" [{printable(alert['shadow'])}]" if alert.get("shadow") else ""
    shown = f" {printable(alert.get('name'))}{about}: {printable(alert.get('summary'))}{since}"
    return Text.assemble((severity, STYLES.get(severity, "")), shown)


def _part(answer: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    """What a section says of one shadow, {} when nothing."""
    section = answer.get(key)
    found = section.get(name) if isinstance(section, dict) else None
    return found if isinstance(found, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
