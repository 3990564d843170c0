"""When replayed requests really left, as the kernel program noted it (bpf/sent.h), for a worker: the slots are mapped.

The clock that this process reads before send() is early by however long it is kept from the processor behind that,
which would count as the shadow's latency. A connection without times (it shares its slot with a newer one, or nothing
hangs where it leaves) has none here, and its own clock has to do.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from agent.capture.layout import SENT_KEY_AT, SENT_SLOT_BYTES, SENT_SLOTS, SENT_VERSION_AT
from agent.capture.ring import epoch_offset_ns
from agent.capture.segment import KEY_V6_BYTES
from agent.select.sampling import flow_hash

SLACK_NS = 5_000  # by which the two clocks, converted, may disagree
CLOCK_STEP_NS = 2_000  # smaller differences are errors of reading
PLACES_MAX = 4096  # connections whose slots are remembered


@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection's slot is, in words of 8 and of 4 bytes and in bytes, and its key as it stands there."""

    first: int
    last: int
    version: int
    key: slice
    wanted: bytes


class SentTimes:
    """Answers in CLOCK_REALTIME. Owns the mapping; the descriptor may be closed after construction."""

    def __init__(self, map_fd: int) -> None:
        self._slots = mmap.mmap(map_fd, SENT_SLOTS * SENT_SLOT_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._times = memoryview(self._slots).cast("Q")
        self._versions = memoryview(self._slots).cast("I")
        self._places: dict[bytes, Place] = {}
        self._offset_ns = epoch_offset_ns()

    def follow_clock(self) -> None:
        """Take over a step of the wall clock; to be called about once a second. Unlike the ring's, these times are
        compared with the wall clock itself, so that small steps count, too."""
        offset_ns = epoch_offset_ns()
        if abs(offset_ns - self._offset_ns) > CLOCK_STEP_NS:
            self._offset_ns = offset_ns

    def sent_ns(self, key: bytes, not_before_ns: int) -> int:
        """When the request whose bytes were given to the kernel at `not_before_ns` began to leave, 0 if that is not
        known. `key` is that of the segments that the connection sends: source address, destination address, source
        port, destination port."""
        place = self._places.get(key) or self._place(key)
        version = self._versions[place.version]
        if self._slots[place.key] != place.wanted:
            return 0
        first_ns, last_ns = self._times[place.first], self._times[place.last]
        if not first_ns or version & 1 or version != self._versions[place.version]:
            return 0  # nothing was sent yet; or it is being written, so the connection is sending something else
        # The first segment can be older: one that ended a TLS handshake, say, without an answer in between.
        earliest_ns = not_before_ns - self._offset_ns
        t_ns = first_ns if first_ns >= earliest_ns - SLACK_NS else last_ns
        if t_ns >= earliest_ns:
            return t_ns + self._offset_ns
        return not_before_ns if t_ns >= earliest_ns - SLACK_NS else 0

    def close(self) -> None:
        """Unmap."""
        self._times.release()
        self._versions.release()
        self._slots.close()

    def _place(self, key: bytes) -> Place:
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        at = flow_hash(key, 0) % SENT_SLOTS * SENT_SLOT_BYTES
        place = self._places[key] = Place(
            at // 8,
            at // 8 + 1,
            (at + SENT_VERSION_AT) // 4,
            slice(at + SENT_KEY_AT, at + SENT_SLOT_BYTES),
            key.ljust(KEY_V6_BYTES, b"\0"),
        )
        return place
