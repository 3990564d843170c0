"""State of one TCP connection and of its two directions; the rules that change it are in `reassembly` and `flows`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

SLOW = -1  # in place of a sequence number: no segment equals it, so every segment takes the slow path
_MASK = 0xFFFFFFFF
_SIGN = 0x80000000


def distance(seq: int, reference: int) -> int:
    """How far `seq` lies ahead of `reference` (behind: negative), both 32-bit and wrapping (RFC 9293 section 3.4)."""
    return ((seq - reference + _SIGN) & _MASK) - _SIGN


class Held(NamedTuple):
    """A segment in a half's reorder buffer, cut to the bytes that no earlier copy has brought. Orders by offset."""

    offset: int
    end: int  # offset behind its last byte on the wire; more than offset + len(data) when the copy was cut
    t_ns: int
    data: bytes
    ack: int  # acknowledgement number, SLOW without ACK
    fin: bool
    resumed: bool  # what is missing right before it was left out on purpose


def uncovered(piece: Held, held: list[Held]) -> list[Held]:
    """The parts of a piece that no piece in `held` covers."""
    out: list[Held] = []
    at = piece.offset
    for other in held[max(bisect_left(held, piece._replace(end=0)) - 1, 0) :]:
        if other.offset >= piece.end:
            break
        if other.end <= at:
            continue
        if other.offset > at:
            out.append(_part(piece, at, other.offset))
        at = other.end
    if at < piece.end or (piece.fin and at == piece.end and not any(h.fin for h in held)):
        out.append(_part(piece, at, piece.end))
    return out


def _part(piece: Held, start: int, end: int) -> Held:
    data = piece.data[start - piece.offset : end - piece.offset]
    fin, resumed = piece.fin and end == piece.end, piece.resumed and start == piece.offset
    return Held(start, end, piece.t_ns, data, piece.ack, fin, resumed)


class Half:
    """One direction of a flow.

    While nothing is unusual `next_seq` is the sequence number of the byte at `offset`, and `expected` is stale; in all
    other times `next_seq` is SLOW. `reader` belongs to the layer above, which keeps its own state of this half there.
    """

    __slots__ = (
        "acked", "ended", "expected", "flow", "from_start", "heard", "held", "held_bytes", "isn", "joined", "key",
        "lacks_ns", "last_ack", "next_seq", "offset", "peer", "reader", "t_ns",
    )  # fmt: skip

    def __init__(self, flow: Flow, key: bytes) -> None:
        self.flow = flow
        self.peer: Half = self  # Flow sets it right after
        self.key = key
        self.next_seq = SLOW
        self.expected = 0  # sequence number of the byte at `offset`
        self.offset = 0  # everything below was handed on
        self.isn = SLOW  # of the SYN, once seen, or what stands for it
        self.joined = False  # `expected` is settled: by a SYN, or chosen when joining in the middle
        self.from_start = False  # offset 0 is the first byte of the connection, or of the first message not left out
        self.heard = False  # a segment of this half was captured
        self.ended = False
        self.acked = 0  # offset up to which those segments of the peer that were handed on acknowledge
        self.lacks_ns = 0  # time of the peer's first segment handed on before all that it acknowledges; 0: none was
        self.last_ack = SLOW  # acknowledgement number on the last segment of this half, handed on or not
        self.held: list[Held] = []
        self.held_bytes = 0
        self.t_ns = 0  # time of the last segment
        self.reader: Any = None  # what it is, the layer above knows

    def offset_of(self, seq: int) -> int:
        """Stream offset of a sequence number."""
        return self.offset + distance(seq, self.expected)

    @property
    def position(self) -> int:
        """Sequence number of the byte at `offset`, on the fast path and off it."""
        return self.expected if self.next_seq == SLOW else self.next_seq

    def rebased(self, expected: int) -> list[Held]:
        """What is held, with offsets from sequence number `expected`; nothing from before it."""
        shift = distance(self.expected, expected)
        moved = [h._replace(offset=h.offset + shift, end=h.end + shift) for h in self.held]
        return [h for h in moved if h.offset >= 0]

    def advance(self, end: int) -> None:
        """Everything below offset `end` was handed on."""
        self.expected = (self.expected + end - self.offset) & _MASK
        self.offset = end


class Flow:
    """Both directions of one connection. `client` is the half that sends requests, None until somebody knows."""

    __slots__ = (
        "carries_data", "client", "closed", "halves", "muted", "number", "pending", "resumed", "stall_segments",
        "stall_t_ns",
    )  # fmt: skip

    def __init__(self, number: int, key: bytes, reverse_key: bytes) -> None:
        self.number = number
        first, second = Half(self, key), Half(self, reverse_key)
        first.peer, second.peer = second, first
        self.halves = (first, second)
        self.client: Half | None = None
        self.carries_data = False
        self.closed = False
        self.muted = False
        self.resumed = False  # messages of it were left out by the source
        self.pending = 0  # answers still to come that belong to requests which the source left out
        self.stall_t_ns = 0  # since when something waits only for disorder to resolve; 0: nothing does
        self.stall_segments = 0  # segments of this flow since then

    @property
    def t_ns(self) -> int:
        """Time of the last segment of either direction."""
        return max(self.halves[0].t_ns, self.halves[1].t_ns)

    @property
    def holds(self) -> bool:
        """Some segment waits in a reorder buffer."""
        return bool(self.halves[0].held or self.halves[1].held)

    @property
    def waiting_since(self) -> int:
        """Time of the first piece of either reorder buffer; there must be one."""
        return min(half.held[0].t_ns for half in self.halves if half.held)

    def oldest(self, wanted: Callable[[Half], bool]) -> Half | None:
        """Of the halves that are wanted, all of which hold something, the one whose first piece was captured first."""
        first, second = self.halves
        if not wanted(first):
            return second if wanted(second) else None
        if not wanted(second):
            return first
        return first if first.held[0].t_ns <= second.held[0].t_ns else second

    def mute(self) -> None:
        """Ask for no more chunks and gaps of this flow (it is not HTTP); its End events still come."""
        self.muted = True
        self.leave_fast_path()

    def leave_fast_path(self) -> None:
        """Bring `expected` up to date and send what follows to the slow path."""
        for half in self.halves:
            if half.next_seq != SLOW:
                half.expected = half.next_seq
                half.next_seq = SLOW

    def enter_fast_path(self) -> None:
        """Let segments that are just what is expected pass without more ado, if nothing forbids it."""
        first, second = self.halves
        if first.held or second.held or not self.carries_data or self.muted or self.closed:
            return
        for half in self.halves:
            if half.joined and not half.ended:
                half.next_seq = half.expected
