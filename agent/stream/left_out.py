"""Goes on behind what the source left out on purpose: requests that no shadow wants, and their answers.

A segment with RESUMED_FLAG is the first one copied of its direction after something was left out. Such a hole is no
loss: nothing waits for it, and the bytes behind it begin a message. What was left out ends at the same moment in both
directions, with the client's segment: it acknowledges all that was answered before. So a client's segment resumes both
halves. A server's answers it; when it overtakes the client's in the ring, it waits for that like any answer.
"""

from __future__ import annotations

from agent.capture.layout import PENDING_FLAG
from agent.capture.segment import ACK, RST, SYN, Segment
from agent.stream.events import Event
from agent.stream.flow import Half, distance
from agent.stream.reassembly import WINDOW_BYTES, Reassembly

COPY_BYTES = 4 << 20  # how far behind of what was seen a segment may lie and still be a copy of something


def resume(reassembly: Reassembly, half: Half, segment: Segment, out: list[Event]) -> None:
    """Bring both halves to where the segment, which has RESUMED_FLAG, says that they go on."""
    flow, flags = half.flow, segment.flags
    # A SYN says more of where its half begins, behind an RST nothing does. Who the client is shows at the latest with
    # its first message; until then the first to come is taken for it.
    if flags & (SYN | RST) or flow.muted or flow.client is half.peer:
        return
    marks = [(half, segment.seq)]
    if flags & ACK and not half.peer.ended:
        marks.append((half.peer, segment.ack))
    flow.resumed = True
    pending = bool(flags & PENDING_FLAG)
    if pending and not half.joined and not flow.holds:
        flow.pending = 1  # the first that is seen of the connection, so there is no gap to say it
    reassembly.resume_at(flow, marks, segment.t_ns, out, pending=pending)


def begins_elsewhere(half: Half, segment: Segment) -> bool:
    """A segment with RESUMED_FLAG cannot go on where this half was, so it is of a later connection.

    Ahead may lie whatever was left out. Behind lie only copies of what was seen.
    """
    flow, seq = half.flow, segment.seq
    if flow.closed:
        return bool(segment.length)
    if flow.muted:
        return False
    if half.ended and segment.length and distance(seq, half.expected) >= 0:
        return True
    if segment.length and any(piece.fin and half.offset_of(seq) >= piece.end for piece in half.held):
        return True  # it has ended, too, but nothing was handed on yet
    return not _reachable(half, seq) or (bool(segment.flags & ACK) and not _reachable(half.peer, segment.ack))


def _reachable(half: Half, seq: int) -> bool:
    return not half.joined or -min(half.offset, COPY_BYTES) <= distance(seq, half.position) <= WINDOW_BYTES
