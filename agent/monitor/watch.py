"""The watch process: hears the workers' pairs, judges each shadow, looks at the pools' CPU and memory, sends alerts.

Started by agent/monitor/watch_start.py. It is apart from the service because it loads numpy and waits for other hosts;
it holds no privilege, and nothing it does can hold the kernel's lease up. What it hears from the service:

    {"judge": {"shadow", "fingerprint", "fresh", "timeout_s", "settings"}}   begin a period
    {"requests": {"production": n, SHADOW: n}}                               cumulative counts, each second
    {"alerts": [{"name", "shadow", "severity", "summary", "evidence"}]}       all that should be active now
    {"paused": [from_ns, to_ns]}                                             nothing was copied; to_ns 0: until further
    {"forget_harm": true}                                                    the do-no-harm check begins anew
    {"harm": {"harm_tail": x, "harm_level": y}, "at_ns": t}                   a pair of blocks of the do-no-harm check

and what it tells, about once a second: a verdict and traffic figures for each shadow, the pools' usage, the state of
the do-no-harm check, the alerts, and what went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from agent import messages
from agent.alerts_config import AlertsConfig
from agent.monitor.alerting import Alerting
from agent.monitor.harm_judge import HarmJudge
from agent.monitor.judging import ShadowJudge
from agent.monitor.pairs import LostRecord, PairRecord, unpack
from agent.monitor.scrape import Scraper
from agent.monitor.traffic import Sample, Traffic
from agent.resources_config import Resources

TICK_S = 1.0
KEEP_S = 10.0  # between two writes of the judges' state
DATAGRAM_BYTES = 65_536
DATAGRAMS_A_TURN = 16
CLOCK_STEP_NS = 1_000_000_000  # of the wall clock against the time since boot: more was no slewing


class Watch:
    """Wires the parts together; each of them is pure or has its own threads."""

    def __init__(self, order: dict[str, Any], channel: socket.socket, feed: socket.socket) -> None:
        directory = Path(order["directory"]) if order["directory"] else None
        self._channel, self._feed = channel, feed
        self._names: list[str] = order["shadows"]
        self._judges = {name: ShadowJudge(name, directory) for name in self._names}
        self._traffic = {name: Traffic() for name in self._names}
        self._harm = HarmJudge(directory)
        alerts = AlertsConfig.model_validate(order["alerts"], context={"files": False})
        self._alerting = Alerting(alerts, directory, order["host"])
        resources = Resources.model_validate(order["resources"]) if order["resources"] else None
        self._scraper = Scraper(resources) if resources else None
        self._interval_s = resources.interval_s if resources else 0.0
        self._requests: dict[str, float] = {}
        self._usage: dict[str, Any] = {}
        self._unsent: dict[int, int] = {}  # by worker
        self._known: dict[int, int] = {}  # by worker: what became of all requests before is told
        self._damaged = 0
        self._too_long = ""  # what could not be told
        self._ended = asyncio.Event()
        self._clock_ns = _wall_minus_boot_ns()

    async def run(self) -> None:
        """Until the service is gone."""
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        self._feed.setblocking(False)
        loop.add_reader(self._channel, self._listen)
        loop.add_reader(self._feed, self._read_feed)
        if self._harm.begun:
            self._tell({"harm": self._harm.message()})  # or nobody would know of it until the next pair of blocks
        tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._keep())]
        if self._scraper is not None:
            tasks.append(asyncio.create_task(self._scrape(self._scraper)))
        for task in tasks:
            task.add_done_callback(_die_of_bugs)
        await self._ended.wait()
        self._keep_now()
        self._alerting.close()

    # What is heard

    def _listen(self) -> None:
        try:
            message = messages.receive(self._channel)
        except BlockingIOError:
            return
        if message is None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._ended.set()
        elif "judge" in message:
            self._begin(message["judge"])
        elif "harm" in message:
            self._harm.take(message["harm"], message["at_ns"])
            self._tell({"harm": self._harm.message()})
        elif "paused" in message:
            for judge in self._judges.values():
                judge.paused(*message["paused"])
        elif "forget_harm" in message:
            self._harm.forget()
        elif "alerts" in message:
            self._alerting.set(message["alerts"], time.time_ns())
        elif "requests" in message:
            self._requests = message["requests"]

    def _begin(self, order: dict[str, Any]) -> None:
        shadow = order["shadow"]
        if line := self._judges[shadow].begin(order, time.time_ns()):
            self._tell({"say": f"the judge of {shadow} {line}"})
        self._tell_verdict(shadow)

    def _read_feed(self) -> None:
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data = self._feed.recv(DATAGRAM_BYTES)
            except OSError:
                return
            try:
                batch = unpack(data)
            except ValueError:
                self._damaged += 1
                continue
            self._lose_unsent(batch.worker, batch.unsent)
            self._known[batch.worker] = batch.known_ns
            for place, name in enumerate(self._names):
                pairs = [pair for pair in batch.pairs if pair.place == place]
                lost = [each for each in batch.lost if each.place == place]
                if pairs or lost:
                    self._take(name, pairs, lost)

    def _lose_unsent(self, worker: int, unsent: int) -> None:
        """Records that a worker had no room for are lost to every judge: nobody knows whose they were."""
        before, self._unsent[worker] = self._unsent.get(worker, 0), unsent
        more = unsent - before if unsent >= before else unsent  # a new worker counts from 0
        if more:
            for judge in self._judges.values():
                judge.lose_unsent(more, time.time_ns())

    def _take(self, name: str, pairs: list[PairRecord], lost: list[LostRecord]) -> None:
        traffic = self._traffic[name]
        self._judges[name].take(pairs, lost)
        traffic.add([_sample(pair) for pair in pairs])
        for each in lost:
            traffic.lose(each.route, each.reason)

    # What is done by the clock

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._look_at_clock()
            now_ns = time.time_ns()
            for name, judge in self._judges.items():
                judge.advance(now_ns, min(self._known.values(), default=0))
                self._tell_verdict(name)
                traffic = self._traffic[name]
                self._tell({"traffic": name, "totals": traffic.as_json(), "recent": traffic.recent(now_ns)})
            self._alerting.send_due(now_ns)
            self._tell(
                {
                    "watch": {
                        "unsent": sum(self._unsent.values()),
                        "damaged": self._damaged,
                        "usage": self._usage,
                        "alerts": self._alerting.message(),
                        "problems": self._problems(),
                        "undelivered": self._alerting.undelivered(),
                        "cpu_s": time.process_time(),
                    }
                }
            )

    def _look_at_clock(self) -> None:
        """A step of the wall clock puts requests into blocks where they do not belong."""
        now_ns = _wall_minus_boot_ns()
        if abs(now_ns - self._clock_ns) > CLOCK_STEP_NS:
            for judge in self._judges.values():
                judge.restart(time.time_ns())
            self._known.clear()  # what workers said last is of the other time
            self._tell({"say": "the host's clock was set: the judges begin anew"})
        self._clock_ns = now_ns

    async def _scrape(self, scraper: Scraper) -> None:
        while True:
            usages = await asyncio.to_thread(scraper.look, dict(self._requests))
            self._usage, now_ns = usages.as_json(), time.time_ns()
            for shadow, measures in usages.measures.items():
                for metric, value in measures:
                    self._judges[shadow].measure(metric, value, now_ns)
            await asyncio.sleep(self._interval_s)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            self._keep_now()

    def _keep_now(self) -> None:
        for judge in self._judges.values():
            judge.keep()
        self._harm.keep()
        self._alerting.keep()

    # What is told

    def _tell_verdict(self, shadow: str) -> None:
        if (message := self._judges[shadow].message()) is not None:
            self._tell(message)

    def _problems(self) -> list[str]:
        kept = [judge.problem for judge in self._judges.values()] + [self._harm.problem]
        return [problem for problem in (*kept, *self._alerting.problems(), self._too_long) if problem]

    def _tell(self, message: dict[str, Any]) -> None:
        if not messages.fits(message):  # the service could not read it
            self._too_long = f"too much to tell of: {', '.join(message)}"
            return
        with contextlib.suppress(BlockingIOError):  # the service is behind; the next message says the same and more
            try:
                messages.send(self._channel, message)
            except BlockingIOError:
                raise
            except OSError:
                self._ended.set()


def _sample(record: PairRecord) -> Sample:
    return Sample(
        route=record.route,
        production_ns=record.production_ns,
        shadow_ns=record.shadow_ns,
        response_ns=record.response_ns,
        lag_ns=record.lag_ns,
        production_error=record.production_error,
        shadow_error=record.shadow_error,
        different=record.different,
        status=record.status,
        shadow_status=record.shadow_status,
    )


def _wall_minus_boot_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _die_of_bugs(task: asyncio.Task[None]) -> None:
    """A task that ends is our bug: show it and end, so that the service starts a new process."""
    if not task.cancelled() and (error := task.exception()) is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(1)
