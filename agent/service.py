"""The live agent: `shadowtap run`. Starts the tap and the crew, keeps the lease, gathers reports, ends in order.

             loader (leaves at once)
                │ descriptors
service ────────┴─── keeper (CAP_NET_ADMIN: marks, clsact)
 │  lease, counters, metrics, account
 └── worker 0 … worker N-1 (one ring, one core each)
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
from agent.capture.layout import Control, Counters
from agent.capture.tap import Tap, order_for
from agent.config import Config
from agent.control.api import Api
from agent.control.server import ControlServer
from agent.control.steering import Steering
from agent.crew import Crew, Worker
from agent.describe import describe
from agent.errors import ConfigError, LoadError
from agent.memory import resident_bytes
from agent.monitor.metrics import MetricsServer, Snapshot
from agent.order import Order
from agent.pools import Pools
from agent.select.geo import GeoDatabase
from agent.summary import account_lines
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
            self._steering.begin()
            if warning := privileges.stand_in(self._user):
                self._say(f"warning: {warning}")
            for note in self.config.notes:
                self._say(f"note: {note}")
            if self._path is not None and not privileges.may_read(self._user, self._path):
                self._say(f"note: SIGHUP will not read {self._path} again: {self._user.pw_name} cannot read it")
            self._say(f"ready: {self._describe()}")
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
        geo = self._open_geography(order)
        self._prepare_directory(order)
        for number in _ENDING_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._pools = Pools(self.config, order, self._user.pw_name, self._say)
        try:
            order = self._pools.start()
            self._load(order, geo)
        except BaseException:
            self._pools.close()
            raise

    def _load(self, order: Order, geo: GeoDatabase | None) -> None:
        capture = self.config.capture
        tap_order = order_for(capture.interface, capture.workers, capture.ring_bytes, capture.attach)
        self._tap = Tap.load(tap_order)
        self._crew = Crew(
            order, self.config.mark, new_run_id(time.time_ns()), self._tap.rings, capture.ring_bytes, self._user.pw_name
        )
        tables, tell = self._tap.tables, self._crew.change_rules
        self._steering = Steering(self.config, tables, geo, tell, self._path, self._tap.kept, self._pools.change)
        try:
            self._crew.start_keeper(tap_order.ifindex, self._tap.unattached)
            self._crew.start_workers()
            self._await_workers(self._crew)
            self._pools.watch(self._selector, self._crew.change_pool)
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
        api = Api(self._steering, self._status, self._say)
        self._control_server = ControlServer(control.socket, self._selector, api, group=group)

    def _status(self) -> dict[str, Any]:
        return {
            "accounts": {name: account.as_dict() for name, account in self._crew.accounts().items()},
            "kernel": self._kernel_news(),
            "restarts": self._crew.restarts,
            "pools": self._pools.status(self._crew.events().get("pool", {})),
        }

    def _close_control(self) -> None:
        if self._control_server is not None:
            self._control_server.close()

    def _abandon(self) -> None:
        self._close_control()
        self._crew.end()
        self._pools.close()
        self._tap.close()

    def _describe(self) -> str:
        capture = self.config.capture
        how = "TCX" if self._tap.attached == "tcx" else "clsact"
        where = f"{capture.interface} port {', '.join(map(str, capture.ports))}"
        shadows = "; ".join(describe(name, shadow) for name, shadow in self.config.shadows.items())
        return f"{shadows}, on {where} ({how}, {capture.workers} worker{'s' * (capture.workers > 1)})"

    def _open_geography(self, order: Order) -> GeoDatabase | None:
        if order.geo_database is None:
            return None
        path = Path(order.geo_database)
        geo = GeoDatabase(path)
        if not privileges.may_read(self._user, path):
            who = self._user.pw_name
            raise LoadError(f"geo.database {path}: user {who} cannot read it: chmod a+r {path}, or name another `user`")
        return geo

    def _prepare_directory(self, order: Order) -> None:
        directories = [order.directory_of(shadow.name) for shadow in order.shadows]
        for directory in filter(None, directories):
            try:
                for each in (*reversed(directory.parents), directory):
                    if not each.exists():
                        each.mkdir()
                        os.chown(each, self._user.pw_uid, self._user.pw_gid)  # one that was there keeps its owner
            except OSError as error:
                raise LoadError(
                    f"recording.directory {directory}: {error.strerror}: choose one that can be made"
                ) from None
            if not directory.is_dir() or not privileges.may_write(self._user, directory):
                who = self._user.pw_name
                raise LoadError(
                    f"recording.directory {directory}: user {who} cannot write there: chown {who} {directory}"
                )

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
            elif not (self._control_server and self._control_server.take(key)) and not self._hear(key.data):
                return False
        return True

    def _read_again(self) -> None:
        try:
            notes = self._steering.reload()
        except ConfigError as error:
            self._say(f"the configuration was not taken over: {error}")
            return
        for line in (*notes, "the configuration was read again"):
            self._say(line)

    def _look_round(self) -> bool:
        """False when the interface is no longer the one that the program hangs at."""
        self._crew.workers[0].tell({"kernel": self._kernel_news()})
        self._crew.tell_again()
        self._pools.look(time.monotonic())
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
        if worker.listen():
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
        self._close_control()
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
            memory_bytes=resident_bytes(os.getpid())
            + resident_bytes(self._crew.keeper_pid())
            + int(reports.get("memory_bytes", 0)),
            shares_ppm={
                name: shadow.share_ppm * shadow.enabled for name, shadow in self._steering.config.shadows.items()
            },
            programs=self._pools.program_states(),
        )


def _per_cpu(limit: int) -> int:
    """The kernel keeps its budget per CPU, so that CPUs share nothing."""
    return -(-limit // (os.cpu_count() or 1))


def run(config: Config, path: Path) -> int:
    """`shadowtap run`: until SIGTERM or SIGINT."""
    return Service(config, lambda line: print(f"shadowtap: {line}", file=sys.stderr, flush=True), path).run()
