"""When a shadow is switched off, for how long, and when it is tried again: the state machine of one shadow.

    state     event           becomes    and
    ACTIVE    trip            TRIPPED    switch off, roll back, tell
    ACTIVE    reset           ACTIVE     what is remembered of earlier trips is forgotten
    TRIPPED   trip            TRIPPED    the reason is noted; a graver cause takes the place of the first
    TRIPPED   cooldown_over   PROBING    a small share of the traffic is tried; one retry is used up
    TRIPPED   reset           ACTIVE
    PROBING   trip            TRIPPED    the cooldown is doubled, up to a day
    PROBING   probe_passed    ACTIVE
    PROBING   reset           ACTIVE

                ┌───────────────────── reset ──────────────────────┐
                ▼                                                   │
     ┌──► ACTIVE ── trip ──► TRIPPED ── cooldown_over ──► PROBING ──┤
     │       ▲                  │ ▲                          │      │
     │       └──── reset ───────┘ └───────── trip ───────────┘      │
     └────────────────────────── probe_passed ──────────────────────┘

Some causes are held: what a person switched off, mirroring that harms production, shadow traffic that leaked into
production, and a state that cannot be believed end only with a reset. So does every other one when the retries are
used up. A day of ACTIVE gives the retries and the first cooldown back.

The time that counts is that of the host's boot (CLOCK_BOOTTIME), which no change of the clock moves. After a reboot, or
when what is remembered lies in the future, whatever was being waited for begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from agent.fields import Model

DAY_S = 86_400.0
NOTES_LIMIT = 8
REASON_CHARACTERS = 500
TRIPS_LIMIT = 1 << 32


class State(StrEnum):
    """What becomes of the traffic: all that is configured, none, or the probe's share."""

    ACTIVE = "active"
    TRIPPED = "tripped"
    PROBING = "probing"


class Event(Enum):
    """What moves a guard."""

    TRIP = "trip"
    COOLDOWN_OVER = "cooldown_over"
    PROBE_PASSED = "probe_passed"
    RESET = "reset"


TABLE: dict[tuple[State, Event], State] = {
    (State.ACTIVE, Event.TRIP): State.TRIPPED,
    (State.ACTIVE, Event.RESET): State.ACTIVE,
    (State.TRIPPED, Event.TRIP): State.TRIPPED,
    (State.TRIPPED, Event.COOLDOWN_OVER): State.PROBING,
    (State.TRIPPED, Event.RESET): State.ACTIVE,
    (State.PROBING, Event.TRIP): State.TRIPPED,
    (State.PROBING, Event.PROBE_PASSED): State.ACTIVE,
    (State.PROBING, Event.RESET): State.ACTIVE,
}


class Cause(StrEnum):
    """Why a shadow was switched off."""

    JUDGE = "judge"  # the judge says FAIL at the rollback level
    FAILING = "failing"  # the breaker: it plainly fails
    UNREACHABLE = "unreachable"  # the breaker: nobody is there
    BALANCER = "balancer"  # its balancer program died
    HARM = "harm"  # mirroring slows production down
    LEAK = "leak"  # shadow traffic reached production
    AGENT = "agent"  # the agent is over its own budget
    MANUAL = "manual"
    STATE = "state"  # what was remembered cannot be read


HELD = frozenset({Cause.MANUAL, Cause.HARM, Cause.LEAK, Cause.STATE})


class Now(NamedTuple):
    """All clocks at one moment: which boot (/proc/sys/kernel/random/boot_id), seconds of CLOCK_BOOTTIME, Unix time."""

    boot_id: str
    boottime_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """How long a tripped shadow rests, and what a probe must show."""

    cooldown_s: float = 600.0
    retries: int = 3  # probes before only a reset helps
    probe_s: float = 60.0
    probe_requests: int = 20


class Step(NamedTuple):
    """A change that `look` made; the caller lets the traffic follow."""

    before: State
    after: State
    reason: str


_Text = Annotated[str, Field(max_length=REASON_CHARACTERS)]
_Count = Annotated[int, Field(ge=0, le=TRIPS_LIMIT, strict=True)]
_Time = Annotated[float, Field(allow_inf_nan=False)]


class _Kept(Model):
    """What of a guard outlives the process. `since_s` is Unix time, for people; the timer is what counts."""

    state: State
    since_s: _Time
    boot_id: Annotated[str, Field(max_length=100)]
    timer_s: _Time
    cause: Cause | None
    reason: _Text
    notes: Annotated[list[_Text], Field(max_length=NOTES_LIMIT)]
    trips: _Count
    attempts: _Count  # probes since all was well for a day
    doublings: _Count
    answers: _Count  # seen by this probe


