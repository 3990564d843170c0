"""The flow table: finds the half a segment belongs to, and chooses what to give up when there are too many flows.

Flows are in one of three states, each with its own limit, so that a flood of one kind cannot push out another:
*embryonic* (only a SYN so far), *active* (carried data), *lingering* (closed, kept to recognise stragglers).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from agent.capture.segment import ACK, KEY_V4_BYTES, KEY_V6_BYTES, Segment, reverse
from agent.stream.flow import SLOW, Flow, Half, distance
from agent.stream.limits import FlowLimits

ADOPT_BYTES = 1 << 20  # how far an acknowledgement may be from what the other direction sent


class FlowTable:
    """Flows by key, and by how long they have been idle.

    Active flows lie in a heap by the time of the last segment *as it was when they were put there*; that time is
    looked up again when a flow comes to the top. So a segment costs nothing here, and the longest idle is found.
    """

    __slots__ = ("_active", "_active_count", "_embryonic", "_limits", "_lingering", "_number", "_unheard", "by_key")

    def __init__(self, limits: FlowLimits) -> None:
        self._limits = limits
        self._number = 0
        self._active: list[tuple[int, int, Flow]] = []
        self._active_count = 0
        self._embryonic: dict[Flow, None] = {}  # in the order they came
        self._lingering: deque[tuple[int, Flow]] = deque()
        self._unheard: dict[bytes, Half] = {}  # second halves, by their key without tags
        self.by_key: dict[bytes, Half] = {}

    def __len__(self) -> int:
        """Open flows: embryonic and active."""
        return len(self._embryonic) + self._active_count

    def open(self, key: bytes) -> Half:
        """A new flow; returns the half that sends with `key`. A flow with the same key is forgotten."""
        self._number += 1
        flow = Flow(self._number, key, reverse(key))
        for half in flow.halves:
            self.by_key[half.key] = half
        self._embryonic[flow] = None
        first, second = flow.halves
        self._unheard[untagged(second.key)] = second
        return first

    def adopt(self, segment: Segment) -> Half | None:
        """The half of a known flow that a segment with an unknown key belongs to, if it answers that flow.

        Where the capturing card strips VLAN tags in one direction only, both halves have different tags.
        """
        half = self._unheard.get(untagged(segment.key))
        if half is None or half.heard or half.flow.closed or not segment.flags & ACK:
            return None
        peer = half.peer
        position = peer.expected if peer.next_seq == SLOW else peer.next_seq
        if abs(distance(segment.ack, position)) > ADOPT_BYTES:
            return None
        self._release(half)
        half.key = segment.key
        self.by_key[half.key] = half
        return half

    def activate(self, flow: Flow) -> None:
        """The flow carries data."""
        flow.carries_data = True
        del self._embryonic[flow]
        self._active_count += 1
        heapq.heappush(self._active, (flow.t_ns, flow.number, flow))
        if len(self._active) > 2 * self._active_count + 64:
            self._active = [(f.t_ns, n, f) for _, n, f in self._active if not f.closed]
            heapq.heapify(self._active)

    def close(self, flow: Flow, now_ns: int) -> None:
        """The flow is over; it lingers if it carried data."""
        flow.closed = True
        if flow.carries_data:
            self._active_count -= 1
            self._lingering.append((now_ns, flow))
        else:
            del self._embryonic[flow]
            self.forget(flow)

    def surplus_embryonic(self) -> Flow | None:
        """The oldest flow without data, if there are more than the limit."""
        return next(iter(self._embryonic)) if len(self._embryonic) > self._limits.max_embryonic else None

    def surplus_active(self) -> Flow | None:
        """The longest idle flow that carried data, if there are more than the limit."""
        if self._active_count <= self._limits.max_flows:
            return None
        while True:
            t_ns, number, flow = heapq.heappop(self._active)
            if flow.closed:
                continue
            if flow.t_ns <= t_ns:
                return flow
            heapq.heappush(self._active, (flow.t_ns, number, flow))

    def forget_lingering(self, now_ns: int) -> int:
        """Let go of closed flows whose time is over; how many went early because of the limit."""
        early = max(0, len(self._lingering) - self._limits.max_lingering)
        for _ in range(early):
            self.forget(self._lingering.popleft()[1])
        while self._lingering and self._lingering[0][0] + self._limits.linger_ns < now_ns:
            self.forget(self._lingering.popleft()[1])
        return early

    def idle(self, now_ns: int) -> Iterator[Flow]:
        """Flows silent for too long; each must be closed before the next is asked for."""
        while self._embryonic:
            flow = next(iter(self._embryonic))
            if flow.t_ns + self._limits.embryonic_ns >= now_ns:
                break
            yield flow
        while self._active:
            t_ns, number, flow = self._active[0]
            if not flow.closed:
                if t_ns + self._limits.idle_ns >= now_ns:
                    break
                if flow.t_ns > t_ns:
                    heapq.heapreplace(self._active, (flow.t_ns, number, flow))
                    continue
            heapq.heappop(self._active)
            if not flow.closed:
                yield flow

    def open_flows(self) -> list[Flow]:
        """All embryonic and active flows, oldest first."""
        active = [flow for _, _, flow in self._active if not flow.closed]
        return sorted([*self._embryonic, *active], key=lambda flow: flow.number)

    def forget(self, flow: Flow) -> None:
        """Its segments open a flow again."""
        for half in flow.halves:
            self._release(half)

    def _release(self, half: Half) -> None:
        if self.by_key.get(half.key) is half:
            del self.by_key[half.key]
        key = untagged(half.key)
        if self._unheard.get(key) is half:
            del self._unheard[key]


def untagged(key: bytes) -> bytes:
    """A key without what tells networks apart."""
    return key[:KEY_V4_BYTES] if len(key) < KEY_V6_BYTES else key[:KEY_V6_BYTES]
