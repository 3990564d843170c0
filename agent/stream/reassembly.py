"""Puts the segments of one flow in order. The common case never comes here: `Flows.feed` hands it on at once.

Theory of operation. Each half has a reorder buffer of `Held` pieces, sorted, without overlaps: what an earlier copy
brought is cut from a later one. The first piece is handed on when two things hold:

- nothing is missing before it, or the peer acknowledged what is missing (then it will not be sent again: a Gap), or
  the source says that it left out what is missing;
- whatever it acknowledges was handed on too. So a response never overtakes its request, even when the capture is in
  disorder; and when the request was lost, the Gap for it comes first.

Where only disorder of the capture can help (the missing bytes are acknowledged, or a half is joined in the middle and
its earliest byte not certain), it *stalls*: for `slack_segments` more segments of the flow, or `slack_ns`. Then the
gate is forced. A hole that nobody acknowledged waits for its retransmission, up to `hole_ns` or the buffer limits.
Times may step when somebody sets the clock: as much time backward ends the waiting as well, or it could last for hours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from agent.capture.layout import RESUMED_FLAG
from agent.capture.segment import ACK, FIN, Segment
from agent.stream.events import Chunk, End, EndReason, Event, Gap
from agent.stream.flow import SLOW, Flow, Half, Held, distance, uncovered
from agent.stream.limits import FlowCounters, FlowLimits

WINDOW_BYTES = 1 << 30  # the largest window TCP can announce (RFC 7323 section 2.3)
HELD_OVERHEAD_BYTES = 256  # what a piece costs beside its bytes, so that tiny pieces are limited too


class Reassembly:
    """The reorder buffers of all flows; `buffered_bytes` is what they hold."""

    __slots__ = ("_counters", "_holding", "_limits", "buffered_bytes")

    def __init__(self, limits: FlowLimits, counters: FlowCounters) -> None:
        self._limits = limits
        self._counters = counters
        self._holding: dict[Flow, None] = {}
        self.buffered_bytes = 0

    def add(self, half: Half, segment: Segment, seq: int, out: list[Event]) -> None:
        """Take a segment whose first payload byte has sequence number `seq`, and hand on what can be."""
        flow = half.flow
        if self._hold(half, segment, seq):
            self._drain(flow, out)
            if flow.holds:
                self._contain(half, segment.t_ns, out)
            else:
                self._settle(flow)

    def resume(self, flow: Flow, t_ns: int, out: list[Event]) -> None:
        """Something else than a new piece (a SYN, an acknowledgement) may have ended the waiting."""
        if flow.holds:
            self._drain(flow, out)
            self._wait(flow, t_ns, out)

    def expire(self, now_ns: int, out: list[Event]) -> None:
        """Give up waiting where it has been long enough."""
        for flow in list(self._holding):
            self._wait(flow, now_ns, out)

    def flush(self, flow: Flow, out: list[Event]) -> None:
        """Hand on all that is held, with gaps for what is missing; what nothing else orders, in order of time."""
        self._force(flow, out)
        while (half := flow.oldest(lambda h: bool(h.held))) is not None:
            self._pass_forced(half, out)
            self._drain(flow, out)
        self._settle(flow)

    def start(self, half: Half, expected: int) -> None:
        """Settle that `expected` is the sequence number of the half's first byte (known from a SYN)."""
        kept = half.rebased(expected)
        self._clear(half)
        for piece in kept:
            half.held.append(piece)
            self._account(half, len(piece.data) + HELD_OVERHEAD_BYTES)
        half.expected = expected
        half.joined = True

    def resume_at(
        self, flow: Flow, marks: Sequence[tuple[Half, int]], t_ns: int, out: list[Event], *, pending: bool
    ) -> None:
        """Each half goes on at its sequence number: what is missing right before it was left out on purpose.

        What is held from before is handed on, what is held from there on stays. `pending`: see Gap; the first mark is
        the client's.
        """
        for half, seq in marks:
            if not half.joined:
                self._join_at(half, seq)
        ends = {half: half.offset_of(seq) for half, seq in marks}
        while (early := flow.oldest(lambda h: bool(h.held) and h.held[0].offset < ends.get(h, 0))) is not None:
            self._pass(early, out)
        for half, end in ends.items():
            if end > half.offset and not half.ended:
                self._gap(Gap(half, half.offset, t_ns, end - half.offset, True, pending and half is marks[0][0]), out)
                half.advance(end)

    def _join_at(self, half: Half, seq: int) -> None:
        if half.held and distance(half.expected + half.held[0].offset, seq) < 0:
            self._join(half)
            return
        self.start(half, seq)
        half.from_start = True
        half.isn = (seq - 1) & 0xFFFFFFFF  # so that the SYN of another connection shows that it is another

    def drop(self, flow: Flow) -> None:
        """Forget what is held."""
        for half in flow.halves:
            self._clear(half)
        self._settle(flow)

    def _clear(self, half: Half) -> None:
        self.buffered_bytes -= half.held_bytes
        half.held_bytes = 0
        half.held = []

    def _hold(self, half: Half, segment: Segment, seq: int) -> bool:
        """Put what is new of a segment into the buffer; False if nothing is."""
        if not half.joined and not half.held:
            half.expected = seq
        t_ns, _, _, ack, flags, data, length = segment
        offset = half.offset_of(seq)
        end, fin = offset + length, bool(flags & FIN)
        if abs(offset - half.offset) > WINDOW_BYTES:
            self._counters.out_of_window += 1
            return False
        if half.joined and offset < half.offset:
            if end < half.offset or (end == half.offset and not fin):
                self._counters.retransmitted += 1
                return False
            data = data[half.offset - offset :]
            offset = half.offset
        piece = Held(offset, end, t_ns, data, ack if flags & ACK else SLOW, fin, bool(flags & RESUMED_FLAG))
        held = half.held
        pieces = [piece] if not held or held[-1].end <= offset else uncovered(piece, held)
        if len(pieces) != 1 or pieces[0] is not piece:
            self._counters.overlapped += 1
        for new in pieces:
            held.insert(bisect_left(held, new), new)
            self._account(half, len(new.data) + HELD_OVERHEAD_BYTES)
        return bool(pieces)

    def _account(self, half: Half, size: int) -> None:
        half.held_bytes += size
        self.buffered_bytes += size

    def _drain(self, flow: Flow, out: list[Event]) -> None:
        """Hand on what may be, until neither half moves."""
        first, second = flow.halves
        moved = True
        while moved:
            moved = False
            while first.held and _free(first):
                self._pass(first, out)
                moved = True
            while second.held and _free(second):
                self._pass(second, out)
                moved = True

    def _pass(self, half: Half, out: list[Event]) -> None:
        """Hand on the first piece, with a gap before it if bytes are missing."""
        offset, end, t_ns, data, ack, fin, resumed = half.held.pop(0)
        self._account(half, -(len(data) + HELD_OVERHEAD_BYTES))
        if half.ended:
            return
        silent = half.flow.muted
        if offset > half.offset:
            self._gap(Gap(half, half.offset, t_ns, offset - half.offset, resumed), out)
        if data and not silent:
            out.append(Chunk(half, offset, t_ns, data))
            self._counters.chunks += 1
        if offset + len(data) < end:
            self._counters.cut_bytes += end - offset - len(data)
            self._gap(Gap(half, offset + len(data), t_ns, end - offset - len(data)), out)
        half.advance(end)
        if ack != SLOW:
            peer = half.peer
            peer.acked = peer.offset_of(ack)
            if not peer.lacks_ns and peer.acked > peer.offset + peer.ended:  # a FIN counts as one byte
                peer.lacks_ns = t_ns
        if fin:
            half.ended = True
            self._clear(half)
            out.append(End(half, end, t_ns, EndReason.FIN))

    def _gap(self, gap: Gap, out: list[Event]) -> None:
        if gap.half.flow.muted:
            return
        counters = self._counters
        if gap.left_out:
            counters.left_out += 1
            counters.left_out_bytes += gap.length
        else:
            counters.gaps += 1
            counters.gap_bytes += gap.length
        out.append(gap)

    def _contain(self, half: Half, t_ns: int, out: list[Event]) -> None:
        """Something has to wait: see that it does not wait too long, nor take too much."""
        flow, limits = half.flow, self._limits
        self._holding[flow] = None
        self._counters.out_of_order += 1
        if flow.stall_t_ns:
            flow.stall_segments += 1
        if half.held_bytes > limits.half_buffer_bytes:
            self._counters.half_buffer_full += 1
            self.flush(flow, out)
        elif self.buffered_bytes > limits.total_buffer_bytes:
            self._counters.total_buffer_full += 1
            self.flush(flow, out)
        else:
            self._wait(flow, t_ns, out)

    def _wait(self, flow: Flow, now_ns: int, out: list[Event]) -> None:
        limits = self._limits
        if not flow.holds:
            self._settle(flow)
        elif flow.oldest(_stalled) is None:
            flow.stall_t_ns = 0
            if abs(now_ns - flow.waiting_since) > limits.hole_ns:
                self._counters.hole_timeout += 1
                self.flush(flow, out)
        elif not flow.stall_t_ns:
            flow.stall_t_ns, flow.stall_segments = flow.waiting_since, 0
        elif flow.stall_segments >= limits.slack_segments or abs(now_ns - flow.stall_t_ns) >= limits.slack_ns:
            self._counters.slack_used += 1
            self._force(flow, out)
        if not flow.holds:
            self._settle(flow)

    def _force(self, flow: Flow, out: list[Event]) -> None:
        """The slack is over: what is acknowledged and still missing is lost; a half that is joined begins."""
        while (half := flow.oldest(_stalled)) is not None:
            if not half.joined:
                for each in flow.halves:  # both at once, so that neither overtakes the other
                    if each.held and not each.joined:
                        self._join(each)
            else:
                self._pass_forced(half, out)
            self._drain(flow, out)
        flow.stall_t_ns = 0

    def _pass_forced(self, half: Half, out: list[Event]) -> None:
        """Give up what keeps the first piece: a hole before it; or, without one, what it acknowledges, and hand it on.

        A hole is a gap of its own, because the piece behind it may have to wait for the peer.
        """
        first = half.held[0]
        if first.offset > half.offset and not first.resumed:
            self.skip_to(half, first.offset, first.t_ns, out)
            return
        if first.ack != SLOW:
            self._pass_acknowledged(half.peer, first, out)
        self._pass(half, out)

    def _pass_acknowledged(self, half: Half, by: Held, out: list[Event]) -> None:
        """Before a piece of the peer goes what it acknowledges, with gaps for what never came.

        So whoever pairs requests with responses knows of a lost request when its response comes. No gap are a byte
        alone, which may be a FIN, and what lies before a resumed piece: most of it may have been left out on purpose.
        """
        half.acked = half.offset_of(by.ack)
        while True:
            while half.held and half.held[0].offset < half.acked and _free(half):
                self._pass(half, out)
            end = min(half.acked, half.held[0].offset) if half.held else half.acked
            least = 1 if half.held else 2
            if not half.joined or half.ended or by.resumed or not least <= end - half.offset <= WINDOW_BYTES:
                return
            self.skip_to(half, end, by.t_ns, out)

    def skip_to(self, half: Half, offset: int, t_ns: int, out: list[Event]) -> None:
        """What is missing before `offset`, where something may be held, will not come."""
        self._gap(Gap(half, half.offset, t_ns, offset - half.offset), out)
        half.advance(offset)

    def _join(self, half: Half) -> None:
        """Begin in the middle, with the earliest byte at hand."""
        self._counters.midstream += 1
        self.start(half, (half.expected + half.held[0].offset) & 0xFFFFFFFF)

    def _settle(self, flow: Flow) -> None:
        flow.stall_t_ns = 0
        self._holding.pop(flow, None)


def _free(half: Half) -> bool:
    """The first piece can be handed on: see the theory above."""
    first, peer = half.held[0], half.peer
    if not half.joined or (first.offset > half.offset and not first.resumed and half.acked < first.offset):
        return False
    if first.ack == SLOW or not peer.heard or peer.ended:
        return True
    return peer.offset_of(first.ack) <= peer.offset if peer.joined else not peer.held


def _stalled(half: Half) -> bool:
    """The first piece waits, and only disorder of the capture can still help."""
    if not half.held:
        return False
    if not half.joined:
        return True
    first, peer = half.held[0], half.peer
    if first.offset <= half.offset or first.resumed:
        return not _free(half)
    return peer.last_ack != SLOW and half.offset_of(peer.last_ack) >= first.offset
