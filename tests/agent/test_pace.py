"""The worker's sleep: long when there is little to do, short as soon as there is much, always within its bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.pace import CAPTURE, REPLAY, Aim, Pace

SHORTEST_S = 0.004


def settled(segments_a_second: float, shortest_s: float = SHORTEST_S, aim: Aim = REPLAY) -> float:
    """The sleep after a while at a steady load."""
    pace = Pace(shortest_s, aim)
    pause_s = shortest_s
    for _ in range(50):
        pause_s = pace.after(round(segments_a_second * pause_s))
    return pause_s


def test_without_traffic_the_sleep_is_the_longest() -> None:
    assert settled(0) == REPLAY.longest_s


def test_what_is_only_captured_may_wait_longer() -> None:
    assert settled(2000, aim=CAPTURE) == CAPTURE.longest_s > REPLAY.longest_s


def test_under_load_it_is_the_shortest() -> None:
    assert settled(50_000) == SHORTEST_S


def test_in_between_a_read_brings_what_is_worth_a_wake() -> None:
    assert 0.9 < settled(4000) * 4000 / REPLAY.segments < 1.1


def test_a_sudden_load_shortens_the_sleep_at_once() -> None:
    pace = Pace(SHORTEST_S, REPLAY)
    for _ in range(10):
        pace.after(0)
    assert pace.after(10_000) == SHORTEST_S


def test_the_end_of_a_load_lengthens_it_step_by_step() -> None:
    pace = Pace(SHORTEST_S, REPLAY)
    pauses_s = [pace.after(0) for _ in range(5)]
    assert pauses_s == [0.008, 0.016, REPLAY.longest_s, REPLAY.longest_s, REPLAY.longest_s]


def test_a_setting_above_the_usual_longest_is_kept() -> None:
    assert settled(0, shortest_s=0.05) == settled(50_000, shortest_s=0.05) == 0.05


@given(st.lists(st.integers(0, 100_000)), st.floats(0.0002, 1))
def test_it_stays_within_its_bounds(reads: list[int], shortest_s: float) -> None:
    pace = Pace(shortest_s, REPLAY)
    assert all(shortest_s <= pace.after(n) <= max(shortest_s, REPLAY.longest_s) for n in reads)
