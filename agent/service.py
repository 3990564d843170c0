"""The live agent: `shadowtap run`. Starts the tap and the crew, keeps the lease, gathers reports, ends in order.

             loader (leaves at once)
                │ descriptors
service ────────┴─── keeper (CAP_NET_ADMIN: marks, clsact)
 │  lease, counters, metrics, account
 └── worker 0 … worker N-1 (one ring, one core each)
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable

from agent import privileges
from agent.capture.layout import Control, Counters
from agent.capture.tap import Tap, order_for
from agent.config import Config
from agent.crew import Crew, Worker
from agent.errors import LoadError
from agent.merge import add_up
from agent.monitor.metrics import MetricsServer, Snapshot
from agent.order import Order
from agent.select.sampling import SampleBy
from replay.account import Account

READY_TIMEOUT_S = 60
KERNEL_NEWS_S = 1.0  # how often worker 0 is told the kernel's counters, for the recording
RESTARTS_MAX = 5  # of workers in one run; more than that is a bug, not bad luck
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """One run of the live agent."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config = config
        self._say = say
        self._stop = False
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Exit status: 0 after an orderly end, 1 when a worker kept dying."""
        self._start()
        privileges.drop(self._user)
        self._say(f"ready: {self._describe()}")
        try:
            healthy = self._serve()
        finally:
            self._tap.stop()
        self._finish()
        if self._metrics is not None:
            self._metrics.close()
        return 0 if healthy else 1

    def _start(self) -> None:
        """Everything that needs privilege. Nothing is copied before all of it has worked."""
        capture = self.config.capture
        if os.geteuid() != 0:
            raise LoadError(
                "`shadowtap run` needs root to load the kernel program (it gives the privilege up afterwards)"
            )
        self._user = privileges.service_user(self.config.user)
        if (order := Order.of(self.config)).upstreams:
            order.balancer()  # an upstream that is no good is told now, in one line; workers make their own
        self._prepare_directory()
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        tap_order = order_for(capture.interface, capture.workers, capture.ring_bytes, capture.attach)
        self._tap = Tap.load(tap_order)
        self._crew = Crew(self.config, _run_id(), self._tap.rings, self._user.pw_name)
        try:
            self._crew.start_keeper(tap_order.ifindex, self._tap.unattached)
            self._crew.start_workers()
            self._await_workers(self._crew)
            self._metrics = MetricsServer(self.config.metrics.address, self._snapshot) if self.config.metrics else None
        except BaseException:
            self._crew.end()
            self._tap.close()
            raise
        self._tap.watch(capture.ports)
        self._tap.arm(self._control(), capture.lease_ms * 1_000_000)

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
        """Renew the lease and hear the workers until told to stop; False when workers kept dying."""
        interval_s = self.config.capture.lease_ms / 1000 / 4
        news_due_s, keeper_missed = 0.0, False
        while not self._stop:
            self._tap.renew()
            for key, _ in self._selector.select(interval_s):
                if not self._hear(key.data):
                    return False
            if (now_s := time.monotonic()) >= news_due_s:
                self._crew.workers[0].tell({"kernel": self._kernel()._asdict()})
                news_due_s = now_s + KERNEL_NEWS_S
                if not keeper_missed and self._crew.keeper_died():
                    keeper_missed = True
                    self._say("the keeper died: new connections to the shadow carry no socket mark, only the header")
        return True

    def _hear(self, worker: Worker) -> bool:
        if worker.listen():
            return True
        self._selector.unregister(worker.channel)
        if self._crew.restarts >= RESTARTS_MAX:
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

    def _finish(self) -> None:
        """The tap is stopped already: let the workers end, print the account, detach."""
        self._say("stopping: capture has ended, finishing what is in flight")
        kernel_counters = self._kernel()
        self._crew.workers[0].tell({"kernel": kernel_counters._asdict()})
        for worker in self._crew.workers:
            worker.tell({"stop": True})
        self._await_end()
        account = self._crew.account()
        account.dropped["shutdown"] += max(0, account.in_flight)
        self._crew.end()
        self._tap.close()
        for line in account_lines(account, kernel_counters):
            print(line)

    def _await_end(self) -> None:
        deadline = time.monotonic() + self.config.stop_timeout_s + 35  # the recording is converted after the drain
        open_channels = {worker.number for worker in self._crew.workers if worker.channel.fileno() >= 0}
        while open_channels and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                worker = key.data
                alive = worker.listen()
                if not alive or worker.done:
                    self._selector.unregister(worker.channel)
                    open_channels.discard(worker.number)
                if not worker.done and not alive:
                    self._crew.give_up(worker)

    def _kernel(self) -> Counters:
        return self._tap.counters()

    def _snapshot(self) -> Snapshot:
        """For the metrics endpoint; called from its thread, reads only."""
        workers = list(self._crew.workers)
        reports = add_up(worker.report for worker in workers if worker.report)
        return Snapshot(
            shadow=self.config.shadow[0],
            account=self._crew.account(),
            kernel=self._kernel()._asdict(),
            workers=reports,
            restarts=self._crew.restarts,
            memory_bytes=_own_memory() + _memory_of(self._crew.keeper_pid()) + int(reports.get("memory_bytes", 0)),
            share_ppm=self.config.shadow[1].share_ppm,
        )


def account_lines(account: Account, counters: Counters) -> list[str]:
    """What is printed at the end: the account, and what the kernel saw."""
    lost = counters.ring_full + counters.over_budget
    lines = ["", "account of requests", *account.lines(), "", "segments on the watched ports, in the kernel"]
    lines += [f"  {name:<15}{value:>12}" for name, value in counters._asdict().items() if value or name == "copied"]
    if lost:
        lines.append(
            f"  {lost} segments were lost before the account could see them: {counters.ring_full} found the ring full "
            f"(capture.ring_kib, capture.workers), {counters.over_budget} were over the budget; "
            f"{counters.lost_to_server} of them carried requests"
        )
    return lines


def _per_cpu(limit: int) -> int:
    """The kernel keeps its budget per CPU, so that CPUs share nothing."""
    return -(-limit // (os.cpu_count() or 1))


def _own_memory() -> int:
    return _memory_of(os.getpid())


def _memory_of(pid: int | None) -> int:
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def run(config: Config) -> int:
    """`shadowtap run`: until SIGTERM or SIGINT."""
    return Service(config, lambda line: print(f"shadowtap: {line}", file=sys.stderr, flush=True)).run()


def _run_id() -> str:
    """Names the run's files: sorts by start, and no two runs share it."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
