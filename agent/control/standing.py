"""Where one shadow stands: its guard, its breaker, its ramp, and what is being judged. No I/O.

What is in force of a shadow follows from all of them (`overlay`), and so does what a verdict is about (`period`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from agent.control.breaker import Breaker, Rules
from agent.control.guard import Cause, Guard, GuardSettings, Now, State
from agent.control.marker import Trip
from agent.control.ramp import Ramp, Step
from agent.control.ramp import State as RampState
from agent.watch_config import Judging, RampPlan, Rollback

JUDGED = ("percentage", "criteria", "sample_by", "methods", "upstreams", "balancer", "discovery", "shadow_pool_arn")
LEAK_WINDOW_S, LEAK_REQUESTS = 10.0, 5
PROBE_LEAST = 10  # answers, before a probe can fail


def guard_settings(rollback: Rollback) -> GuardSettings:
    """Of a configuration."""
    return GuardSettings(rollback.cooldown_s, rollback.retries, rollback.probe_s, rollback.probe_requests)


def rules(rollback: Rollback) -> Rules:
    """Of a configuration."""
    return Rules(
        failing_percent=rollback.failing_percent,
        failing_requests=rollback.failing_requests,
        failing_s=rollback.failing_s,
        production_percent=rollback.production_percent,
        unreachable_percent=rollback.unreachable_percent,
        unreachable_s=rollback.unreachable_s,
        unreachable_requests=rollback.unreachable_requests,
    )


class Standing:
    """Of one shadow. `verdict` is the last one about the present period, None before there is one."""

    def __init__(self, name: str, place: int, rollback: Rollback, now: Now) -> None:
        self.name = name
        self.place = place
        self.guard = Guard(guard_settings(rollback), now)
        self.breaker = Breaker(rules(rollback))
        self.ramp: Ramp | None = None
        self.fingerprint = ""
        self.period_started_ns = 0
        self.verdict: dict[str, Any] | None = None
        self.judged: dict[str, Any] = {}  # the message it came in
        self.heard_s = 0.0  # when, monotonic
        self.untold: dict[str, Any] = {}  # an order that the judge has not got yet
        self._rollback = rollback
        self._probed = [0, 0]  # answers of this probe, and how many of them failed
        self._leaks: list[tuple[float, int]] = []  # when, how many marked requests had come in all
        self._down_since_s: float | None = None  # its balancer program

    def take_up(self, kept: Any, marked: Trip | None, now: Now) -> None:
        """What was kept of its guard, if anything was, and what the marker says, which could be written when the store
        could not."""
        if kept is not None:
            try:
                self.guard = Guard.from_json(kept, guard_settings(self._rollback))
            except ValueError:
                self.guard.trip(Cause.STATE, "what was kept of its guard is damaged", now)
        if marked is not None and self.guard.state is not State.TRIPPED:
            cause = Cause(marked.cause) if marked.cause in set(Cause) else Cause.STATE
            self.guard.trip(cause, marked.reason, now)

    def take_up_ramp(self, kept: dict[str, Any], plan: RampPlan | None) -> bool:
        """What was kept of its ramp; True when the configured one begins, which it does only once."""
        try:
            self.ramp = Ramp.from_json(kept["ramp"]) if kept.get("ramp") else None
        except ValueError:
            self.ramp = None
        if plan is None:
            if kept.get("plan") is not None:
                self.ramp = None  # it has left the configuration since
            return False
        if kept.get("plan") == plan.model_dump():
            return False
        self.start_ramp(plan)
        return True

    def overlay(self, configured_percentage: float) -> dict[str, Any]:
        """What is in force instead of what is configured."""
        if self.guard.state is State.TRIPPED:
            return {"enabled": False}
        percentage = self._ramp_percentage(configured_percentage)
        if self.guard.state is State.PROBING:
            usual = configured_percentage if percentage is None else percentage
            return {"percentage": min(usual, self._rollback.probe_percentage)}
        return {} if percentage is None else {"percentage": percentage}

    def _ramp_percentage(self, configured: float) -> float | None:
        """A ramp that failed or was aborted leaves no more than its first step: nobody has said that more is well."""
        if self.ramp is None:
            return None
        if self.ramp.state in (RampState.FAILED, RampState.ABORTED):
            return min(configured, self.ramp.steps[0].percentage)
        return self.ramp.percentage

    def alpha_share(self) -> float:
        """This period's part of the judge's error rates."""
        running = self.ramp is not None and not self.ramp.over
        return self.ramp.alpha_share() if running and self.ramp is not None else 1.0

    def begin_period(self, shadow: dict[str, Any], judging: Judging, timeout_s: float, fresh: bool) -> dict[str, Any]:
        """The order for the judge, {} when what is judged is the same as before and not to be judged anew. `shadow`:
        its settings in force, as JSON."""
        about = {key: shadow.get(key) for key in JUDGED}
        about |= {"settings": judging.settings(self.alpha_share()), "timeout_s": timeout_s}
        about["guard"] = [self.guard.state.value, self.guard.trips]  # what is still under way is of another period
        about["step"] = self.ramp.step if self.ramp is not None and not self.ramp.over else None
        fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if fingerprint == self.fingerprint and not fresh:
            return {}
        self.fingerprint, self.verdict, self.judged = fingerprint, None, {}
        return {
            "shadow": self.name,
            "fingerprint": fingerprint,
            "fresh": fresh,
            "timeout_s": timeout_s,
            "settings": about["settings"],
        }

    def take_verdict(self, judged: dict[str, Any], now_s: float) -> bool:
        """A verdict came; False when it is about an earlier period."""
        if judged["fingerprint"] != self.fingerprint:
            return False
        self.heard_s = now_s
        self.judged, self.verdict = judged, judged["verdict"]
        self.period_started_ns = judged["period_started_ns"]
        return True

    def forget_trouble(self) -> None:
        """What came before a trip, or before a shadow goes on, is no reason to trip again."""
        self.breaker.clear()
        self._probed = [0, 0]
        self._leaks = []
        self._down_since_s = None

    def probed(self, answers: int, failed: int, production_failed: int) -> str:
        """Answers that came while it was probed: good ones count for the probe; a reason to trip or ""."""
        self.guard.answers(answers - failed - production_failed)
        if self.guard.state is not State.PROBING:
            return ""
        self._probed = [self._probed[0] + answers, self._probed[1] + failed]
        count, bad = self._probed
        if not bad or count < min(PROBE_LEAST, self._rollback.probe_requests):
            return ""
        if bad * 100 < self._rollback.failing_percent * count:
            return ""
        return f"{bad} of the probe's {count} answers failed"

    def leaked(self, now_s: float, marked: int) -> str:
        """Requests with the shadow's mark that came to production's port, counted in all; a reason to trip or ""."""
        self._leaks = [(at_s, count) for at_s, count in self._leaks if at_s > now_s - LEAK_WINDOW_S]
        self._leaks.append((now_s, marked))
        came = marked - self._leaks[0][1]
        if came < LEAK_REQUESTS:
            return ""
        return f"{came} requests that carry the shadow's mark came to production within {LEAK_WINDOW_S:.0f} s"

    def balancer_down(self, now_s: float, runs: bool | None) -> str:
        """Whether its balancer program runs (None: it has none); a reason to trip or ""."""
        if runs is not False:
            self._down_since_s = None
            return ""
        if self._down_since_s is None:
            self._down_since_s = now_s
        if now_s - self._down_since_s < self._rollback.balancer_s:
            return ""
        return f"the shadow's balancer program has been down for {now_s - self._down_since_s:.0f} s"

    def forget_ended_ramp(self) -> None:
        """A percentage was given since: the ramp's is over."""
        if self.ramp is not None and self.ramp.over:
            self.ramp = None

    def start_ramp(self, plan: RampPlan) -> Ramp:
        """Begin a ramp."""
        self.ramp = Ramp([Step(step.percentage, step.hold_s) for step in plan.steps], plan.inconclusive)
        return self.ramp

    # As the API shows it

    def guard_view(self, now: Now) -> dict[str, Any]:
        """The guard."""
        guard = self.guard
        return {
            "state": guard.state.value,
            "cause": guard.cause.value if guard.cause else "",
            "reason": guard.reason,
            "since_ns": round(guard.since_s * 1e9),
            "trips": guard.trips,
            "notes": list(guard.notes),
            "cooldown_left_s": round(guard.cooldown_left_s(now), 1),
            "permanent": guard.permanent,
            "retries_left": guard.retries_left,
        }

    def ramp_view(self) -> dict[str, Any]:
        """The ramp."""
        ramp = self.ramp
        if ramp is None:
            return {"state": "none"}
        return {
            "state": ramp.state.value,
            "steps": [{"percentage": step.percentage, "hold_s": step.hold_s} for step in ramp.steps],
            "step": ramp.step + 1,
            "percentage": ramp.percentage,
            "held_s": round(ramp.held_s, 1),
            "hold_left_s": round(ramp.hold_left_s, 1),
            "inconclusive": ramp.inconclusive,
            "reason": ramp.reason,
        }


def causes(rollback: Rollback) -> frozenset[Cause]:
    """That trip; a person's own word and an unreadable state always do."""
    return frozenset({*(Cause(cause) for cause in rollback.on), Cause.MANUAL, Cause.STATE})
