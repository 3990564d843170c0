"""Reads one BPF ring buffer in batches, without bcc and without privilege: the ring is mapped into this process.

Layout (kernel/bpf/ringbuf.c): one page with the consumer's position (ours to write), one page with the producer's, then
the data twice in a row, so that no record is broken at the end. A record is an 8-byte header and the event.

Positions are read and written through memoryviews of 64-bit words: one load or store each. `struct.pack_into` zeroes
the place first, and for that moment, or for as long as this process is preempted in it, the kernel sees a full ring.
"""

from __future__ import annotations

import mmap
import time

from agent.capture.layout import (
    BUSY,
    DISCARD,
    EVENT_BYTES,
    KEY_OFFSET,
    LENGTH_MASK,
    RECORD,
    RECORD_HEADER_BYTES,
)
from agent.capture.segment import Segment

PAGE_BYTES = mmap.PAGESIZE
BATCH_SEGMENTS = 2048
CLOCK_STEP_NS = 10_000_000
_KEY_AT = RECORD_HEADER_BYTES + KEY_OFFSET
_PAYLOAD_AT = RECORD_HEADER_BYTES + EVENT_BYTES


def epoch_offset_ns() -> int:
    """What to add to the kernel's CLOCK_MONOTONIC stamps; the best of a few readings."""
    readings = []
    for _ in range(16):
        before = time.monotonic_ns()
        now = time.time_ns()
        after = time.monotonic_ns()
        readings.append((after - before, now - (before + after) // 2))
    return min(readings)[1]


class Ring:
    """One worker's ring. Owns the mappings; the descriptor may be closed after construction."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._consumer = mmap.mmap(fd, PAGE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(fd, PAGE_BYTES + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE_BYTES)
        self._consumer_word = memoryview(self._consumer)[:8].cast("Q")
        self._producer_word = memoryview(self._data)[:8].cast("Q")
        self._mask = size_bytes - 1
        self._position: int = self._consumer_word[0]
        self.epoch_offset_ns = epoch_offset_ns()
        self.high_water_bytes = 0  # most that was ever waiting at a read

    def now_ns(self) -> int:
        """The present, in the clock of the segments."""
        return time.monotonic_ns() + self.epoch_offset_ns

    def follow_clock(self) -> None:
        """Take over a step of the wall clock; to be called now and then. Smaller differences are left, for they would
        only make times jitter."""
        offset_ns = epoch_offset_ns()
        if abs(offset_ns - self.epoch_offset_ns) > CLOCK_STEP_NS:
            self.epoch_offset_ns = offset_ns

    def waiting_bytes(self) -> int:
        """Bytes written by the kernel and not read yet."""
        return self._producer_word[0] - self._position

    def read(self, limit: int = BATCH_SEGMENTS) -> list[Segment]:
        """Up to `limit` segments, oldest first; what they held in the ring is free afterwards."""
        data, mask, offset_ns, unpack = self._data, self._mask, self.epoch_offset_ns, RECORD.unpack_from
        position = self._position
        producer = self._producer_word[0]
        if producer - position > self.high_water_bytes:
            self.high_water_bytes = producer - position
        out: list[Segment] = []
        append = out.append
        while position < producer and limit > 0:
            at = PAGE_BYTES + (position & mask)
            header, _, t_ns, seq, ack, length, captured, flags, key_bytes, _, resumed = unpack(data, at)
            if header & BUSY:
                break  # another CPU is still writing it
            position += (header & LENGTH_MASK) + RECORD_HEADER_BYTES + 7 & ~7
            if header & DISCARD:
                continue
            key_at, payload_at = at + _KEY_AT, at + _PAYLOAD_AT
            append(
                Segment(
                    t_ns + offset_ns,
                    data[key_at : key_at + key_bytes],
                    seq,
                    ack,
                    flags | resumed << 8,  # RESUMED_FLAG, PENDING_FLAG
                    data[payload_at : payload_at + captured],
                    length,
                )
            )
            limit -= 1
        self._position = position
        self._consumer_word[0] = position
        return out

    def close(self) -> None:
        """Unmap."""
        self._consumer_word.release()
        self._producer_word.release()
        self._consumer.close()
        self._data.close()