class Guard:
    """Of one shadow. Pure: time is handed in. Keep it (`as_json`) after every call of trip, reset and note, and after
    every Step."""

    def __init__(self, settings: GuardSettings, now: Now) -> None:
        self.settings = settings
        self.state = State.ACTIVE
        self.cause: Cause | None = None
        self.reason = ""
        self.notes: list[str] = []  # reasons of further trips while tripped
        self.trips = 0
        self.since_s = now.wall_s
        self._attempts = self._doublings = self._answers = 0
        self._boot_id, self._timer_s = now.boot_id, now.boottime_s

    @property
    def permanent(self) -> bool:
        """Nothing but a reset will end this trip."""
        return self.state is State.TRIPPED and (self.cause in HELD or self._attempts >= self.settings.retries)

    @property
    def retries_left(self) -> int:
        """Probes that may still be tried."""
        return max(0, self.settings.retries - self._attempts)

    @property
    def cooldown_s(self) -> float:
        """The whole cooldown of this trip, or of the next one."""
        return min(self.settings.cooldown_s * 2.0 ** min(self._doublings, 64), max(DAY_S, self.settings.cooldown_s))

    def cooldown_left_s(self, now: Now) -> float:
        """Until a probe; 0 when not tripped; of no meaning when `permanent`."""
        return max(0.0, self.cooldown_s - self._elapsed_s(now)) if self.state is State.TRIPPED else 0.0

    def probe_left_s(self, now: Now) -> float:
        """Until the probe is over, if it has its answers by then; 0 when not probing."""
        return max(0.0, self.settings.probe_s - self._elapsed_s(now)) if self.state is State.PROBING else 0.0

    def answers(self, number: int) -> None:
        """So many more answers came from the shadow; they count while probing."""
        if self.state is State.PROBING:
            self._answers = min(self._answers + max(0, number), TRIPS_LIMIT)

    def trip(self, cause: Cause, reason: str, now: Now) -> bool:
        """Switch the shadow off; True when it was not off already. ValueError for an unknown cause.

        While tripped, a held cause takes the place of one that is not, and other reasons are noted.
        """
        cause, reason = Cause(cause), _cut(reason)
        if self.state is State.TRIPPED:
            self._note(cause, reason)
            return False
        self._calm_down(now)
        if self.state is State.PROBING:
            self._doublings = min(self._doublings + 1, 64)
        self.cause, self.reason, self.notes = cause, reason, []
        self.trips = min(self.trips + 1, TRIPS_LIMIT)
        self._move(Event.TRIP, now)
        return True

    def look(self, now: Now) -> Step | None:
        """What time has brought; to be called every second or so."""
        self._begin_anew_after_a_reboot(now)
        self._calm_down(now)
        before = self.state
        elapsed_s = self._elapsed_s(now)
        if before is State.TRIPPED and not self.permanent and elapsed_s >= self.cooldown_s:
            self._attempts += 1
            self._answers = 0
            self._move(Event.COOLDOWN_OVER, now)
            return Step(before, self.state, f"a probe after {elapsed_s:.0f} s, {self.retries_left} more are left")
        if before is State.PROBING and elapsed_s >= self.settings.probe_s and self._enough_answers:
            self._move(Event.PROBE_PASSED, now)
            return Step(before, self.state, f"{self._answers} answers in {elapsed_s:.0f} s of the probe were well")
        return None

    def reset(self, author: str, now: Now) -> bool:
        """A person says that all is well; earlier trips are forgotten but counted. True when the shadow was off."""
        changed = self.state is not State.ACTIVE
        self._attempts = self._doublings = self._answers = 0
        self.cause, self.reason, self.notes = None, _cut(f"reset by {author}"), []
        self._move(Event.RESET, now)
        return changed

    def as_json(self) -> dict[str, Any]:
        """To be kept; `from_json` takes it up again."""
        return {
            "state": self.state.value,
            "since_s": self.since_s,
            "boot_id": self._boot_id,
            "timer_s": self._timer_s,
            "cause": self.cause.value if self.cause else None,
            "reason": self.reason,
            "notes": list(self.notes),
            "trips": self.trips,
            "attempts": self._attempts,
            "doublings": self._doublings,
            "answers": self._answers,
        }

    @classmethod
    def from_json(cls, data: Any, settings: GuardSettings) -> Guard:
        """What was kept, under settings that may be others by now. ValueError when it is damaged."""
        kept = _Kept.model_validate(data)  # pydantic's error is a ValueError
        if (kept.state is not State.ACTIVE) is (kept.cause is None):
            raise ValueError(f"a guard that is {kept.state} with cause {kept.cause}")
        guard = cls(settings, Now(kept.boot_id, kept.timer_s, kept.since_s))
        guard.state, guard.cause, guard.reason, guard.notes = kept.state, kept.cause, kept.reason, list(kept.notes)
        guard.trips, guard._attempts, guard._doublings = kept.trips, kept.attempts, kept.doublings
        guard._answers = kept.answers
        return guard

    @property
    def _enough_answers(self) -> bool:
        return self._answers >= self.settings.probe_requests

    def _note(self, cause: Cause, reason: str) -> None:
        if cause in HELD and self.cause not in HELD:
            reason, self.cause, self.reason = self.reason, cause, reason
        if reason not in self.notes:
            self.notes = [*self.notes, reason][-NOTES_LIMIT:]

    def _move(self, event: Event, now: Now) -> None:
        self.state = TABLE[self.state, event]
        if self.state is State.ACTIVE:
            self.cause = None
        self.since_s = now.wall_s
        self._start_timer(now)

    def _start_timer(self, now: Now) -> None:
        self._boot_id, self._timer_s = now.boot_id, now.boottime_s

    def _elapsed_s(self, now: Now) -> float:
        if now.boot_id != self._boot_id:
            return 0.0
        return max(0.0, now.boottime_s - self._timer_s)

    def _begin_anew_after_a_reboot(self, now: Now) -> None:
        if now.boot_id != self._boot_id or now.boottime_s < self._timer_s:
            self._start_timer(now)
            self._answers = 0

    def _calm_down(self, now: Now) -> None:
        if self.state is State.ACTIVE and self._elapsed_s(now) >= DAY_S:
            self._attempts = self._doublings = 0


def _cut(reason: str) -> str:
    """One line, and text that can be kept: no halves of surrogate pairs."""
    return " ".join(reason.encode("utf-8", "replace").decode().split())[:REASON_CHARACTERS]
