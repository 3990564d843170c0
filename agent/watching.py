"""Watches the shadows of a running agent and acts: trips, probes, ramps, rolls back. agent/desk.py answers who asks.

    pulses (workers) ──► breaker ─┐
    verdicts (watch process) ─────┼──► trip: kernel switch, then everything else; roll back; remember; tell
    clock: guards, ramps, budget ─┘

The order of a trip is the point of it: the kernel's switch is one store, and comes before anything that could take time
or fail. What follows may fail without turning the shadow on again.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Any

from agent.config import Config
from agent.control.budget import Budget
from agent.control.guard import HELD, Cause, Now, State
from agent.control.harm import Latency
from agent.control.marker import Trip
from agent.control.records import Records
from agent.control.standing import Standing, causes
from agent.control.steering import CHANGEABLE, Steering
from agent.control.store import StateError
from agent.errors import ConfigError
from agent.harm_watch import HarmWatch
from agent.monitor.watch_link import WatchLink
from agent.production_requests import ProductionRequests
from agent.watch_view import Figures, alarms_of, clocks, missing_usage, plain, verdict_reason

AGENT = "shadowtap"  # the author of what it does by itself
LOOPBACK = "lo"  # where replayed requests of a balancer program pass the tap like any others
VERDICT_LASTS_S = 10.0  # one comes each second
GAP_LASTS_S = 30.0


class Watching:
    """Owns where each shadow stands. `link` is None where nothing is judged."""

    def __init__(
        self, config: Config, steering: Steering, figures: Figures, link: WatchLink | None, say: Callable[[str], None]
    ) -> None:
        now = clocks()
        self.config = config
        self._causes = causes(config.rollback)
        self.steering = steering
        self._figures = figures
        self.link = link
        self._say = say
        self.records = Records(None)
        self.version: int | None = None
        self.standings = {
            name: Standing(name, place, config.rollback, now) for place, name in enumerate(config.shadows)
        }
        self._by_place = list(self.standings.values())
        limits = config.limits
        self._budget = Budget(limits.cpu_percent, limits.memory_mib << 20, limits.loss_percent)
        self.over_budget = ""
        self.harm = HarmWatch(steering, link)
        self._production = ProductionRequests()
        self.gaps: dict[str, list[str]] = {}  # by pool whose CPU and memory have not been known for a while: targets
        self._gaps_since: dict[str, float] = {}

    # Start and end

    def begin(self, latency: Latency | None, source: str) -> None:
        """Take up what was kept, before anything is mirrored; as the user that the agent runs under."""
        state = self.config.state
        self.records = Records(state.directory if state else None)
        self.records.look_through(f"{what} {name}" for name in self.standings for what in ("guard", "ramp"))
        now = clocks()
        for standing in self._by_place:
            self._take_up(standing, now)
        self.version = self.records.version_if_possible(
            plain(self.config), f"file {source}", "the agent started", known_bad=True
        )
        for standing in self._by_place:
            self.put_in_force(standing)
            self.judge(standing, fresh=False)
        if self.config.harm is not None and latency is not None:
            self.harm.begin(self.config.harm, latency)

    def hear_from(self, selector: selectors.BaseSelector) -> None:
        """Hear the watch process through `take` from now on."""
        if self.link is not None:
            self.link.hear_from(selector)

    def close(self) -> None:
        """Keep what is to be kept."""
        for standing in self._by_place:
            self.keep(standing)
        if self.link is not None:
            self.link.close()
        self.records.close()

    def _take_up(self, standing: Standing, now: Now) -> None:
        records, name = self.records, standing.name
        if records.unreadable:
            standing.guard.trip(Cause.STATE, records.unreadable, now)
            self._take_up_ramp(standing, {})
            self._say(f"shadow {name} stays off: {records.unreadable}; `shadowtap reset {name}` begins anew")
            return
        standing.take_up(records.store.kept(f"guard {name}"), records.content.of(name), now)
        self._take_up_ramp(standing, records.store.kept(f"ramp {name}") or {})
        if standing.guard.state is not State.ACTIVE:
            self._say(f"shadow {name} is {standing.guard.state}: {standing.guard.reason}")

    def _take_up_ramp(self, standing: Standing, kept: dict[str, Any]) -> None:
        plan = self.config.shadows[standing.name].ramp
        if standing.take_up_ramp(kept, plan) and plan is not None:
            self._say(f"shadow {standing.name}: a ramp of {len(plan.steps)} steps begins")

    # What is heard

    def take(self) -> None:
        """The watch process has something to say, or has ended."""
        if self.link is None:
            return
        for judged in self.link.take():
            standing = self.standings[judged["judged"]]
            if standing.take_verdict(judged, time.monotonic()) and standing.guard.state is not State.TRIPPED:
                verdict = judged["verdict"]
                if verdict["rollback"]:
                    self.trip(standing, Cause.JUDGE, verdict_reason(verdict))
        if reason := self.harm.take():
            self._trip_all(Cause.HARM, reason)

    def pulse(self, counts: list[list[int]], decided_ns: int) -> None:
        """What a worker counted; `decided_ns` is when the last of these outcomes came, Unix time."""
        now_s = time.monotonic()
        for place, answers, failed, production_failed, unreachable in counts:
            standing = self._by_place[place]
            if standing.guard.state is State.TRIPPED:
                continue
            if reason := standing.probed(answers, failed, production_failed):
                self.trip(standing, Cause.FAILING, reason, decided_ns, always=True)
                continue
            broken = standing.breaker.add(now_s, answers, failed, production_failed, unreachable)
            if broken is not None:
                self.trip(standing, Cause(broken.cause), broken.reason, decided_ns)

    def look(self, now_s: float) -> None:
        """What is due by the clock, each second; monotonic."""
        now = clocks()
        if self.link is not None and self.link.look(now_s):
            for standing in self._by_place:
                standing.fingerprint = ""
                self.judge(standing, fresh=False)
        for standing in self._by_place:
            self._tell_order(standing)
            self._look_at_guard(standing, now)
            self._look_at_ramp(standing, now_s)
        self._look_for_trouble(now_s)
        self._tell_watch()

    def _look_at_guard(self, standing: Standing, now: Now) -> None:
        step = standing.guard.look(now)
        if step is None:
            return
        self._say(f"shadow {standing.name} is {step.after}: {step.reason}")
        self.records.note(AGENT, str(step.after), standing.name, step.reason)
        standing.forget_trouble()
        self.mark()
        self.keep(standing)
        self.put_in_force(standing)
        self.judge(standing, fresh=True)

    def _look_at_ramp(self, standing: Standing, now_s: float) -> None:
        ramp = standing.ramp
        enabled = self.steering.config.shadows[standing.name].enabled
        if ramp is None or ramp.over or not enabled or standing.guard.state is not State.ACTIVE:
            return
        current = standing.verdict is not None and now_s - standing.heard_s < VERDICT_LASTS_S
        verdict: dict[str, Any] = {"word": "inconclusive", "pairs": 0}
        if current and standing.verdict is not None:
            verdict = standing.verdict
        move = ramp.look(now_s, verdict["word"], verdict["pairs"])
        if move is None:
            return
        if move.state == "failed":
            reason = f"the ramp failed at {move.percentage:g} %: {verdict_reason(verdict)}"
            self.trip(standing, Cause.JUDGE, reason, always=True)
            return
        self._say(f"shadow {standing.name}: ramp at {move.percentage:g} % ({move.state}): {move.reason}")
        self.records.note(AGENT, f"ramp {move.state}", standing.name, move.reason, {"percentage": move.percentage})
        if ramp.over:
            try:
                self.change(standing.name, {"percentage": move.percentage}, AGENT, f"the ramp is done: {move.reason}")
            except ConfigError as error:
                self._say(f"shadow {standing.name}: {error}")
        if not self.put_in_force(standing) and ramp.pause():
            self._say(f"shadow {standing.name}: the ramp is paused, since that step cannot be put in force")
        self.keep(standing)
        self.judge(standing, fresh=False)

    def _look_for_trouble(self, now_s: float) -> None:
        accounts, programs = self._figures.accounts(), self._figures.programs()
        for standing in self._by_place:
            if standing.guard.state is State.TRIPPED:
                continue
            marked = accounts[standing.name].skipped["shadow_traffic"] if standing.name in accounts else 0
            if self.config.capture.interface != LOOPBACK and (reason := standing.leaked(now_s, marked)):
                self.trip(standing, Cause.LEAK, reason)
            if reason := standing.balancer_down(now_s, programs.get(standing.name)):
                self.trip(standing, Cause.BALANCER, reason)
        kernel, (cpu_s, memory_bytes) = self._figures.kernel(), self._figures.own()
        lost = kernel["ring_full"] + kernel["over_budget"]
        self.over_budget = self._budget.add(now_s, cpu_s, memory_bytes, kernel["copied"], lost)
        if self.over_budget:
            self._trip_all(Cause.AGENT, self.over_budget)

    def look_at_harm(self, now_s: float) -> None:
        """Go on with the do-no-harm check, whose blocks may be short; as often as the loop comes round."""
        shadows = self.steering.config.shadows.items()
        taking = [name for name, shadow in shadows if shadow.enabled and shadow.share_ppm]
        self.harm.look(now_s, any(self.standings[name].guard.state is State.ACTIVE for name in taking))

    def _tell_watch(self) -> None:
        if self.link is None:
            return
        accounts = self._figures.accounts()
        echoes = self._figures.echoes()
        requests: dict[str, float] = {
            name: account.replayed + echoes.get(name, {}).get("asked", 0) for name, account in accounts.items()
        }
        if (production := self._production.count(accounts, self.steering.config, self.harm.paused)) is not None:
            requests["production"] = production
        self.link.tell({"requests": requests})
        self._note_gaps(missing_usage(self.link.told.watch.get("usage", {})))
        self.link.tell({"alerts": [alarm.as_json() for alarm in alarms_of(self)]})

    def _note_gaps(self, missing: dict[str, list[str]]) -> None:
        """A pool that is not known for a moment, as at the start, is nothing to tell of."""
        now_s = time.monotonic()
        self._gaps_since = {pool: self._gaps_since.get(pool, now_s) for pool in missing}
        self.gaps = {pool: lines for pool, lines in missing.items() if now_s - self._gaps_since[pool] > GAP_LASTS_S}

    # Trips

    def trip(
        self,
        standing: Standing,
        cause: Cause,
        reason: str,
        decided_ns: int = 0,
        author: str = AGENT,
        always: bool = False,
    ) -> None:
        """Switch a shadow off, if that is what is to follow from the cause, or `always`."""
        if not always and cause not in self._causes:
            return
        self.steering.switch_off(standing.name)
        switched_ns = time.time_ns()
        guard, name = standing.guard, standing.name
        news = guard.trip(cause, reason, clocks())
        if not news:
            self.mark()
            self.keep(standing)
            self.records.note(author, "trip", name, reason, {"cause": str(cause), "already": True})
            return
        if standing.ramp is not None:
            standing.ramp.fail(f"tripped: {reason}")
        self.put_in_force(standing)  # so that workers drop what waits; the disk may take its time
        self.mark()
        self._say(f"shadow {name} is tripped ({cause}): {reason}")
        self.harm.abandon()  # only now: it may switch mirroring on again
        detail: dict[str, Any] = {"cause": str(cause), "switched_ns": switched_ns, "version": self.version}
        if decided_ns:
            detail["decided_ns"] = decided_ns
        detail["rolled_back_to"] = self._roll_back_after(standing, reason)
        standing.forget_trouble()
        self.keep(standing)
        self.records.note(author, "trip", name, reason, detail)
        self._tell_watch()

    def _trip_all(self, cause: Cause, reason: str) -> None:
        if cause not in self._causes:
            return
        held = cause in HELD  # then what is off for another cause must not come on by itself either
        on = [standing for standing in self._by_place if held or standing.guard.state is not State.TRIPPED]
        for standing in on:
            self.steering.switch_off(standing.name)  # all of them before what takes time for the first
        for standing in on:
            self.trip(standing, cause, reason)

    def _roll_back_after(self, standing: Standing, reason: str) -> int | None:
        """Restore the settings that the shadow had before; the version they come from, None when there is none."""
        if standing.guard.cause in (Cause.MANUAL, Cause.HARM, Cause.AGENT, Cause.STATE):
            return None  # not the settings' doing
        name = standing.name
        if self.version is not None:
            self.records.mark_bad(self.version, name, reason)
        try:
            found = self.records.store.previous_good(name, plain(self.steering.configured))
        except StateError as error:
            self._say(f"shadow {name}: its earlier settings could not be restored: {error}")
            return None
        if found is None:
            return None
        number, config = found
        section = {key: config["shadows"][name][key] for key in CHANGEABLE if key != "enabled"}
        try:
            self.change(name, section, AGENT, f"rolled back to version {number}: {reason}")
        except ConfigError as error:
            self._say(f"shadow {name}: version {number} could not be restored: {error}")
            return None
        self._say(f"shadow {name}: its settings are those of version {number} again")
        return number

    def mark(self) -> None:
        self.records.mark(
            {
                each.name: Trip(str(each.guard.cause), each.guard.reason)
                for each in self._by_place
                if each.guard.state is State.TRIPPED
            }
        )

    # What is in force, judged, kept

    def put_in_force(self, standing: Standing) -> bool:
        """Let the traffic follow the guard and the ramp; False where that cannot be, which is said."""
        configured = self.steering.configured.shadows[standing.name]
        try:
            self.steering.override(standing.name, standing.overlay(configured.percentage))
            return True
        except ConfigError as error:
            self._say(f"shadow {standing.name}: {error}")
            if standing.guard.state is State.TRIPPED:  # no more than that it is off, which needs no room anywhere
                self.steering.override(standing.name, {**self.steering.overridden(standing.name), "enabled": False})
            return False

    def judge(self, standing: Standing, fresh: bool) -> None:
        """Begin a period where what is judged has changed. A tripped shadow keeps the verdict that tripped it."""
        judging = self.config.judge
        if self.link is None or judging is None or standing.guard.state is State.TRIPPED:
            return
        shadow = self.steering.config.shadows[standing.name]
        longest_s = shadow.timeout_s + shadow.queue_timeout_s + shadow.connect_timeout_s
        fresh = fresh or bool(standing.untold.get("fresh"))  # still owed, though it may be another process by now
        order = standing.begin_period(shadow.model_dump(mode="json", by_alias=True), judging, longest_s, fresh)
        standing.untold = order or standing.untold
        self._tell_order(standing)

    def _tell_order(self, standing: Standing) -> None:
        if standing.untold and self.link is not None and self.link.tell({"judge": standing.untold}):
            standing.untold = {}

    def keep(self, standing: Standing) -> None:
        plan = self.config.shadows[standing.name].ramp
        self.records.keep(f"guard {standing.name}", standing.guard.as_json())
        ramp = standing.ramp.as_json() if standing.ramp else None
        self.records.keep(f"ramp {standing.name}", {"ramp": ramp, "plan": plan.model_dump() if plan else None})

    def change(self, name: str, fields: dict[str, Any], author: str, reason: str) -> None:
        """Change what is configured and give that a version, where it can be recorded."""
        self.steering.change(name, fields)
        version = self.records.version_if_possible(plain(self.steering.configured), author, reason)
        self.version = version if version is not None else self.version

    def reloaded(self, notes: list[str], before: Config) -> None:
        """The file was read again: what is in force, and judged, may be something else."""
        configured = plain(self.steering.configured)
        version = self.records.version_if_possible(configured, "SIGHUP", "the file was read again", known_bad=True)
        self.version = version if version is not None else self.version
        self.records.note("SIGHUP", "reload", "", "; ".join(notes), {"version": self.version})
        for standing in self._by_place:
            old, new = (config.shadows[standing.name] for config in (before, self.steering.configured))
            if old.percentage != new.percentage:
                standing.forget_ended_ramp()
                self.keep(standing)
            self.put_in_force(standing)
            self.judge(standing, fresh=False)

    def begin_records_anew(self, author: str) -> None:
        """The state that could not be read is set aside: put into the new one what is known."""
        configured = plain(self.steering.configured)
        self.version = self.records.version_if_possible(configured, author, "the state began anew")
        for standing in self._by_place:
            self.keep(standing)
