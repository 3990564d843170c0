"""How many requests production has had: estimated from a plain share of them, and a gap where that is no share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Config, parse
from agent.production_requests import ProductionRequests
from replay.account import Account

BASE = "capture: {interface: eth9, ports: [80]}\nshadows: {one: {percentage: 10}}\n"
CONFIG = parse(BASE, "f.yaml")


def accounts(seen: int) -> dict[str, Account]:
    account = Account()
    account.seen = seen
    return {"one": account}


def changed(old: str = "", new: str = "", more: str = "") -> Config:
    return parse(BASE.replace(old, new) + more if old else BASE + more, "f.yaml")


@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from([1, 10, 100]), st.booleans())))
def test_what_came_is_counted_with_the_share_of_then_and_nothing_that_a_pause_touched(
    looks: list[tuple[int, int, bool]],
) -> None:
    requests, seen, wanted, was_paused = ProductionRequests(), 0, 0.0, False
    for came, percentage, paused in looks:
        seen += came
        found = requests.count(accounts(seen), changed("10", str(percentage)), paused)
        if paused or was_paused:
            assert found is None
        else:
            wanted += came * 100 / percentage
            assert found == pytest.approx(wanted)
        was_paused = paused


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (CONFIG, True),
        (changed("percentage: 10", "percentage: 10, sample_by: connection"), True),
        (changed("percentage: 10", "percentage: 10, sample_by: client"), True),
        (changed("percentage: 10", "percentage: 10, sample_by: client", "client: {source: x-real-ip}\n"), False),
        (changed("percentage: 10", "percentage: 10, sample_by: 'cookie:session'"), False),
        (changed("percentage: 10", "percentage: 10, sample_by: 'header:x-user'"), False),
        (changed("percentage: 10", "percentage: 10, criteria: 'cidr:10.0.0.0/8'"), False),
        (changed("percentage: 10", "percentage: 10, enabled: false"), False),
        (changed("percentage: 10", "percentage: 0"), False),
        (changed("10}", "10}, two: {percentage: 10}"), False),
    ],
)
def test_only_a_plain_share_that_the_kernel_takes_says_how_much_there_is(config: Config, known: bool) -> None:
    requests = ProductionRequests()
    assert (requests.count(accounts(50), config, False) is not None) is known
    found = requests.count(accounts(80), CONFIG, False)
    assert found == pytest.approx(800 if known else 300), "what came meanwhile is left out, not guessed"
