"""Fetches what the CPU and memory of pools are worked out from: scrapes of targets, answers of a Prometheus server.

    Scraper.look ──jobs, a few threads──► fetch ──bytes──► exposition ──Reading, Gap──► resources ──► Usages

Every fetch has a limit of time, over all of it, and of size. What does not come within it is a gap. Redirects and
proxies are not followed: what was configured is what is asked.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlencode

from agent.monitor.exposition import Gap, Reading, Selector, Values, answered, counted, read, shown
from agent.monitor.resources import Comparison, PoolUsage, Rates, Rules, Usage
from agent.resources_config import PRODUCTION, PoolSources, RequestCounter, Resources, Target, parse_target

BODY_LIMIT_BYTES = 8 << 20
THREADS = 16
HEADERS = {"Accept": "text/plain;version=0.0.4, application/json;q=0.5", "User-Agent": "shadowtap"}
SERVER = "prometheus"  # stands for the targets of a pool that is asked for by queries
NOT_ASKED = Gap("not asked")
EXPLAINED = (400, 422, 503)  # statuses with which Prometheus explains in JSON what is wrong with a query

Fetch = Callable[[Target, float, tuple[int, ...]], "bytes | Gap"]


@dataclass(frozen=True, slots=True)
class Usages:
    """One look. `measures`: by shadow what `Judge.measure` takes; `reasons`: by shadow and metric why there is none."""

    usages: dict[str, Usage]
    measures: dict[str, list[tuple[str, float]]]
    reasons: dict[str, dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        """For status and metrics; bounded."""
        shadows = {
            name: {
                **self.usages[name].as_json(),
                "measures": dict(self.measures[name]),
                "reasons": self.reasons[name],
            }
            for name in self.measures
        }
        return {PRODUCTION: self.usages[PRODUCTION].as_json(), "shadows": shadows}


class Get:
    """One GET. `fetch` blocks for hardly more than its limit of time: looking up a name is all that is not cut off."""

    def __init__(self, ca: str | None = None) -> None:
        self._ca = ca
        self._tls: ssl.SSLContext | None = None

    def fetch(self, target: Target, timeout_s: float, statuses: tuple[int, ...] = (200,)) -> bytes | Gap:
        """The body of an answer with one of these statuses."""
        cut = _Cut()
        timer = threading.Timer(timeout_s, cut.now)
        timer.daemon = True
        timer.start()
        try:
            found = self._exchange(target, timeout_s, statuses, cut)
        except (OSError, http.client.HTTPException, ValueError) as error:
            found = Gap(f"no answer: {shown(str(error) or type(error).__name__)}")
        finally:
            timer.cancel()
            cut.close()
        return Gap(f"no whole answer within {timeout_s:g} s") if cut.late else found

    def _exchange(self, target: Target, timeout_s: float, statuses: tuple[int, ...], cut: _Cut) -> bytes | Gap:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
        connection.sock = cut.hold(socket.create_connection((target.host, target.port), timeout_s))
        if target.secure:
            connection.sock = cut.hold(self._secured(connection.sock, target.host))
            connection.sock.do_handshake()
        connection.request("GET", target.path, headers=HEADERS)
        response = connection.getresponse()
        if response.status not in statuses:
            return Gap(f"it answers with status {response.status}")
        body = response.read(BODY_LIMIT_BYTES + 1)
        if len(body) > BODY_LIMIT_BYTES:
            return Gap(f"it answers with more than {BODY_LIMIT_BYTES >> 20} MiB")
        return Gap("its answer is cut off") if response.length else body

    def _secured(self, plain: socket.socket, host: str) -> ssl.SSLSocket:
        if self._tls is None:  # not before it is needed, since the file may be missing
            self._tls = ssl.create_default_context(cafile=self._ca)
        return self._tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)


class _Cut:
    """Ends what another thread reads from a socket, when it has taken too long."""

    def __init__(self) -> None:
        self.late = False
        self._lock = threading.Lock()
        self._held: socket.socket | None = None

    def hold(self, held: Any) -> Any:
        """Take a socket, which may wrap the one before; TimeoutError when it is too late."""
        with self._lock:
            self._held = held
            if self.late:
                raise TimeoutError("timed out")
        return held

    def now(self) -> None:
        """It has taken too long."""
        with self._lock:
            self.late = True
            if self._held is not None:
                with contextlib.suppress(OSError):  # over already
                    socket.socket.shutdown(self._held, socket.SHUT_RDWR)  # not TLS's, whose state the reader uses

    def close(self) -> None:
        """Let go."""
        with self._lock:
            if self._held is not None:
                self._held.close()
            self._held = None


class Job(NamedTuple):
    """A scrape with the counters to look for in it, or a query, where there are none."""

    target: Target
    selectors: tuple[Selector, ...] = ()
    is_query: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """Of a job, and when it came."""

    at_s: float
    reading: Reading | Gap = NOT_ASKED
    counts: dict[Selector, Values | Gap] = field(default_factory=dict)
    number: float | Gap = NOT_ASKED


class Scraper:
    """Reads both sides of every shadow. Not safe for threads; `look` blocks, so that a loop calls it in a thread."""

    def __init__(
        self, settings: Resources, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._fetch = fetch or Get(None if settings.ca is None else str(settings.ca)).fetch
        self._clock = clock
        self._sources = {PRODUCTION: settings.production, **settings.shadows}
        self._pools = {
            name: PoolUsage(sources.targets or (SERVER,), sources.idle_cores) for name, sources in self._sources.items()
        }
        self._comparisons = {name: Comparison(rules(settings, name)) for name in settings.shadows}
        self._jobs = set(self._all_jobs())
        self._threads = ThreadPoolExecutor(min(THREADS, len(self._jobs)), thread_name_prefix="scrape")
        self._pending: dict[Job, Future[_Answer]] = {}

    def look(self, requests: Mapping[str, float]) -> Usages:
        """Read everything once. `requests`: by pool (production, or a shadow's name) how many it has had up to now."""
        at_s = self._clock()
        answers = self._ask()
        for name, sources in self._sources.items():
            self._read(name, sources, answers)
            self._count(name, sources, answers, requests, at_s)
        usages = {name: pool.usage() for name, pool in self._pools.items()}
        measures = {
            name: comparison.compare_usage(usages[PRODUCTION], usages[name], at_s)
            for name, comparison in self._comparisons.items()
        }
        return Usages(usages, measures, {name: dict(each.reasons) for name, each in self._comparisons.items()})

    def close(self) -> None:
        """Ask nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> dict[Job, _Answer]:
        """Do every job but those that are still not done from last time."""
        for job in self._jobs - self._pending.keys():
            self._pending[job] = self._threads.submit(self._do, job)
        rounds = math.ceil(len(self._jobs) / THREADS)
        wait(self._pending.values(), timeout=2 * rounds * self._settings.timeout_s)  # twice: names are looked up, too
        now_s, late = self._clock(), Gap("no answer yet")
        found = {}
        for job in self._jobs:
            done = self._pending[job].done()
            found[job] = self._pending.pop(job).result() if done else _Answer(now_s, late, {}, late)
        return found

    def _do(self, job: Job) -> _Answer:
        statuses = (200, *EXPLAINED) if job.is_query else (200,)
        body = self._fetch(job.target, self._settings.timeout_s, statuses)
        at_s = self._clock()
        if isinstance(body, Gap):
            return _Answer(at_s, body, dict.fromkeys(job.selectors, body), body)
        if job.is_query:
            return _Answer(at_s, number=answered(body))
        return _Answer(at_s, read(body), {selector: counted(body, selector) for selector in job.selectors})

    def _read(self, name: str, sources: PoolSources, answers: dict[Job, _Answer]) -> None:
        """Tell a pool what its targets have said."""
        pool = self._pools[name]
        for target in sources.targets:
            answer = answers[self._job(target)]
            if isinstance(answer.reading, Gap):
                pool.gap(target, answer.at_s, answer.reading.why)
            else:
                pool.add(target, answer.reading, answer.at_s)
        if not sources.targets:
            asked = {what: answers[self._query(query)] for what, query in sources.queries.items() if what != "requests"}
            known = {what: each.number for what, each in asked.items() if not isinstance(each.number, Gap)}
            whys = [f"{what}: {each.number.why}" for what, each in asked.items() if isinstance(each.number, Gap)]
            pool.add(SERVER, Rates(known.get("cpu"), known.get("memory"), "; ".join(whys)), self._clock())

    def _count(
        self,
        name: str,
        sources: PoolSources,
        answers: dict[Job, _Answer],
        requests: Mapping[str, float],
        at_s: float,
    ) -> None:
        """Tell a pool how many requests it has had."""
        pool = self._pools[name]
        if isinstance(sources.requests, RequestCounter):
            answer = answers[self._job(sources.requests.target)]
            pool.count(answer.counts.get(sources.requests.selector, Gap("not read")), answer.at_s)
        elif sources.requests:
            pool.rate(answers[self._query(sources.requests)].number)
        elif name in requests and math.isfinite(requests[name]):
            pool.count({(): requests[name]}, at_s, estimated=name == PRODUCTION)
        else:
            pool.count(Gap("not counted"), at_s, estimated=name == PRODUCTION)

    def _all_jobs(self) -> Iterator[Job]:
        for sources in self._sources.values():
            yield from map(self._job, sources.targets)
            yield from map(self._query, sources.queries.values())
            if isinstance(sources.requests, RequestCounter):
                yield self._job(sources.requests.target)

    def _job(self, text: str) -> Job:
        """What is fetched of a target, once for all who ask for it."""
        target = parse_target(text)
        counters = [each.requests for each in self._sources.values() if isinstance(each.requests, RequestCounter)]
        return Job(target, tuple(each.selector for each in counters if parse_target(each.target) == target))

    def _query(self, query: str) -> Job:
        server = parse_target(self._settings.prometheus or "", "")
        asked = urlencode({"query": query, "timeout": f"{self._settings.timeout_s:g}s"})
        path = f"{server.path.rstrip('/')}/api/v1/query?{asked}"
        return Job(server._replace(path=path), is_query=True)


def rules(settings: Resources, shadow: str) -> Rules:
    """How the figures of one shadow are judged."""
    production, own = settings.production, settings.shadows[shadow]
    return Rules(
        interval_s=settings.interval_s,
        cpu_step_s=max(production.window_s, own.window_s),
        memory_step_s=settings.memory_step_s,
        warm_up_s=settings.warm_up_s,
        least_requests=settings.least_requests,
        least_load=settings.least_load_percent / 100,
        production_hosts=len(production.targets) or production.hosts,
        shadow_hosts=len(own.targets) or own.hosts,
    )
