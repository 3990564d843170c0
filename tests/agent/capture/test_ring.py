"""Reading a ring, on a mapping made by hand (every offset and state) and on a real one of the kernel."""

from __future__ import annotations

import mmap
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture import kernel
from agent.capture.layout import BUSY, DISCARD, EVENT_BYTES, RECORD, RECORD_HEADER_BYTES
from agent.capture.ring import PAGE_BYTES, Ring, epoch_offset_ns
from agent.capture.segment import Segment

SIZE = 4096
KEY4, KEY6 = bytes(range(12)), bytes(range(36))


class HandMade:
    """A ring in memory of our own, laid out as the kernel does: the data appears twice."""

    def __init__(self, size: int = SIZE, start: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE_BYTES + 2 * size)
        self._size = size
        self._memory = mmap.mmap(self.fd, 2 * PAGE_BYTES + 2 * size)
        self.produced = start
        struct.pack_into("<Q", self._memory, 0, start)
        self._publish()

    def _publish(self) -> None:
        struct.pack_into("<Q", self._memory, PAGE_BYTES, self.produced)

    @property
    def consumed(self) -> int:
        position: int = struct.unpack_from("<Q", self._memory, 0)[0]
        return position

    def put(
        self, payload: bytes = b"", key: bytes = KEY4, bits: int = 0, length: int | None = None, seq: int = 7
    ) -> int:
        """Append a record; its position."""
        at, event_bytes = self.produced, EVENT_BYTES + len(payload)
        head = RECORD.pack(
            event_bytes | bits, 0, 1000 + seq, seq, 88, len(payload) if length is None else length, len(payload), 0x18,
            len(key), 1, 0,
        )  # fmt: skip
        self._write(at, (head + key).ljust(RECORD_HEADER_BYTES + EVENT_BYTES, b"\0") + payload)
        self.produced += RECORD_HEADER_BYTES + event_bytes + 7 & ~7
        self._publish()
        return at

    def set_header(self, at: int, header: int) -> None:
        self._write(at, struct.pack("<I", header))

    def _write(self, at: int, data: bytes) -> None:
        for number, byte in enumerate(data):
            place = 2 * PAGE_BYTES + (at + number) % self._size
            self._memory[place] = self._memory[place + self._size] = byte


def opened(made: HandMade) -> Ring:
    return Ring(made.fd, SIZE)


def plain(segments: list[Segment]) -> list[tuple[bytes, bytes, int]]:
    return [(s.key, s.payload, s.length) for s in segments]


def test_a_record_becomes_a_segment() -> None:
    made = HandMade()
    made.put(b"GET / HTTP/1.1\r\n\r\n", length=100)
    ring = opened(made)
    (segment,) = ring.read()
    assert (segment.key, segment.payload, segment.length) == (KEY4, b"GET / HTTP/1.1\r\n\r\n", 100)
    assert (segment.seq, segment.ack, segment.flags) == (7, 88, 0x18)
    assert abs(segment.t_ns - 1007 - epoch_offset_ns()) < 1_000_000_000
    assert made.consumed == made.produced
    assert ring.read() == []


def test_ipv6_and_empty_ones() -> None:
    made = HandMade()
    made.put(key=KEY6)
    made.put(b"x", key=KEY4)
    assert plain(opened(made).read()) == [(KEY6, b"", 0), (KEY4, b"x", 1)]


def test_what_is_still_being_written_ends_the_batch() -> None:
    made = HandMade()
    made.put(b"a")
    at = made.put(b"b", bits=BUSY)
    made.put(b"c")
    ring = opened(made)
    assert [s.payload for s in ring.read()] == [b"a"]
    assert ring.read() == []
    assert made.consumed == at
    made.set_header(at, EVENT_BYTES + 1)
    assert [s.payload for s in ring.read()] == [b"b", b"c"]


def test_discarded_records_are_passed_over() -> None:
    made = HandMade()
    made.put(b"a", bits=DISCARD)
    made.put(b"b")
    made.put(b"c", bits=DISCARD)
    ring = opened(made)
    assert [s.payload for s in ring.read()] == [b"b"]
    assert made.consumed == made.produced


def test_the_limit_leaves_the_rest_for_the_next_read() -> None:
    made = HandMade()
    for number in range(5):
        made.put(b"%d" % number)
    ring = opened(made)
    assert [s.payload for s in ring.read(2)] == [b"0", b"1"]
    assert 0 < ring.waiting_bytes() < ring.high_water_bytes
    assert [s.payload for s in ring.read(2)] == [b"2", b"3"]
    assert [s.payload for s in ring.read(2)] == [b"4"]
    assert ring.waiting_bytes() == 0


def test_a_new_reader_goes_on_where_the_last_one_stopped() -> None:
    made = HandMade(start=3 * SIZE + 128)
    made.put(b"first")
    made.put(b"second")
    one = opened(made)
    assert [s.payload for s in one.read(1)] == [b"first"]
    one.close()
    assert [s.payload for s in opened(made).read()] == [b"second"]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 1 << 40).map(lambda n: n * 8),
    st.lists(st.tuples(st.binary(max_size=900), st.sampled_from([KEY4, KEY6]), st.integers(1, 4)), max_size=30),
)
def test_records_go_around_the_end(start: int, records: list[tuple[bytes, bytes, int]]) -> None:
    """Whatever the sizes and the position: what is put in comes out, in order and whole."""
    made = HandMade(start=start)
    ring = opened(made)
    for payload, key, copies in records:
        made.put(payload, key)
        assert plain(ring.read(copies)) == [(key, payload, len(payload))]
        assert made.consumed == made.produced
    ring.close()
    os.close(made.fd)


@pytest.mark.root
def test_a_ring_of_the_kernel_can_be_mapped_and_is_empty() -> None:
    fd = kernel.create_ring(1 << 16)
    ring = Ring(fd, 1 << 16)
    os.close(fd)
    assert (ring.read(), ring.waiting_bytes(), ring.size_bytes) == ([], 0, 1 << 16)
    ring.close()


def test_the_kernel_never_sees_half_a_position() -> None:
    """Another process looks at the consumer's position while it is written again and again."""
    start = 0x0102_0304_0506_0000
    made = HandMade(start=start)
    ring = Ring(made.fd, SIZE)
    child = os.fork()
    if child == 0:
        for _ in range(100_000):
            ring.read()
        os._exit(0)
    with memoryview(made._memory)[:8].cast("Q") as word:
        seen = {word[0]}
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            seen.update([word[0] for _ in range(1000)])
    assert seen == {start}
