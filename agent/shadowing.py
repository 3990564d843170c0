"""One shadow within a worker: its choice, its account, its replay connections, its recording, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.echo import Asked, Echo
from agent.health_checks import HealthChecks
from agent.mirror import Mirror
from agent.monitor.feed import Feed, Teller
from agent.monitor.pulse import Pulse
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select.choice import Choice, Rule
from agent.select.exact import Locate
from agent.spacing import SpacedSender
from replay.balancer.engine import Embedded, Program
from replay.balancer.upstream import PLAIN
from replay.client import Replayer
from replay.exchange import Dropped, Fate, Outcome, Trial
from replay.job import SentTimes
from replay.lane import SocketFactory
from replay.recording import Recorder, RecordingSettings

STATES_SHOWN = 100  # of a pool's upstreams


def open_recorder(
    directory: Path | None, settings: dict[str, int], run: str, worker: int, shadow: str
) -> Recorder | None:
    """None when nothing is to be recorded."""
    if directory is None:
        return None
    return Recorder(
        directory, RecordingSettings(**settings), run=run, worker=worker, shadow=shadow, now_ns=time.time_ns()
    )


class Shadowing:
    """Wires one shadow's stages together; all the work is theirs."""

    def __init__(
        self,
        order: Order,
        place: int,
        recorder: Recorder | None,
        locate: Locate | None,
        *,
        in_kernel: bool,
        feed: Feed | None = None,
        pulse: Pulse | None = None,
        noise_ppm: int = 0,
    ) -> None:
        """`in_kernel`: a percentage of connections or clients was decided before exchanges come here. `feed` is told of
        every trial that is over, `pulse` of every answer; `noise_ppm` of the shadow's requests are asked twice."""
        self.order: ShadowOrder = order.shadows[place]
        self.recorder = recorder
        self.choice = Choice(self.order.rule, order.seed, order.client, locate, in_kernel=in_kernel)
        record = self._over if feed else self._record if recorder else None
        self.mirror = Mirror(self.choice, record, place, self._begun if feed else None)
        self.teller = Teller(feed, place, self.order.replay.timeout_s, self.mirror.account) if feed else None
        self.echo = Echo(noise_ppm, self.teller.over) if self.teller and noise_ppm else None
        self._place = place
        self._pulse = pulse
        self.replayer: Replayer | None = None
        self.balancer: Embedded | Program | None = None
        self.checks: HealthChecks | None = None
        self._production: tuple[str, ...] = ()
        self._transport = PLAIN
        self._addresses: set[str] = set()
        self.sender: SpacedSender | None = None

    def connect(
        self,
        loop: asyncio.AbstractEventLoop,
        production: tuple[str, ...],
        factory: SocketFactory | None,
        now_ns: Callable[[], int],
        delay_ns: int,
        sent_times: SentTimes | None = None,
    ) -> None:
        """Begin to replay, if there is anybody to replay to. `sent_times`: the kernel's word on when requests left."""
        if not self.order.pool.replays:
            return
        answered = self._answered if self._pulse or self.echo else self.mirror.answered
        self._production = production
        self._transport = self.order.pool.transport
        self.balancer = self.order.pool.engine(production, self._transport)
        self.replayer = Replayer(loop, self.balancer, self.order.replay, answered, factory, sent_times=sent_times)
        if isinstance(self.balancer, Embedded) and self.order.pool.balancer.health is not None:
            mark = self.replayer.mark
            self.checks = HealthChecks(loop, self.balancer, self.order.pool, mark, factory, self._transport)
            self.checks.follow()
        self.sender = SpacedSender(loop, self.replayer, answered, now_ns, delay_ns)
        self.mirror.sender = self.sender
        if self.teller is not None:
            self.teller.delay_ns = delay_ns
        if self.echo is not None:
            self.echo.sender, self.echo.delay_ns = self.sender, delay_ns

    def change(self, rule: Rule) -> None:
        """Choose by another rule from now on; exactly, for what the ring still holds was copied by the old one."""
        self.choice.change(rule, in_kernel=False)
        if not rule.enabled and self.sender is not None:
            self.sender.discard()
        if self.teller is not None:
            self.teller.rule_changed()
        if self.echo is not None:
            self.echo.enabled = rule.enabled

    def change_pool(self, pool: PoolOrder) -> None:
        """Send to these upstreams from now on; what is under way ends where it is. They are addresses that the service
        has checked, so nothing blocks."""
        if isinstance(self.balancer, Embedded):
            self.balancer.change(pool.pool(self._production, self._transport))
            if self.checks is not None:
                self.checks.follow()
        elif self.balancer is not None:
            self.told_of_balancer()  # those it has now, before they are others
            if self._transport.tls is None and any(front.tls for front in pool.fronts):
                self._transport = pool.transport
            self.balancer.change(*pool.routes(self._transport))

    async def drain(self, limit_s: float) -> None:
        """Send what is held and wait for the last answers."""
        if self.checks is not None:
            self.checks.close()
        if self.echo is not None:
            self.echo.enabled = False
        if self.sender is not None and self.replayer is not None:
            self.sender.finish()
            await self.replayer.drain(limit_s)
        if self.echo is not None:
            self.echo.finish()

    def report(self) -> dict[str, Any]:
        """What it counted, by stage."""
        return {
            "replay": asdict(self.replayer.counters) if self.replayer else {},
            "spacing": {"held": len(self.sender.spacing), "late": self.sender.spacing.late} if self.sender else {},
            "pool": {self.order.name: self._states()},
            "recording": asdict(self.recorder.counters) if self.recorder else {},
            **({"echo": {self.order.name: self.echo.report()}} if self.echo else {}),
        }

    def told_of_balancer(self) -> dict[str, Any]:
        """For the recording: which program balances, and every address of its own that it has had."""
        if isinstance(self.balancer, Program):
            self._addresses |= {upstream.name for upstream in self.balancer.upstreams}
        return {"program": self.order.pool.program, "addresses": sorted(self._addresses)}

    def _states(self) -> dict[str, dict[str, int]]:
        """By upstream: 1 for its state, so that workers can be added up. Of a large pool those that are not well come
        first, and the rest is left out: a report has to fit one message."""
        states = self.balancer.states() if self.balancer else {}
        shown = sorted(states.items(), key=lambda item: item[1] == "well")[:STATES_SHOWN]
        return {name: {state: 1} for name, state in shown}

    def _answered(self, token: object, result: Outcome | Dropped) -> None:
        """The replay client's callback, in front of the mirror's."""
        if isinstance(token, Asked):
            assert self.echo is not None
            self.echo.answered(token, result)
            return
        assert isinstance(token, Trial)
        if self._pulse is not None:
            self._pulse.count(self._place, result, token)
        if self.echo is not None and isinstance(result, Outcome):
            self.echo.consider(token, result)  # before the mirror may tell that the trial is over
        self.mirror.answered(token, result)

    def _begun(self, trial: Trial) -> None:
        assert self.teller is not None
        self.teller.begun(trial)

    def _over(self, trial: Trial) -> None:
        """A trial is over: to the recording, and to the watch process."""
        if self.recorder is not None:
            self._record(trial)
        if trial.fate is Fate.SKIPPED:
            return
        if self.echo is not None:
            self.echo.over(trial)
        elif self.teller is not None:
            self.teller.over(trial)

    def _record(self, trial: Trial) -> None:
        assert self.recorder is not None and trial.fate is not None
        self.recorder.add(trial.exchange, trial.fate, trial.reason, trial.outcome)
