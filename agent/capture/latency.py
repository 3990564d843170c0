"""How fast production answers, as the kernel program measures it (bpf/production.h), mirrored or not.

Two phases are counted apart, say with mirroring and without. `start` begins one anew, `pause` ends it: requests that
came in one phase and are answered in another are counted in neither. Owned by the tap; `Control.harm_ppm` says of
which flows.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from agent.capture.layout import (
    CONTROL_HARM_PHASE_AT,
    COUNTS,
    LATENCY_STEPS,
    LATENCY_UNIT_NS,
    PHASE_BITS,
    PHASE_PAUSED,
    PHASES,
)

_SIZE = -(-PHASES * COUNTS.size // mmap.PAGESIZE) * mmap.PAGESIZE
_GENERATIONS = 1 << 32 - PHASE_BITS


def bucket_bounds_ns(bucket: int) -> tuple[int, int]:
    """The times that a bucket holds: from the first, up to and without the second."""
    if bucket < LATENCY_STEPS:
        return bucket * LATENCY_UNIT_NS, (bucket + 1) * LATENCY_UNIT_NS
    power, step = divmod(bucket - LATENCY_STEPS, LATENCY_STEPS)
    width = LATENCY_UNIT_NS << power
    return (LATENCY_STEPS + step) * width, (LATENCY_STEPS + step + 1) * width


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was counted in one phase: `buckets[n]` answers took as long as `bucket_bounds_ns(n)` says, and so many of
    all were errors (status 500 and more; not seen inside TLS)."""

    buckets: tuple[int, ...]
    errors: int

    @property
    def count(self) -> int:
        """Answers."""
        return sum(self.buckets)

    def quantile(self, q: float) -> int | None:
        """The time in ns that a share `q` of the answers stayed below, taken as even within a bucket (which is 1/16 of
        its times wide); None without answers."""
        rank = q * self.count
        below = 0
        for bucket, count in enumerate(self.buckets):
            if count and below + count >= rank:
                low, high = bucket_bounds_ns(bucket)
                return low + round((high - low) * max(0.0, rank - below) / count)
            below += count
        return None


class ProductionLatency:
    """Says what is counted, and reads it. `control` is the mapped control block, of which one word is ours."""

    def __init__(self, control: mmap.mmap, counts_fd: int) -> None:
        """`counts_fd` is closed by `close`."""
        self._fd = counts_fd
        self._counts = mmap.mmap(counts_fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        self._words = memoryview(control)
        self._word = self._words[CONTROL_HARM_PHASE_AT : CONTROL_HARM_PHASE_AT + 4].cast("I")
        self._bases = [self._counted(phase) for phase in range(PHASES)]
        self.pause()

    def start(self, phase: int) -> None:
        """Count in phase 0 or 1 from now on; what it had is forgotten."""
        self.pause()  # first: nothing is to be counted between the base and the beginning
        self._bases[phase] = self._counted(phase)
        self._write(phase)

    def pause(self) -> None:
        """Count nothing until the next start; what was counted can still be read."""
        self._write(PHASE_PAUSED)

    def missed(self) -> None:
        """The program looked at nothing for a while: what it was waiting for may have come."""
        self._write(self._word[0] & (1 << PHASE_BITS) - 1)

    def read(self, phase: int) -> Histogram:
        """What was counted in a phase since its start."""
        now, base = self._counted(phase), self._bases[phase]
        *buckets, errors = (a - b for a, b in zip(now, base, strict=True))
        return Histogram(tuple(buckets), errors)

    def close(self) -> None:
        """Unmap, and let go of the descriptor."""
        self._word.release()
        self._words.release()
        self._counts.close()
        os.close(self._fd)

    def _counted(self, phase: int) -> tuple[int, ...]:
        return COUNTS.unpack_from(self._counts, phase * COUNTS.size)

    def _write(self, phase: int) -> None:
        """With one store, so that no request is counted in a phase that it was not in."""
        self._word[0] = ((self._word[0] >> PHASE_BITS) + 1) % _GENERATIONS << PHASE_BITS | phase
