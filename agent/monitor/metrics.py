"""The Prometheus endpoint, on loopback. Everything is read from one snapshot a scrape; nothing is kept here.

The state of the present stands in the table `agent.merge.GAUGES`, the reports' counters go by their own names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import start_http_server
from prometheus_client.metrics_core import Metric

from agent.capture.layout import ACTIONS
from agent.errors import LoadError
from agent.merge import GAUGES
from agent.monitor.watch_metrics import WatchSnapshot, families
from replay.account import Account

PREFIX = "shadowtap_"
LATENCY_FIRST_LOG2, LATENCY_LAST_LOG2 = 16, 35  # 65 us to 34 s, a bucket each power of two


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a scrape needs. `workers` is the sum of the workers' last reports."""

    accounts: dict[str, Account]  # by shadow
    kernel: dict[str, int]
    workers: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    memory_bytes: int = 0
    shares_ppm: dict[str, int] = field(default_factory=dict)  # by shadow; 0 for one that is off
    programs: dict[str, bool] = field(default_factory=dict)  # by shadow that has a balancer program: whether it runs
    watch: WatchSnapshot | None = None


# report section, metric prefix, help; every number in the section that is not a gauge becomes a counter
_SECTIONS = (
    ("flows", "stream_events", "What happened while following TCP connections"),
    ("http", "http_events", "What happened while reading HTTP"),
    ("replay", "replay_events", "What happened while sending to the shadow"),
    ("recording", "recording_events", "What happened while recording"),
)
_NOT_EVENTS = {path.partition(".")[2] for path, _, _ in GAUGES} | {"latency_sum_ns", "latency_count", "latency_log2"}
_LOST = ("ring_full", "over_budget", "unreadable")


class AgentCollector:
    """Turns a snapshot into metric families."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client at every scrape."""
        now = self._snapshot()
        yield from _account(now)
        yield from _kernel(now)
        for path, name, text in GAUGES:
            yield GaugeMetricFamily(PREFIX + name, text, value=_at(now.workers, path))
        for section, name, text in _SECTIONS:
            events = {k: v for k, v in _section(now.workers, section).items() if k not in _NOT_EVENTS}
            yield _counters(name, text, ["event"], [([k], v) for k, v in events.items()])
        yield _latency(_section(now.workers, "replay"))
        yield GaugeMetricFamily(
            PREFIX + "memory_bytes", "Resident memory of all the agent's processes", value=now.memory_bytes
        )
        shares = GaugeMetricFamily(PREFIX + "sampled_ratio", "Share of the traffic that is mirrored", labels=["shadow"])
        for shadow, ppm in now.shares_ppm.items():
            shares.add_metric([shadow], ppm / 1e6)
        yield shares
        yield from _pools(now)
        yield _counters(
            "requests_late",
            "Requests that came up after their time and went to the shadow at once",
            [],
            [([], _at(now.workers, "spacing.late"))],
        )
        yield _counters("worker_restarts", "Workers replaced after they died", [], [([], now.restarts)])
        yield _counters(
            "unmarked_sockets",
            "Replay sockets without the socket mark",
            [],
            [([], _at(now.workers, "unmarked_sockets"))],
        )
        yield _counters("worker_cpu_seconds", "CPU time of the workers", [], [([], _at(now.workers, "cpu_s"))])
        if now.watch is not None:
            yield from families(now.watch)


def _account(now: Snapshot) -> Iterator[Metric]:
    accounts = now.accounts.items()
    seen = [([shadow], account.seen) for shadow, account in accounts]
    yield _counters("requests_seen", "Copied requests seen", ["shadow"], seen)
    yield _counters(
        "requests_replayed",
        "Requests sent to the shadow, by how its answer ended",
        ["shadow", "answer"],
        [([shadow, str(k)], v) for shadow, account in accounts for k, v in account.answers.items()],
    )
    for name, text in (
        ("incomplete", "Requests seen but not whole"),
        ("skipped", "Requests not meant for the shadow"),
        ("dropped", "Requests meant for the shadow and not sent"),
    ):
        rows = [([shadow, str(k)], v) for shadow, account in accounts for k, v in getattr(account, name).items()]
        yield _counters(f"requests_{name}", text, ["shadow", "reason"], rows)
    in_flight = GaugeMetricFamily(PREFIX + "requests_in_flight", "Requests whose fate is open", labels=["shadow"])
    for shadow, account in accounts:
        in_flight.add_metric([shadow], account.in_flight)
    yield in_flight


def _pools(now: Snapshot) -> Iterator[Metric]:
    """A shadow without upstreams, and one without a program, has no sample."""
    states = GaugeMetricFamily(
        PREFIX + "upstream_workers",
        "Workers to which an upstream of the pool is in this state",
        labels=["shadow", "upstream", "state"],
    )
    for shadow, pool in _section(now.workers, "pool").items():
        for upstream, found in pool.items():
            for state, workers in found.items():
                states.add_metric([shadow, upstream, state], workers)
    yield states
    running = GaugeMetricFamily(
        PREFIX + "balancer_up", "1 while the shadow's balancer program runs, else 0", labels=["shadow"]
    )
    for shadow, runs in now.programs.items():
        running.add_metric([shadow], int(runs))
    yield running


def _kernel(now: Snapshot) -> Iterator[Metric]:
    segments = [([k], now.kernel[k]) for k in ACTIONS]
    yield _counters(
        "kernel_segments", "Segments on the watched ports, by what the kernel program did", ["action"], segments
    )
    others = [([k], v) for k, v in now.kernel.items() if k not in ACTIONS and not k.endswith("_bytes")]
    yield _counters("kernel_events", "What else the kernel program counted, beside the actions", ["event"], others)
    yield _counters(
        "kernel_lost_segments",
        "Sampled segments that could not be copied",
        ["reason"],
        [([k], now.kernel[k]) for k in _LOST],
    )
    for name in ("copied_bytes", "lost_bytes"):
        yield _counters(f"kernel_{name}", "Payload copied to, or lost before, the rings", [], [([], now.kernel[name])])


def _latency(replay: dict[str, Any]) -> Metric:
    buckets: list[int] = replay.get("latency_log2") or [0] * (LATENCY_LAST_LOG2 + 1)
    rows, total = [], sum(buckets[:LATENCY_FIRST_LOG2])
    for power in range(LATENCY_FIRST_LOG2, LATENCY_LAST_LOG2 + 1):
        total += buckets[power]
        rows.append((f"{(1 << power) / 1e9:.9g}", float(total)))
    rows.append(("+Inf", float(replay.get("latency_count", 0))))
    family = HistogramMetricFamily(PREFIX + "replay_latency_seconds", "First byte sent to last byte of the answer")
    family.add_metric([], rows, sum_value=replay.get("latency_sum_ns", 0) / 1e9)
    return family


def _counters(name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], float]]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _section(workers: dict[str, Any], name: str) -> dict[str, Any]:
    section: dict[str, Any] = workers.get(name) or {}
    return section


def _at(workers: dict[str, Any], path: str) -> float:
    value: Any = workers
    for part in path.split("."):
        value = value.get(part, {}) if isinstance(value, dict) else 0
    return float(value or 0)


class MetricsServer:
    """Serves /metrics from a thread until `close`."""

    def __init__(self, address: tuple[str, int], snapshot: Callable[[], Snapshot]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        host, port = address
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise LoadError(
                f"metrics.listen {host}:{port}: {error.strerror}: choose another port or set `metrics: null`"
            ) from None
        registry.register(AgentCollector(snapshot))
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not threading.current_thread():
            self._thread.join()
