"""`shadowtap replay`: the pipeline over a capture file, with the requests sent on in their original spacing.

The same stages as the live worker, put together without a ring; nothing is ever dropped for want of room here, the
reading of the file waits instead (and how late that made requests is told).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import uvloop

from agent.capture.layout import PPM
from agent.capture.pcap import PcapSource
from agent.capture.segment import Segment
from agent.errors import CaptureError, ConfigError
from agent.export import as_line
from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.offline import read_exchanges
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select import sampling
from agent.select.choice import Rule
from agent.select.criteria import read_criteria
from agent.select.geo import GeoDatabase
from agent.select.sampling import By, Window, read_sample_by
from agent.shadowing import Shadowing, open_recorder
from agent.stream.flows import Flows
from replay.balancer.address import UNIX
from replay.balancer.settings import BalancerSettings, TlsSettings, UpstreamSpec
from replay.client import Replayer
from replay.exchange import Dropped, Origin, Request, Trial
from replay.recording import new_run_id
from replay.schedule import Schedule
from replay.settings import ReplaySettings

QUEUE_ENTRIES = 256  # short: what waits here waits in the schedule anyway
QUEUE_TIMEOUT_S = 3600.0  # never give a request up because the shadow is slow: the file can wait
DRAIN_LIMIT_S = 60.0
LONGEST_TIMEOUT_S = 86_400
MAX_CONNECTIONS = 65_535
PROGRESS_MIN_BYTES = 8 << 20  # shorter files are read before a bar is worth drawing
SAMPLED_KEYS_MAX = 1 << 16
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for. `speed` None is as fast as possible."""

    capture: Path
    order: Order
    speed: float | None = 1.0
    export: Path | None = None
    as_json: bool = False
    progress: bool = field(default=False)


def options_from(arguments: argparse.Namespace) -> Options:
    """Check the command line; ConfigError names the option."""
    if bool(arguments.to) == arguments.dry_run:
        raise ConfigError("replay: say where to, with --to http://HOST:PORT, or that nothing is to be sent: --dry-run")
    order = Order(
        shadows=(_shadow(arguments),),
        ports=tuple(_ports(arguments.ports)),
        seed=arguments.seed,
        geo_database=str(arguments.geo_database) if arguments.geo_database else None,
        http=HttpLimits(body_limit_bytes=arguments.body_limit, hash_bodies=arguments.hash_bodies),
        recording_directory=str(arguments.record) if arguments.record else None,
    )
    if order.needs_geography and order.geo_database is None:
        raise ConfigError("replay: --criteria asks for a country: name a database with --geo-database FILE")
    if not 0 <= arguments.percentage <= 100:
        raise ConfigError(f"replay: --percentage {arguments.percentage}: a number from 0 to 100")
    if not 0 < arguments.timeout <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"replay: --timeout {arguments.timeout}: seconds, more than 0, at most {LONGEST_TIMEOUT_S}")
    if not 0 < arguments.max_connections <= MAX_CONNECTIONS:
        raise ConfigError(f"replay: --max-connections {arguments.max_connections}: from 1 to {MAX_CONNECTIONS}")
    if arguments.body_limit < 0:
        raise ConfigError(f"replay: --body-limit {arguments.body_limit}: bytes, 0 or more")
    if not 0 <= arguments.seed < 1 << 64:
        raise ConfigError(f"replay: --seed {arguments.seed}: from 0 to 2^64 - 1")
    return Options(
        capture=arguments.capture,
        order=order,
        speed=_speed(arguments.speed),
        export=arguments.export,
        as_json=arguments.json,
        progress=not arguments.quiet and sys.stderr.isatty(),
    )


def _shadow(arguments: argparse.Namespace) -> ShadowOrder:
    try:
        criteria = read_criteria(arguments.criteria)
    except ValueError as error:
        raise ConfigError(f"replay: --criteria: {error}") from None
    try:
        by, name = read_sample_by(arguments.sample_by)
    except ValueError as error:
        raise ConfigError(f"replay: --sample-by {arguments.sample_by}: {error}") from None
    settings = ReplaySettings(
        timeout_s=arguments.timeout,
        max_connections=arguments.max_connections,
        queue_entries=QUEUE_ENTRIES,
        queue_timeout_s=QUEUE_TIMEOUT_S,
        body_limit_bytes=arguments.body_limit,
    )
    pool = _pool(arguments)
    rule = Rule(
        criteria=criteria,
        by=by,
        name=name,
        window=Window(0, round(arguments.percentage * PPM / 100)),
        methods=tuple(arguments.methods.split(",")),
        mark=settings.mark,
        dry_run=not pool.replays,
    )
    return ShadowOrder(rule=rule, pool=pool, replay=settings)


