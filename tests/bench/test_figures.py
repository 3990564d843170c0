"""The benchmark's own arithmetic: medians, targets, and reading the account that the agent prints."""

from __future__ import annotations

import json
import os

from agent.capture.layout import Counters
from agent.summary import account_lines
from replay.account import Account
from tests.bench import processes
from tests.bench.figures import Figure, Target, medians
from tests.bench.kernel_cost import cases
from tests.bench.measured_agent import parse_ending
from tests.bpf.selections import SEED

AT_MOST, AT_LEAST = Target("at most", 80), Target("at least", 0.85)


def test_the_median_decides_whether_a_target_is_met() -> None:
    assert Figure("x", "us", [1.0, 79.0, 200.0], AT_MOST).met is True
    assert Figure("x", "us", [81.0, 79.0, 200.0], AT_MOST).met is False
    assert Figure("x", "share", [0.84, 0.85, 0.9], AT_LEAST).met is True
    assert Figure("x", "share", [0.5]).met is None


def test_a_figure_is_plain_json_and_keeps_its_repeats() -> None:
    figure = Figure("(x) thing", "us", [1.23456, 70000.4, 3.0], AT_MOST, {"note": "n"})
    assert json.loads(json.dumps(figure.as_json())) == {
        "name": "(x) thing",
        "unit": "us",
        "median": 3.0,
        "repeats": [1.235, 70000, 3.0],
        "target": {"at most": 80},
        "met": True,
        "extra": {"note": "n"},
    }
    assert "met" in figure.line()


def test_medians_are_of_the_keys_that_all_runs_have() -> None:
    assert medians([{"a": 1, "b": 5}, {"a": 3}, {"a": 2, "b": 1}]) == {"a": 2}
    assert medians([]) == {}


def test_the_printed_account_is_read_back() -> None:
    account = Account(seen=30, replayed=12)
    account.answers.update({"ok": 10, "timeout": 2})
    account.skipped["method"] = 5
    account.dropped["queue_full"] = 13
    kernel = Counters(*([0] * len(Counters._fields)))._replace(copied=60, ring_full=2, lost_to_server=1)
    ending = parse_ending("\n".join(account_lines({"candidate": account}, kernel)))
    assert ending.fates == {
        "seen": 30, "replayed": 12, "incomplete": 0, "skipped": 5, "dropped": 13, "in flight": 0,
    }  # fmt: skip
    assert ending.ok == 10
    assert ending.kernel["copied"] == 60
    assert ending.lost() == {
        "kernel.ring_full": 2, "skipped.method": 5, "dropped.queue_full": 13, "answered.timeout": 2,
    }  # fmt: skip


def test_this_process_is_measured() -> None:
    pid = os.getpid()
    assert pid in processes.family(pid)
    before = processes.cpu_ns(pid)
    assert before > 0
    sum(range(1_000_000))
    assert processes.cpu_ns(pid) > before
    assert 0 < processes.pss_bytes(pid) <= processes.rss_bytes(pid) * 1.5
    assert processes.peak_rss_bytes(pid) > 0


def test_what_is_gone_measures_as_nothing() -> None:
    gone = 2**22 + 1  # above the largest process id
    assert processes.cpu_ns(gone) == processes.rss_bytes(gone) == processes.pss_bytes(gone) == 0
    assert processes.cpu_with_children_ns(gone) == 0
    assert processes.role(gone) == "gone"


def test_the_unsampled_flow_is_not_in_its_sample() -> None:
    from agent.select import sampling

    key = bytes((10, 1, 2, 3, 10, 9, 8, 7)) + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big")
    (unsampled,) = (case for case in cases() if "unsampled" in case.name)
    assert not sampling.sampled(sampling.flow_hash(key, SEED), unsampled.share_ppm)
