"""The length of blocks: longer than bursts, from the past alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from replay.judge import measures
from replay.judge.length import BURSTS_KEPT, CALM_CHECKS, CHECK_BLOCKS, Length
from replay.judge.plan import Settings

S = 1_000_000_000


def learn(
    length: Length, blocks: int, *, pairs: int = 250, burst_ns: float = 0.0, levels: measures.Floats | None = None
) -> None:
    noise = np.random.default_rng(5).normal(size=(2, blocks))
    if levels is not None:
        noise[0] = levels
    for level, tail in noise.T:
        length.learn(S, pairs, burst_ns, float(level), float(tail))


def test_the_shortest_at_first_and_in_calm() -> None:
    length = Length(Settings())
    assert length.next_ns == S
    learn(length, 300)
    assert (length.next_ns, length.factor) == (S, 1)


def test_as_long_as_fifty_pairs_take() -> None:
    length = Length(Settings())
    learn(length, 1, pairs=10)
    assert length.next_ns == 5 * S
    learn(length, 1, pairs=1)
    assert length.next_ns == 50 * S  # beyond the longest: too few pairs say nothing


def test_longer_than_bursts_which_must_come_twice() -> None:
    length = Length(Settings())
    learn(length, 1, burst_ns=0.8 * S)
    assert length.next_ns == S
    learn(length, 1, burst_ns=0.9 * S)
    assert length.next_ns == 2 * S
    learn(length, BURSTS_KEPT)
    assert length.next_ns == S


def test_neighbours_that_are_alike_double_it_and_calm_halves_it() -> None:
    length = Length(Settings())
    slow = np.repeat(np.random.default_rng(6).normal(size=CHECK_BLOCKS // 8), 8)
    learn(length, CHECK_BLOCKS, levels=slow)
    assert (length.factor, length.next_ns) == (2, 2 * S)
    learn(length, CHECK_BLOCKS * (CALM_CHECKS - 1))
    assert length.factor == 2
    learn(length, CHECK_BLOCKS)
    assert length.factor == 1


def test_it_has_an_end() -> None:
    length = Length(Settings())
    for _ in range(20):
        learn(length, CHECK_BLOCKS, levels=np.linspace(0, 1, CHECK_BLOCKS), burst_ns=100 * S)
    assert length.next_ns == 30 * S
    assert length.factor <= 32


def test_all_the_same_is_calm() -> None:
    length = Length(Settings())
    for _ in range(4 * CHECK_BLOCKS):
        length.learn(S, 250, 0.0, 0.0, 0.0)
    assert length.factor == 1


@pytest.mark.parametrize("blocks", [0, 1, 70])
def test_a_kept_state_goes_on(blocks: int) -> None:
    length, resumed = Length(Settings()), Length(Settings())
    learn(length, blocks, burst_ns=0.9 * S)
    resumed.restore(json.loads(json.dumps(length.as_json())))
    learn(length, 50)
    learn(resumed, 50)
    assert (resumed.next_ns, resumed.as_json()) == (length.next_ns, length.as_json())
