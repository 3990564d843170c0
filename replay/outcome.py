"""Makes the outcome of one request from what a connection knows when it is over."""

from __future__ import annotations

from replay.balancer.upstream import Upstream
from replay.exchange import Answer, Outcome
from replay.response import ResponseReader
from replay.tls import TlsInfo
from replay.via import take_off


def make_outcome(
    upstream: Upstream,
    reader: ResponseReader,
    tls: TlsInfo | None,
    t_queued_ns: int,
    t_sent_ns: int,
    answer: Answer,
    detail: str,
) -> Outcome:
    """What was answered. A balancer program's word on which upstream it chose is taken off the head."""
    name, head, queue_ns, connect_ns = upstream.name, reader.head, -1, -1
    transport = upstream.transport
    if head and transport.via_header:
        head, value = take_off(head, transport.via_header)
        via = transport.read_via(value) if value is not None and transport.read_via is not None else None
        if via is not None:
            name, queue_ns, connect_ns = via.upstream or name, via.queue_ns, via.connect_ns
    return Outcome(
        answer,
        name,
        reader.status,
        head,
        reader.body,
        reader.body_bytes,
        t_queued_ns,
        t_sent_ns,
        reader.t_first_ns,
        reader.t_last_ns,
        detail,
        queue_ns,
        connect_ns,
        f"{tls.protocol} {tls.cipher}" if tls else "",
        tls.not_after_s if tls else 0,
    )


def so_far(reader: ResponseReader) -> str:
    """How far a response had come, for a person."""
    if not reader.started:
        return "before any response"
    return f"after {reader.body_bytes} bytes of content" if reader.status else "inside the response head"
