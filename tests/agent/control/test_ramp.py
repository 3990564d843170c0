"""The way up: when a step is left, when it is not, and what survives a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.control.ramp import OVER, Move, Ramp, State, Step, Word

STEPS = (Step(1, 300), Step(25, 600), Step(100, 600))


def looked(ramp: Ramp, start_s: float, seconds: int, word: Word, pairs: int = 100) -> tuple[float, Move] | None:
    """Look every second; when the first move came, after `start_s`, and which."""
    for second in range(seconds + 1):
        if (move := ramp.look(start_s + second, word, pairs)) is not None:
            return second, move
    return None


def test_each_step_is_left_with_a_pass_when_its_time_is_over() -> None:
    ramp = Ramp(STEPS)
    assert ramp.percentage == 1
    assert looked(ramp, 1000, 400, "pass") == (300, Move(State.RUNNING, 1, 25, "PASS after 300 s and 100 pairs"))
    assert (ramp.percentage, ramp.held_s, ramp.hold_left_s) == (25, 0, 600)
    moved = looked(ramp, 1300, 700, "pass")
    assert moved is not None and moved[1].percentage == 100
    assert looked(ramp, 1900, 700, "pass") == (600, Move(State.DONE, 2, 100, "PASS after 600 s and 100 pairs"))
    assert (ramp.over, ramp.percentage, ramp.hold_left_s) == (True, 100, 0)
    assert looked(ramp, 2500, 1000, "fail") is None


def test_a_pass_that_comes_late_is_waited_for() -> None:
    ramp = Ramp(STEPS)
    assert looked(ramp, 0, 10_000, "inconclusive") is None
    assert ramp.look(10_001, "pass", 50) is not None


@pytest.mark.parametrize("number", [1, 2, 5])
def test_without_a_verdict_a_step_is_left_after_so_many_further_times(number: int) -> None:
    ramp = Ramp(STEPS, inconclusive=number)
    found = looked(ramp, 0, 10_000, "inconclusive")
    assert found is not None
    assert (found[0], found[1].step) == (300 * (1 + number), 1)


def test_a_step_without_pairs_is_never_left() -> None:
    assert looked(Ramp(STEPS, inconclusive=1), 0, 5000, "inconclusive", pairs=0) is None
    assert looked(Ramp(STEPS), 0, 5000, "pass", pairs=0) is None


def test_a_fail_ends_it_at_once() -> None:
    ramp = Ramp(STEPS)
    assert ramp.look(0, "fail", 100) == Move(State.FAILED, 0, 1, "the judge says FAIL")
    assert ramp.look(1, "pass", 100) is None
    assert not ramp.resume()


def test_a_fail_ends_it_while_paused_too() -> None:
    ramp = Ramp(STEPS)
    ramp.pause()
    assert ramp.look(0, "fail", 100) is not None
    assert ramp.state is State.FAILED


def test_time_while_paused_does_not_count() -> None:
    ramp = Ramp(STEPS)
    looked(ramp, 0, 200, "pass")
    assert ramp.pause()
    assert looked(ramp, 201, 5000, "pass") is None
    assert ramp.held_s == 200
    assert ramp.resume()
    assert looked(ramp, 10_000, 200, "pass") == (100, Move(State.RUNNING, 1, 25, "PASS after 300 s and 100 pairs"))


def test_what_does_not_fit_the_state_is_refused() -> None:
    ramp = Ramp(STEPS)
    assert not ramp.resume()
    assert ramp.pause()
    assert not ramp.pause()
    assert ramp.abort("anna gave up")
    assert (ramp.state, ramp.reason) == (State.ABORTED, "anna gave up")
    assert [ramp.abort(), ramp.pause(), ramp.resume(), ramp.fail("")] == [False] * 4


def test_a_trip_from_elsewhere_fails_it() -> None:
    ramp = Ramp(STEPS)
    assert ramp.fail("the shadow could not be reached")
    assert (ramp.state, ramp.reason) == (State.FAILED, "the shadow could not be reached")


def test_time_while_the_agent_is_away_does_not_count() -> None:
    ramp = Ramp(STEPS)
    looked(ramp, 0, 200, "pass")
    again = Ramp.from_json(json.loads(json.dumps(ramp.as_json())))
    assert again.look(5.0, "pass", 100) is None  # another boot's clock
    assert again.look(104.0, "pass", 100) is None
    assert again.look(105.0, "pass", 100) is not None


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    ramp = Ramp(STEPS)
    looked(ramp, 1000, 100, "pass")
    ramp.look(0, "pass", 100)
    assert ramp.held_s == 100


def test_many_short_looks_add_up() -> None:
    ramp = Ramp((Step(1, 3),))
    moves = [i for i in range(40) if ramp.look(i * 0.1, "pass", 1) is not None]
    assert moves == [30]


def test_the_error_rate_is_shared_fairly() -> None:
    assert Ramp(STEPS).alpha_share() * len(STEPS) == pytest.approx(1)


@pytest.mark.parametrize("step", [(0, 1), (101, 1), (-1, 1), (float("nan"), 1), (1, 0), (1, float("inf"))])
def test_steps_that_make_no_sense_are_refused(step: tuple[float, float]) -> None:
    with pytest.raises(ValueError):
        Step(*step)


def test_ramps_that_make_no_sense_are_refused() -> None:
    for steps, inconclusive in (((), 0), (STEPS * 100, 0), (STEPS, -1), (STEPS, 10**6)):
        with pytest.raises(ValueError):
            Ramp(steps, inconclusive)


GOOD = Ramp(STEPS).as_json()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        GOOD | {"state": "asleep"},
        GOOD | {"step": 3},
        GOOD | {"step": -1},
        GOOD | {"state": "done"},
        GOOD | {"held_s": -1},
        GOOD | {"held_s": float("nan")},
        GOOD | {"steps": []},
        GOOD | {"steps": [{"percentage": 500, "hold_s": 1}]},
        GOOD | {"inconclusive": "1"},
        GOOD | {"more": 1},
    ],
)
def test_what_is_damaged_is_refused(data: Any) -> None:
    with pytest.raises(ValueError):
        Ramp.from_json(data)


class AnyWay(RuleBasedStateMachine):
    """Two ramps go the same way; one of them is kept and taken up again after every look."""

    @initialize(
        steps=st.lists(
            st.builds(Step, st.floats(0.1, 100), st.sampled_from([1.0, 10.0, 60.0])), min_size=1, max_size=4
        ),
        inconclusive=st.integers(0, 3),
    )
    def begin(self, steps: list[Step], inconclusive: int) -> None:
        self.ramp = Ramp(steps, inconclusive)
        self.again = Ramp(steps, inconclusive)
        self.now_s = 100.0
        self.held_s = 0.0  # in this step, by what the test itself has waited
        self.counting = False  # the ramp has looked since it was begun or resumed

    def both(self, act: Any) -> Any:
        first, second = act(self.ramp), act(self.again)
        assert first == second
        looked_s, kept = self.again._looked_s, json.loads(json.dumps(self.again.as_json()))
        self.again = Ramp.from_json(kept)
        self.again._looked_s = looked_s  # the time in between would count if the agent had not been away
        return first

    @rule(
        word=st.sampled_from(["pass", "inconclusive", "fail", "pass", "inconclusive"]),
        pairs=st.sampled_from([0, 1, 1000]),
        seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0]),
    )
    def look(self, word: Word, pairs: int, seconds: float) -> None:
        self.now_s += seconds
        before, was = self.ramp.state, self.ramp.step
        if before is State.RUNNING:
            self.held_s += seconds if self.counting else 0.0
            self.counting = True
        move = self.both(lambda ramp: ramp.look(self.now_s, word, pairs))
        if move is None:
            assert (self.ramp.state, self.ramp.step) == (before, was)
            return
        assert before not in OVER
        if move.state is State.FAILED:
            assert word == "fail"
            return
        hold_s = self.ramp.steps[was].hold_s
        looks = 1 if word == "pass" else 1 + self.ramp.inconclusive
        assert before is State.RUNNING and pairs > 0 and word != "fail"
        assert word == "pass" or self.ramp.inconclusive
        assert self.held_s >= hold_s * looks - 1e-6
        assert move.step == (was if move.state is State.DONE else was + 1)
        self.held_s = 0.0

    @rule()
    def pause(self) -> None:
        if self.both(lambda ramp: ramp.pause()):
            self.counting = False

    @rule()
    def resume(self) -> None:
        self.both(lambda ramp: ramp.resume())

    @rule()
    def fail_or_abort_seldom(self) -> None:
        if self.now_s > 300:
            self.both(lambda ramp: ramp.abort("enough"))

    @invariant()
    def the_same_after_a_restart(self) -> None:
        assert self.ramp.as_json() == self.again.as_json()
        assert 0 <= self.ramp.step < len(self.ramp.steps)
        assert (self.ramp.state is State.DONE) <= (self.ramp.step == len(self.ramp.steps) - 1)


TestAnyWay = AnyWay.TestCase
TestAnyWay.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
