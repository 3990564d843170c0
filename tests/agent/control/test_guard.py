"""The state machine of one shadow: every row of its table, what survives, and what time can and cannot do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import agent.control.guard as guard_module
from agent.control.guard import DAY_S, HELD, NOTES_LIMIT, TABLE, Cause, Event, Guard, GuardSettings, Now, State, Step

SETTINGS = GuardSettings(cooldown_s=600, retries=3, probe_s=60, probe_requests=20)


def at(boottime_s: float, boot: str = "first", wall_s: float | None = None) -> Now:
    return Now(boot, boottime_s, 1_700_000_000 + boottime_s if wall_s is None else wall_s)


def tripped(cause: Cause = Cause.JUDGE, when: Now | None = None) -> Guard:
    guard = Guard(SETTINGS, at(0))
    guard.trip(cause, "why", when or at(0))
    return guard


def probing() -> Guard:
    guard = tripped()
    guard.look(at(600))
    assert guard.state is State.PROBING
    return guard


def test_the_table_has_every_state_and_what_may_happen_in_it() -> None:
    assert {state for state, _ in TABLE} == set(State)
    missing = {(state, event) for state in State for event in Event} - set(TABLE)
    assert missing == {
        (State.ACTIVE, Event.COOLDOWN_OVER),
        (State.ACTIVE, Event.PROBE_PASSED),
        (State.TRIPPED, Event.PROBE_PASSED),
        (State.PROBING, Event.COOLDOWN_OVER),
    }


def test_the_drawing_names_every_row_of_the_table() -> None:
    rows = [line.split()[:3] for line in (guard_module.__doc__ or "").splitlines()]
    drawn = {(row[0], row[1], row[2]) for row in rows if len(row) == 3 and row[0] in ("ACTIVE", "TRIPPED", "PROBING")}
    assert drawn >= {(state.name, event.value, after.name) for (state, event), after in TABLE.items()}


def test_a_trip_switches_off_once() -> None:
    guard = Guard(SETTINGS, at(0))
    assert guard.trip(Cause.FAILING, "50 of 50 failed", at(5))
    assert (guard.state, guard.cause, guard.reason, guard.trips) == (State.TRIPPED, Cause.FAILING, "50 of 50 failed", 1)
    assert guard.since_s == at(5).wall_s
    assert not guard.trip(Cause.JUDGE, "slower", at(6))
    assert (guard.cause, guard.reason, guard.notes, guard.trips) == (Cause.FAILING, "50 of 50 failed", ["slower"], 1)
    assert guard.cooldown_left_s(at(6)) == 599


def test_a_cooldown_leads_to_a_probe_and_a_good_probe_to_active() -> None:
    guard = tripped()
    assert guard.look(at(599.9)) is None
    assert guard.look(at(600)) == Step(State.TRIPPED, State.PROBING, "a probe after 600 s, 2 more are left")
    assert guard.look(at(700)) is None  # nothing was answered
    guard.answers(19)
    assert guard.look(at(700)) is None
    guard.answers(1)
    assert guard.look(at(701)) == Step(State.PROBING, State.ACTIVE, "20 answers in 101 s of the probe were well")
    assert guard.cause is None


def test_a_probe_takes_its_time_however_many_answers() -> None:
    guard = probing()
    guard.answers(10_000)
    assert guard.look(at(659.9)) is None
    assert guard.probe_left_s(at(640)) == 20
    assert guard.look(at(660)) is not None


def test_answers_count_only_while_probing() -> None:
    guard = tripped()
    guard.answers(1000)
    guard.look(at(600))
    assert guard.look(at(700)) is None


def test_each_failed_probe_doubles_the_cooldown_until_the_retries_are_used_up() -> None:
    guard, now_s, cooldowns = tripped(), 0.0, []
    while not guard.permanent:
        cooldowns.append(guard.cooldown_s)
        now_s += guard.cooldown_s
        assert guard.look(at(now_s)) is not None
        assert guard.trip(Cause.UNREACHABLE, "again", at(now_s))
    assert cooldowns == [600, 1200, 2400]
    assert guard.look(at(now_s + 365 * DAY_S)) is None
    assert guard.retries_left == 0


def test_a_cooldown_is_at_most_a_day() -> None:
    guard, now_s = Guard(GuardSettings(cooldown_s=40_000, retries=100), at(0)), 0.0
    guard.trip(Cause.JUDGE, "", at(0))
    for _ in range(90):
        now_s += guard.cooldown_s
        guard.look(at(now_s))
        guard.trip(Cause.JUDGE, "", at(now_s))
    assert guard.cooldown_s == DAY_S


def test_a_good_probe_gives_no_retry_back_but_a_day_does() -> None:
    guard = probing()
    guard.answers(20)
    guard.look(at(660))
    guard.trip(Cause.JUDGE, "again", at(700))
    assert (guard.retries_left, guard.cooldown_s) == (2, 600)
    guard.look(at(1300))
    guard.answers(20)
    assert guard.look(at(1360)) is not None
    guard.trip(Cause.JUDGE, "again", at(1360 + DAY_S))
    assert (guard.retries_left, guard.trips) == (3, 3)


@pytest.mark.parametrize("cause", sorted(HELD))
def test_a_held_cause_waits_for_a_reset(cause: Cause) -> None:
    guard = tripped(cause)
    assert guard.permanent
    assert guard.look(at(365 * DAY_S)) is None
    assert guard.reset("anna", at(365 * DAY_S))
    assert (guard.state, guard.reason, guard.permanent) == (State.ACTIVE, "reset by anna", False)


def test_a_graver_cause_takes_the_place_of_the_first() -> None:
    guard = tripped(Cause.JUDGE)
    assert not guard.trip(Cause.MANUAL, "stay off", at(1))
    assert (guard.cause, guard.reason, guard.notes) == (Cause.MANUAL, "stay off", ["why"])
    guard.trip(Cause.FAILING, "fails", at(2))
    assert (guard.cause, guard.notes) == (Cause.MANUAL, ["why", "fails"])
    assert guard.look(at(DAY_S)) is None


def test_a_reset_of_what_is_active_changes_nothing_to_be_seen() -> None:
    guard = Guard(SETTINGS, at(0))
    assert not guard.reset("anna", at(1))
    assert guard.state is State.ACTIVE


def test_a_reset_gives_retries_and_the_first_cooldown_back() -> None:
    guard = probing()
    guard.trip(Cause.JUDGE, "again", at(610))
    assert (guard.cooldown_s, guard.retries_left) == (1200, 2)
    guard.reset("anna", at(620))
    guard.trip(Cause.JUDGE, "again", at(630))
    assert (guard.cooldown_s, guard.retries_left, guard.trips) == (600, 3, 3)


def test_notes_and_reasons_are_bounded_and_in_one_line() -> None:
    guard = tripped()
    for number in range(100):
        guard.trip(Cause.JUDGE, f"{number}\n\ud800" + "x" * 10_000, at(number))
    assert len(guard.notes) == NOTES_LIMIT
    assert all(len(note) <= 500 and len(note.splitlines()) == 1 for note in guard.notes)
    assert Guard.from_json(json.loads(json.dumps(guard.as_json())), SETTINGS).notes == guard.notes


@pytest.mark.parametrize("jump_s", [-1e9, -3600, 3600, 1e9])
def test_a_jump_of_the_clock_matters_not(jump_s: float) -> None:
    guard = tripped()
    assert guard.look(Now("first", 599, 1_700_000_599 + jump_s)) is None
    assert guard.cooldown_left_s(Now("first", 599, 1_700_000_599 + jump_s)) == 1
    assert guard.look(Now("first", 600, 1_700_000_600 + jump_s)) is not None


def test_the_agent_may_be_away_within_one_boot() -> None:
    guard = Guard.from_json(tripped().as_json(), SETTINGS)
    assert guard.look(at(100_000)) is not None


@pytest.mark.parametrize("now", [at(5000, "second"), at(50), at(0, "")])
def test_after_a_reboot_or_with_a_time_to_come_the_cooldown_begins_anew(now: Now) -> None:
    guard = Guard.from_json(tripped(when=at(100)).as_json(), SETTINGS)
    since_s = guard.since_s
    assert guard.cooldown_left_s(now) == 600
    assert guard.look(now) is None
    assert guard.look(now._replace(boottime_s=now.boottime_s + 599)) is None
    assert guard.since_s == since_s  # people are told when it was tripped
    assert guard.look(now._replace(boottime_s=now.boottime_s + 600)) is not None


def test_a_probe_begins_anew_after_a_reboot() -> None:
    guard = probing()
    guard.answers(20)
    again = Guard.from_json(guard.as_json(), SETTINGS)
    assert again.look(at(10_000, "second")) is None
    assert again.look(at(10_060, "second")) is None
    again.answers(20)
    assert again.look(at(10_061, "second")) is not None


def test_settings_may_be_others_after_a_restart() -> None:
    guard = Guard.from_json(tripped().as_json(), GuardSettings(cooldown_s=10, retries=0))
    assert guard.permanent
    assert Guard.from_json(tripped().as_json(), GuardSettings(cooldown_s=10)).look(at(10)) is not None


GOOD = tripped().as_json()


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "tripped",
        {},
        GOOD | {"state": "asleep"},
        GOOD | {"cause": "mood"},
        GOOD | {"cause": None},
        GOOD | {"state": "active"},
        GOOD | {"timer_s": float("nan")},
        GOOD | {"since_s": "now"},
        GOOD | {"attempts": -1},
        GOOD | {"attempts": 1.5},
        GOOD | {"trips": 10**30},
        GOOD | {"notes": ["x"] * 1000},
        GOOD | {"reason": "x" * 1000},
        GOOD | {"more": 1},
        {key: value for key, value in GOOD.items() if key != "boot_id"},
    ],
)
def test_what_is_damaged_is_refused(data: Any) -> None:
    with pytest.raises(ValueError):
        Guard.from_json(data, SETTINGS)


def test_an_unknown_cause_is_refused() -> None:
    with pytest.raises(ValueError):
        Guard(SETTINGS, at(0)).trip("mood", "", at(0))  # type: ignore[arg-type]


class AnyHistory(RuleBasedStateMachine):
    """Two guards go through the same; one of them is kept and taken up again at every step."""

    @initialize(retries=st.integers(0, 4), cooldown_s=st.sampled_from([1.0, 600.0, 50_000.0]))
    def begin(self, retries: int, cooldown_s: float) -> None:
        self.settings = GuardSettings(cooldown_s=cooldown_s, retries=retries, probe_s=60, probe_requests=20)
        self.now = Now("boot", 1000.0, 1e9)
        self.guard = Guard(self.settings, self.now)
        self.again = Guard(self.settings, self.now)
        self.held: Cause | None = None
        self.waited_s = 0.0  # since the last trip, within one boot

    def both(self, act: Any) -> Any:
        first, second = act(self.guard), act(self.again)
        assert first == second
        self.again = Guard.from_json(json.loads(json.dumps(self.again.as_json())), self.settings)
        return first

    @rule(cause=st.sampled_from(Cause), reason=st.text(max_size=20))
    def trip(self, cause: Cause, reason: str) -> None:
        if cause in HELD:
            self.held = cause
        was = self.guard.state
        changed = self.both(lambda guard: guard.trip(cause, reason, self.now))
        assert changed is (was is not State.TRIPPED)
        assert self.guard.state is State.TRIPPED
        if changed:
            self.waited_s = 0.0

    @rule()
    def reset(self) -> None:
        self.both(lambda guard: guard.reset("anna", self.now))
        self.held = None
        assert self.guard.state is State.ACTIVE

    @rule(number=st.integers(-5, 30))
    def answer(self, number: int) -> None:
        self.both(lambda guard: guard.answers(number))

    @rule(
        seconds=st.sampled_from([0.0, 1.0, 59.0, 61.0, 600.0, 50_000.0, 90_000.0]),
        jump_s=st.sampled_from([0.0, -1e6, 1e6]),
    )
    def wait(self, seconds: float, jump_s: float) -> None:
        self.now = Now(self.now.boot_id, self.now.boottime_s + seconds, self.now.wall_s + seconds + jump_s)
        self.waited_s += seconds

    @rule()
    def reboot(self) -> None:
        self.now = Now(self.now.boot_id + "+", 5.0, self.now.wall_s + 30)
        self.waited_s = 0.0

    @rule()
    def look(self) -> None:
        was = self.guard.state
        step = self.both(lambda guard: guard.look(self.now))
        assert (step is not None) is (self.guard.state is not was)
        if step is not None:
            assert (was, self.guard.state) in {(State.TRIPPED, State.PROBING), (State.PROBING, State.ACTIVE)}
        if was is State.TRIPPED and step is not None:
            assert self.waited_s >= self.settings.cooldown_s

    @precondition(lambda self: self.held is not None)
    @invariant()
    def held_until_reset(self) -> None:
        assert self.guard.state is State.TRIPPED
        assert self.guard.permanent

    @invariant()
    def the_same_after_a_restart(self) -> None:
        assert self.guard.as_json() == self.again.as_json()

    @invariant()
    def within_bounds(self) -> None:
        assert self.settings.cooldown_s <= self.guard.cooldown_s <= max(DAY_S, self.settings.cooldown_s)
        assert 0 <= self.guard.cooldown_left_s(self.now) <= self.guard.cooldown_s
        assert (self.guard.cause is None) is (self.guard.state is State.ACTIVE)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
