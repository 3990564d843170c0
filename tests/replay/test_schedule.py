"""Pacing: due times at any speed, order, look-ahead, lateness. The clock is a number here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.schedule import LATE_NS, LONGEST_PAUSE_S, LOOK_AHEAD_BYTES, Schedule

EPOCH_NS = 1_700_000_000 * 10**9
S = 10**9


def drive(times_ns: list[int], speed: float | None, look_ahead: int = 1024, start_s: float = 50.0):
    """What the offline driver does, with a clock that moves only while it sleeps: (when, index) of each request."""
    schedule: Schedule[int] = Schedule(speed, look_ahead)
    now_s = start_s
    sent: list[tuple[float, int]] = []

    def wait_and_take() -> None:
        nonlocal now_s
        wait_s = schedule.wait_s(now_s)
        assert wait_s is not None
        now_s += wait_s
        sent.extend((now_s, item) for item in schedule.take(now_s))

    for index, t_ns in enumerate(times_ns):
        while schedule.full:
            wait_and_take()
        schedule.add(t_ns, index)
        assert len(schedule) <= look_ahead
    while len(schedule):
        wait_and_take()
    return sent, schedule.lateness


@pytest.mark.parametrize(("speed", "spacing"), [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)])
@pytest.mark.parametrize("look_ahead", [1, 2, 1024])
def test_spacing(speed: float, spacing: float, look_ahead: int) -> None:
    times = [EPOCH_NS + n * S for n in range(5)]
    sent, lateness = drive(times, speed, look_ahead)
    assert [index for _, index in sent] == [0, 1, 2, 3, 4]
    assert [when for when, _ in sent] == pytest.approx([50.0 + n * spacing for n in range(5)])
    assert (lateness.requests, lateness.late) == (5, 0)
    assert "spacing kept" in lateness.line()


def test_as_fast_as_possible_waits_for_nothing_and_keeps_the_order_of_coming() -> None:
    times = [EPOCH_NS + S, EPOCH_NS, EPOCH_NS + 1000 * S]
    sent, lateness = drive(times, None)
    assert sent == [(50.0, 0), (50.0, 1), (50.0, 2)]
    assert (lateness.requests, lateness.late, lateness.worst_ns) == (3, 0, 0)


def test_the_look_ahead_puts_requests_in_order() -> None:
    times = [EPOCH_NS + t * S for t in (3, 1, 2, 5, 4)]
    sent, lateness = drive(times, 1.0, look_ahead=3)
    assert [index for _, index in sent] == [1, 2, 0, 4, 3]
    assert lateness.late == 0


def test_one_that_comes_up_after_its_turn_is_due_at_once_and_late() -> None:
    times = [EPOCH_NS + t * S for t in (1, 2, 3, 0)]
    sent, lateness = drive(times, 1.0, look_ahead=1)
    assert [index for _, index in sent] == [0, 1, 2, 3]
    assert lateness.late == 1
    assert lateness.worst_ns == pytest.approx(3 * S)


def test_a_driver_that_falls_behind_is_told_so() -> None:
    schedule: Schedule[int] = Schedule(1.0)
    for n in range(4):
        schedule.add(EPOCH_NS + n * S, n)
    assert schedule.take(10.0) == [0]
    assert schedule.wait_s(10.0) == pytest.approx(1.0)
    assert schedule.take(10.5) == []
    assert schedule.take(11.0 + LATE_NS / 2 / S) == [1]
    assert schedule.lateness.late == 0
    assert schedule.take(14.0) == [2, 3]
    assert (schedule.lateness.late, schedule.lateness.requests) == (2, 4)
    assert schedule.lateness.worst_ns == pytest.approx(2 * S)
    assert schedule.lateness.late_ratio == 0.5
    assert "NOT kept for 50.0%" in schedule.lateness.line()


def test_nothing_held() -> None:
    schedule: Schedule[int] = Schedule(1.0)
    assert schedule.wait_s(1.0) is None
    assert schedule.take(1.0) == []
    assert schedule.lateness.mean_ns == 0
    assert schedule.lateness.late_ratio == 0.0


@pytest.mark.parametrize("broken_ns", [0, EPOCH_NS + 10**18])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_broken_time_does_not_stop_the_replay(broken_ns: int, place: int) -> None:
    times = [EPOCH_NS + n * S for n in range(4)]
    times.insert(place, broken_ns)
    sent, lateness = drive(times, 1.0, look_ahead=2)
    assert len(sent) == 5
    assert sent[-1][0] < 50.0 + 2 * LONGEST_PAUSE_S + 10
    assert lateness.pauses_cut <= 2


def test_the_look_ahead_is_limited_in_bytes() -> None:
    schedule: Schedule[int] = Schedule(None)
    schedule.add(EPOCH_NS, 0, LOOK_AHEAD_BYTES - 1)
    assert not schedule.full
    schedule.add(EPOCH_NS, 1, 1)
    assert schedule.full
    assert schedule.take(0.0) == [0, 1]
    assert not schedule.full
    paced: Schedule[int] = Schedule(1.0)
    paced.add(EPOCH_NS, 0, LOOK_AHEAD_BYTES)
    assert paced.full
    paced.take(0.0)
    assert not paced.full


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_speeds_that_are_none(speed: float) -> None:
    with pytest.raises(ValueError, match="not a positive number"):
        Schedule(speed)


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 100 * S), min_size=1, max_size=50),
    st.sampled_from([None, 0.5, 1.0, 7.0]),
    st.integers(1, 60),
)
def test_every_request_comes_out_once_and_never_early(times: list[int], speed: float | None, look_ahead: int) -> None:
    times = [EPOCH_NS + t for t in times]
    sent, lateness = drive(times, speed, look_ahead)
    assert sorted(index for _, index in sent) == list(range(len(times)))
    assert lateness.requests == len(times)
    assert [when for when, _ in sent] == sorted(when for when, _ in sent)
    if speed is not None:
        first = sent[0][1]
        for when, index in sent:
            assert when - 50.0 >= (times[index] - times[first]) / S / speed - 1e-6
