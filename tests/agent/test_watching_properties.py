"""Whatever happens in whatever order: a tripped shadow takes nothing until a reset or a probe, and what is in force
follows from what is configured, the guard and the ramp."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.control.guard import Cause
from agent.control.request import ControlError
from agent.errors import ConfigError
from tests.agent.watch_bench import TEXT, Bench, FakeClock, FakeLatency, verdict

NAMES = st.sampled_from(["one", "two"])
SHARES = st.sampled_from([0.5, 10.0, 40.0])
LIMITED = TEXT + "harm: {every_s: 5, block_s: 1}\n"


class AnyOrder(RuleBasedStateMachine):
    """An agent, people, a judge, breakers, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = FakeClock()
        self.clock.install(self.patch)
        self.directory = Path(tempfile.mkdtemp())
        self.bench = Bench(self.directory, LIMITED, FakeLatency())
        self.tripped: set[str] = set()  # when it was looked at last
        self.may_go_on: set[str] = set()  # a reset or time has been there since

    def teardown(self) -> None:
        self.patch.undo()
        self.bench.watching.close()
        shutil.rmtree(self.directory)

    @rule(name=NAMES, cause=st.sampled_from(list(Cause)))
    def trip(self, name: str, cause: Cause) -> None:
        self.bench.watching.trip(self.bench.watching.standings[name], cause, "bad")

    @rule(place=st.sampled_from([0, 1]))
    def fail(self, place: int) -> None:
        self.bench.watching.pulse([[place, 60, 60, 0, 0]], 0)

    @rule(
        name=NAMES, stale=st.booleans(), word=st.sampled_from(["pass", "fail", "inconclusive"]), rollback=st.booleans()
    )
    def judge(self, name: str, stale: bool, word: str, rollback: bool) -> None:
        before = self.bench.state(name)
        if not self.bench.link.orders(name):
            return  # it was tripped before this agent began
        rollback = rollback and word == "fail"
        self.bench.judged(name, verdict(word, rollback), "stale" if stale else "")
        if stale:
            assert self.bench.state(name) == before
        elif rollback and self.bench.link.orders(name)[-1]["fingerprint"] == self.fingerprint(name):
            assert self.bench.state(name) == "tripped"

    def fingerprint(self, name: str) -> str:
        return self.bench.watching.standings[name].fingerprint

    @rule(name=NAMES)
    def reset(self, name: str) -> None:
        self.may_go_on.add(name)
        with contextlib.suppress(ControlError):
            self.bench.desk.reset(name, "", "ann")

    @rule(name=NAMES, percentage=SHARES, enabled=st.booleans())
    def change(self, name: str, percentage: float, enabled: bool) -> None:
        with contextlib.suppress(ControlError, ConfigError):
            self.bench.desk.change(name, {"percentage": percentage, "enabled": enabled}, "ann", "")

    @rule(name=NAMES)
    def disable(self, name: str) -> None:
        self.bench.desk.change(name, {"enabled": False}, "ann", "")
        assert not self.bench.steering.configured.shadows[name].enabled

    @rule(version=st.none() | st.integers(1, 5))
    def roll_back(self, version: int | None) -> None:
        with contextlib.suppress(ControlError, ConfigError):
            self.bench.desk.rollback(version, "", "ann")

    @rule(name=NAMES, percentage=SHARES)
    def ramp(self, name: str, percentage: float) -> None:
        with contextlib.suppress(ControlError):
            spec = {"steps": [{"percentage": 1, "hold_s": 2}, {"percentage": percentage, "hold_s": 2}]}
            self.bench.desk.start_ramp(name, spec, "ann")

    @rule(name=NAMES, action=st.sampled_from(["pause", "resume", "abort"]))
    def steer(self, name: str, action: str) -> None:
        with contextlib.suppress(ControlError):
            self.bench.desk.steer_ramp(name, action, "ann")

    @rule(seconds=st.sampled_from([1.0, 3.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.may_go_on |= {name for name in self.tripped if not self.bench.watching.standings[name].guard.permanent}
        self.clock.look(self.bench, seconds)
        self.bench.watching.look_at_harm(self.clock.now_s)

    @rule(seconds=st.sampled_from([0.5, 1.0]), times=st.integers(1, 20))
    def check_for_harm(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.clock.now_s += seconds
            self.bench.watching.look_at_harm(self.clock.now_s)

    @rule(full=st.booleans())
    def fill_the_kernel(self, full: bool) -> None:
        self.bench.tables.full = full

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        states = {name: (self.bench.state(name), self.bench.cause(name)) for name in ("one", "two")}
        self.bench.again(orderly=orderly)
        assert {name: (self.bench.state(name), self.bench.cause(name)) for name in states} == states

    @invariant()
    def what_is_tripped_is_off(self) -> None:
        bench = self.bench
        now = {name for name in ("one", "two") if bench.state(name) == "tripped"}
        for name in self.tripped & now - self.may_go_on:
            bit = 1 << list(bench.steering.config.shadows).index(name)
            assert not any(mask & bit for step, mask in bench.log if step == "enabled"), "not for a moment"
        assert self.tripped - now <= self.may_go_on
        for place, name in enumerate(("one", "two")):
            if name in now:
                assert not bench.tables.enabled >> place & 1
                assert not bench.steering.config.shadows[name].enabled
        self.tripped, self.may_go_on = now, set()
        bench.log.clear()

    @invariant()
    def what_is_in_force_follows(self) -> None:
        bench = self.bench
        if bench.tables.full:
            return
        for name, standing in bench.watching.standings.items():
            configured = bench.steering.configured.shadows[name]
            bench.watching.put_in_force(standing)  # what had no room may have it now
            wanted: dict[str, Any] = {"percentage": configured.percentage, "enabled": configured.enabled}
            wanted |= standing.overlay(configured.percentage)
            found = bench.steering.config.shadows[name]
            assert {"percentage": found.percentage, "enabled": found.enabled} == wanted

    @invariant()
    def the_version_in_force_is_the_one_configured(self) -> None:
        version = self.bench.watching.version
        assert version is not None
        kept = self.bench.desk.version(version)["config"]["shadows"]
        for name, shadow in self.bench.steering.configured.shadows.items():
            assert (kept[name]["percentage"], kept[name]["enabled"]) == (shadow.percentage, shadow.enabled)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=30, stateful_step_count=25, deadline=None)
