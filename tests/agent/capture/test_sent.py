"""Reading when requests left, on slots made by hand: every state that the kernel can leave them in."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator

import pytest

from agent.capture import sent
from agent.capture.layout import SENT_KEY_AT, SENT_SLOT_BYTES, SENT_SLOTS
from agent.capture.ring import epoch_offset_ns
from agent.capture.sent import SLACK_NS, SentTimes
from agent.select.sampling import flow_hash

KEY4, KEY6 = bytes(range(12)), bytes(range(36))
US = 1000


class Slots:
    """The map, in memory of our own."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("slots")
        os.ftruncate(self.fd, SENT_SLOTS * SENT_SLOT_BYTES)
        self._memory = mmap.mmap(self.fd, SENT_SLOTS * SENT_SLOT_BYTES)
        self.times = SentTimes(self.fd)
        self.offset_ns = self.times._offset_ns

    def put(self, key: bytes, first_ns: int, last_ns: int, version: int = 4) -> None:
        """What the kernel wrote, in the wall clock's time."""
        times = (t_ns - self.offset_ns if t_ns else 0 for t_ns in (first_ns, last_ns))
        slot = struct.pack("<QQI", *times, version).ljust(SENT_KEY_AT, b"\xee") + key.ljust(36, b"\0")
        at = flow_hash(key, 0) % SENT_SLOTS * SENT_SLOT_BYTES
        self._memory[at + 16 : at + 20] = b"\xff\xff\xff\xff"  # odd
        self._memory[at : at + 16] = slot[:16]
        self._memory[at + 20 : at + SENT_SLOT_BYTES] = slot[20:]
        self._memory[at + 16 : at + 20] = slot[16:20]

    def close(self) -> None:
        self.times.close()
        self._memory.close()
        os.close(self.fd)


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots()
    yield made
    made.close()


@pytest.mark.parametrize("key", [KEY4, KEY6])
def test_the_first_segment_that_can_be_the_requests_counts(slots: Slots, key: bytes) -> None:
    now = time.time_ns()
    slots.put(key, now + 30 * US, now + 90 * US)
    assert slots.times.sent_ns(key, now) == now + 30 * US
    assert slots.times.sent_ns(key, now + 50 * US) == now + 90 * US, "the first was, say, a handshake's"
    assert slots.times.sent_ns(key, now + 100 * US) == 0, "the request has not left yet"


def test_clocks_that_disagree_a_little_do_not_turn_time_around(slots: Slots) -> None:
    now = time.time_ns()
    slots.put(KEY4, now - SLACK_NS, now - SLACK_NS)
    assert slots.times.sent_ns(KEY4, now) == now
    slots.put(KEY4, now - SLACK_NS - 1, now - SLACK_NS - 1)
    assert slots.times.sent_ns(KEY4, now) == 0


def test_what_is_not_about_this_connection_is_not_taken(slots: Slots) -> None:
    now = time.time_ns()
    assert slots.times.sent_ns(KEY4, now) == 0
    slots.put(KEY4, 0, 0)
    assert slots.times.sent_ns(KEY4, 0) == 0
    slots.put(KEY4, now, now)
    at = flow_hash(KEY4, 0) % SENT_SLOTS * SENT_SLOT_BYTES
    slots._memory[at + SENT_KEY_AT] ^= 1
    assert slots.times.sent_ns(KEY4, now) == 0


def test_what_is_being_written_is_not_taken(slots: Slots) -> None:
    now = time.time_ns()
    slots.put(KEY4, now, now, version=5)
    assert slots.times.sent_ns(KEY4, now) == 0


def test_what_changes_while_it_is_read_is_not_taken(slots: Slots) -> None:
    """Another process writes as the kernel does; a reading is one of the states in between, never a mixture."""
    base = time.time_ns()
    slots.put(KEY4, base, base)
    child = os.fork()
    if child == 0:
        for n in range(1, 20_000):
            slots.put(KEY4, base + n * US, base + n * US, version=2 * n)
        os._exit(0)
    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen.update(slots.times.sent_ns(KEY4, base) for _ in range(100))
    assert all((t_ns - base) % US == 0 for t_ns in seen if t_ns)


def test_a_step_of_the_wall_clock_is_followed(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    slots.put(KEY4, now, now)
    for step_ns, told_ns in ((10 * US, 10 * US), (10 * US + 500, 10 * US), (-70_000 * US, -70_000 * US)):
        monkeypatch.setattr(sent, "epoch_offset_ns", lambda step_ns=step_ns: slots.offset_ns + step_ns)
        slots.times.follow_clock()
        assert slots.times.sent_ns(KEY4, now - 100_000 * US) == now + told_ns
    assert abs(epoch_offset_ns() - slots.offset_ns) < 1_000_000_000


def test_what_is_remembered_of_connections_is_bounded(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent, "PLACES_MAX", 10)
    now = time.time_ns()
    for n in range(100):
        key = n.to_bytes(12, "big")
        slots.put(key, now + n, now + n)
        assert slots.times.sent_ns(key, now) == now + n
        assert len(slots.times._places) <= 10


def test_the_descriptor_may_be_closed(slots: Slots) -> None:
    times = SentTimes(slots.fd)
    now = time.time_ns()
    slots.put(KEY4, now, now)
    os.close(slots.fd)
    slots.fd = os.memfd_create("another")
    assert abs(times.sent_ns(KEY4, now - US) - now) < 100 * US
    times.close()
