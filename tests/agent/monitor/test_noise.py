"""Which pairs count as compared: of a quiet route all, of any other only those with two answers of one side."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor.noise import ECHOES_NEEDED, EXPECTED_NOISY, ROUTES_MAX, Noise

A, B = "GET /a", "GET /b"
MAYBE = st.sampled_from([None, False, True])
PAIRS = st.lists(st.tuples(st.sampled_from([A, B]), MAYBE, MAYBE), max_size=120)


def asked_twice(noise: Noise, times: int, noisy: bool = False, route: str = A) -> None:
    for _ in range(times):
        noise.judge(route, False, noisy)


def test_a_route_of_which_nothing_is_known_is_not_compared() -> None:
    assert Noise().judge(A, True, None) == (None, None)
    assert Noise().judge(A, False, None) == (None, None)


def test_a_route_that_never_differs_becomes_quiet() -> None:
    noise = Noise()
    for _ in range(ECHOES_NEEDED):
        assert noise.judge(A, False, None) == (None, None)
        assert noise.judge(A, True, False) == (True, False)
    assert noise.judge(A, False, None) == (False, False)


def test_a_route_that_differs_is_quiet_once_such_noise_would_have_been_seen() -> None:
    """Here one pair in ten differs."""
    noise, needed = Noise(), 10 * EXPECTED_NOISY
    asked_twice(noise, needed - 1)
    for _ in range(5):
        for different in (True, *[False] * 9):
            found = noise.judge(A, different, None)
            assert (
                found == (different, False) or noise._echoes[A][3] * (needed - 1) < EXPECTED_NOISY * noise._echoes[A][2]
            )
    assert found == (None, None)
    asked_twice(noise, 1)
    assert noise.judge(A, True, None) == (True, False)
    assert noise.judge(A, False, None) == (False, False)


def test_one_difference_says_too_little_of_how_often_there_are_some() -> None:
    noise = Noise()
    asked_twice(noise, 2 * ECHOES_NEEDED)
    for _ in range(1000):
        assert noise.judge(A, False, None) == (False, False)
    assert noise.judge(A, True, None) == (None, None)
    assert noise.judge(A, False, None) == (None, None)
    assert noise.judge(A, True, False) == (True, False)
    assert noise.judge(B, True, None) == (None, None)
    assert noise.noisy_routes == []


def test_what_could_not_be_compared_stays_so_on_a_quiet_route() -> None:
    noise = Noise()
    asked_twice(noise, ECHOES_NEEDED)
    assert noise.judge(A, None, None) == (None, None)
    assert noise.judge(A, None, False) == (None, None)


def test_of_a_noisy_route_only_pairs_with_two_answers_count_and_it_stays_noisy() -> None:
    noise = Noise()
    asked_twice(noise, ECHOES_NEEDED)
    assert noise.judge(A, True, True) == (True, True)
    asked_twice(noise, 50 * ECHOES_NEEDED)
    assert noise.judge(A, True, None) == (None, None)
    assert noise.judge(A, True, False) == (True, False)
    assert noise.noisy_routes == [A]


def test_two_answers_teach_even_where_the_two_sides_cannot_be_compared() -> None:
    noise = Noise()
    assert noise.judge(A, None, True) == (None, None)
    assert noise.noisy_routes == [A]


@pytest.mark.parametrize("noisy", [False, True])
def test_a_pair_is_judged_by_what_was_known_before_it(noisy: bool) -> None:
    """Or its own outcome would choose the statistic that it goes into."""
    noise = Noise()
    asked_twice(noise, ECHOES_NEEDED - 1)
    assert noise.judge(A, True, noisy) == (True, noisy)
    assert noise.judge(A, False, None) == ((None, None) if noisy else (False, False))


def test_only_so_many_routes_are_known_and_the_others_are_never_quiet() -> None:
    noise = Noise()
    for number in range(ROUTES_MAX):
        noise.judge(f"GET /{number}", False, False)
    asked_twice(noise, 2 * ECHOES_NEEDED)
    assert noise.judge(A, True, None) == (None, None)
    assert noise.judge(A, True, False) == (True, False)
    asked_twice(noise, ECHOES_NEEDED, route="GET /1")
    assert noise.judge("GET /1", False, None) == (False, False)
    assert len(noise.as_json()["echoes"]) == ROUTES_MAX


@given(PAIRS, PAIRS)
def test_a_state_that_is_read_back_goes_on_in_the_same_way(
    before: list[tuple[str, bool | None, bool | None]], after: list[tuple[str, bool | None, bool | None]]
) -> None:
    noise = Noise()
    for pair in before:
        noise.judge(*pair)
    again = Noise.from_json(json.loads(json.dumps(noise.as_json())))
    assert [again.judge(*pair) for pair in after] == [noise.judge(*pair) for pair in after]
    assert again.as_json() == noise.as_json()


@given(PAIRS)
def test_both_numbers_are_known_or_neither(pairs: list[tuple[str, bool | None, bool | None]]) -> None:
    noise = Noise()
    for route, different, noisy in pairs:
        judged = noise.judge(route, different, noisy)
        assert (judged[0] is None) == (judged[1] is None)
        assert judged[0] in (None, different)
        assert noisy is None or judged[1] in (None, noisy)


@pytest.mark.parametrize(
    "damaged", [None, {}, [], {"echoes": None}, {"echoes": {A: 3}}, {"echoes": {A: [1]}}, {"echoes": {A: ["x", 1]}}]
)
def test_a_damaged_state_is_refused(damaged: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Noise.from_json(damaged)  # type: ignore[arg-type]
