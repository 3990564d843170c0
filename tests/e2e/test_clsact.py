"""The way for kernels without TCX: clsact filters, which leave other people's filters and qdiscs as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from replay.account import Account
from tests.e2e.agent_process import Settings, running
from tests.e2e.kernel_view import filters, has_clsact, our_filters, tcx_programs
from vagrant.lab import Lab

pytestmark = pytest.mark.root

CLSACT: Settings = {"capture": {"attach": "clsact"}}
HOOKS = ("ingress", "egress")


@contextmanager
def somebodys_qdisc(lab: Lab, *commands: str) -> Iterator[None]:
    """A clsact qdisc with filters that are not ours."""
    lab.run_in("lb", ["tc", "qdisc", "add", "dev", "front", "clsact"])
    try:
        for command in commands:
            lab.run_in("lb", ["tc", "filter", "add", "dev", "front", *command.split()])
        yield
    finally:
        lab.run_in("lb", ["tc", "qdisc", "del", "dev", "front", "clsact"])


def foreign(lab: Lab) -> list[object]:
    return [filters(lab, "front", hook) for hook in HOOKS]


def assert_works(lab: Lab, settings: Settings = CLSACT) -> None:
    """Every request is seen, replayed and counted."""
    with running(lab, settings) as agent:
        assert "(clsact, 1 worker)" in agent.errors[0]
        assert len(our_filters(lab, "front")) == 2
        assert tcx_programs(lab, "front") == []
        load = lab.rate(500, 1)
        ended = agent.stop()
        assert (load.failed, agent.production(), agent.shadow()) == (0, 500, 500)
    assert ended.status == 0
    assert ended.account == Account(seen=500, replayed=500, answers=ended.account.answers)
    assert Account.from_dict(ended.report()["all"]["account"]) == ended.account
    assert our_filters(lab, "front") == []


def test_it_counts_as_exactly_and_leaves_nothing(lab: Lab) -> None:
    assert not has_clsact(lab, "front")
    assert_works(lab)
    assert not has_clsact(lab, "front")


def test_a_qdisc_that_was_there_stays(lab: Lab) -> None:
    with somebodys_qdisc(lab):
        assert_works(lab)
        assert has_clsact(lab, "front")


def test_filters_of_others_stay_whatever_their_priority(lab: Lab) -> None:
    """Without a priority the kernel gives one: 49152, then less and less."""
    matching = "u32 match u32 0 0"
    with somebodys_qdisc(
        lab,
        f"ingress {matching}",
        f"egress {matching}",
        f"egress {matching}",
        f"ingress prio 49153 protocol ip {matching}",
        f"ingress prio 1 protocol ip {matching}",
    ):
        before = foreign(lab)
        assert_works(lab)
        assert foreign(lab) == before
        assert all(before)


def test_an_ingress_qdisc_in_the_way_is_one_line(lab: Lab) -> None:
    lab.run_in("lb", ["tc", "qdisc", "add", "dev", "front", "ingress"])
    try:
        with pytest.raises(AssertionError, match="ended with 2"), running(lab, CLSACT) as agent:
            pass
    finally:
        lab.run_in("lb", ["tc", "qdisc", "del", "dev", "front", "ingress"])
    with running(lab, CLSACT) as agent:
        lab.requests(10)
        assert agent.stop().account.replayed == 10