def _pool(arguments: argparse.Namespace) -> PoolOrder:
    schemes = {text.partition("://")[0] if "://" in text else "http" for text in arguments.to}
    if len(schemes) > 1:
        raise ConfigError("replay: --to: give all of the pool as http://, or all as https://")
    tls = TlsSettings(verify=not arguments.insecure, ca=str(arguments.ca or "")) if schemes == {"https"} else None
    upstreams = tuple(UpstreamSpec(_upstream(text)) for text in arguments.to)
    return PoolOrder(upstreams, BalancerSettings(policy=arguments.policy, seed=arguments.seed, tls=tls))


def _upstream(text: str) -> str:
    if text.startswith(UNIX):
        return text
    scheme, found, host = text.rpartition("://")
    host = host.rstrip("/")
    if "/" in host or (found and scheme not in _PORTS):
        raise ConfigError(f"replay: --to {text}: without a path, requests keep their own; give http(s)://HOST:PORT")
    return host if ":" in host.rpartition("]")[2] else f"{host}:{_PORTS[scheme or 'http']}"


def _ports(text: str) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if any(not part.isdigit() or not 0 < int(part) < 65536 for part in parts):
        raise ConfigError(f"replay: --ports {text}: port numbers with commas between, like 80,8080")
    return [int(part) for part in parts]


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(f"replay: --speed {text}: a positive number, or max")
    return speed


class SampledSource:
    """A capture file reduced to the connections that the live agent would take with the same share and seed."""

    def __init__(self, source: PcapSource, share_ppm: int, seed: int) -> None:
        self._source = source
        self._share_ppm = share_ppm
        self._seed = seed
        self._taken: dict[bytes, bool] = {}

    @property
    def now_ns(self) -> int:
        """Capture time of the last packet read."""
        return self._source.now_ns

    def batches(self) -> Iterator[list[Segment]]:
        """The source's batches without the segments of other connections."""
        if self._share_ppm >= PPM:
            yield from self._source.batches()
            return
        for batch in self._source.batches():
            yield [segment for segment in batch if self._takes(segment.key)]

    def _takes(self, key: bytes) -> bool:
        taken = self._taken.get(key)
        if taken is None:
            if len(self._taken) >= SAMPLED_KEYS_MAX:
                self._taken.clear()  # only a cache: the hash gives the same answer again
            taken = self._taken[key] = sampling.sampled(sampling.flow_hash(key, self._seed), self._share_ppm)
        return taken


