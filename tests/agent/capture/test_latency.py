"""Production's latency from the kernel's counts: phases, buckets and quantiles."""

from __future__ import annotations

import mmap
import os
import random
import statistics
from bisect import bisect_right
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.latency import Histogram, ProductionLatency, bucket_bounds_ns
from agent.capture.layout import CONTROL_HARM_PHASE_AT, COUNTS, LATENCY_BUCKETS, LATENCY_STEPS, LATENCY_UNIT_NS, PHASES

US, MS = 1_000, 1_000_000
USED = 29 * LATENCY_STEPS  # buckets below 2**40 ns
LOWS = [bucket_bounds_ns(bucket)[0] for bucket in range(USED)]


class Kernel:
    """The maps, in memory of our own, and what the program does with them."""

    def __init__(self) -> None:
        self.control = mmap.mmap(-1, 4096)
        fd = os.memfd_create("counts")
        os.ftruncate(fd, 3 * 4096)
        self._counts = mmap.mmap(fd, 3 * 4096)
        self.latency = ProductionLatency(self.control, fd)

    @property
    def word(self) -> int:
        return int.from_bytes(self.control[CONTROL_HARM_PHASE_AT : CONTROL_HARM_PHASE_AT + 4], "little")

    def count(self, ns: int, error: bool = False) -> None:
        """An answer in the present phase."""
        phase = self.word & 3
        if phase < PHASES:
            *buckets, errors = COUNTS.unpack_from(self._counts, phase * COUNTS.size)
            buckets[bisect_right(LOWS, ns) - 1] += 1
            COUNTS.pack_into(self._counts, phase * COUNTS.size, *buckets, errors + error)

    def close(self) -> None:
        self.latency.close()
        self.control.close()
        self._counts.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def test_buckets_follow_each_other_and_none_is_wide() -> None:
    assert LOWS[0] == 0
    for bucket in range(USED):
        low, high = bucket_bounds_ns(bucket)
        assert high == bucket_bounds_ns(bucket + 1)[0]
        assert high - low == LATENCY_UNIT_NS or (high - low) * LATENCY_STEPS <= low
    assert bucket_bounds_ns(USED - 1)[1] == 1 << 40
    assert USED <= LATENCY_BUCKETS


def test_a_phase_is_begun_anew_and_the_other_stays(kernel: Kernel) -> None:
    kernel.count(MS)
    assert kernel.latency.read(0).count == 0, "it begins paused"
    kernel.latency.start(0)
    kernel.count(MS)
    kernel.count(MS, error=True)
    kernel.latency.start(1)
    kernel.count(9 * MS, error=True)
    kernel.latency.pause()
    kernel.count(MS)
    on, off = kernel.latency.read(0), kernel.latency.read(1)
    assert ((on.count, on.errors), (off.count, off.errors)) == ((2, 1), (1, 1))
    kernel.latency.start(0)
    assert (kernel.latency.read(0).count, kernel.latency.read(0).errors) == (0, 0)
    assert kernel.latency.read(1) == off


def test_every_change_is_a_generation(kernel: Kernel) -> None:
    words = {kernel.word}
    for change in (lambda: kernel.latency.start(0), lambda: kernel.latency.start(0), kernel.latency.pause):
        change()
        words.add(kernel.word)
    phase = kernel.word & 3
    kernel.latency.missed()
    words.add(kernel.word)
    assert (len(words), kernel.word & 3) == (5, phase)


def test_generations_go_around(kernel: Kernel) -> None:
    kernel.control[CONTROL_HARM_PHASE_AT : CONTROL_HARM_PHASE_AT + 4] = b"\xfe\xff\xff\xff"
    kernel.latency.start(1)
    assert kernel.word == 1 << 2 | 1


def test_what_was_counted_before_is_not_ours() -> None:
    """The counts of a kernel program outlive who reads them."""
    kernel = Kernel()
    kernel.latency.start(0)
    kernel.count(MS)
    again = ProductionLatency(kernel.control, os.dup(kernel.latency._fd))
    assert (again.read(0).count, kernel.word & 3) == (0, 2)
    again.close()
    kernel.close()


def test_quantiles_are_near_those_of_the_times(kernel: Kernel) -> None:
    rng = random.Random(1)
    times = [int(rng.lognormvariate(0, 0.6) * 3 * MS) for _ in range(2000)]
    kernel.latency.start(0)
    for ns in times:
        kernel.count(ns)
    found = kernel.latency.read(0)
    exact = statistics.quantiles(times, n=1000, method="inclusive")
    for q in (0.01, 0.5, 0.9, 0.99):
        assert (found.quantile(q) or 0) == pytest.approx(exact[round(q * 1000) - 1], rel=0.03), q


def test_a_quantile_of_nothing_is_none() -> None:
    assert Histogram((0,) * LATENCY_BUCKETS, 0).quantile(0.5) is None


@given(st.lists(st.integers(0, 1 << 41), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_lie_within_what_was_counted_and_in_order(times: list[int], a: float, b: float) -> None:
    buckets = [0] * LATENCY_BUCKETS
    for ns in times:
        buckets[bisect_right(LOWS, ns) - 1] += 1
    histogram = Histogram(tuple(buckets), 0)
    low, high = (histogram.quantile(q) for q in sorted((a, b)))
    used = [bucket for bucket, count in enumerate(buckets) if count]
    assert low is not None and high is not None
    assert bucket_bounds_ns(used[0])[0] <= low <= high <= bucket_bounds_ns(used[-1])[1]
