"""What can go wrong with a shadow, played in the lab in its short form: that it is noticed, and soon enough.

A scenario ends with one line of why when the agent does not do what it must, or when users notice anything. Some are
played at once, each in a process and a lab of its own: they mostly wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import missing_for_root
from vagrant.lab.scenarios import SCENARIOS

pytestmark = pytest.mark.root

# Seconds, by scenario and what was waited for: several times what it takes on an idle host.
AT_MOST_S: dict[str, dict[str, float]] = {
    "harm": {"trip": 190},
    "leak": {"fail": 180},
    "same": {},
    "production-slow": {},
    "wrong": {"fail": 90},
    "slower": {"fail": 110},
    "dead": {"trip": 15, "active": 45},
    "starts-failing": {"trip": 10},
}
AT_ONCE = 3
LONGEST_S = 400.0

Results = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    """All of them, the longest first."""
    if reason := missing_for_root():
        pytest.skip(reason)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(_play, name) for name in AT_MOST_S}


def _play(name: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vagrant.lab.scenarios", name, "--json"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)


@pytest.mark.parametrize("name", sorted(AT_MOST_S))
def test_the_agent_does_what_it_must(results: Results, name: str) -> None:
    done = results[name].result()
    assert done.returncode == 0, done.stderr
    played: dict[str, Any] = json.loads(done.stdout)
    assert played["requests"] > 1000
    limits = AT_MOST_S[name]
    assert played["took_s"].keys() == limits.keys()
    assert {what: took for what, took in played["took_s"].items() if took > limits[what]} == {}, done.stderr


def test_every_scenario_has_its_limits() -> None:
    assert sorted(AT_MOST_S) == sorted(scenario.name for scenario in SCENARIOS)
