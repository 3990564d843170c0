"""A watching with real records and steering, a kernel's tables that only note what is done, and a made-up clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from agent import desk, harm_watch, watch_view, watching
from agent.capture.tables import Tables
from agent.config import Config, parse
from agent.control.guard import Now
from agent.control.harm import Latency
from agent.control.steering import Steering
from agent.control.store import StateError
from agent.desk import Desk
from agent.monitor.watch_link import Told, WatchLink
from agent.select.choice import Rule
from agent.watch_view import Figures
from agent.watching import Watching
from replay.account import Account
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError
from tests.agent.control.fake_desk import FINDING, VERDICT
from tests.agent.control.test_steering import FakeTables

TEXT = """
capture: {interface: eth9, ports: [80]}
rollback: {cooldown_s: 100, probe_s: 30, probe_requests: 5, probe_percentage: 2}
shadows:
  one: {percentage: 10, upstreams: ["198.51.100.1:80"]}
  two: {percentage: 20}
"""
ONE, TWO = 0b01, 0b10
FAILING = [[0, 60, 60, 0, 0]]  # a pulse that breaks the breaker of the first shadow


def verdict(word: str = "fail", rollback: bool = False, pairs: int = 100) -> dict[str, Any]:
    """As the judge says it."""
    findings = [{**FINDING, "word": word, "rollback": rollback}]
    return {**VERDICT, "word": word, "rollback": rollback, "pairs": pairs, "findings": findings}


class FakeLink:
    """In the place of WatchLink."""

    def __init__(self) -> None:
        self.told = Told()
        self.running = True
        self.restarted = False
        self.deaf = False  # nothing can be told
        self.sent: list[dict[str, Any]] = []
        self.incoming: list[dict[str, Any]] = []

    def tell(self, message: dict[str, Any]) -> bool:
        if not self.deaf:
            self.sent.append(message)
        return not self.deaf

    def take(self) -> list[dict[str, Any]]:
        taken, self.incoming = self.incoming, []
        return taken

    def look(self, now_s: float) -> bool:
        restarted, self.restarted = self.restarted, False
        return restarted

    def close(self) -> None:
        self.running = False

    def orders(self, shadow: str) -> list[dict[str, Any]]:
        """What the judge of a shadow was told to begin."""
        return [each["judge"] for each in self.sent if each.get("judge", {}).get("shadow") == shadow]


class FakeHistogram:
    """So many answers, all of which took as long."""

    def __init__(self, count: int, ns: float) -> None:
        self.count = count
        self.ns = ns

    def quantile(self, q: float) -> float | None:
        return self.ns if self.count else None


class FakeLatency:
    """In the place of ProductionLatency."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.found = {0: FakeHistogram(1000, 2e6), 1: FakeHistogram(1000, 1e6)}

    def start(self, phase: int) -> None:
        self.calls.append(phase)

    def pause(self) -> None:
        self.calls.append("pause")

    def read(self, phase: int) -> FakeHistogram:
        return self.found[phase]


