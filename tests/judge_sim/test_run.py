"""The simulation sees false alarms where there are some, and says so when a claim does not hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.judge_sim import scenarios, sessions
from tests.judge_sim.figures import NEVER
from tests.judge_sim.rivals import MannWhitney
from tests.judge_sim.run import CONTROLS, judge_scenario, main, simulate
from tests.judge_sim.scenarios import PAIRS, Scenario, Traffic

RUNS = 100


@pytest.mark.parametrize(("rival", "where"), CONTROLS.items())
def test_controls_fail_where_the_judge_does_not(rival: str, where: str) -> None:
    scenario = next(each for each in scenarios.ALIKE if each.name == where)
    result = judge_scenario(scenario, simulate(scenario, RUNS, 1), strict=False)
    assert result.broken == []
    assert result.shares[rival]["value"] > 0.2
    assert result.shares["warn"]["value"] <= 0.05
    assert result.shares["rollback"]["value"] == 0


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["run", "--short", "--only", "+20 %, stalls; no such"])
    assert main() == 0
    out, err = capsys.readouterr()
    assert [each["scenario"] for each in json.loads(out)["results"]] == ["+20 %, stalls"]
    assert err.startswith("+20 %, stalls: warn ")


def test_whole_sessions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["sessions", "--sessions", "2"])
    monkeypatch.setattr(sessions, "KINDS", (sessions.KINDS[0], sessions.KINDS[3], sessions.KINDS[6]))
    assert sessions.main() == 0
    words = [each["words"] for each in json.loads(capsys.readouterr().out)["results"]]
    assert [max(each, key=lambda word: each[word]) for each in words] == ["pass", "fail", "inconclusive"]


def test_an_effect_is_found_in_time() -> None:
    scenario = next(each for each in scenarios.EFFECTS if each.name == "+10 %")
    result = judge_scenario(scenario, simulate(scenario, RUNS // 2, 2), strict=False)
    assert result.broken == []
    assert (result.delays["warn"]["median"] or 1e9) <= 5000


def test_claims_that_do_not_hold_are_told() -> None:
    scenario = scenarios.ALIKE[0]
    firsts = {name: np.full(2000, NEVER) for name in ("warn", "rollback", *CONTROLS)}
    firsts |= {f"{metric}/{process}": np.full(2000, NEVER) for metric, process in scenario.null}
    firsts["mann-whitney, peeking"][:500] = 3
    assert judge_scenario(scenario, firsts, strict=True).broken == []
    firsts["warn"][:85] = 7
    assert "warn: 85 of 2000" in judge_scenario(scenario, firsts, strict=True).broken[0]
    assert judge_scenario(scenario, firsts, strict=False).broken == []
    firsts["latency/warn"][:200] = 7
    assert len(judge_scenario(scenario, firsts, strict=False).broken) == 1
    firsts["mann-whitney, peeking"][:] = NEVER
    assert any("control" in each for each in judge_scenario(scenario, firsts, strict=False).broken)
    slow = replace(scenario, null=(), calm=(), target=5000)
    assert judge_scenario(slow, firsts, strict=False).broken[0].startswith("found in None pairs")


def test_seeds_give_the_same_runs() -> None:
    scenario = replace(scenarios.ALIKE[3], blocks=20)
    one, two, other = (simulate(scenario, 8, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_mann_whitney_against_counting() -> None:
    """U is the number of pairs in which the shadow is slower, half for ties, in cells of 2 %."""
    random = np.random.default_rng(3)
    production, shadow = random.lognormal(16, 0.6, (2, 3, 40))
    got = MannWhitney(3)
    got.add(production[:, :20], shadow[:, :20])
    z = got.add(production[:, 20:], shadow[:, 20:])
    cells = [np.floor((np.log(side) - np.log(1e4)) / 0.02) for side in (production, shadow)]
    for run in range(3):
        over = cells[1][run][:, None] - cells[0][run][None, :]
        u = (over > 0).sum() + (over == 0).sum() / 2
        _, tied = np.unique(np.concatenate([cells[0][run], cells[1][run]]), return_counts=True)
        variance = 40 * 40 / 12 * (81 - (tied**3 - tied).sum() / (80 * 79))
        assert z[run] == pytest.approx((u - 800) / math.sqrt(variance))


def test_traffic_is_what_its_scenario_says() -> None:
    def ratio(scenario: Scenario) -> float:
        traffic = Traffic(scenario, 50, np.random.default_rng(4))
        samples = [traffic.next() for _ in range(10)]
        assert all(sample.production.shape[0] == 50 for sample in samples)
        return float(np.median([np.median(np.log(sample.shadow / sample.production)) for sample in samples]))

    for scenario in scenarios.ALIKE:
        assert abs(ratio(scenario)) < 0.01 if not scenario.clock_ms else True
    assert ratio(Scenario("", effect=0.1)) == pytest.approx(0.1, abs=0.01)
    lossy = Traffic(Scenario("", loss=0.01), 5, np.random.default_rng(5)).next()
    assert lossy.production.shape == (5, PAIRS - 3)
    errors = Traffic(Scenario("", errors=(0.0, 0.5)), 50, np.random.default_rng(6)).next()
    assert errors.production_error.mean() == 0
    assert errors.shadow_error.mean() == pytest.approx(0.5, abs=0.02)


def test_a_stall_goes_on_in_the_next_block() -> None:
    scenario = Scenario("", rho=0.0, stall_every=PAIRS, stall=(300, 300))
    traffic = Traffic(scenario, 20, np.random.default_rng(7))
    first, second = traffic.next(), traffic.next()
    stalled = first.shadow[:, -1] > 100e6
    assert stalled.any()
    assert (second.shadow[stalled, 0] > 100e6).all()
