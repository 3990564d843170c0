"""One worker: one ring, its flows, its replay connections and its recording, in one loop on one core.

The service sends JSON messages on the channel: first the order, which agent.worker_start takes, then now and then the
kernel's counters, at the end {"stop": true}. The worker answers with a report about once a second; the first says that
it is ready, the last has "final". Between them come {"pulse": rows, "at_ns": ...} (agent.monitor.pulse), at once when
a shadow fails; `at_ns` is when the first of these failures came.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import asdict
from typing import Any

from agent import messages
from agent.capture.ring import Ring
from agent.capture.sent import SentTimes
from agent.http.pairing import Pairing
from agent.keeper import MarkedSockets
from agent.memory import resident_bytes
from agent.merge import add_up
from agent.monitor.feed import Feed
from agent.monitor.pulse import Pulse
from agent.order import Order
from agent.pace import CAPTURE, REPLAY, Pace
from agent.pool_order import PoolOrder
from agent.select.choice import rule_from_json
from agent.select.geo import GeoDatabase
from agent.shadowing import Shadowing, open_recorder
from agent.spacing import SLACK_NS
from agent.stream.events import Event
from agent.stream.flows import Flows
from replay.errors import UpstreamError

TICK_S = 1.0
TELL_S = 0.25  # how old a pulse may be that is not urgent, and a batch for the watch process
LOST = ("ring_full", "over_budget", "unreadable", "cut", "lease_lapses")  # what the account cannot have seen
BATCHES_A_POLL = 8  # then the replay connections get their turn, however full the ring is


class Worker:
    """Wires the stages together; all the work is theirs."""

    def __init__(
        self,
        order: Order,
        number: int,
        run: str,
        channel: socket.socket,
        ring: Ring,
        sockets: MarkedSockets | None,
        sent_times: SentTimes | None = None,
        feed: Feed | None = None,
        noise_ppm: int = 0,
    ) -> None:
        """`feed` goes to the watch process; `noise_ppm` of the shadows' safe requests are asked twice."""
        self.order = order
        self.number = number
        self._channel = channel
        self._ring = ring
        self._sockets = sockets
        self._flows = Flows(server_ports=frozenset(order.ports))
        self._pairing = Pairing(order.http)
        self._geo = GeoDatabase(order.geo_database) if order.geo_database else None
        self._sent_times = sent_times
        self._feed = feed
        self._noise_ppm = noise_ppm
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(len(order.shadows), self._hurry)
        self._failed_ns = 0  # when the first failure came that is not told yet
        self._shadows = self._make_shadows(run)
        self._pace = Pace(order.poll_s, REPLAY if order.replays else CAPTURE)
        self._problem = ""
        self._kernel: dict[str, Any] = {}  # the tap's counters, told by the service (to worker 0 only)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until told to stop, then finish what is in flight."""
        factory = self._sockets.factory if self._sockets else None
        delay_ns = self._pace.longest_ns + SLACK_NS
        for shadow in self._shadows:
            now_ns = self._ring.now_ns
            shadow.connect(self._loop, self.order.production, factory, now_ns, delay_ns, self._sent_times)
        self._loop.add_reader(self._channel, self._listen)
        self._report()
        self._poll()
        self._tick()
        self._tell()
        await self._stopping.wait()
        await self._finish()

    def _make_shadows(self, run: str) -> list[Shadowing]:
        order, made = self.order, []
        for place, shadow in enumerate(order.shadows):
            recorder = open_recorder(order.directory_of(shadow.name), order.recording, run, self.number, shadow.name)
            locate = self._geo.locate if self._geo else None
            made.append(
                Shadowing(
                    order,
                    place,
                    recorder,
                    locate,
                    in_kernel=order.in_kernel,
                    feed=self._feed,
                    pulse=self._pulse,
                    noise_ppm=self._noise_ppm,
                )
            )
        return made

    def _poll(self) -> None:
        """Read the ring empty, or as much of it as is fair, and come back."""
        if self._stopping.is_set():
            return
        segments, more = self._read_ring(BATCHES_A_POLL)
        pause_s = self._pace.after(segments)
        self._loop.call_later(0 if more else pause_s, self._poll)

    def _read_ring(self, batches: int) -> tuple[int, bool]:
        """How many segments came, and whether there is more."""
        count = 0
        for _ in range(batches):
            now_ns = time.time_ns()
            segments = self._ring.read()
            if not segments:
                if self._feed is not None:
                    self._feed.caught_up(now_ns)
                return count, False
            count += len(segments)
            self._take(self._flows.feed(segments))
        return count, True

    def _take(self, events: list[Event]) -> None:
        ready, finished = self._pairing.feed(events)
        seen = self._pairing.seen
        for shadow in self._shadows:
            shadow.mirror.take(ready, finished, seen)

    def _tick(self) -> None:
        if self._stopping.is_set():
            return
        self._ring.follow_clock()
        if self._sent_times is not None:
            self._sent_times.follow_clock()
        self._take(self._flows.expire(self._ring.now_ns()))
        if self._geo is not None and self._geo.changed():
            self._geo.reload()  # the service tells what is wrong with a new file
        for shadow in self._shadows:
            if shadow.recorder is not None:
                shadow.recorder.flush(time.time_ns(), shadow.mirror.account, self._extra(shadow))
        self._report()
        self._loop.call_later(TICK_S, self._tick)

    def _tell(self) -> None:
        """Send what is not urgent."""
        if self._feed is not None:
            self._feed.flush()
        self._send_pulse()
        if not self._stopping.is_set():
            self._loop.call_later(TELL_S, self._tell)

    def _hurry(self) -> None:
        self._failed_ns = self._failed_ns or time.time_ns()
        self._loop.call_soon(self._send_pulse)  # all failures of this turn go together

    def _send_pulse(self) -> None:
        rows = self._pulse.take()
        if rows is None:
            return
        try:
            messages.send(self._channel, {"pulse": rows, "at_ns": self._failed_ns or time.time_ns()})
            self._failed_ns = 0
        except BlockingIOError:
            self._pulse.put_back(rows)  # the service is behind
        except OSError:
            self._stopping.set()

    async def _finish(self) -> None:
        """The tap is stopped: take what the ring still holds, end the flows, wait for the shadows' last answers."""
        while self._read_ring(1)[1]:
            pass
        self._take(self._flows.finish())
        await asyncio.gather(*(shadow.drain(self.order.stop_timeout_s) for shadow in self._shadows))
        recorders = [shadow.recorder for shadow in self._shadows if shadow.recorder is not None]
        for shadow in self._shadows:
            if shadow.recorder is not None:
                shadow.recorder.close(time.time_ns(), shadow.mirror.account, self._extra(shadow))
        self._tell()
        self._report(final=True)  # before the conversion: on a busy host that may take longer than the service waits
        for recorder in recorders:
            recorder.convert()

    def _listen(self) -> None:
        """A message of the service; the end of the channel means that it is gone, and then so are we."""
        try:
            message = messages.receive(self._channel) or {"stop": True}
        except BlockingIOError:
            return
        if "kernel" in message:
            self._kernel = message["kernel"]
        for place, rule in enumerate(message.get("rules", ())):
            self._shadows[place].change(rule_from_json(rule))
        if "pool" in message:
            try:
                self._shadows[message["place"]].change_pool(PoolOrder.from_json(message["pool"]))
                self._problem = ""
            except UpstreamError as error:
                self._problem = f"the pool stays as it was: {error}"
        if "stop" in message:
            self._loop.remove_reader(self._channel)
            self._stopping.set()

    def _extra(self, shadow: Shadowing) -> dict[str, Any]:
        kernel = self._kernel
        lost = {name: kernel[name] for name in LOST if name in kernel}
        return {"capture": kernel, "lost": lost, "balancer": shadow.told_of_balancer()}

    def _report(self, final: bool = False) -> None:
        problems = (shadow.recorder.problem for shadow in self._shadows if shadow.recorder is not None)
        report = {
            "worker": self.number,
            "final": final,
            "accounts": {shadow.order.name: shadow.mirror.account.as_dict() for shadow in self._shadows},
            "ring": {
                "size_bytes": self._ring.size_bytes,
                "waiting_bytes": self._ring.waiting_bytes(),
                "high_water_bytes": self._ring.high_water_bytes,
            },
            "flows": {
                **asdict(self._flows.counters),
                "open": self._flows.open_flows,
                "buffered_bytes": self._flows.buffered_bytes,
            },
            "http": {**asdict(self._pairing.counters), "open": self._pairing.open_exchanges},
            **add_up(shadow.report() for shadow in self._shadows),
            **({"feed": self._feed.report()} if self._feed else {}),
            "unmarked_sockets": self._sockets.unmarked if self._sockets else 0,
            "memory_bytes": resident_bytes(os.getpid()),
            "cpu_s": time.process_time(),
            "problem": self._problem or next((f"recording: {problem}" for problem in problems if problem), ""),
        }
        try:
            self._channel.setblocking(final)  # the last one must arrive, the others may be left out
            messages.send(self._channel, report)
        except BlockingIOError:
            pass  # the service is behind; the next report says the same and more
        except OSError:
            self._stopping.set()
