"""What can go wrong with a shadow, played in the lab in its short form: that it is noticed, and soon enough.

A scenario raises LabError by itself when the agent does not do what it must, or when users notice anything.
"""

from __future__ import annotations

import pytest

from tests.e2e.agent_process import SHADOWTAP
from vagrant.lab.scenarios import SCENARIOS, Scenario, play

pytestmark = pytest.mark.root

# Seconds, by scenario and what was waited for: several times what it takes on an idle host.
AT_MOST_S: dict[str, dict[str, float]] = {
    "slower": {"fail": 110},
    "wrong": {"fail": 90},
    "starts-failing": {"trip": 10},
    "dead": {"trip": 15, "active": 45},
    "leak": {"fail": 180},
    "production-slow": {},
    "harm": {"trip": 190},
    "same": {},
}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_agent_does_what_it_must(scenario: Scenario) -> None:
    played = play(scenario, [SHADOWTAP])
    assert played.requests > 1000
    assert played.took_s.keys() == AT_MOST_S[scenario.name].keys()
    late = {what: took for what, took in played.took_s.items() if took > AT_MOST_S[scenario.name][what]}
    assert late == {}, played.notes


def test_every_scenario_has_its_limits() -> None:
    assert sorted(AT_MOST_S) == sorted(scenario.name for scenario in SCENARIOS)
