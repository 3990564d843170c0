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

CONTROL = struct.Struct("<QQQQIIIIIII")  # struct control up to its last field; the lease comes first
CONTROL_TABLES_AT, CONTROL_ENABLED_AT, CONTROL_HARM_PHASE_AT = 32, 36, 60  # offsets of the words written alone
PORT_WORDS = 1024
PPM = 1_000_000


SHADOWS_MAX = 8
TESTS_MAX = 8  # of the client's address, and of the head
MASKS = 1 << TESTS_MAX
STATES_MAX, CLASSES_MAX = 4096, 64
SCAN_MAX_BYTES = 2048
RESUMED_FLAG = 0x100  # beside the TCP flags of a segment: what came before it was left out on purpose
PENDING_FLAG = 0x200  # besides: one answer is still to come that belongs to what was left out

# struct selection: four numbers, the windows, then tables.
SELECTION_HEAD = struct.Struct(f"<IIII{2 * SHADOWS_MAX}I")
SELECTION_TABLES = {  # name: (offset, bytes)
    "possible": (SELECTION_HEAD.size, 2 * MASKS),
    "certain": (SELECTION_HEAD.size + 2 * MASKS, 2 * MASKS),
    "wanted": (SELECTION_HEAD.size + 4 * MASKS, 2 * MASKS * MASKS),
    "classes": (SELECTION_HEAD.size + 4 * MASKS + 2 * MASKS * MASKS, 256),
    "outputs": (SELECTION_HEAD.size + 4 * MASKS + 2 * MASKS * MASKS + 256, 4 * STATES_MAX),
    "next": (SELECTION_HEAD.size + 4 * MASKS + 2 * MASKS * MASKS + 256 + 4 * STATES_MAX, 2 * STATES_MAX * CLASSES_MAX),
}
SELECTION_BYTES = sum(SELECTION_TABLES["next"])


# control.harm_phase: the phase in the lowest bits, a generation above it.
PHASES, PHASE_PAUSED, PHASE_BITS = 2, 2, 2

# struct production_counts: buckets by latency, then errors. agent/capture/latency.py knows which
# times a bucket holds.
LATENCY_BUCKETS, LATENCY_STEPS, LATENCY_UNIT_NS = 512, 16, 256
COUNTS = struct.Struct(f"<{LATENCY_BUCKETS}QQ")

# struct sent_slot: first and last time, 8 bytes each, then the version: odd while it is being written.
SENT_SLOTS, SENT_SLOT_BYTES = 16384, 64
SENT_VERSION_AT, SENT_KEY_AT = 16, 28


class Control(NamedTuple):
    """struct control without its lease, which comes first, and its last word, the harm check's; in the order of its
    fields."""

    seed: int
    budget_packets: int
    budget_bytes: int
    tables: int  # bit 0: which of the two sets decides; the rest: generation
    enabled: int  # mask of the shadows that are on
    workers: int
    own_mark: int
    request_limit: int
    response_limit: int
    harm_ppm: int = 0


class Counters(NamedTuple):
    """struct counters, summed over the CPUs. Every segment on a watched port is in exactly one of ACTIONS."""

    lease_over: int
    own: int
    unsampled: int
    unmatched: int
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


ACTIONS = Counters._fields[:9]
COUNTERS = struct.Struct(f"<{len(Counters._fields)}Q")
