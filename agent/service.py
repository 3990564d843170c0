"""The live agent: `shadowtap run`. Starts the tap and the crew, keeps the lease, gathers reports, ends in order.

             loader (leaves at once)
                │ descriptors
service ────────┴─── keeper (CAP_NET_ADMIN: marks, clsact)
 │  lease, counters, metrics, account, guards
 ├── worker 0 … worker N-1 (one ring, one core each)
 └── watch (judges, CPU and memory of the pools, alerts)
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import privileges
from agent.capture.egress import egress_interfaces
from agent.capture.layout import PPM, Control, Counters
from agent.capture.tap import Tap, order_for
from agent.config import Config
from agent.control.api import Api
from agent.control.server import ControlServer
from agent.control.steering import Steering
from agent.crew import Crew, Shared, Worker
from agent.describe import describe_run
from agent.desk import Desk
from agent.directories import open_geography, prepare
from agent.errors import ConfigError, LoadError
from agent.memory import resident_bytes
from agent.monitor.metrics import MetricsServer, Snapshot
from agent.monitor.watch_link import WatchLink, watch_order
from agent.order import Order
from agent.pools import Pools
from agent.select.geo import GeoDatabase
from agent.summary import account_lines
from agent.watch_view import Figures, snapshot_of
from agent.watching import Watching
from replay.runfile import new_run_id

READY_TIMEOUT_S = 60
LOOK_ROUND_S = 1.0  # how often the interface, the keeper and stuck workers are looked at
ROOT_GROUP = 0  # may use the control socket unless another group is named
RESTARTS_MAX = 5  # of workers within RESTARTS_WINDOW_S; more than that is a bug, not bad luck
RESTARTS_WINDOW_S = 600.0
STUCK_S = 30.0  # a worker that has not reported for so long hangs
CONVERT_S = 60.0  # what the recording's conversion may take after the account is known
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """One run of the live agent."""

    def __init__(self, config: Config, say: Callable[[str], None], path: Path | None = None) -> None:
        """`path` is where the configuration came from, to be read again on SIGHUP."""
        self.config = config
        self._say = say
        self._path = path
        self._stop = False
        self._reload = False
        self._control_server: ControlServer | None = None
        self._selector = selectors.DefaultSelector()
        self._metrics: MetricsServer | None = None
        self._deaths_s: list[float] = []  # when workers died lately
        self._keeper_missed = False
        self._problem = ""

    def run(self) -> int:
        """Exit status: 0 after an orderly end, 1 when something ended the run that should not have."""
        self._start()
        privileges.drop(self._user)
        try:
            self._metrics = MetricsServer(self.config.metrics.address, self._snapshot) if self.config.metrics else None
            self._tap.watch(self.config.capture.ports)
            self._tap.arm(self._control(), self.config.capture.lease_ms * 1_000_000)
            with self._tap.kept():
                self._watching.begin(self._tap.latency, str(self._path or ""))
                self._steering.begin()
            if warning := privileges.stand_in(self._user):
                self._say(f"warning: {warning}")
            for note in self.config.notes:
                self._say(f"note: {note}")
            if self._path is not None and not privileges.may_read(self._user, self._path):
                self._say(f"note: SIGHUP will not read {self._path} again: {self._user.pw_name} cannot read it")
            self._say(f"ready: {describe_run(self.config, self._tap.attached)}")
            healthy = self._serve()
        except BaseException:
            self._abandon()
            raise
        return 0 if self._finish() and healthy else 1

    def _start(self) -> None:
        """Everything that needs privilege. Nothing is copied yet."""
        if os.geteuid() != 0:
            raise LoadError(
                "`shadowtap run` needs root to load the kernel program (it gives the privilege up afterwards)"
            )
        self._user = privileges.service_user(self.config.user)
        order = Order.of(self.config)
        geo = open_geography(order.geo_database, self._user)
        for shadow in order.shadows:
            prepare("recording.directory", order.directory_of(shadow.name), self._user)
        prepare("state.directory", self.config.state.directory if self.config.state else None, self._user, 0o750)
        for number in _ENDING_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._pools = Pools(self.config, order, self._user.pw_name, self._say)
        link = WatchLink(watch_order(self.config, self._user.pw_name), self._say)
        try:
            link.start()  # first of all: it takes longest until it is there
            order = self._pools.start()
            self._load(order, geo, link)
        except BaseException:
            self._pools.close()
            link.close()
            raise

    def _load(self, order: Order, geo: GeoDatabase | None, link: WatchLink) -> None:
        capture, mark = self.config.capture, self.config.mark
        through = egress_interfaces(order.upstream_hosts, mark) if mark else []
        tap_order = order_for(capture.interface, capture.workers, capture.ring_bytes, capture.attach, through)
        self._tap = Tap.load(tap_order)
        judge = self.config.judge
        shared = Shared(
            feed=link.feed_fd,
            sent=self._tap.sent_slots if mark else -1,
            noise_ppm=round(judge.noise_percentage * PPM / 100) if judge else 0,
        )
        run = new_run_id(time.time_ns())
        self._crew = Crew(order, mark, run, self._tap.rings, capture.ring_bytes, self._user.pw_name, shared)
        tables, tell = self._tap.tables, self._crew.change_rules
        self._steering = Steering(self.config, tables, geo, tell, self._path, self._tap.kept, self._pools.change)
        read = (self._crew.accounts, self._pools.program_states, self._own_needs, self._kernel_news, self._echoes)
        self._watching = Watching(self.config, self._steering, Figures(*read), link, self._say)
        try:
            self._crew.start_keeper(tap_order.ifindex, self._tap.unattached)
            self._crew.start_workers()
            self._await_workers(self._crew)
            self._pools.watch(self._selector, self._crew.change_pool)
            self._watching.hear_from(self._selector)
            self._open_control()
        except BaseException:
            self._abandon()
            raise

    def _open_control(self) -> None:
        control = self.config.control
        if control is None:
            return
        group = privileges.group_id(control.group) if control.group is not None else ROOT_GROUP
        try:
            if not control.socket.parent.exists():
                control.socket.parent.mkdir(parents=True)
                control.socket.parent.chmod(0o755)
                os.chown(control.socket.parent, self._user.pw_uid, group)
        except OSError as error:
            raise LoadError(f"control.socket {control.socket}: {error.strerror}: choose another place") from None
        self._desk = Desk(self._watching, self._status)
        api = Api(self._steering, self._desk, self._say)
        self._control_server = ControlServer(control.socket, self._selector, api, group=group)

    def _status(self) -> dict[str, Any]:
        return {
            "accounts": {name: account.as_dict() for name, account in self._crew.accounts().items()},
            "kernel": self._kernel_news(),
            "restarts": self._crew.restarts,
            "pools": self._pools.status(self._crew.events().get("pool", {})),
        }

    def _abandon(self) -> None:
        if self._control_server is not None:
            self._control_server.close()
        self._crew.end()
        self._pools.close()
        self._watching.close()
        self._tap.close()

    def _control(self) -> Control:
        capture = self.config.capture
        return Control(
            seed=self.config.seed,
            budget_packets=_per_cpu(capture.budget_packets_per_s),
            budget_bytes=_per_cpu(capture.budget_mib_per_s << 20),
            tables=0,
            enabled=0,  # until the tables are there
            workers=capture.workers,
            own_mark=self.config.mark,
            request_limit=capture.request_limit_bytes,
            response_limit=capture.response_limit_bytes,
            harm_ppm=PPM if self.config.harm else 0,  # only while a phase is measured
        )

    def _await_workers(self, crew: Crew) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        for worker in crew.workers:
            while not worker.report:
                if not worker.listen() or time.monotonic() > deadline:
                    raise LoadError(f"worker {worker.number} did not start; what it printed above says why")
                time.sleep(0.01)
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    def _on_hangup(self, number: int, frame: object) -> None:
        self._reload = True

    def _serve(self) -> bool:
        """Renew the lease and hear the workers until told to stop; False when something else ends the run."""
        interval_s = min(self.config.capture.lease_ms / 1000 / 4, LOOK_ROUND_S)
        look_due_s = 0.0
        while not self._stop:
            if (late_s := self._tap.renew()) > 0:
                self._say(f"the lease had run out {late_s:.1f} s ago: until now nothing was copied")
            if not self._hear_all(interval_s):
                return False
            self._watching.look_at_harm(time.monotonic())
            if self._control_server:
                self._control_server.expire(time.monotonic())
            if self._reload:
                self._reload = False
                self._read_again()
            if (now_s := time.monotonic()) >= look_due_s:
                look_due_s = now_s + LOOK_ROUND_S
                # What workers said while something took long is heard first: they are not stuck, we were.
                if not self._hear_all(0) or not self._look_round():
                    return False
        return True

    def _hear_all(self, wait_s: float) -> bool:
        """Hear whoever has something to say, and wait for that at most so long; False when the run has to end."""
        for key, _ in self._selector.select(wait_s):
            if key.data is self._pools:
                self._pools.take(key.fileobj)
            elif isinstance(key.data, WatchLink):
                self._watching.take()
            elif not (self._control_server and self._control_server.take(key)) and not self._hear(key.data):
                return False
        return True

    def _read_again(self) -> None:
        before = self._steering.configured
        try:
            notes = self._steering.reload()
        except ConfigError as error:
            self._say(f"the configuration was not taken over: {error}")
            return
        self._watching.reloaded(notes, before)
        list(map(self._say, (*notes, "the configuration was read again")))

    def _look_round(self) -> bool:
        """False when the interface is no longer the one that the program hangs at."""
        self._crew.workers[0].tell({"kernel": self._kernel_news()})
        self._crew.tell_again()
        self._pools.look(time.monotonic())
        self._watching.look(time.monotonic())
        for worker in self._crew.kill_stuck(STUCK_S):
            self._say(f"worker {worker} has not reported for {STUCK_S:.0f} s: killed")
        if problem := self._steering.look_at_geography():
            self._say(f"geo.database: {problem}")
        if self._crew.keeper_died() and not self._keeper_missed:
            self._keeper_missed = True
            self._say("the keeper died: new connections to the shadow carry no socket mark, only the header")
        try:
            ifindex = socket.if_nametoindex(self.config.capture.interface)
        except OSError:
            ifindex = 0
        if ifindex != self._tap.order.ifindex:
            self._say(f"interface {self.config.capture.interface} is gone, and the kernel program with it: ending")
            return False
        return True

    def _hear(self, worker: Worker) -> bool:
        alive = worker.listen()
        for rows, at_ns in worker.pulses:
            self._watching.pulse(rows, at_ns)
        worker.pulses.clear()
        if alive:
            self._tell_problem(worker)
            return True
        self._selector.unregister(worker.channel)
        now_s = time.monotonic()
        self._deaths_s = [each for each in self._deaths_s if each > now_s - RESTARTS_WINDOW_S] + [now_s]
        if len(self._deaths_s) > RESTARTS_MAX:
            self._say(f"worker {worker.number} died again: giving up after {RESTARTS_MAX} restarts")
            self._crew.give_up(worker)
            return False
        self._say(
            f"worker {worker.number} died (status {worker.process.wait()}): a new one takes its ring over; "
            "what it had seen since its last report, a second at most, is in no account"
        )
        fresh = self._crew.replace(worker)
        self._selector.register(fresh.channel, selectors.EVENT_READ, fresh)
        return True

    def _tell_problem(self, worker: Worker) -> None:
        problem = worker.report.get("problem", "")
        if problem and problem != self._problem:
            self._say(problem)
        self._problem = problem

    def _finish(self) -> bool:
        """End the lease, let the workers end, print the account, detach. False when the account does not close."""
        self._tap.stop()
        if self._control_server is not None:
            self._control_server.close()
        self._say("stopping: capture has ended, finishing what is in flight")
        kernel_counters = self._kernel()
        self._crew.workers[0].tell({"kernel": self._kernel_news()})
        for worker in self._crew.workers:
            worker.tell({"stop": True})
        self._await_end()
        accounts = self._crew.accounts()
        rows_lost = int(self._crew.events().get("recording", {}).get("rows_lost", 0))
        if self._metrics is not None:
            self._metrics.close()  # before what it reads from
        for line in account_lines(accounts, kernel_counters, rows_lost):
            print(line, flush=True)
        self._crew.await_exit(CONVERT_S)
        self._abandon()
        in_flight = sum(account.in_flight for account in accounts.values())
        if in_flight:
            self._say(f"{in_flight} requests are unaccounted for: please report this, it is a bug")
        return in_flight == 0

    def _await_end(self) -> None:
        """Until every worker has sent its final report, or has ended without."""
        deadline = time.monotonic() + self.config.stop_timeout_s + STUCK_S
        waiting = {worker.number for worker in self._crew.workers if worker.channel.fileno() >= 0}
        while waiting and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                worker = key.data
                if worker is self._pools:
                    self._pools.take(key.fileobj)
                    continue
                if isinstance(worker, WatchLink):
                    self._watching.take()
                    continue
                alive = worker.listen()
                if not alive or worker.done:
                    self._selector.unregister(worker.channel)
                    waiting.discard(worker.number)
                if not worker.done and not alive:
                    self._crew.give_up(worker)
        for worker in self._crew.workers:
            if worker.number in waiting:
                worker.process.kill()
                self._crew.give_up(worker)

    def _kernel_news(self) -> dict[str, int]:
        """What the tap counted, and how often its lease ran out."""
        return {**self._kernel()._asdict(), "lease_lapses": self._tap.lapses}

    def _kernel(self) -> Counters:
        return self._tap.counters()

    def _snapshot(self) -> Snapshot:
        """For the metrics endpoint; called from its thread, reads only."""
        reports = self._crew.events()
        return Snapshot(
            accounts=self._crew.accounts(),
            kernel=self._kernel()._asdict(),
            workers=reports,
            restarts=self._crew.restarts,
            memory_bytes=self._own_needs()[1],
            shares_ppm={
                name: shadow.share_ppm * shadow.enabled for name, shadow in self._steering.config.shadows.items()
            },
            programs=self._pools.program_states(),
            watch=snapshot_of(self._watching),
        )

    def _echoes(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = self._crew.events().get("echo", {})
        return found

    def _own_needs(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of all the agent's processes but balancer programs."""
        reports, link = self._crew.events(), self._watching.link
        told = link.told.watch if link else {}
        pids = [os.getpid(), self._crew.keeper_pid(), link.pid if link else None]
        memory_bytes = sum(map(resident_bytes, pids)) + int(reports.get("memory_bytes", 0))
        return time.process_time() + float(reports.get("cpu_s", 0)) + float(told.get("cpu_s", 0)), memory_bytes


def _per_cpu(limit: int) -> int:
    """The kernel keeps its budget per CPU, so that CPUs share nothing."""
    return -(-limit // (os.cpu_count() or 1))


def run(config: Config, path: Path) -> int:
    """`shadowtap run`: until SIGTERM or SIGINT."""
    return Service(config, lambda line: print(f"shadowtap: {line}", file=sys.stderr, flush=True), path).run()
