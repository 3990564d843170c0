"""The processes beside the service: the keeper and the workers. Starts them, talks to them, replaces a dead worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agent import messages
from agent.child import start_module
from agent.errors import ConfigError, LoadError
from agent.merge import add_up, counters_of
from agent.order import Order
from agent.pool_order import PoolOrder
from agent.select.choice import Rule, rule_as_json
from replay.account import Account
from replay.errors import UpstreamError

KEEPER_START_S = 30
Accounts = dict[str, Account]  # by shadow
DIED = "worker_died"  # reason for what was in flight in a worker that ended by itself


@dataclass(slots=True)
class Worker:
    """The service's end of one worker process. `past` and `past_events` are of its dead predecessors."""

    number: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    report: dict[str, Any] = field(default_factory=dict)
    heard_s: float = field(default_factory=time.monotonic)  # when it last reported
    past: Accounts = field(default_factory=dict)
    past_events: dict[str, Any] = field(default_factory=dict)
    untold: dict[str, dict[str, Any]] = field(default_factory=dict)  # messages it was too far behind to take, by topic
    pulses: list[tuple[list[list[int]], int]] = field(default_factory=list)  # not looked at yet, and their times
    done: bool = False

    @property
    def accounts(self) -> Accounts:
        """By shadow, of this worker and its predecessors."""
        return _summed([self.past, _read(self.report.get("accounts", {}))])

    @property
    def events(self) -> dict[str, Any]:
        """What it and its predecessors counted; state of the present (open connections and the like) is its own."""
        return add_up([self.past_events, self.report])

    def tell(self, message: dict[str, Any]) -> bool:
        """Send a message; False when the worker is behind and did not get it. A dead worker does not mind."""
        try:
            messages.send(self.channel, message)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def listen(self) -> bool:
        """Take what it has sent; False when it has ended."""
        while True:
            try:
                report = messages.receive(self.channel)
            except BlockingIOError:
                return True
            if report is None:
                return False
            self.heard_s = time.monotonic()
            if "pulse" in report:
                self.pulses.append((report["pulse"], report["at_ns"]))
                continue
            self.report = report
            self.done = bool(report["final"])


@dataclass(frozen=True, slots=True)
class Shared:
    """What all workers are given: descriptors (-1 for none), and how many of the requests are asked twice."""

    feed: int = -1  # to the watch process
    sent: int = -1  # map of the times at which replayed requests left
    noise_ppm: int = 0