class Playback:
    """One run over one file."""

    def __init__(self, options: Options) -> None:
        self.options = options
        order = options.order
        self._source = PcapSource(options.capture)
        self._flows = Flows(server_ports=frozenset(order.ports))
        self._pairing = Pairing(order.http)
        self._shadow = order.shadows[0]
        directory = order.directory_of(self._shadow.name)
        self._recorder = open_recorder(directory, {}, new_run_id(time.time_ns()), 0, self._shadow.name)
        self._flushed_s = time.monotonic()
        locate = GeoDatabase(order.geo_database).locate if order.geo_database else None
        self._by_connection = self._shadow.rule.by is By.CONNECTION
        self.mirror = Shadowing(order, 0, self._recorder, locate, in_kernel=self._by_connection).mirror
        self.schedule: Schedule[Trial] = Schedule(options.speed)
        self._upstreams: frozenset[str] = frozenset()
        self._export: IO[str] | None = None
        self._progress = _Progress(self._source) if options.progress else None

    def run(self) -> int:
        """Exit status 0; the account is on stdout."""
        with self._source, self._exporting(), self._progress or nullcontext():
            if self._shadow.pool.replays:
                uvloop.run(self._replay())
            else:
                for _ in self._exchanges():
                    pass
        self._close_recorder()
        print(json.dumps(self._result(), indent=2) if self.options.as_json else "\n".join(self._lines()))
        return 0

    def submit(self, request: Request, token: object, origin: Origin | None = None) -> Dropped | None:
        """The mirror's sender: into the schedule, from where it goes to the replay client when it is due."""
        assert isinstance(token, Trial)
        if token.exchange.server in self._upstreams:
            raise CaptureError(
                f"{self.options.capture}: {token.exchange.server} is production here and cannot be the shadow: "
                "give another address with --to"
            )
        self.schedule.add(request.t_first_ns, token, len(request.head) + len(request.wire_body or request.body))
        return None

    async def _replay(self) -> None:
        balancer = self._shadow.pool.engine(())
        self._upstreams = frozenset(upstream.name for upstream in balancer.upstreams)
        replayer = Replayer(asyncio.get_running_loop(), balancer, self._shadow.replay, self.mirror.answered)
        self.mirror.sender = self
        for _ in self._exchanges():
            while self.schedule.full:
                await self._send_due(replayer)
            await asyncio.sleep(0)
        while len(self.schedule):
            await self._send_due(replayer)
        await replayer.drain(DRAIN_LIMIT_S)

    async def _send_due(self, replayer: Replayer) -> None:
        wait_s = self.schedule.wait_s(time.monotonic())
        if wait_s:
            self._flush()
            await asyncio.sleep(min(wait_s, 1.0))
        for trial in self.schedule.take(time.monotonic()):
            request = trial.exchange.request
            assert request is not None
            await replayer.room(len(request.head) + len(request.wire_body or request.body))
            dropped = replayer.submit(request, trial, trial.exchange)
            if dropped is not None:
                self.mirror.answered(trial, dropped)

    def _exchanges(self) -> Iterator[None]:
        """Drive the pipeline; control comes back after each batch."""
        share_ppm = self._shadow.rule.window.to_ppm if self._by_connection else PPM
        sampled = SampledSource(self._source, share_ppm, self.options.order.seed)
        for ready, finished in read_exchanges(sampled, self._flows, self._pairing):
            self.mirror.take(ready, finished, self._pairing.seen)
            if self._export is not None and finished:
                self._export.write("".join(as_line(exchange) + "\n" for exchange in finished))
            self._flush()
            if self._progress is not None:
                self._progress.update()
            yield

    def _exporting(self) -> AbstractContextManager[Any]:
        path = self.options.export
        if path is None:
            return nullcontext()
        try:
            self._export = path.open("w")
        except OSError as error:
            raise CaptureError(f"--export {path}: {error.strerror}: choose a file that can be written") from None
        return self._export

    def _flush(self) -> None:
        if self._recorder is not None and time.monotonic() >= self._flushed_s + 1:
            self._flushed_s = time.monotonic()
            self._recorder.flush(time.time_ns(), self.mirror.account, self._extra())

    def _close_recorder(self) -> None:
        if self._recorder is not None:
            self._recorder.close(time.time_ns(), self.mirror.account, self._extra())
            self._recorder.convert()

    def _extra(self) -> dict[str, Any]:
        return {"capture": asdict(self._source.counters), "balancer": {"program": "", "addresses": []}}

    def _result(self) -> dict[str, Any]:
        return {
            "account": self.mirror.account.as_dict(),
            "capture": asdict(self._source.counters),
            "streams": asdict(self._flows.counters),
            "http": asdict(self._pairing.counters),
            "lateness": asdict(self.schedule.lateness),
            "problem": self._source.problem,
        }

    def _lines(self) -> list[str]:
        counters = {name: count for name, count in asdict(self._source.counters).items() if count}
        lines = ["account of requests", *self.mirror.account.lines(), "", f"packets in {self.options.capture}"]
        lines += [f"  {name:<15}{count:>12}" for name, count in counters.items()]
        if self._source.problem:
            lines.append(f"  the file is damaged: {self._source.problem}; what stands before that was read")
        if self._shadow.pool.replays and self.options.speed is not None:
            lines += ["", self.schedule.lateness.line()]
        return lines


class _Progress:
    """A bar on stderr, by bytes of the file read."""

    def __init__(self, source: PcapSource) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._source = source
        self._bar = Progress(
            console=Console(stderr=True), transient=True, disable=source.size_bytes < PROGRESS_MIN_BYTES
        )
        self._task = self._bar.add_task(source.path.name, total=source.size_bytes)

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *ignored: object) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Show how far the reading has come."""
        self._bar.update(self._task, completed=self._source.read_bytes)
