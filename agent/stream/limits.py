"""What reassembly may use, and the counters of what it met and of what it gave up."""

from __future__ import annotations

from dataclasses import dataclass, fields

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FlowLimits:
    """Each limit has a counter of the times it was hit."""

    max_flows: int = 32_768  # connections that carried data
    max_embryonic: int = 8_192  # connections that only showed a SYN: a flood of them must not push out the others
    max_lingering: int = 16_384  # closed connections whose stragglers are still recognised
    half_buffer_bytes: int = 1 << 20  # waiting in one direction's reorder buffer
    total_buffer_bytes: int = 64 << 20  # waiting in all of them
    idle_ns: int = 300 * SECOND_NS
    embryonic_ns: int = 30 * SECOND_NS
    linger_ns: int = 10 * SECOND_NS
    slack_ns: int = SECOND_NS // 5  # how long a hole that was acknowledged may still be disorder of the capture
    slack_segments: int = 16  # the same, in segments of the flow
    hole_ns: int = 30 * SECOND_NS  # how long a hole that nobody acknowledged may still be filled by a retransmission


@dataclass(slots=True)
class FlowCounters:
    """Counts since the start."""

    flows: int = 0  # connections seen
    midstream: int = 0  # directions joined in the middle
    chunks: int = 0  # handed on by the slow path
    gaps: int = 0
    gap_bytes: int = 0
    cut_bytes: int = 0  # of the gap bytes, those the capture cut from segments
    left_out: int = 0  # times that a direction went on behind what the source left out on purpose; no gaps
    left_out_bytes: int = 0
    out_of_order: int = 0  # segments that had to wait
    retransmitted: int = 0  # segments that brought nothing new
    overlapped: int = 0  # segments that brought partly what was there
    syn_repeated: int = 0
    reused: int = 0  # connections ended by a new one with the same addresses and ports
    resets: int = 0
    reset_ignored: int = 0  # RST whose sequence number lies outside the window
    after_end: int = 0  # segments of connections that were over
    out_of_window: int = 0  # segments too far from what was expected
    muted: int = 0  # segments of connections that the next layer does not want
    unopened: int = 0  # segments without payload of connections not followed
    slack_used: int = 0  # times that waiting for disorder ended without the missing bytes
    hole_timeout: int = 0
    half_buffer_full: int = 0
    total_buffer_full: int = 0
    timed_out: int = 0
    evicted: int = 0  # max_flows
    evicted_embryonic: int = 0
    evicted_lingering: int = 0

    def as_dict(self) -> dict[str, int]:
        """Name to count."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
