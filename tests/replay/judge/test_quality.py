"""When the data may not stand for the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from replay.judge.blocks import Lost, make_block
from replay.judge.plan import Settings
from replay.judge.quality import WINDOW_BLOCKS, Quality
from tests.replay.judge.traffic import MS, T0, S, pairs


def add(quality: Quality, blocks: int, lost: int, slow: bool | None = None, seed: int = 1) -> None:
    random = np.random.default_rng(seed)
    for _ in range(blocks):
        latency = random.lognormal(np.log(10), 0.5, lost) if slow is None else np.full(lost, 100.0 if slow else 0.1)
        gone = [Lost(T0, "", "dropped", int(each * MS)) for each in latency]
        quality.add(make_block(T0, T0 + S, pairs(1000), gone))


def test_all_is_well_when_little_is_lost() -> None:
    quality = Quality(Settings())
    assert (quality.problem, quality.lost_share) == ("", 0.0)
    add(quality, 100, 9)
    assert quality.problem == ""
    assert quality.lost_share == pytest.approx(9 / 1009)
    assert quality.blocks_left_out == 0


def test_too_much_is_lost_until_it_is_long_ago() -> None:
    quality = Quality(Settings())
    add(quality, 3, 20)
    assert quality.problem == "2.0% of the requests were lost, more than 1.0%"
    assert quality.blocks_left_out == 3
    add(quality, WINDOW_BLOCKS, 0)
    assert quality.problem == ""


@pytest.mark.parametrize(("slow", "word"), [(True, "slow"), (False, "fast")])
def test_loss_that_goes_with_latency(slow: bool, word: str) -> None:
    quality = Quality(Settings())
    add(quality, 30, 5, slow)
    assert quality.problem.startswith(f"{word} requests were lost more often")
    add(quality, WINDOW_BLOCKS, 0)
    assert quality.problem == ""


def test_a_few_slow_ones_do_not_matter() -> None:
    quality = Quality(Settings())
    add(quality, 60, 1, slow=True)
    assert quality.lost_share < 0.001
    assert quality.problem == ""


def test_a_kept_state_goes_on() -> None:
    quality, resumed = Quality(Settings()), Quality(Settings())
    add(quality, 10, 5, slow=True)
    resumed.restore(json.loads(json.dumps(quality.as_json())))
    for each in (quality, resumed):
        add(each, 10, 5, slow=True)
    assert resumed.as_json() == quality.as_json()
    assert resumed.problem == quality.problem != ""


def test_lost_requests_of_which_only_the_number_is_known_count_as_well() -> None:
    quality = Quality(Settings())
    quality.add(make_block(T0, T0 + S, pairs(1000), [Lost(T0, "", "unsent", count=20)], {"dropped": 30}))
    assert quality.lost_share == pytest.approx(50 / 1050)
