"""The structures of bpf/event.h as Python reads and writes them; tests/bpf/test_layout.py compares every offset."""

from __future__ import annotations

import struct
from typing import NamedTuple

# struct segment_event up to `key`, preceded by the ring's own record header (length and flag bits, page offset).
RECORD = struct.Struct("<IIQIIIIBBBB")
RECORD_HEADER_BYTES = 8
EVENT_BYTES = 64
KEY_OFFSET = 28  # of `key` in the event
BUSY, DISCARD = 1 << 31, 1 << 30  # in the record header's length
LENGTH_MASK = DISCARD - 1

CONTROL = struct.Struct("<QQQQIIIIII")  # the lease comes first
PORT_WORDS = 1024
PPM = 1_000_000


class Control(NamedTuple):
    """struct control without its lease, in the order of its fields."""

    seed: int
    budget_packets: int
    budget_bytes: int
    sample_ppm: int
    sample_by: int  # 0 connection, 1 client
    workers: int
    own_mark: int
    request_limit: int
    response_limit: int


class Counters(NamedTuple):
    """struct counters, summed over the CPUs. Every segment on a watched port is in exactly one of ACTIONS."""

    lease_over: int
    own: int
    unsampled: int
    pure_acks: int
    copied: int
    ring_full: int
    over_budget: int
    unreadable: int
    copied_bytes: int
    lost_bytes: int
    lost_to_server: int
    cut: int
    fragments: int


ACTIONS = Counters._fields[:8]
COUNTERS = struct.Struct(f"<{len(Counters._fields)}Q")
