"""Averages of evidence, who is named, and the pairs that are kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from replay.judge.group import EXAMPLES_LIMIT, Group, group_evidence, guilty
from replay.judge.plan import DEFAULT_PLANS, Settings
from tests.replay.judge.traffic import pairs

SETTINGS = Settings()
PLANS = DEFAULT_PLANS[:4]


def fed(blocks: int, latency: float) -> Group:
    group = Group(PLANS, 0.7, SETTINGS)
    noise = np.random.default_rng(1).normal(0, 0.02, (2, blocks))
    for block in range(blocks):
        group.series["latency"].add(latency + float(noise[0, block]), 250, pairs(1)[0])
        group.series["tail"].add(float(noise[1, block]), 250, None)
        group.series["errors"].add(0.0, 250, None)
        group.look(block)
    return group


def test_the_whole_is_the_weighted_average() -> None:
    group = fed(12, 0.05)
    log_es = [each.test.warn.log_e for each in group.series.values()]
    expected = math.log(0.7 * sum(p.weight * math.exp(float(e)) for p, e in zip(PLANS, log_es, strict=True)))
    assert float(group_evidence(log_es, [plan.weight for plan in PLANS], 0.7)) == pytest.approx(expected)
    assert group.marks["warn"].peak == pytest.approx(expected)
    assert group.marks["warn"].p == pytest.approx(min(1, math.exp(-expected)))


def test_it_fails_once_and_names_what_carried_it() -> None:
    group = fed(60, 0.2)
    mark = group.marks["warn"]
    assert mark.named == ["latency"]
    assert mark.failed_at_ns is not None and mark.failed_at_ns < 20
    assert group.marks["rollback"].failed_at_ns is not None
    assert fed(60, 0.0).marks["warn"].failed_at_ns is None


def test_a_few_pairs_are_kept_the_clearest_first() -> None:
    series = fed(60, 0.2).series["latency"]
    values = [value for value, _ in series.examples]
    assert len(values) == EXAMPLES_LIMIT
    assert values == sorted(values, reverse=True)


def test_e_bh_against_its_definition() -> None:
    """With four hypotheses of equal weight and q = 0.05: reject k when the k-th largest e is at least 4 / (0.05 k)."""

    def named(*es: float) -> set[str]:
        return {name for _, name in guilty({("all", str(e)): math.log(e / 4) for e in es}, 0.05)}

    assert named(79, 1, 2, 3) == set()
    assert named(81, 1, 2, 3) == {"81"}
    assert named(41, 42, 2, 3) == {"41", "42"}
    assert named(39, 79, 2, 3) == set()
    assert named(27, 28, 29, 3) == {"27", "28", "29"}


def test_nothing_to_look_at_is_no_error() -> None:
    group = Group((), 0.7, SETTINGS)
    group.look(1)
    assert group.marks["warn"].p == 1.0


def test_a_kept_state_goes_on() -> None:
    group, resumed = fed(30, 0.2), Group(PLANS, 0.7, SETTINGS)
    resumed.restore(json.loads(json.dumps(group.as_json(), allow_nan=False)))
    assert resumed.as_json() == group.as_json()
    assert resumed.marks == group.marks
