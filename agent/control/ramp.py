"""A canary's way up: steps of more and more traffic, each of which is left only when the judge says PASS.

    state     event                              becomes
    RUNNING   held for hold_s, PASS              RUNNING with the next step; DONE after the last
    RUNNING   N more hold times, INCONCLUSIVE    the same, where `inconclusive` is N > 0
    RUNNING   pause                              PAUSED
    PAUSED    resume                             RUNNING
    either    abort                              ABORTED
    either    FAIL, or the shadow was tripped    FAILED

Only time in RUNNING counts as held: none while paused, and none while the agent is down, so it is kept as seconds and
not as readings of a clock. `inconclusive: N` is N looks without a verdict, each one hold_s after the one before; a step
in which nothing was compared at all is never left. DONE leaves the last step's percentage where it is.

Each step is a period of its own for the judge, with a fair part of the error rates (`alpha_share`): the chance that
any step of a whole ramp fails wrongly is at most the rate that is stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from agent.fields import Model

STEPS_LIMIT = 64
HOLD_LIMIT_S = 30 * 86_400.0
INCONCLUSIVE_LIMIT = 1000
REASON_CHARACTERS = 500

Word = Literal["pass", "fail", "inconclusive"]  # as replay.judge says them


class State(StrEnum):
    """Where a ramp is; the last three are its end."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"


OVER = frozenset({State.DONE, State.ABORTED, State.FAILED})
TABLE: dict[tuple[State, str], State] = {
    (State.RUNNING, "pause"): State.PAUSED,
    (State.PAUSED, "resume"): State.RUNNING,
    (State.RUNNING, "abort"): State.ABORTED,
    (State.PAUSED, "abort"): State.ABORTED,
    (State.RUNNING, "fail"): State.FAILED,
    (State.PAUSED, "fail"): State.FAILED,
    (State.RUNNING, "finish"): State.DONE,
}


@dataclass(frozen=True, slots=True)
class Step:
    """So much of the traffic, for at least so long. ValueError when that makes no sense."""

    percentage: float
    hold_s: float

    def __post_init__(self) -> None:
        if not 0 < self.percentage <= 100:
            raise ValueError(f"a step of {self.percentage} %: give more than 0 and at most 100")
        if not 0 < self.hold_s <= HOLD_LIMIT_S:
            raise ValueError(f"a step held for {self.hold_s} s: give more than 0 and at most {HOLD_LIMIT_S:.0f}")


class Move(NamedTuple):
    """What `look` changed. The caller sets `percentage` and begins a new period, or trips the shadow for FAILED."""

    state: State
    step: int  # from 0
    percentage: float
    reason: str


class _KeptStep(Model):
    percentage: float
    hold_s: float


class _Kept(Model):
    steps: Annotated[list[_KeptStep], Field(min_length=1, max_length=STEPS_LIMIT)]
    inconclusive: Annotated[int, Field(ge=0, le=INCONCLUSIVE_LIMIT, strict=True)]
    state: State
    step: Annotated[int, Field(ge=0, strict=True)]
    held_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    reason: Annotated[str, Field(max_length=REASON_CHARACTERS)]


