"""What may be written about watching: defaults, refusals, and that the judge takes whatever is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config, parse
from agent.control.guard import Cause
from agent.control.standing import causes
from agent.errors import ConfigError
from agent.monitor.judging import judge_settings
from agent.watch_config import CAUSES, RATE_MARGIN_PERCENT, Judging, RampPlan, Rollback

BASE = "capture: {interface: eth9, ports: [80]}\nshadows: {one: {percentage: 10}}\n"


def read(text: str) -> Config:
    return parse(BASE + text, "f.yaml")


def test_what_is_not_said_has_a_default() -> None:
    config = read("")
    assert config.judge == Judging()
    assert (config.judge.warn_alpha, config.judge.rollback_alpha, config.judge.pass_alpha) == (0.05, 0.001, 0.05)
    assert config.rollback == Rollback()
    assert config.rollback.on == list(CAUSES)
    assert config.harm is not None
    assert (config.limits.cpu_percent, config.limits.memory_mib, config.limits.loss_percent) == (0, 4096, 0)
    assert (str(config.state.directory) if config.state else None) == "/var/lib/shadowtap"
    assert config.shadows["one"].ramp is None


def test_judging_harm_and_state_can_be_left_out() -> None:
    config = read("judge: null\nharm: null\nstate: null\n")
    assert (config.judge, config.harm, config.state) == (None, None, None)


@pytest.mark.parametrize("key", ["on", '"on"', "'on'"])
def test_a_bare_on_is_a_key(key: str) -> None:
    """YAML 1.1 takes it for true."""
    config = read(f"rollback: {{{key}: [judge, leak]}}")
    assert config.rollback.on == ["judge", "leak"]
    assert read("rollback: {on: []}").rollback.on == []


def test_every_cause_but_a_person_s_and_the_state_s_can_be_chosen() -> None:
    assert set(CAUSES) == set(Cause) - {Cause.MANUAL, Cause.STATE}
    assert causes(Rollback()) == set(Cause)
    assert causes(Rollback(on=["judge"])) == {Cause.JUDGE, Cause.MANUAL, Cause.STATE}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("judge: {warn_alpha: 0}", r"f\.yaml: judge\.warn_alpha: "),
        ("judge: {pass_alpha: 1}", r"judge\.pass_alpha: "),
        ("judge: {block_s: 0.1}", r"judge\.block_s: "),
        ("judge: {least_blocks: 0}", r"judge\.least_blocks: "),
        ("judge: {noise_percentage: 101}", r"judge\.noise_percentage: "),
        ("judge: {metrics: {speed: {warn: 1, rollback: 2, margin: 3}}}", r"judge\.metrics\.speed"),
        ("judge: {metrics: {latency: {warn: 3, rollback: 2, margin: 3}}}", "`warn` is above `rollback`"),
        ("judge: {metrics: {errors: {warn: 0, rollback: 0, margin: 5}}}", r"metrics\.errors\.margin: give less than 5"),
        ("judge: {metrics: {tail: {warn: 0, rollback: 0, margin: 0}}}", r"judge\.metrics\.tail\.margin: "),
        ("judge: {metrics: {tail: {warn: 0, margin: 1}}}", r"judge\.metrics\.tail\.rollback: missing"),
        ("rollback: {on: [manual]}", r"rollback\.on\.0: "),
        ("rollback: {cooldown_s: 0}", r"rollback\.cooldown_s: "),
        ("rollback: [judge]", r"rollback: "),
        ("rollback: {retry: 3}", r"rollback\.retry: unknown key"),
        ("limits: {memory_mib: -1}", r"limits\.memory_mib: "),
        ("harm: {every_s: 0}", r"harm\.every_s: "),
        ("harm: {block_s: 0.1}", r"harm\.block_s: "),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(text)


@pytest.mark.parametrize(
    "plan",
    [
        {"steps": []},
        {"steps": [{"percentage": 0, "hold_s": 60}]},
        {"steps": [{"percentage": 101, "hold_s": 60}]},
        {"steps": [{"percentage": 1, "hold_s": 0}]},
        {"steps": [{"percentage": 1}]},
        {"steps": [{"percentage": 1, "hold_s": 1}] * 65},
        {"steps": [{"percentage": 1, "hold_s": 1}], "inconclusive": -1},
        {"steps": [{"percentage": float("nan"), "hold_s": 1}]},
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        RampPlan.model_validate(plan)


RATES = st.floats(1e-9, 0.999)
PERCENT = st.floats(0, 1000)


@given(st.data())
def test_whatever_is_accepted_the_judge_takes(data: st.DataObject) -> None:
    metrics = {}
    for name in data.draw(st.sets(st.sampled_from(["latency", "tail", "errors", "differences", "cpu", "memory"]))):
        warn, rollback = sorted((data.draw(PERCENT), data.draw(PERCENT)))
        most = RATE_MARGIN_PERCENT if name in ("errors", "differences") else 1000
        metrics[name] = {
            "warn": warn,
            "rollback": rollback,
            "margin": data.draw(st.floats(1e-6, most, exclude_max=name in ("errors", "differences"))),
        }
    judging = Judging.model_validate(
        {
            "warn_alpha": data.draw(RATES),
            "rollback_alpha": data.draw(RATES),
            "pass_alpha": data.draw(RATES),
            "block_s": data.draw(st.floats(0.2, 30)),
            "least_blocks": data.draw(st.integers(1, 10_000)),
            "metrics": metrics,
        }
    )
    share = data.draw(st.sampled_from([1.0, 0.5, 1 / 64]))
    settings = judge_settings(judging.settings(share))
    assert settings.warn_alpha == pytest.approx(judging.warn_alpha * share)
    assert settings.rollback_alpha == pytest.approx(judging.rollback_alpha * share)
    assert settings.pass_alpha == judging.pass_alpha
