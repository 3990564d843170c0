"""One shadow within a worker: its choice, its account, its replay connections, its recording, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.health_checks import HealthChecks
from agent.mirror import Mirror
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select.choice import Choice, Rule
from agent.select.exact import Locate
from agent.spacing import SpacedSender
from replay.balancer.engine import Embedded, Program
from replay.balancer.upstream import PLAIN
from replay.client import Replayer
from replay.exchange import Trial
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
        self, order: Order, place: int, recorder: Recorder | None, locate: Locate | None, *, in_kernel: bool
    ) -> None:
        """`in_kernel`: a percentage of connections or clients was decided before exchanges come here."""
        self.order: ShadowOrder = order.shadows[place]
        self.recorder = recorder
        self.choice = Choice(self.order.rule, order.seed, order.client, locate, in_kernel=in_kernel)
        self.mirror = Mirror(self.choice, self._record if recorder else None, place)
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
    ) -> None:
        """Begin to replay, if there is anybody to replay to."""
        if not self.order.pool.replays:
            return
        answered = self.mirror.answered
        self._production = production
        self._transport = self.order.pool.transport
        self.balancer = self.order.pool.engine(production, self._transport)
        self.replayer = Replayer(loop, self.balancer, self.order.replay, answered, factory)
        if isinstance(self.balancer, Embedded) and self.order.pool.balancer.health is not None:
            mark = self.replayer.mark
            self.checks = HealthChecks(loop, self.balancer, self.order.pool, mark, factory, self._transport)
            self.checks.follow()
        self.sender = SpacedSender(loop, self.replayer, answered, now_ns, delay_ns)
        self.mirror.sender = self.sender

    def change(self, rule: Rule) -> None:
        """Choose by another rule from now on; exactly, for what the ring still holds was copied by the old one."""
        self.choice.change(rule, in_kernel=False)

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
        if self.sender is not None and self.replayer is not None:
            self.sender.finish()
            await self.replayer.drain(limit_s)

    def report(self) -> dict[str, Any]:
        """What it counted, by stage."""
        return {
            "replay": asdict(self.replayer.counters) if self.replayer else {},
            "spacing": {"held": len(self.sender.spacing), "late": self.sender.spacing.late} if self.sender else {},
            "pool": {self.order.name: self._states()},
            "recording": asdict(self.recorder.counters) if self.recorder else {},
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

    def _record(self, trial: Trial) -> None:
        assert self.recorder is not None and trial.fate is not None
        self.recorder.add(trial.exchange, trial.fate, trial.reason, trial.outcome)