class Ramp:
    """Of one shadow. Pure: time is handed in. ValueError for steps that make no sense."""

    def __init__(self, steps: Sequence[Step], inconclusive: int = 0) -> None:
        if not 1 <= len(steps) <= STEPS_LIMIT:
            raise ValueError(f"a ramp of {len(steps)} steps: give 1 to {STEPS_LIMIT}")
        if not 0 <= inconclusive <= INCONCLUSIVE_LIMIT:
            raise ValueError(f"inconclusive {inconclusive}: give 0 to {INCONCLUSIVE_LIMIT}")
        self.steps = tuple(steps)
        self.inconclusive = inconclusive
        self.state = State.RUNNING
        self.step = 0  # where in `steps`
        self.held_s = 0.0  # of this step
        self.reason = ""
        self._looked_s: float | None = None

    @property
    def percentage(self) -> float:
        """Of the traffic, in this step."""
        return self.steps[self.step].percentage

    @property
    def over(self) -> bool:
        """Nothing will change any more."""
        return self.state in OVER

    @property
    def hold_left_s(self) -> float:
        """Until a PASS is enough to leave this step."""
        return max(0.0, self.steps[self.step].hold_s - self.held_s) if not self.over else 0.0

    def alpha_share(self) -> float:
        """The part of the judge's error rates (warn_alpha and rollback_alpha) that each step's period has."""
        return 1 / len(self.steps)

    def look(self, now_s: float, word: Word, pairs: int) -> Move | None:
        """What is due at a monotonic time, given the verdict on this step's period and how many pairs it has; to be
        called every second or so."""
        if self.over:
            return None
        if word == "fail":
            self.fail("the judge says FAIL")
            return self._moved()
        if self.state is State.PAUSED:
            return None
        self._hold(now_s)
        if why := self._why_enough(word, pairs):
            return self._leave(why)
        return None

    def pause(self) -> bool:
        """Stay on this step; False when the ramp is not running."""
        return self._steer("pause", "")

    def resume(self) -> bool:
        """Go on where it was paused; False when it is not."""
        return self._steer("resume", "")

    def abort(self, reason: str = "") -> bool:
        """Give the ramp up; what percentage follows is the caller's to say. False when it is over."""
        return self._steer("abort", reason)

    def fail(self, reason: str) -> bool:
        """The shadow was tripped, for whatever cause. False when the ramp is over."""
        return self._steer("fail", reason)

    def as_json(self) -> dict[str, Any]:
        """To be kept; `from_json` takes it up again."""
        return {
            "steps": [{"percentage": step.percentage, "hold_s": step.hold_s} for step in self.steps],
            "inconclusive": self.inconclusive,
            "state": self.state.value,
            "step": self.step,
            "held_s": self.held_s,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Any) -> Ramp:
        """What was kept. ValueError when it is damaged."""
        kept = _Kept.model_validate(data)  # pydantic's error is a ValueError
        ramp = cls([Step(step.percentage, step.hold_s) for step in kept.steps], kept.inconclusive)
        if kept.step >= len(ramp.steps) or (kept.state is State.DONE and kept.step != len(ramp.steps) - 1):
            raise ValueError(f"a ramp that is {kept.state} at step {kept.step + 1} of {len(ramp.steps)}")
        ramp.state, ramp.step, ramp.held_s, ramp.reason = kept.state, kept.step, kept.held_s, kept.reason
        return ramp

    def _steer(self, event: str, reason: str) -> bool:
        after = TABLE.get((self.state, event))
        if after is None:
            return False
        self.state = after
        self.reason = " ".join(reason.encode("utf-8", "replace").decode().split())[:REASON_CHARACTERS]
        self._looked_s = None  # what passes until the next look does not count as held
        return True

    def _hold(self, now_s: float) -> None:
        if self._looked_s is not None:
            self.held_s += max(0.0, now_s - self._looked_s)
        self._looked_s = now_s

    def _why_enough(self, word: Word, pairs: int) -> str:
        hold_s = self.steps[self.step].hold_s
        if not _reached(self.held_s, hold_s) or pairs <= 0:
            return ""
        if word == "pass":
            return f"PASS after {self.held_s:.0f} s and {pairs} pairs"
        if word == "inconclusive" and self.inconclusive and _reached(self.held_s, hold_s * (1 + self.inconclusive)):
            return f"no verdict after {self.inconclusive} further times {hold_s:g} s, which is set to be enough"
        return ""

    def _leave(self, why: str) -> Move:
        if self.step + 1 == len(self.steps):
            self._steer("finish", why)
        else:
            self.step += 1
            self.held_s = 0.0
            self.reason = why
        return self._moved()

    def _moved(self) -> Move:
        return Move(self.state, self.step, self.percentage, self.reason)


def _reached(held_s: float, wanted_s: float) -> bool:
    """Sums of many small differences come out a little short."""
    return held_s >= wanted_s or math.isclose(held_s, wanted_s, rel_tol=1e-9)
