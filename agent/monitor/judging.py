"""The judge of one shadow within the watch process: its period, what it is given, and its state on disk.

A *period* begins with an order of the service, which names by a fingerprint what is judged (the shadow's settings that
matter, and the error rates). The same fingerprint after a restart goes on with the evidence there was.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.monitor.noise import Noise
from agent.monitor.pairs import LostRecord, PairRecord
from replay.judge import ALL, DEFAULT_PLANS, Judge, Kind, Lost, MetricPlan, Pair, Settings, as_json

STATE_VERSION = 2
UNSENT = "unsent"  # why a request is lost
LATE_S = 2.0  # after a request's time limit its fate is known here: agent.monitor.feed.OVERDUE_NS, and its batches
PAUSES_KEPT, PAUSE_SLACK_NS = 8, 1_000_000_000
CUT_SLACK_NS = 100_000_000  # from the last packet that is copied until it is known that nothing is
CUT = ("incomplete", "unanswered")  # reasons for which a pause can be to blame
EXAMPLES_TOLD = 3
ROUTES_TOLD = 20  # single routes in a message, those with most evidence first


def judge_settings(order: dict[str, Any]) -> Settings:
    """From what `agent.watch_config.Judging.settings` gives."""
    floors = order["floors"]
    plans = tuple(_plan(plan, floors.get(plan.name)) for plan in DEFAULT_PLANS)
    rates = {name: order[name] for name in ("warn_alpha", "rollback_alpha", "pass_alpha", "block_ns", "least_blocks")}
    return Settings(plans=plans, longest_block_ns=max(30_000_000_000, order["block_ns"]), **rates)


def _plan(plan: MetricPlan, percent: dict[str, float] | None) -> MetricPlan:
    if percent is None:
        return plan
    warn, rollback, margin = (percent[name] / 100 for name in ("warn", "rollback", "margin"))
    if plan.kind is Kind.RATIO:
        warn, rollback, margin = math.log1p(warn), math.log1p(rollback), math.log1p(margin)
    return replace(plan, warn=warn, rollback=rollback, margin=margin)


class ShadowJudge:
    """Owns one judge. Times are Unix nanoseconds."""

    def __init__(self, shadow: str, directory: Path | None) -> None:
        """`directory`: where the state is kept, None for nowhere."""
        self.shadow = shadow
        self.fingerprint = ""
        self.started_ns = 0
        self.problem = ""  # with keeping the state
        self._path = directory / f"judge-{shadow}.json" if directory else None
        self._lag_ns = 0
        self._pauses: deque[tuple[int, int]] = deque(maxlen=PAUSES_KEPT)
        self._judge: Judge | None = None
        self._noise = Noise()
        self._settings: Settings | None = None

    def begin(self, order: dict[str, Any], now_ns: int) -> str:
        """Begin a period, or go on with the one whose state was kept; a line about what was done. The order's
        "timeout_s" is all that can pass until the shadow's fate is known: waiting, connecting and answering."""
        self._settings = judge_settings(order["settings"])
        self._lag_ns = round((order["timeout_s"] + LATE_S) * 1e9)
        self.fingerprint = order["fingerprint"]
        if not order["fresh"] and self._resume():
            return "goes on with the evidence kept"
        self.restart(now_ns)
        return ""

    def restart(self, now_ns: int) -> None:
        """Forget all evidence, e.g. because the clock was set; on disk as well, or a crash would bring it back."""
        if self._settings is not None:
            self.started_ns = now_ns
            self._judge, self._noise = Judge(self._settings), Noise()
            self.keep()

    def take(self, pairs: Iterable[PairRecord], lost: Iterable[LostRecord] = ()) -> None:
        """What the workers told of this shadow."""
        judge = self._judge
        if judge is None:
            return
        for record in pairs:
            if record.at_ns >= self.started_ns and not (self._pauses and self._paused_within(record)):
                judge.add(self._pair(record))
        for each in lost:
            if each.at_ns >= self.started_ns and not (each.reason in CUT and self._cut_by_pause(each.at_ns)):
                judge.lose(Lost(each.at_ns, each.route, each.reason, each.production_ns))

    def _pair(self, record: PairRecord) -> Pair:
        different, noisy = self._noise.judge(record.route, record.different, record.noisy)
        return Pair(
            record.at_ns,
            record.route,
            record.production_ns,
            record.shadow_ns,
            record.production_error,
            record.shadow_error,
            different,
            noisy,
            reference(record),
        )

    def paused(self, from_ns: int, to_ns: int) -> None:
        """Nothing was copied in this time (0: until further notice), so what it cut is nobody's loss."""
        while self._pauses and self._pauses[-1][0] == from_ns:
            self._pauses.pop()
        self._pauses.append((from_ns, to_ns))

    def _paused_within(self, record: PairRecord) -> bool:
        """Whether a side had not answered yet when a pause began. What production answered then nobody saw; so that the
        shadow's slow answers do not outweigh those, they do not count either."""
        at_ns, longest_ns = record.at_ns, max(record.production_ns, record.shadow_ns)
        return any(
            at_ns + longest_ns + CUT_SLACK_NS > from_ns and (not to_ns or at_ns <= to_ns)
            for from_ns, to_ns in self._pauses
        )

    def _cut_by_pause(self, at_ns: int) -> bool:
        """A request that came shortly before mirroring paused, or as it went on, cannot be expected to be whole."""
        return any(
            from_ns - self._lag_ns <= at_ns and (not to_ns or at_ns <= to_ns + PAUSE_SLACK_NS)
            for from_ns, to_ns in self._pauses
        )

    def lose_unsent(self, count: int, at_ns: int) -> None:
        """Workers had no room for so many records, some of which may have been of this shadow."""
        if self._judge is not None and count > 0 and at_ns >= self.started_ns:
            self._judge.lose(Lost(at_ns, ALL, UNSENT, count=count))

    def measure(self, metric: str, value: float, at_ns: int) -> None:
        """A number of the pools."""
        if self._judge is not None:
            self._judge.measure(metric, value, at_ns)

    def advance(self, now_ns: int, known_ns: int) -> None:
        """Test the blocks whose requests' fates are all known by now: the workers say so up to `known_ns`, and whatever
        is open for longer than it may be is not waited for."""
        if self._judge is not None:
            self._judge.advance(max(known_ns, now_ns - self._lag_ns))

    def message(self) -> dict[str, Any] | None:
        """For the service: the verdict, no longer than a message may be."""
        if self._judge is None:
            return None
        return {
            "judged": self.shadow,
            "fingerprint": self.fingerprint,
            "period_started_ns": self.started_ns,
            "noisy_routes": self._noise.noisy_routes[:ROUTES_TOLD],
            "verdict": shortened(as_json(self._judge.verdict())),
        }

    def keep(self) -> None:
        """Write the state down; a failure is told by `problem`, and the old state stays."""
        if self._path is None or self._judge is None:
            return
        state = {
            "version": STATE_VERSION,
            "fingerprint": self.fingerprint,
            "started_ns": self.started_ns,
            "noise": self._noise.as_json(),
            "judge": self._judge.as_json(),
        }
        try:
            write_whole(self._path, json.dumps(state))
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}: the judge's evidence is not kept"

    def _resume(self) -> bool:
        if self._path is None:
            return False
        try:
            state = read_state(self._path)
            if state["version"] != STATE_VERSION or state["fingerprint"] != self.fingerprint:
                return False
            started, noise = int(state["started_ns"]), Noise.from_json(state["noise"])
            if max(started, int(state["judge"]["builders"][ALL]["start_ns"] or 0)) > time.time_ns():
                return False  # the clock was set back since
            judge = Judge.from_json(state["judge"], self._settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return False  # none, or damaged: then the evidence begins anew, which no error rate minds
        self.started_ns, self._noise, self._judge = started, noise, judge
        return True


def reference(record: PairRecord) -> str:
    """Where a person finds the request: what it was, both statuses, and its place in the recording."""
    method = record.route.partition(" ")[0]
    answers = f"{record.status or 'no answer'} / {record.shadow_status or record.answer}"
    return f"{method} {record.target} -> {answers} (connection {record.connection}, request {record.position})"


def shortened(verdict: dict[str, Any]) -> dict[str, Any]:
    """A verdict with few examples, and of the single routes those with most evidence; `routes_left_out` says how many
    findings that leaves out."""
    whole = [finding for finding in verdict["findings"] if finding["route"] == ALL]
    single = [finding for finding in verdict["findings"] if finding["route"] != ALL]
    single.sort(key=lambda finding: (finding["word"] != "fail", -finding["log_e"]["warn"]))
    findings = [{**finding, "examples": finding["examples"][:EXAMPLES_TOLD]} for finding in whole]
    for finding in single[:ROUTES_TOLD]:
        findings.append({**finding, "examples": finding["examples"][: finding["word"] == "fail"]})
    return {**verdict, "findings": findings, "routes_left_out": max(0, len(single) - ROUTES_TOLD)}


def read_state(path: Path) -> Any:
    """What `write_whole` wrote; OSError or ValueError. No state holds a number that is not finite."""
    return json.loads(path.read_text(), parse_constant=_refuse)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} in a state")


def write_whole(path: Path, text: str) -> None:
    """Replace a file by one that is whole, also after a power cut. OSError leaves the old one."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
