"""The pipeline over a capture file: what the live worker does with a ring, without the ring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from agent.capture.segment import Segment
from agent.http.pairing import Pairing
from agent.stream.flows import Flows
from replay.exchange import Exchange

EXPIRE_EVERY_NS = 1_000_000_000  # of capture time


class Source(Protocol):
    """A capture file, or a part of one."""

    @property
    def now_ns(self) -> int:
        """Capture time of the last packet read."""

    def batches(self) -> Iterator[list[Segment]]:
        """Segments in file order."""


def read_exchanges(source: Source, flows: Flows, pairing: Pairing) -> Iterator[tuple[list[Exchange], list[Exchange]]]:
    """Yield (ready, finished) for each batch of packets, and for the end of the capture."""
    expired_ns = 0
    for segments in source.batches():
        yield pairing.feed(flows.feed(segments))
        if abs(source.now_ns - expired_ns) >= EXPIRE_EVERY_NS:  # also when the clock was set back
            expired_ns = source.now_ns
            yield pairing.feed(flows.expire(source.now_ns))
    yield pairing.feed(flows.finish())
