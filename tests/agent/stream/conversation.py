"""Makes segments of one TCP connection for the tests, and puts what comes out of Flows into comparable form."""

from __future__ import annotations

from collections.abc import Iterable

from agent.capture.segment import ACK, FIN, RST, SYN, Segment, reverse
from agent.stream.events import Chunk, End, Event, Gap
from agent.stream.flow import Half

CLIENT_KEY = bytes((10, 0, 0, 1, 192, 0, 2, 80)) + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big")
SERVER_KEY = reverse(CLIENT_KEY)
MASK = 0xFFFFFFFF
MS = 1_000_000


class Tcp:
    """Both ends of a connection with their initial sequence numbers; offsets are those of the streams."""

    def __init__(self, client_isn: int = 1000, server_isn: int = 9000, key: bytes = CLIENT_KEY) -> None:
        self.isn = (client_isn, server_isn)
        self.keys = (key, reverse(key))

    def make(
        self, side: int, offset: int, data: bytes = b"", t_ns: int = 1, ack: int | None = None, flags: int = 0,
        length: int | None = None,
    ) -> Segment:  # fmt: skip
        """A segment of `side` (0 client) at a stream offset that acknowledges the peer's offset `ack`."""
        seq = (self.isn[side] + 1 + offset - bool(flags & SYN)) & MASK
        number = (self.isn[1 - side] + 1 + ack) & MASK if ack is not None else 0
        flags |= ACK if ack is not None else 0
        return Segment(t_ns, self.keys[side], seq, number, flags, data, len(data) if length is None else length)

    def handshake(self, t_ns: int = 1) -> list[Segment]:
        """SYN and SYN-ACK."""
        return [self.make(0, 0, t_ns=t_ns, flags=SYN), self.make(1, 0, t_ns=t_ns, ack=0, flags=SYN)]

    def fin(self, side: int, offset: int, t_ns: int = 1, ack: int | None = 0) -> Segment:
        """FIN behind the byte before `offset`."""
        return self.make(side, offset, t_ns=t_ns, ack=ack, flags=FIN)

    def rst(self, side: int, offset: int, t_ns: int = 1) -> Segment:
        """RST at `offset`."""
        return self.make(side, offset, t_ns=t_ns, flags=RST)


def of(events: Iterable[Event], key: bytes) -> list[Event]:
    """The events of one direction."""
    return [event for event in events if event.half.key == key]


def text(events: Iterable[Event], key: bytes) -> list[bytes | int | str]:
    """One direction as bytes, lengths of gaps, and the reason of the end; adjacent bytes joined."""
    out: list[bytes | int | str] = []
    for event in of(events, key):
        if isinstance(event, Chunk):
            if out and isinstance(out[-1], bytes):
                out[-1] += event.data
            else:
                out.append(event.data)
        elif isinstance(event, Gap):
            out.append(event.length)
        else:
            out.append(str(event.reason))
    return out


def check_order(events: Iterable[Event]) -> None:
    """Offsets of each half are without holes or overlaps, and at most one End comes, last."""
    at: dict[int, int] = {}
    ended: set[int] = set()
    for event in events:
        half: Half = event.half
        assert id(half) not in ended
        assert event.offset == at.get(id(half), event.offset)
        if isinstance(event, Chunk):
            assert event.data
            at[id(half)] = event.offset + len(event.data)
        elif isinstance(event, Gap):
            assert event.length > 0
            at[id(half)] = event.offset + event.length
        elif isinstance(event, End):
            ended.add(id(half))
