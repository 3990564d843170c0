"""Follows TCP connections: segments in, bytes in order out. Without I/O and without a clock.

Works without pure ACKs, which the live source does not deliver: the acknowledgements that matter ride on the segments
that carry payload, SYN, FIN or RST. Checksums are not looked at (offload makes them wrong on the sending host).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.capture.layout import RESUMED_FLAG
from agent.capture.segment import ACK, FIN, RST, SYN, Segment, source_port
from agent.stream.events import Chunk, End, EndReason, Event, Gap
from agent.stream.flow import SLOW, Flow, Half, distance
from agent.stream.left_out import COPY_BYTES, begins_elsewhere, resume
from agent.stream.limits import FlowCounters, FlowLimits
from agent.stream.reassembly import Reassembly
from agent.stream.table import FlowTable

_MASK = 0xFFFFFFFF
_CONTROL = SYN | FIN | RST | RESUMED_FLAG
_MAY_BEGIN = SYN | RESUMED_FLAG
RESET_WINDOW_BYTES = 4 << 20  # how far ahead of what was seen a believable RST may be
LATE_SYN_BYTES = 1 << 16  # a SYN this far behind the first bytes seen is disorder, not a new connection


class Flows:
    """All connections of one source.

    `server_ports` says which half is the client where exactly one of both ports is in it; else the SYN says it, else
    `flow.client` stays None and the next layer finds out.
    """

    __slots__ = ("_reassembly", "_server_ports", "_table", "counters", "now_ns")

    def __init__(self, limits: FlowLimits | None = None, server_ports: frozenset[int] = frozenset()) -> None:
        limits = limits or FlowLimits()
        self.counters = FlowCounters()
        self.now_ns = 0  # time of the last segment or expire
        self._server_ports = server_ports
        self._table = FlowTable(limits)
        self._reassembly = Reassembly(limits, self.counters)

    @property
    def open_flows(self) -> int:
        """Connections that are not over."""
        return len(self._table)

    @property
    def buffered_bytes(self) -> int:
        """Bytes in reorder buffers, their overhead included."""
        return self._reassembly.buffered_bytes

    def feed(self, segments: Iterable[Segment]) -> list[Event]:
        """Take segments in the order they were captured."""
        out: list[Event] = []
        emit, find, new = out.append, self._table.by_key.get, tuple.__new__
        for segment in segments:
            t_ns, key, seq, ack, flags, payload, length = segment
            half = find(key)
            # The common case: just what is expected, acknowledging just what was handed on. `new` saves the call of
            # NamedTuple's Python-level constructor.
            if half is not None and seq == half.next_seq and ack == half.peer.next_seq and not flags & _CONTROL:
                half.t_ns = t_ns
                offset = half.offset
                half.offset = offset + length
                half.next_seq = (seq + length) & _MASK
                kept = len(payload)
                if kept:
                    emit(new(Chunk, (half, offset, t_ns, payload)))
                if kept != length:
                    self._count_cut(length - kept)
                    emit(Gap(half, offset + kept, t_ns, length - kept))
            else:
                self._slow(segment, half, out)
        return out

    def expire(self, now_ns: int) -> list[Event]:
        """Give up idle connections and holes that waited long enough; `now_ns` is in the clock of the segments."""
        out: list[Event] = []
        self.now_ns = now_ns
        self._reassembly.expire(now_ns, out)
        for flow in self._table.idle(now_ns):
            self.counters.timed_out += 1
            self._end(flow, EndReason.TIMEOUT, now_ns, out)
            self._table.forget(flow)  # it may be used again, and a straggler comes sooner than this
        self._forget(now_ns)
        return out

    def finish(self) -> list[Event]:
        """The capture is over: hand on what is held and end every connection."""
        out: list[Event] = []
        for flow in self._table.open_flows():
            self._end(flow, EndReason.FINISH, flow.t_ns, out)
        return out

    def _count_cut(self, length: int) -> None:
        self.counters.gaps += 1
        self.counters.gap_bytes += length
        self.counters.cut_bytes += length

    def _slow(self, segment: Segment, half: Half | None, out: list[Event]) -> None:
        """Everything that is not just the next bytes of a connection in order."""
        flags = segment.flags
        if half is None:
            half = self._table.adopt(segment)
        if half is None or (flags & _MAY_BEGIN and self._begins_anew(half, segment)) or _lies_before(half, segment):
            if half is not None:
                self._replace(half.flow, segment.t_ns, out)
            half = self._open(segment, out)
            if half is None:
                return
        flow = half.flow
        if flow.closed or half.ended:
            self._count_straggler(flow)
            if not flags & RST or flow.closed:
                return
        flow.leave_fast_path()
        half.t_ns = segment.t_ns
        half.heard = True
        if flags & ACK:
            half.last_ack = segment.ack
        if flags & RESUMED_FLAG:
            resume(self._reassembly, half, segment, out)
        if flags & RST:
            self._reset(half, segment, out)
        else:
            self._take(half, segment, out)
        if flow.halves[0].ended and flow.halves[1].ended and not flow.closed:
            self._close(flow, segment.t_ns)
        flow.enter_fast_path()

    def _count_straggler(self, flow: Flow) -> None:
        if flow.closed:
            self.counters.after_end += 1
        else:
            self.counters.retransmitted += 1

    def _take(self, half: Half, segment: Segment, out: list[Event]) -> None:
        """SYN, payload, FIN."""
        flow, seq, flags = half.flow, segment.seq, segment.flags
        if flags & SYN:
            self._syn(half, segment)
            seq = (seq + 1) & _MASK
        if segment.length:
            if not flow.carries_data:
                self._activate(flow, segment.t_ns, out)
        elif not flags & FIN:
            self._reassembly.resume(flow, segment.t_ns, out)
            return
        if flow.muted:
            self._mute_along(half, segment, seq, out)
        elif not flow.closed:  # as the one that makes room for itself, when times go backwards
            self._reassembly.add(half, segment, seq, out)

    def _mute_along(self, half: Half, segment: Segment, seq: int, out: list[Event]) -> None:
        """A connection nobody wants: only its end matters, and where the sequence numbers are."""
        self.counters.muted += 1
        half.expected = (seq + segment.length) & _MASK
        if segment.flags & FIN:
            half.ended = True
            out.append(End(half, half.offset, segment.t_ns, EndReason.FIN))

    def _begins_anew(self, half: Half, segment: Segment) -> bool:
        """A SYN on a known key: True if it starts another connection, False for a copy or a latecomer.

        The same for the first segment behind what was left out, since a SYN may have been left out as well.
        """
        if not segment.flags & SYN:
            return begins_elsewhere(half, segment)
        if half.isn == segment.seq:
            self.counters.syn_repeated += 1
            return False
        if half.flow.closed or half.isn != SLOW:
            return True
        if not half.joined:
            ahead = distance(segment.seq + 1, half.expected)  # of what is held, the first
            return bool(half.held) and not -LATE_SYN_BYTES <= ahead <= 0
        if half.from_start:
            return half.expected != (segment.seq + 1) & _MASK and half.offset == 0
        behind = distance(half.expected, segment.seq + 1) - half.offset
        return not 0 <= behind <= LATE_SYN_BYTES

    def _syn(self, half: Half, segment: Segment) -> None:
        flow, flags = half.flow, segment.flags
        if half.isn != SLOW:
            return
        half.isn = segment.seq
        if not half.joined:
            self._reassembly.start(half, (segment.seq + 1) & _MASK)
            half.from_start = True
        if flags & ACK and not half.peer.joined:
            self._reassembly.start(half.peer, segment.ack)
            half.peer.from_start = True
        if flow.client is None:
            flow.client = half.peer if flags & ACK else half

    def _reset(self, half: Half, segment: Segment, out: list[Event]) -> None:
        """End the connection, unless the sequence number shows that the RST is not of this half (RFC 5961)."""
        ahead = distance(segment.seq, half.expected)
        believed = segment.flags & RESUMED_FLAG or -LATE_SYN_BYTES <= ahead <= RESET_WINDOW_BYTES
        if half.joined and half.offset and not believed:
            self.counters.reset_ignored += 1
            return
        self.counters.resets += 1
        self._reassembly.flush(half.flow, out)
        missing = distance(segment.seq, half.expected)
        if half.joined and not half.ended and not segment.flags & RESUMED_FLAG and 1 < missing <= RESET_WINDOW_BYTES:
            self._reassembly.skip_to(half, half.offset + missing, segment.t_ns, out)  # one byte may be a FIN
        self._end(half.flow, EndReason.RST, segment.t_ns, out, half)

    def _open(self, segment: Segment, out: list[Event]) -> Half | None:
        flags = segment.flags
        if flags & RST or not (segment.length or flags & SYN):
            self.counters.unopened += 1
            return None
        half = self._table.open(segment.key)
        flow = half.flow
        half.t_ns = segment.t_ns
        self.counters.flows += 1
        if self._server_ports:
            to, by = source_port(half.peer.key) in self._server_ports, source_port(half.key) in self._server_ports
            if to != by:
                flow.client = half if to else half.peer
        if (surplus := self._table.surplus_embryonic()) is not None:
            self.counters.evicted_embryonic += 1
            self._end(surplus, EndReason.EVICTED, segment.t_ns, out)
        return half

    def _activate(self, flow: Flow, t_ns: int, out: list[Event]) -> None:
        self._table.activate(flow)
        if (surplus := self._table.surplus_active()) is not None:
            self.counters.evicted += 1
            self._end(surplus, EndReason.EVICTED, t_ns, out)

    def _replace(self, flow: Flow, t_ns: int, out: list[Event]) -> None:
        if not flow.closed:
            self.counters.reused += 1
            self._end(flow, EndReason.REUSED, t_ns, out)

    def _end(self, flow: Flow, reason: EndReason, t_ns: int, out: list[Event], by: Half | None = None) -> None:
        """Hand on what is held, end both halves, close. `by` sent the RST, if one it was."""
        flow.leave_fast_path()
        self._reassembly.flush(flow, out)
        for half in flow.halves:
            if not half.ended:
                half.ended = True
                if flow.carries_data:
                    out.append(End(half, half.offset, t_ns, reason, by is half.peer))
        self._close(flow, t_ns)

    def _close(self, flow: Flow, t_ns: int) -> None:
        self._reassembly.drop(flow)
        self._table.close(flow, t_ns)
        self._forget(t_ns)

    def _forget(self, now_ns: int) -> None:
        self.counters.evicted_lingering += self._table.forget_lingering(now_ns)


def _lies_before(half: Half, segment: Segment) -> bool:
    """Bytes from before all that this half sent, or long before: the ports are used again, and the SYN was not seen."""
    if not segment.length or not half.joined or half.flow.closed:
        return False
    return distance(segment.seq, half.position) < -min(half.offset, COPY_BYTES) - LATE_SYN_BYTES
