"""What reassembly says of a flow: bytes in order, bytes known to be missing, and the end of a direction.

Events of one half come with rising offsets and without holes between them: a missing stretch is a Gap, also one that
the source left out because nobody wants it. Events of both halves of a flow come in an order that could have happened:
bytes that answer others come after them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agent.stream.flow import Half


class EndReason(StrEnum):
    """Why nothing more comes from a half."""

    FIN = "fin"  # closed in order
    RST = "rst"  # reset by either side
    TIMEOUT = "timeout"  # silent for longer than the limit
    EVICTED = "evicted"  # given up because the flow table was full
    REUSED = "reused"  # the same addresses and ports began a new connection
    FINISH = "finish"  # the capture ended


class Chunk(NamedTuple):
    """Bytes in order. `t_ns` is when they were captured, also if they then waited for earlier ones."""

    half: Half
    offset: int  # of the first byte in the half's stream; 64 bits, so it does not wrap
    t_ns: int
    data: bytes


class Gap(NamedTuple):
    """`length` bytes that were sent and not captured; `t_ns` is when what follows them was captured."""

    half: Half
    offset: int
    t_ns: int
    length: int
    left_out: bool = False  # on purpose, and nothing else: messages that nobody wants; what follows begins one
    pending: bool = False  # besides: the next answer still belongs to what was left out


class End(NamedTuple):
    """Nothing more comes from this half; exactly one for each half that is in the flow table."""

    half: Half
    offset: int
    t_ns: int
    reason: EndReason
    by_peer: bool = False  # the RST that ended this half was sent by the other


Event = Chunk | Gap | End
