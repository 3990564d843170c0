"""Pairs become blocks by when they came, not by when they were added."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.judge import blocks
from replay.judge.blocks import FEW_PAIRS, BlockBuilder, Lost, Pair
from replay.judge.plan import Settings
from tests.replay.judge.traffic import MS, T0, S, pairs


def built(given_: list[Pair], watermark_ns: int) -> list[blocks.Block]:
    builder = BlockBuilder(Settings())
    for pair in given_:
        builder.add(pair)
    return builder.close(watermark_ns)


def test_a_block_a_second_up_to_the_watermark() -> None:
    found = built(pairs(1000), T0 + 3 * S)
    assert [(block.start_ns - T0, block.end_ns - T0, block.pairs) for block in found] == [
        (0, S, 250), (S, 2 * S, 250), (2 * S, 3 * S, 250)
    ]  # fmt: skip
    assert len(built(pairs(1000), T0 + 3 * S - 1)) == 2


@settings(deadline=None, max_examples=25)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 4 * S), max_size=4))
def test_any_order_and_any_looks_give_the_same_blocks(random: object, looks: list[int]) -> None:
    ordered = pairs(1000)
    wanted = built(ordered, T0 + 4 * S)
    builder, found = BlockBuilder(Settings()), []
    done = 0
    for watermark in [*sorted(looks), 4 * S]:
        due = [pair for pair in ordered[done:] if pair.at_ns < T0 + watermark]
        done += len(due)
        random.shuffle(due)  # type: ignore[attr-defined]
        for pair in due:
            builder.add(pair)
        found += builder.close(T0 + watermark)
    assert found == wanted
    assert not builder.counts


def test_a_block_with_few_pairs_goes_on() -> None:
    found = built(pairs(30, rate=10.0), T0 + 10 * S)
    assert [(block.end_ns - T0, block.pairs) for block in found] == [(2 * S, 20)]
    assert built(pairs(FEW_PAIRS - 1), T0 + 100 * S) == []


def test_a_long_silence_is_one_step() -> None:
    late = [replace(pair, at_ns=pair.at_ns + 10**7 * S) for pair in pairs(250)]
    found = built([*pairs(250), *late], T0 + 2 * 10**7 * S)
    assert [(block.pairs, block.end_ns - T0) for block in found] == [(250, S), (250, (10**7 + 1) * S)]


def test_the_length_is_chosen_from_the_past() -> None:
    """Whatever comes after the second block, the first two are the same."""
    same = pairs(500)
    other = [*same, *(replace(pair, shadow_ns=900 * MS, at_ns=pair.at_ns + 2 * S) for pair in pairs(900, 9))]
    assert built(other, T0 + 9 * S)[:2] == built(same, T0 + 9 * S)


def test_what_comes_too_late_or_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = BlockBuilder(Settings())
    for pair in pairs(250):
        builder.add(pair)
    assert len(builder.close(T0 + S)) == 1
    builder.add(pairs(1)[0])
    builder.add(Lost(T0, "", "dropped"))
    assert builder.counts == {"late": 1} and builder.waiting == (0, 2)
    monkeypatch.setattr(blocks, "PENDING_LIMIT", 30)
    for pair in pairs(35, start_ns=T0 + S):
        builder.add(pair)
    assert builder.counts == {"late": 1, "over_limit": 5} and builder.waiting == (30, 7)
    (block,) = builder.close(T0 + 2 * S)
    assert (block.pairs, block.lost) == (30, {"late": 1, "over_limit": 5, "dropped": 1})


def test_slow_ones_that_come_too_late_are_seen() -> None:
    builder = BlockBuilder(Settings())
    for pair in pairs(250):
        builder.add(pair)
    builder.close(T0 + S)
    for pair in pairs(250, 2, start_ns=T0 + S):
        builder.add(pair)
    for at in range(10):
        builder.add(Pair(T0 + at, "", S, MS))
    (block,) = builder.close(T0 + 2 * S)
    assert block.lost_slow == pytest.approx(10 / 260)


def test_lost_requests_keep_no_pairs_out_and_are_counted_beyond_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LOST_LIMIT", 100)
    builder = BlockBuilder(Settings())
    for at in range(250):
        builder.add(Lost(T0 + at * S, "", "dropped", MS, count=2))
    assert builder.close(T0 + 300 * S) == [] and builder.waiting == (0, 500)
    for pair in pairs(500, start_ns=T0 + 300 * S):
        builder.add(pair)
    first, second = builder.close(T0 + 302 * S)
    assert (first.pairs, first.lost, second.pairs, second.lost) == (250, {"dropped": 500}, 250, {})
    assert builder.waiting == (0, 0) and not builder.counts


def test_a_builder_may_count_lost_requests_and_keep_none() -> None:
    builder = BlockBuilder(Settings(), lost_limit=0)
    builder.add(Lost(T0, "", "dropped", MS, count=10**12))
    for pair in pairs(250):
        builder.add(pair)
    (block,) = builder.close(T0 + S)
    assert (block.lost, block.lost_slow) == ({"dropped": 10**12}, 0.0)


def test_numbers_of_a_block() -> None:
    given_ = [Pair(T0 + at, "", 10 * MS, 20 * MS, reference=str(at)) for at in range(20)]
    given_[3] = replace(given_[3], shadow_error=True, different=True)
    given_[4] = replace(given_[4], shadow_error=True, production_error=True, different=False)
    lost = [Lost(T0, "", "dropped", 30 * MS), Lost(T0, "", "incomplete")]
    block = blocks.make_block(T0, T0 + S, given_, lost)
    assert block.level == block.tail == pytest.approx(math.log(2))
    assert block.numbers == {"latency": block.level, "tail": block.tail, "errors": 0.05, "differences": 0.5}
    assert block.lost == {"dropped": 1, "incomplete": 1}
    assert block.lost_slow == pytest.approx(1 / 21)
    assert block.examples["errors"].reference == block.examples["differences"].reference == "3"


def test_answers_that_were_never_compared_give_no_number() -> None:
    block = blocks.make_block(T0, T0 + S, [replace(pair, different=None) for pair in pairs(20)], [])
    assert "differences" not in block.numbers


def test_what_differs_from_itself_means_nothing() -> None:
    """The shadow was asked twice for two requests; only those count."""
    some = [replace(pair, different=True) for pair in pairs(20)]
    some[:2] = [replace(pair, noisy=True) for pair in some[:2]]
    assert blocks.make_block(T0, T0 + S, some, []).differences == 0.0
    some[0] = replace(some[0], noisy=False)
    assert blocks.make_block(T0, T0 + S, some, []).differences == 0.5


def test_a_kept_state_goes_on_with_the_next_block() -> None:
    straight, stopped, resumed = (BlockBuilder(Settings()) for _ in range(3))
    for pair in pairs(500):
        straight.add(pair)
        stopped.add(pair)
    assert straight.close(T0 + 2 * S) == stopped.close(T0 + 2 * S)
    resumed.restore(json.loads(json.dumps(stopped.as_json())))
    for pair in pairs(500, 8, start_ns=T0 + 2 * S):
        straight.add(pair)
        resumed.add(pair)
    assert resumed.close(T0 + 4 * S) == straight.close(T0 + 4 * S)
    assert resumed.as_json() == straight.as_json()
