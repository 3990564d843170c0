"""What parsing may keep, and the counters of what it met and of what it gave up."""

from __future__ import annotations

from dataclasses import dataclass, fields

from replay.http1 import HEAD_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Each limit has a counter of the times it was hit."""

    body_limit_bytes: int = 1 << 20  # kept of one message's content; the rest is counted
    head_limit_bytes: int = HEAD_LIMIT_BYTES
    hash_bodies: bool = False  # SHA-1 of contents larger than body_limit_bytes
    proxy_protocol: bool = False  # connections begin with a PROXY header, which names the client
    max_pipelined: int = 128  # requests of one connection that wait for their response
    max_interim: int = 16  # 1xx responses of one exchange that are kept; the rest is counted
    total_kept_bytes: int = 64 << 20  # heads, contents and overhead of all exchanges that are not finished


@dataclass(slots=True)
class HttpCounters:
    """Counts since the start."""

    connections: int = 0  # that showed any data
    tls: int = 0  # connections that speak TLS
    http2: int = 0  # connections that speak HTTP/2 from the start
    not_http: int = 0  # connections that speak something else
    not_http_server: int = 0  # HTTP/1.x was asked and something else answered
    proxy_headers: int = 0  # PROXY headers read
    undecided_bytes: int = 0  # came before it was known who is the client
    requests: int = 0  # whole
    responses: int = 0  # whole
    interim: int = 0
    orphans: int = 0  # final responses without request
    unanswered: int = 0
    tunnels: int = 0
    malformed_requests: int = 0
    malformed_responses: int = 0
    resynchronised: int = 0  # times a half had to look for the next message
    skipped_bytes: int = 0  # passed over meanwhile
    head_limit: int = 0
    body_limit: int = 0  # messages
    pipeline_limit: int = 0
    interim_limit: int = 0  # 1xx responses that were not kept
    kept_limit: int = 0  # messages of which less was kept because total_kept_bytes was reached

    def as_dict(self) -> dict[str, int]:
        """Name to count."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