class Bench:
    """All of it. `log` has what reached the kernel, the workers, the pools, the marker and the store, in order."""

    def __init__(self, directory: Path | None, text: str = TEXT, latency: FakeLatency | None = None) -> None:
        place = "null" if directory is None else f"{{directory: {directory}}}"
        self.begin(parse(f"{text}\nstate: {place}\n", "f.yaml"), latency)

    def begin(self, config: Config, latency: FakeLatency | None = None) -> None:
        self.log: list[tuple[str, Any]] = []
        self.said: list[str] = []
        self.tables = FakeTables(self.log)
        self.pool_fails = False
        self.link = FakeLink()
        self.accounts = {name: Account() for name in config.shadows}
        self.programs: dict[str, bool] = {}
        self.own = (0.0, 0)
        self.echoes: dict[str, dict[str, int]] = {}
        self.kernel = {"ring_full": 0, "over_budget": 0, "copied": 0}
        self.steering = Steering(config, cast(Tables, self.tables), None, self.tell, change_pool=self.change_pool)
        figures = Figures(
            lambda: self.accounts, lambda: self.programs, lambda: self.own, lambda: self.kernel, lambda: self.echoes
        )
        self.watching = Watching(config, self.steering, figures, cast(WatchLink, self.link), self.said.append)
        self.watching.begin(cast(Latency, latency) if latency else None, "f.yaml")
        assert self.tables.enabled == 0, "nothing is copied before everything is taken up"
        self.begun = list(self.log)
        self.steering.begin()
        self.desk = Desk(self.watching, dict)
        self.spy()

    def spy(self) -> None:
        """Note what is written, too."""
        records = self.watching.records
        for name in ("mark", "note", "keep", "mark_bad", "version_if_possible"):
            setattr(records, name, self._noted(name, getattr(records, name)))
        self.log.clear()

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **known: Any) -> Any:
            self.log.append((name, args))
            return method(*args, **known)

        return call

    def tell(self, rules: list[Rule]) -> None:
        self.log.append(("rules", rules))

    def change_pool(self, name: str, specs: list[UpstreamSpec]) -> Callable[[], None]:
        if self.pool_fails:
            raise UpstreamError("no such upstream")
        self.log.append((f"pool {name}", specs))
        return lambda: None

    def again(self, config: Config | None = None, orderly: bool = True) -> None:
        """Another agent over the same directory; without `orderly` the first one was killed."""
        if orderly:
            self.watching.close()
        else:
            self.watching.records.close()
        self.begin(config or self.watching.config)

    def fail_store(self) -> None:
        """From now on the disk is full for the store."""

        def full(*args: Any, **known: Any) -> Any:
            raise StateError("state.db: the disk is full")

        for name in ("add_version", "audit", "keep", "mark_bad"):
            setattr(self.watching.records.store, name, full)

    def fail_reading(self) -> None:
        """And cannot be read either."""
        self.fail_store()
        for name in ("previous_good", "kept", "versions", "audits"):
            setattr(self.watching.records.store, name, self.watching.records.store.keep)

    def judged(self, shadow: str = "one", what: dict[str, Any] | None = None, fingerprint: str = "") -> None:
        """The judge says something, about the present period unless another one is named."""
        self.link.incoming.append(
            {
                "judged": shadow,
                "fingerprint": fingerprint or self.link.orders(shadow)[-1]["fingerprint"],
                "period_started_ns": 5,
                "noisy_routes": [],
                "verdict": what or verdict(rollback=True),
            }
        )
        self.watching.take()

    def state(self, shadow: str = "one") -> str:
        return str(self.watching.standings[shadow].guard.state)

    def cause(self, shadow: str = "one") -> str:
        return str(self.watching.standings[shadow].guard.cause)

    def percentage(self, shadow: str = "one") -> float:
        """In force."""
        return self.steering.config.shadows[shadow].percentage

    @property
    def steps(self) -> list[str]:
        return [what for what, _ in self.log]

    @property
    def audit(self) -> list[tuple[str, str, str]]:
        """Author, action and reason, the oldest first."""
        entries = self.desk.audit(100, None)
        return [(each["author"], each["action"], each["reason"]) for each in reversed(entries)]

    @property
    def alarms(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What the watch process was told last."""
        alerts = next(each["alerts"] for each in reversed(self.link.sent) if "alerts" in each)
        assert len({(each["name"], each["shadow"]) for each in alerts}) == len(alerts), "each one once"
        return {(each["name"], each["shadow"]): each for each in alerts}


class FakeClock:
    """All clocks of guards; `look` lets the watching look as time passes."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.boot = "boot"

    def __call__(self) -> Now:
        return Now(self.boot, self.now_s, 1e9 + self.now_s)

    def install(self, monkeypatch: Any) -> None:
        for module in (watching, desk, watch_view):
            monkeypatch.setattr(module, "clocks", self)
        for module in (watching, harm_watch):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        """As `time` has it, whose place this takes."""
        return self.now_s

    def time_ns(self) -> int:
        return time.time_ns()

    def look(self, bench: Bench, after_s: float = 1.0, times: int = 1) -> None:
        for _ in range(times):
            self.now_s += after_s
            bench.watching.look(self.now_s)
