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
from dataclasses import replace

from agent import privileges
from agent.capture.layout import Control, Counters
from agent.capture.tap import Tap, order_for
from agent.config import Config
from agent.crew import Crew, Worker
from agent.errors import LoadError
from agent.memory import resident_bytes
from agent.monitor.metrics import MetricsServer, Snapshot
from agent.order import Order
from agent.select.sampling import SampleBy
from agent.summary import account_lines
from replay.runfile import new_run_id

READY_TIMEOUT_S = 60
LOOK_ROUND_S = 1.0  # how often the interface, the keeper and stuck workers are looked at
RESTARTS_MAX = 5  # of workers within RESTARTS_WINDOW_S; more than that is a bug, not bad luck
RESTARTS_WINDOW_S = 600.0
STUCK_S = 30.0  # a worker that has not reported for so long hangs
CONVERT_S = 60.0  # what the recording's conversion may take after the account is known
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Service:
    """One run of the live agent."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config = config
        self._say = say
        self._stop = False
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
            if warning := privileges.stand_in(self._user):
                self._say(f"warning: {warning}")
            for note in self.config.notes:
                self._say(f"note: {note}")
            self._say(f"ready: {self._describe()}")
            healthy = self._serve()
        except BaseException:
            self._abandon()
            raise
        return 0 if self._finish() and healthy else 1

    def _start(self) -> None:
        """Everything that needs privilege. Nothing is copied yet."""
        capture = self.config.capture
        if os.geteuid() != 0:
            raise LoadError(
                "`shadowtap run` needs root to load the kernel program (it gives the privilege up afterwards)"
            )
        self._user = privileges.service_user(self.config.user)
        order = Order.of(self.config)
        if order.upstreams:  # names are resolved once, here: what was checked is what every worker uses
            order = replace(order, upstreams=tuple(upstream.name for upstream in order.balancer().upstreams))
        self._prepare_directory()
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        tap_order = order_for(capture.interface, capture.workers, capture.ring_bytes, capture.attach)
        self._tap = Tap.load(tap_order)
        self._crew = Crew(
            order, self.config.mark, new_run_id(time.time_ns()), self._tap.rings, capture.ring_bytes, self._user.pw_name
        )
        try:
            self._crew.start_keeper(tap_order.ifindex, self._tap.unattached)
            self._crew.start_workers()
            self._await_workers(self._crew)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._crew.end()
        self._tap.close()

    def _describe(self) -> str:
        capture = self.config.capture
        name, shadow = self.config.shadow
        ports = ", ".join(map(str, capture.ports))
        target = f"to shadow {name} ({', '.join(shadow.upstreams)})" if shadow.upstreams else "captured only"
        share = f"{shadow.percentage:g} % of the {shadow.sample_by}s on {capture.interface} port {ports}"
        how = "TCX" if self._tap.attached == "tcx" else "clsact"
        return f"{share} {target} ({how}, {capture.workers} worker{'s' * (capture.workers > 1)})"

    def _prepare_directory(self) -> None:
        if self.config.recording is None:
            return
        directory = self.config.recording.directory
        try:
            if not directory.exists():
                directory.mkdir(parents=True)
                os.chown(directory, self._user.pw_uid, self._user.pw_gid)  # one that was there keeps its owner
        except OSError as error:
            raise LoadError(f"recording.directory {directory}: {error.strerror}: choose one that can be made") from None
        if not directory.is_dir() or not privileges.may_write(self._user, directory):
            who = self._user.pw_name
            raise LoadError(f"recording.directory {directory}: user {who} cannot write there: chown {who} {directory}")

    def _control(self) -> Control:
        capture = self.config.capture
        _, shadow = self.config.shadow
        return Control(
            seed=self.config.seed,
            budget_packets=_per_cpu(capture.budget_packets_per_s),
            budget_bytes=_per_cpu(capture.budget_mib_per_s << 20),
            sample_ppm=shadow.share_ppm if shadow.enabled else 0,
            sample_by=SampleBy[shadow.sample_by.upper()],
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

    def _serve(self) -> bool:
        """Renew the lease and hear the workers until told to stop; False when something else ends the run."""
        interval_s = self.config.capture.lease_ms / 1000 / 4
        look_due_s = 0.0
        while not self._stop:
            if (late_s := self._tap.renew()) > 0:
                self._say(f"the lease had run out {late_s:.1f} s ago: until now nothing was copied")
            for key, _ in self._selector.select(interval_s):
                if not self._hear(key.data):
                    return False
            if (now_s := time.monotonic()) >= look_due_s:
                look_due_s = now_s + LOOK_ROUND_S
                if not self._look_round():
                    return False
        return True

    def _look_round(self) -> bool:
        """False when the interface is no longer the one that the program hangs at."""
        self._crew.workers[0].tell({"kernel": self._kernel_news()})
        for worker in self._crew.kill_stuck(STUCK_S):
            self._say(f"worker {worker} has not reported for {STUCK_S:.0f} s: killed")
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
            self._say(f"recording: {problem}")
        self._problem = problem

    def _finish(self) -> bool:
        """End the lease, let the workers end, print the account, detach. False when the account does not close."""
        self._tap.stop()
        self._say("stopping: capture has ended, finishing what is in flight")
        kernel_counters = self._kernel()
        self._crew.workers[0].tell({"kernel": self._kernel_news()})
        for worker in self._crew.workers:
            worker.tell({"stop": True})
        self._await_end()
        account = self._crew.account()
        rows_lost = int(self._crew.events().get("recording", {}).get("rows_lost", 0))
        if self._metrics is not None:
            self._metrics.close()  # before what it reads from
        for line in account_lines(account, kernel_counters, rows_lost):
            print(line, flush=True)
        self._crew.await_exit(CONVERT_S)
        self._abandon()
        if account.in_flight:
            self._say(f"{account.in_flight} requests are unaccounted for: please report this, it is a bug")
        return account.in_flight == 0

    def _await_end(self) -> None:
        """Until every worker has sent its final report, or has ended without."""
        deadline = time.monotonic() + self.config.stop_timeout_s + STUCK_S
        waiting = {worker.number for worker in self._crew.workers if worker.channel.fileno() >= 0}
        while waiting and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                worker = key.data
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
            shadow=self.config.shadow[0],
            account=self._crew.account(),
            kernel=self._kernel()._asdict(),
            workers=reports,
            restarts=self._crew.restarts,
            memory_bytes=resident_bytes(os.getpid())
            + resident_bytes(self._crew.keeper_pid())
            + int(reports.get("memory_bytes", 0)),
            share_ppm=self.config.shadow[1].share_ppm,
        )


def _per_cpu(limit: int) -> int:
    """The kernel keeps its budget per CPU, so that CPUs share nothing."""
    return -(-limit // (os.cpu_count() or 1))


def run(config: Config) -> int:
    """`shadowtap run`: until SIGTERM or SIGINT."""
    return Service(config, lambda line: print(f"shadowtap: {line}", file=sys.stderr, flush=True)).run()