class Crew:
    """Every child of one service."""

    def __init__(
        self,
        order: Order,
        mark: int,
        run: str,
        rings: list[int],
        ring_bytes: int,
        user: str,
        shared: Shared | None = None,
    ) -> None:
        self._order = order
        self._shared = shared or Shared()
        self._mark = mark
        self._ring_bytes = ring_bytes
        self._run = run
        self._rings = rings
        self._user = user
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._keeper_channels = [-1] * len(rings)
        self.workers: list[Worker] = []
        self.restarts = 0

    def start_keeper(self, ifindex: int, programs: list[int]) -> None:
        """`programs`: to be attached as clsact filters, empty with TCX. LoadError when that fails."""
        if not programs and not self._mark:
            return
        self._lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in self._rings]
        fds = [theirs.fileno(), *(pair[1].fileno() for pair in pairs)]
        # Without clsact the keeper needs the standard library only; leaving the rest out saves 2 MB.
        self._keeper = start_module("agent.keeper", fds, fds, options=[] if programs else ["-S"])
        theirs.close()
        for _, end in pairs:
            end.close()
        self._keeper_channels = [pair[0].detach() for pair in pairs]
        order = {"user": self._user, "ifindex": ifindex, "mark": self._mark, "service": os.getpid()}
        socket.send_fds(self._lifeline, [json.dumps(order).encode()], programs)
        self._lifeline.settimeout(KEEPER_START_S)
        try:
            answer = messages.receive(self._lifeline) or {"error": "it ended at once"}
        except BlockingIOError:
            answer = {"error": "it does not answer"}
        if answer["error"]:
            raise LoadError(f"the keeper process could not start: {answer['error']}")

    def start_workers(self) -> None:
        """Start all of them; they are ready when each has sent its first report."""
        self.workers = [self._start_worker(number) for number in range(len(self._rings))]

    def replace(self, dead: Worker) -> Worker:
        """Start a worker on the ring of one that ended by itself; what was in flight there is accounted as dropped."""
        past, past_events = _last_accounts(dead), counters_of(dead.events)
        fresh = self._start_worker(dead.number)
        fresh.past, fresh.past_events = past, past_events
        self.workers[dead.number] = fresh
        self.restarts += 1
        return fresh

    def give_up(self, dead: Worker) -> None:
        """Account for one that ended by itself as `replace` does, without a successor."""
        past, past_events = _last_accounts(dead), counters_of(dead.events)
        self.workers[dead.number] = Worker(dead.number, dead.process, dead.channel, past=past, past_events=past_events)

    def accounts(self) -> Accounts:
        """By shadow, all workers' as one."""
        return _summed(worker.accounts for worker in self.workers)

    def kill_stuck(self, limit_s: float) -> list[int]:
        """Kill workers that have not reported for so long (they are replaced like others that died); their numbers."""
        stuck = [w for w in self.workers if w.report and time.monotonic() - w.heard_s > limit_s]
        for worker in stuck:
            worker.process.kill()
        return [worker.number for worker in stuck]

    def change_rules(self, rules: Sequence[Rule]) -> None:
        """Give all workers new rules, one for each shadow, those that are started later too. ConfigError when they are
        too long to be told; then nothing has changed."""
        shadows = zip(self._order.shadows, rules, strict=True)
        order = replace(self._order, shadows=tuple(replace(shadow, rule=rule) for shadow, rule in shadows))
        if not messages.fits(self._message_of(order, 0)):
            raise ConfigError("the shadows' criteria and methods are too long together: shorten them")
        self._order = order
        self._tell_all("rules", {"rules": [rule_as_json(rule) for rule in rules]})

    def change_pool(self, place: int, pool: PoolOrder) -> None:
        """Give all workers a shadow's new pool, those that are started later too. UpstreamError when it is too long to
        be told; then nothing has changed."""
        shadows = list(self._order.shadows)
        shadows[place] = replace(shadows[place], pool=pool)
        order = replace(self._order, shadows=tuple(shadows))
        if not messages.fits(self._message_of(order, 0)):
            raise UpstreamError("the lists of upstreams are too long together: name fewer")
        self._order = order
        self._tell_all(f"pool {place}", {"pool": pool.as_json(), "place": place})

    def _tell_all(self, topic: str, message: dict[str, Any]) -> None:
        for worker in self.workers:
            worker.untold[topic] = message
        self.tell_again()

    def tell_again(self) -> None:
        """Tell workers what they could not take yet, because they were behind."""
        for worker in self.workers:
            for topic, message in tuple(worker.untold.items()):
                if worker.tell(message):
                    del worker.untold[topic]

    def keeper_died(self) -> bool:
        """The keeper has ended before its time."""
        return self._keeper is not None and self._keeper.poll() is not None

    def keeper_pid(self) -> int | None:
        """The keeper's process id, None without one."""
        return self._keeper.pid if self._keeper else None

    def events(self) -> dict[str, Any]:
        """All workers' reports, and their predecessors', as one."""
        return add_up(worker.events for worker in self.workers)

    def await_exit(self, limit_s: float) -> None:
        """Wait for workers that have sent their final report and are still converting the recording."""
        deadline = time.monotonic() + limit_s
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue  # what is not converted now is at the next start

    def end(self) -> None:
        """End every child that is left, the keeper last (it takes clsact filters away)."""
        for worker in self.workers:
            worker.channel.close()
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
        if self._lifeline is not None and self._keeper is not None:
            self._lifeline.close()
            try:
                self._keeper.wait(KEEPER_START_S)
            except subprocess.TimeoutExpired:
                self._keeper.kill()

    def _start_worker(self, number: int) -> Worker:
        order = self._order_of(number)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = self._keeper_channels[number]
        fds = [theirs.fileno(), self._rings[number], keeper, self._shared.feed, self._shared.sent]
        process = start_module("agent.worker_start", fds, [fd for fd in fds if fd >= 0])
        theirs.close()
        ours.setblocking(False)
        worker = Worker(number, process, ours)
        worker.tell(order)
        return worker

    def _order_of(self, number: int) -> dict[str, Any]:
        order = self._message_of(self._order, number)
        if not messages.fits(order):
            raise LoadError("the lists of upstreams, trusted and production addresses are too long: name fewer")
        return order

    def _message_of(self, order: Order, number: int) -> dict[str, Any]:
        return {
            "order": order.as_json(),
            "worker": number,
            "run": self._run,
            "user": self._user,
            "parent": os.getpid(),
            "ring_bytes": self._ring_bytes,
            "noise_ppm": self._shared.noise_ppm,
        }


def _last_accounts(dead: Worker) -> Accounts:
    """What it reported, with what was in flight as dropped."""
    dead.channel.close()
    dead.process.wait()
    past = dead.accounts
    for account in past.values():
        account.dropped[DIED] += account.in_flight
    return past


def _read(accounts: dict[str, Any]) -> Accounts:
    return {name: Account.from_dict(account) for name, account in accounts.items()}


def _summed(some: Iterable[Accounts]) -> Accounts:
    total: Accounts = {}
    for accounts in some:
        for name, account in accounts.items():
            total.setdefault(name, Account()).add(account)
    return total
