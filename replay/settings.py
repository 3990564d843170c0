"""What can be set for the replay client and the recording, and what they count. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 1024 * 1024
LATENCY_BUCKETS = 64


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Limits and marks. Time limits are kept by a sweep every SWEEP_S (50 ms), so they end up to two sweeps late."""

    connect_timeout_s: float = 1.0
    timeout_s: float = 10.0  # from the first byte sent to the last byte of the response
    first_byte_timeout_s: float = (
        0.0  # from the first byte sent to the first byte of the response; 0: none but the above
    )
    idle_timeout_s: float = 0.0  # between two reads of a response; 0: none
    keepalive_s: float = 30.0  # an unused connection is closed after it
    retries: int = 0  # to how many more upstreams a request goes that got no answer at all
    requests_per_connection: int = 0  # then it is closed; 0: no limit
    queue_timeout_s: float = 1.0
    max_connections: int = 128  # per upstream
    queue_entries: int = 4096  # over all upstreams
    queue_bytes: int = 64 * MIB
    body_limit_bytes: int = MIB  # content of a response that is kept; the rest is counted
    mark_header: str = "X-Shadowtap"  # "" adds no header
    mark_value: str = "1"

    def overdue(self, waited_s: float, quiet_s: float | None) -> str:
        """Which time limit a request has reached, for a person; "" for none. `quiet_s` is since the last bytes of the
        response, None before the first."""
        if waited_s >= self.timeout_s:
            return "time limit reached"
        if quiet_s is None:
            late = 0 < self.first_byte_timeout_s <= waited_s
            return "time limit for the first byte reached" if late else ""
        return "nothing more came within the time limit" if 0 < self.idle_timeout_s <= quiet_s else ""

    @property
    def mark(self) -> bytes:
        """The header line that marks a request, without its line end; empty when there is none."""
        return f"{self.mark_header}: {self.mark_value}".encode("latin-1") if self.mark_header else b""


@dataclass(slots=True)
class ReplayCounters:
    """State and totals of one Replayer, for metrics. `submitted = done + refused + open_requests` at any time."""

    submitted: int = 0
    refused: int = 0  # submit returned a reason
    done: int = 0  # `done` was called
    queue_entries: int = 0  # now
    queue_bytes: int = 0  # now
    queue_peak_entries: int = 0
    open_connections: int = 0  # now, those being made included
    connects: int = 0
    connect_failures: int = 0  # refused, unreachable, timed out
    fast_failures: int = 0  # requests that failed in a backoff, without a connection being tried
    local_failures: int = 0  # no socket, or no local port: our own shortage
    local_failure: str = ""  # the last of them, for a person
    resends: int = 0
    retries: int = 0  # requests given to another upstream after one that did not answer
    tls_failures: int = 0  # connections whose certificate or handshake was refused
    evictions: int = 0  # unused connections closed to make room for another client's
    excess: int = 0  # connections dropped for bytes that belong to no request
    early: int = 0  # responses that were whole before the request was sent
    idle_closed: int = 0  # connections the upstream closed between requests
    clock_fallbacks: int = 0  # reads without a kernel timestamp
    kernel_sent: int = 0  # outcomes whose time of sending is the kernel's, not this process'
    latency_sum_ns: int = 0  # first byte sent to last byte of whole responses
    latency_count: int = 0
    latency_log2: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)  # [n]: below 2**n nanoseconds

    def note_latency(self, latency_ns: int) -> None:
        """Count a whole response; one that came before its request was sent is left out."""
        if latency_ns >= 0:
            self.latency_count += 1
            self.latency_sum_ns += latency_ns
            self.latency_log2[min(latency_ns.bit_length(), LATENCY_BUCKETS - 1)] += 1

    @property
    def open_requests(self) -> int:
        """Accepted and not ended."""
        return self.submitted - self.refused - self.done


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """Limits of a recording, unchecked. The directory's must be well above `rotate_bytes` for each worker."""

    rotate_bytes: int = 128 * MIB
    rotate_seconds: int = 900
    directory_bytes: int = 4096 * MIB  # the oldest Parquet files are deleted beyond this
    exemplars: int = 20  # rows of each file that keep heads and bodies because the answers differ
    exemplar_bytes: int = 4096  # of each head and body


@dataclass(slots=True)
class RecordingCounters:
    """What the recorder did and what it could not do. After a flush `rows = rows_written + rows_lost`."""

    rows: int = 0  # handed to `add`
    rows_written: int = 0  # in a spool; falls when one was deleted that was still being written
    rows_lost: int = 0  # not written, or deleted with their spool
    rows_refused: int = 0  # the lost ones that had a value no column can hold
    write_errors: int = 0
    spools: int = 0
    exemplars: int = 0
    converter_failures: int = 0  # runs of the converter that failed or could not be started
    files_deleted: int = 0  # Parquet files, for the directory's limit
    bytes_deleted: int = 0
