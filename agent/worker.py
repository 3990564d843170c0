"""One worker: one ring, its flows, its replay connections and its recording, in one loop on one core.

The service sends JSON messages on the channel: first the order, which agent.worker_start takes, then now and then the
kernel's counters, at the end {"stop": true}. The worker answers with a report about once a second; the first says that
it is ready, the last has "final".
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
from agent.http.pairing import Pairing
from agent.keeper import MarkedSockets
from agent.memory import resident_bytes
from agent.mirror import Mirror
from agent.order import Order
from agent.pace import CAPTURE, REPLAY, Pace
from agent.spacing import SLACK_NS, SpacedSender
from agent.stream.events import Event
from agent.stream.flows import Flows
from replay.client import Replayer
from replay.exchange import Exchange
from replay.recording import Recorder, RecordingSettings

TICK_S = 1.0
LOST = ("ring_full", "over_budget", "unreadable", "cut", "lease_lapses")  # what the account cannot have seen
BATCHES_A_POLL = 8  # then the replay connections get their turn, however full the ring is


class Worker:
    """Wires the stages together; all the work is theirs."""

    def __init__(
        self, order: Order, number: int, run: str, channel: socket.socket, ring: Ring, sockets: MarkedSockets | None
    ) -> None:
        self.order = order
        self.number = number
        self._channel = channel
        self._ring = ring
        self._sockets = sockets
        self._flows = Flows(server_ports=frozenset(order.ports))
        self._pairing = Pairing(order.http)
        self._recorder = self._open_recorder(run)
        self._mirror = Mirror(order.selector(), self._record if self._recorder else None)
        self._pace = Pace(order.poll_s, REPLAY if order.upstreams else CAPTURE)
        self._replayer: Replayer | None = None
        self._sender: SpacedSender | None = None
        self._kernel: dict[str, Any] = {}  # the tap's counters, told by the service (to worker 0 only)
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Work until told to stop, then finish what is in flight."""
        self._start_replay()
        self._loop.add_reader(self._channel, self._listen)
        self._report()
        self._poll()
        self._tick()
        await self._stopping.wait()
        await self._finish()

    def _start_replay(self) -> None:
        if not self.order.upstreams:
            return
        factory = self._sockets.factory if self._sockets else None
        answered = self._mirror.answered
        self._replayer = Replayer(self._loop, self.order.balancer(), self.order.replay, answered, factory)
        delay_ns = self._pace.longest_ns + SLACK_NS
        self._sender = SpacedSender(self._loop, self._replayer, answered, self._ring.now_ns, delay_ns)
        self._mirror.sender = self._sender

    def _open_recorder(self, run: str) -> Recorder | None:
        if self.order.directory is None:
            return None
        return Recorder(
            self.order.directory,
            RecordingSettings(**self.order.recording),
            run=run,
            worker=self.number,
            shadow=self.order.shadow,
            now_ns=time.time_ns(),
        )

    def _record(self, exchange: Exchange) -> None:
        assert self._recorder is not None and exchange.fate is not None
        self._recorder.add(exchange, exchange.fate, exchange.reason, exchange.outcome)

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
            segments = self._ring.read()
            if not segments:
                return count, False
            count += len(segments)
            self._take(self._flows.feed(segments))
        return count, True

    def _take(self, events: list[Event]) -> None:
        ready, finished = self._pairing.feed(events)
        self._mirror.take(ready, finished, self._pairing.seen)

    def _tick(self) -> None:
        if self._stopping.is_set():
            return
        self._ring.follow_clock()
        self._take(self._flows.expire(self._ring.now_ns()))
        if self._recorder is not None:
            self._recorder.flush(time.time_ns(), self._mirror.account, self._extra())
        self._report()
        self._loop.call_later(TICK_S, self._tick)

    async def _finish(self) -> None:
        """The tap is stopped: take what the ring still holds, end the flows, wait for the shadow's last answers."""
        while self._read_ring(1)[1]:
            pass
        self._take(self._flows.finish())
        if self._replayer is not None and self._sender is not None:
            self._sender.finish()
            await self._replayer.drain(self.order.stop_timeout_s)
        if self._recorder is not None:
            self._recorder.close(time.time_ns(), self._mirror.account, self._extra())
        self._report(final=True)  # before the conversion: on a busy host that may take longer than the service waits
        if self._recorder is not None:
            self._recorder.convert()

    def _listen(self) -> None:
        """A message of the service; the end of the channel means that it is gone, and then so are we."""
        try:
            message = messages.receive(self._channel) or {"stop": True}
        except BlockingIOError:
            return
        if "kernel" in message:
            self._kernel = message["kernel"]
        if "stop" in message:
            self._loop.remove_reader(self._channel)
            self._stopping.set()

    def _extra(self) -> dict[str, Any]:
        kernel = self._kernel
        return {"capture": kernel, "lost": {name: kernel[name] for name in LOST if name in kernel}}

    def _report(self, final: bool = False) -> None:
        report = {
            "worker": self.number,
            "final": final,
            "account": self._mirror.account.as_dict(),
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
            "replay": asdict(self._replayer.counters) if self._replayer else {},
            "spacing": {"held": len(self._sender.spacing), "late": self._sender.spacing.late} if self._sender else {},
            "recording": asdict(self._recorder.counters) if self._recorder else {},
            "unmarked_sockets": self._sockets.unmarked if self._sockets else 0,
            "memory_bytes": resident_bytes(os.getpid()),
            "cpu_s": time.process_time(),
            "problem": self._recorder.problem if self._recorder else "",
        }
        try:
            self._channel.setblocking(final)  # the last one must arrive, the others may be left out
            messages.send(self._channel, report)
        except BlockingIOError:
            pass  # the service is behind; the next report says the same and more
        except OSError:
            self._stopping.set()
