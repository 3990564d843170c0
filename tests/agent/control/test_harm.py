"""The do-no-harm check: which block comes first, what counts in none, what ends a pair, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.control.harm import LEAST_FOR_LEVEL, LEAST_FOR_TAIL, OFF, ON, SETTLE_S, HarmCheck
from agent.watch_config import Harm
from tests.agent.watch_bench import FakeHistogram

EVERY_S, BLOCK_S = 60.0, 5.0
PAIR_S = 2 * (SETTLE_S + BLOCK_S)


class Kernel:
    """Mirroring and latency: notes what is done at what time; answers are slower by a factor while mirroring is on."""

    def __init__(self, factor: float = 2.0, count: int = 1000) -> None:
        self.log: list[Any] = []
        self.paused = False
        self.phase: int | None = None
        self.found = {ON: FakeHistogram(count, 1e6 * factor), OFF: FakeHistogram(count, 1e6)}

    def pause_mirroring(self, paused: bool) -> None:
        assert self.phase is None, "never switched while something is counted"
        self.paused = paused
        self.log.append("off" if paused else "on")

    def start(self, phase: int) -> None:
        assert self.paused is (phase == OFF), "counted in the phase that it is"
        self.phase = phase
        self.log.append(phase)

    def pause(self) -> None:
        self.phase = None

    def read(self, phase: int) -> FakeHistogram:
        return self.found[phase]


def check(kernel: Kernel, toss: Callable[[], bool] = lambda: True) -> HarmCheck:
    return HarmCheck(Harm(every_s=EVERY_S, block_s=BLOCK_S), kernel, kernel.pause_mirroring, 0.0, toss)


def looked(harm: HarmCheck, from_s: float, to_s: float, step_s: float = 0.1) -> list[tuple[float, dict[str, float]]]:
    """What came when, while mirroring is wanted."""
    found = []
    for step in range(round((to_s - from_s) / step_s)):
        now_s = from_s + step * step_s
        if (measures := harm.look(now_s, True)) is not None:
            found.append((now_s, measures))
    return found


@pytest.mark.parametrize(
    ("on_first", "order"), [(True, ["on", ON, "off", OFF, "on"]), (False, ["off", OFF, "on", ON, "on"])]
)
def test_the_coin_decides_which_block_comes_first_and_not_what_is_measured(on_first: bool, order: list[Any]) -> None:
    kernel = Kernel()
    harm = check(kernel, lambda: on_first)
    ((when_s, measures),) = looked(harm, 0, EVERY_S + PAIR_S + 1)
    assert kernel.log == order
    assert when_s == pytest.approx(EVERY_S + PAIR_S, abs=0.5)
    assert measures == {"harm_level": math.log(2), "harm_tail": math.log(2)}
    assert (harm.pairs, harm.too_few, kernel.paused, kernel.phase) == (1, 0, False, None)


def test_the_moments_after_a_switch_belong_to_no_block() -> None:
    kernel = Kernel()
    harm = check(kernel)
    counted = []
    for step in range(round((EVERY_S + PAIR_S) * 10)):
        harm.look(step / 10, True)
        counted.append(kernel.phase)
    settling = round(SETTLE_S * 10)
    start = round(EVERY_S * 10)
    assert counted[: start + settling] == [None] * (start + settling)
    assert counted.count(ON) == pytest.approx(BLOCK_S * 10, abs=1)
    assert counted.count(OFF) == pytest.approx(BLOCK_S * 10, abs=2)
    between = counted[counted.index(ON) : counted.index(OFF)].count(None)
    assert between == pytest.approx(settling, abs=1)


def test_it_rests_between_pairs_unless_there_is_evidence() -> None:
    kernel = Kernel()
    harm = check(kernel)
    assert len(looked(harm, 0, 10 * (EVERY_S + PAIR_S))) == pytest.approx(9, abs=1)
    harm.hurry = True
    assert len(looked(harm, 1000, 1000 + 10 * (EVERY_S + PAIR_S))) > 50


@pytest.mark.parametrize("after_s", [0.1, SETTLE_S + 1, SETTLE_S + BLOCK_S + 0.2, 2 * SETTLE_S + BLOCK_S + 1])
@pytest.mark.parametrize("on_first", [True, False])
@pytest.mark.parametrize("how", ["abandon", "nothing mirrored"])
def test_a_pair_is_given_up_when_mirroring_changes(after_s: float, on_first: bool, how: str) -> None:
    kernel = Kernel()
    harm = check(kernel, lambda: on_first)
    stop_s = EVERY_S + after_s + 0.1
    assert looked(harm, 0, stop_s) == []
    harm.abandon(stop_s) if how == "abandon" else harm.look(stop_s, False)
    assert (kernel.paused, kernel.phase) == (False, None)
    assert looked(harm, stop_s, stop_s + EVERY_S - 1) == [], "and it rests"
    assert len(looked(harm, stop_s + EVERY_S - 1, stop_s + EVERY_S + PAIR_S + 1)) == 1


def test_where_nothing_is_mirrored_nothing_is_switched() -> None:
    kernel = Kernel()
    harm = check(kernel)
    for second in range(1000):
        assert harm.look(second, False) is None
    assert kernel.log == []


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (0, set()),
        (LEAST_FOR_LEVEL - 1, set()),
        (LEAST_FOR_LEVEL, {"harm_level"}),
        (LEAST_FOR_TAIL - 1, {"harm_level"}),
        (LEAST_FOR_TAIL, {"harm_level", "harm_tail"}),
    ],
)
@pytest.mark.parametrize("phase", [ON, OFF])
def test_too_few_requests_in_either_block_measure_nothing(count: int, names: set[str], phase: int) -> None:
    kernel = Kernel()
    kernel.found[phase].count = count
    harm = check(kernel)
    found = looked(harm, 0, EVERY_S + PAIR_S + 1)
    assert {name for _, measures in found for name in measures} == names
    assert (harm.pairs, harm.too_few) == ((1, 0) if names else (0, 1))


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.booleans()), max_size=200))
def test_mirroring_is_never_left_off(steps: list[tuple[float, bool, bool]]) -> None:
    """Whatever happens: off only within a pair, and a pair has an end."""
    kernel = Kernel()
    harm = check(kernel, lambda: False)
    now_s = 0.0
    for wait_s, mirroring, abandon in steps:
        now_s += wait_s
        harm.look(now_s, mirroring)
        if abandon:
            harm.abandon(now_s)
        if abandon or not mirroring:
            assert not kernel.paused
    for _ in range(5):
        now_s += BLOCK_S + SETTLE_S
        harm.look(now_s, True)
    harm.look(now_s + 0.01, False)
    assert not kernel.paused


def test_the_coin_is_fair() -> None:
    kernel = Kernel()
    harm = HarmCheck(Harm(every_s=1, block_s=0.5), kernel, kernel.pause_mirroring, 0.0)
    looked(harm, 0, 2000, 0.5)
    firsts = [kernel.log[at] for at in range(0, len(kernel.log) - 4, 5)]
    assert 0.35 < firsts.count("on") / len(firsts) < 0.65
