"""Figures of pools exist only where all was read; the judge's numbers change their sign when sides are swapped."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor.exposition import Gap, Reading
from agent.monitor.resources import CPU, MEMORY, Comparison, PoolUsage, Rates, Rules, Usage, compare_cpu
from replay.judge.judge import Judge
from replay.judge.verdict import Word

MIB = 1 << 20


def process(cpu: float, memory: float | None = MIB, started: float = 1000, pid: str = "1") -> Reading:
    return Reading("process", {(("pid", pid),): cpu}, memory, {(): started})


def pool(*targets: str, idle_cores: float = 0.0) -> PoolUsage:
    made = PoolUsage(targets, idle_cores)
    made.count({(): 0}, 0)
    for target in targets:
        made.add(target, process(10), 0)
    return made


def test_figures_of_an_interval() -> None:
    made = pool("a", "b")
    made.add("a", process(11, 2 * MIB), 5)
    made.add("b", process(14, 3 * MIB), 5)
    made.count({(): 50}, 5)
    assert made.usage() == Usage(1.0, 5 * MIB, 10.0, 0.1, targets=2)


def test_targets_have_times_of_their_own() -> None:
    made = pool("a", "b")
    made.add("a", process(11), 4)
    made.add("b", process(11), 5)
    assert made.usage().cpu_cores == pytest.approx(0.25 + 0.2)


def test_one_reading_gives_memory_and_no_rates() -> None:
    found = pool("a").usage()
    assert found == Usage(
        None, MIB, missing=(("a", "read once so far"), ("requests", "counted once so far")), targets=1
    )


def test_nothing_is_known_at_first() -> None:
    found = PoolUsage(("a",)).usage()
    assert found == Usage(missing=(("a", "not read yet"), ("requests", "not counted")), targets=1)


def test_a_gap_of_one_target_is_a_gap_of_the_pool_until_two_readings_follow() -> None:
    made = pool("a", "b")
    for at_s in (5, 10, 15, 20):
        made.add("a", process(10 + at_s), at_s)
        made.count({(): at_s * 10}, at_s)
        if at_s == 10:
            made.gap("b", at_s, "timed out")
        else:
            made.add("b", process(10 + at_s), at_s)
        found = made.usage()
        cores = {5: 2.0, 10: None, 15: None, 20: 2.0}[at_s]
        assert found.cpu_cores == cores and (found.cpu_seconds_per_request is None) == (cores is None)
        assert found.requests_per_s == 10
        assert (found.memory_bytes is None) == (at_s == 10)
        why = {5: None, 10: "timed out", 15: "read once so far", 20: None}[at_s]
        assert found.missing == ((("b", why),) if why else ())


@pytest.mark.parametrize(
    "after",
    [
        process(9),  # fell
        process(20, started=1004),
        process(20, pid="2"),
        Reading("process", {(("pid", "1"),): 20, (("pid", "2"),): 1}, MIB, {(): 1000}),
        Reading("process", {(("pid", "1"),): 20}, MIB, {}),
        Reading("node", {(("pid", "1"),): 20}, MIB, {(): 1000}),
    ],
)
def test_over_a_restart_there_is_no_difference(after: Reading) -> None:
    made = pool("a")
    made.add("a", after, 5)
    found = made.usage()
    assert (found.cpu_cores, found.memory_bytes, found.restarts) == (None, MIB, 1)
    assert ("a", "it began anew") in found.missing
    made.add("a", after, 10)
    assert (made.usage().cpu_cores, made.usage().restarts) == (0.0, 1)


def test_a_restart_in_a_gap_is_seen() -> None:
    made = pool("a")
    made.gap("a", 5, "down")
    made.add("a", process(1, started=2000), 10)
    assert made.usage().restarts == 1


def test_a_clock_that_is_set_a_little_is_no_restart() -> None:
    made = pool("a")
    made.add("a", process(15, started=1001.5), 5)
    assert (made.usage().cpu_cores, made.usage().restarts) == (1.0, 0)


def test_time_that_stands_still_gives_no_rates() -> None:
    made = pool("a")
    made.add("a", process(11), 0)
    made.count({(): 5}, 0)
    assert (made.usage().cpu_cores, made.usage().requests_per_s) == (None, None)


def test_half_of_a_reading_is_said_to_be_half() -> None:
    made = pool("a")
    made.add("a", process(11, None), 5)
    assert made.usage().missing[0] == ("a", "it says nothing of memory")


def test_requests_that_were_sampled_are_estimated() -> None:
    made = pool("a")
    made.count({(): 5}, 5, estimated=True)
    assert made.usage().estimated and made.usage().requests_per_s == 1


def test_a_count_of_requests_that_began_anew_is_not_used() -> None:
    made = PoolUsage(("a",))
    made.count({(("code", "2xx"),): 100}, 0)
    made.count({(("code", "2xx"),): 200, (("code", "5xx"),): 3}, 1)
    assert made.usage().requests_per_s == 103  # a code that was never seen began at 0
    for values in ({(("code", "2xx"),): 300}, {(("code", "2xx"),): 1}, Gap("no answer")):
        made.count(values, 2)
        assert made.usage().requests_per_s is None
    assert ("requests", "no answer") in made.usage().missing
    made.count({(): 1}, 3)
    made.count({(): 3}, 4)
    assert made.usage().requests_per_s == 2


def test_rates_of_a_server_are_taken_as_they_are() -> None:
    made = PoolUsage(("prometheus",))
    made.add("prometheus", Rates(3.0, 100.0), 0)
    made.rate(30.0)
    assert made.usage() == Usage(3.0, 100.0, 30.0, 0.1, targets=1)
    made.add("prometheus", Rates(None, 100.0, "cpu: the query finds nothing"), 5)
    made.rate(Gap("no answer"))
    missing = (("prometheus", "cpu: the query finds nothing"), ("requests", "no answer"))
    assert made.usage() == Usage(None, 100.0, targets=1, missing=missing)


def test_what_is_used_without_requests_is_taken_off() -> None:
    made = pool("a", idle_cores=0.5)
    made.add("a", process(20), 10)
    made.count({(): 100}, 10)
    assert (made.usage().cpu_cores, made.usage().cpu_seconds_per_request) == (1.0, 0.05)
    made = pool("a", idle_cores=5)
    made.add("a", process(20), 10)
    made.count({(): 100}, 10)
    assert made.usage().cpu_seconds_per_request is None


def test_json_is_bounded() -> None:
    made = PoolUsage([f"target{n}" for n in range(1000)])
    written = json.dumps(made.usage().as_json())
    assert len(written) < 2000 and json.loads(written)["missing_count"] == 1001


TICKS = st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=1, max_size=12)


@given(TICKS, TICKS)
def test_a_figure_is_never_negative_and_never_over_a_gap(a: list[int | None], b: list[int | None]) -> None:
    made = PoolUsage(("a", "b"))
    for at_s, values in enumerate(zip(a, b, strict=False)):
        for target, value in zip("ab", values, strict=True):
            if value is None:
                made.gap(target, at_s, "gap")
            else:
                made.add(target, process(value), at_s)
        cores = made.usage().cpu_cores
        assert cores is None or cores >= 0
        if None in values or at_s == 0 or None in (a[at_s - 1], b[at_s - 1]):
            assert cores is None
        elif a[at_s - 1] <= values[0] and b[at_s - 1] <= values[1]:  # type: ignore[operator]
            assert cores == sum(values) - a[at_s - 1] - b[at_s - 1]  # type: ignore[arg-type, operator]


# What the judge is fed with


def usage(
    cpu: float | None = 1.0, rate: float | None = 100.0, memory: float | None = 100.0, restarts: int = 0
) -> Usage:
    each = None if cpu is None or not rate or cpu <= 0 else cpu / rate
    return Usage(cpu, memory, rate, each, targets=1, restarts=restarts)


RATES = st.floats(1e-3, 1e3)


@given(RATES, RATES)
def test_the_number_of_cpu_changes_its_sign_when_sides_are_swapped(a: float, b: float) -> None:
    rules = Rules(least_load=0, least_requests=1)
    one, other = compare_cpu(usage(a), usage(b), rules), compare_cpu(usage(b), usage(a), rules)
    assert not isinstance(one, Gap) and not isinstance(other, Gap)
    assert one == pytest.approx(-other, abs=1e-12) and one == pytest.approx(math.log(b / a), abs=1e-9)


@pytest.mark.parametrize(
    "production, shadow, says",
    [
        (usage(None), usage(), "production's figures"),
        (usage(), usage(rate=None), "the shadow's figures"),
        (usage(rate=0.0), usage(), "production had fewer than 20"),
        (usage(), usage(rate=3.9), "the shadow had fewer than 20"),
        (usage(), usage(rate=49.0), "49% of the load"),
        (usage(cpu=0), usage(), "no CPU"),
        (usage(), usage(cpu=0), "no CPU"),
        (usage(), usage(5e-324), "no CPU"),  # which is nothing for each request
    ],
)
def test_cpu_that_cannot_be_compared(production: Usage, shadow: Usage, says: str) -> None:
    found = compare_cpu(production, shadow, Rules())
    assert isinstance(found, Gap) and says in found.why


def test_load_is_that_of_a_host() -> None:
    rules = Rules(production_hosts=4, shadow_hosts=2)
    assert isinstance(compare_cpu(usage(), usage(rate=26.0), rules), float)
    assert isinstance(compare_cpu(usage(), usage(rate=24.0), rules), Gap)


def test_answers_of_a_query_that_share_their_time_count_once() -> None:
    made = Comparison(Rules(cpu_step_s=60))
    looks = [dict(made.compare_usage(usage(), usage(2.0), at_s)) for at_s in range(0, 300, 5)]
    assert [n * 5 for n, look in enumerate(looks) if CPU in look] == [0, 60, 120, 180, 240]
    made = Comparison(Rules())
    assert all(CPU in dict(made.compare_usage(usage(), usage(2.0), at_s)) for at_s in range(0, 50, 5))


def numbers(rules: Rules, looks: list[tuple[float, Usage, Usage]]) -> list[tuple[float, float]]:
    made = Comparison(rules)
    found = [(at_s, dict(made.compare_usage(production, shadow, at_s))) for at_s, production, shadow in looks]
    return [(at_s, each[MEMORY]) for at_s, each in found if MEMORY in each]


def growing(per_look: float, looks: int = 41, **changes: Any) -> list[tuple[float, Usage, Usage]]:
    return [(n * 5.0, usage(), usage(memory=100 + per_look * n, **changes)) for n in range(looks)]


RULES = Rules(warm_up_s=50)


def test_memory_that_only_grows_counts_once_it_has_grown_by_half() -> None:
    found = numbers(RULES, growing(1.0, 100))
    half_s = next(at_s for at_s, _, shadow in growing(1.0, 100) if (shadow.memory_bytes or 0) >= 110 + 0.5 * 105)
    assert half_s <= found[0][0] <= half_s + 30
    base = (110 + 100) / 2  # at the end of the warm-up
    assert {round(value, 6) for _, value in found} == {round(6 / base, 6)}


def test_steady_memory_is_compared_from_step_to_step_after_the_warm_up() -> None:
    found = numbers(RULES, growing(0.0))
    assert [at_s for at_s, _ in found] == [110, 140, 170, 200]  # 50 warms up, 80 ends the first step
    assert {value for _, value in found} == {0.0}


def test_memory_changes_its_sign_when_sides_are_swapped() -> None:
    drawn = random.Random(1)
    looks = [(n * 5.0, usage(memory=drawn.uniform(50, 100)), usage(memory=drawn.uniform(90, 99))) for n in range(200)]
    swapped = [(at_s, shadow, production) for at_s, production, shadow in looks]
    assert [value for _, value in numbers(RULES, looks)] == [-value for _, value in numbers(RULES, swapped)]


def test_memory_is_that_of_a_host() -> None:
    looks = [(at_s, usage(memory=400.0), shadow) for at_s, _, shadow in growing(1.0)]
    rules = Rules(warm_up_s=50, production_hosts=4)
    assert numbers(rules, looks) == numbers(RULES, growing(1.0))


def test_looks_that_are_a_little_late_or_early_make_the_same_steps() -> None:
    drawn = random.Random(2)
    looks = [(at_s + drawn.uniform(-1, 1), *both) for at_s, *both in growing(0.0, 100)]
    found = numbers(RULES, looks)
    assert len(found) in range(10, 15)  # of 15 steps of 30 s after the warm-up; one that ends late begins the next late


def test_a_restart_warms_up_again() -> None:
    looks = growing(0.0, 20) + [(at_s + 100, a, b) for at_s, a, b in growing(0.0, 30, restarts=1)]
    assert [at_s for at_s, _ in numbers(RULES, looks)] == [210, 240]


def test_a_pause_of_the_agent_makes_no_step() -> None:
    looks = [(at_s + (1000 if n > 20 else 0), usage(), usage(memory=100 + 10 * (n > 20))) for n, at_s in
             enumerate(range(0, 7000, 5))]  # fmt: skip
    assert {value for _, value in numbers(RULES, looks)} == {0.0}


def test_every_metric_without_a_number_has_a_reason() -> None:
    made = Comparison(RULES)
    made.compare_usage(usage(None, None, None), usage(), 0)
    assert made.reasons == {CPU: "production's figures are not complete", MEMORY: "warms up for 50 s more"}
    made.compare_usage(usage(), usage(memory=None), 60)
    assert made.reasons == {MEMORY: "the shadow's memory is not known"}


def judged(leak: float, seed: int, swing: float = 0.2) -> Judge:
    """Two hours of a pool whose memory rises for some 20 minutes and falls when garbage is collected."""
    drawn, judge, made = random.Random(seed), Judge(), Comparison(RULES)
    levels = [drawn.uniform(0, swing), drawn.uniform(0, swing)]
    for n in range(1440):
        for side in (0, 1):
            levels[side] += swing / 240 * drawn.uniform(0.5, 1.5)
            if levels[side] > swing:
                levels[side] = drawn.uniform(0, 0.02)
        sides = [usage(memory=1e9 * (1 + level)) for level in (levels[0], levels[1] + leak * n / 720)]
        for metric, value in made.compare_usage(sides[0], sides[1], n * 5.0):
            if metric == MEMORY:
                judge.measure(metric, value, n * 5_000_000_000)
    return judge


def memory_word(judge: Judge) -> Word:
    return next(each.word for each in judge.verdict().findings if each.plan.name == MEMORY)


def test_pools_that_collect_garbage_are_not_failed_and_a_leak_is() -> None:
    assert [seed for seed in range(4) if memory_word(judged(0.0, seed)) is Word.FAIL] == []
    assert [seed for seed in range(2) if memory_word(judged(2.0, seed, swing=0.002)) is not Word.FAIL] == []
