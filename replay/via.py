"""What a balancer program says of its choice: a header that it was told to add to responses, taken off again here."""

from __future__ import annotations

from typing import NamedTuple


class Via(NamedTuple):
    """One response's way through a balancer program. Times are -1 where it does not say."""

    backend: str
    server: str  # its name there, "" when the balancer itself answered
    address: str  # "ip:port" or "unix:/path", "" when unknown
    queue_ns: int
    connect_ns: int

    @property
    def upstream(self) -> str:
        """For outcomes: the address, else the name."""
        return self.address or self.server


def take_off(head: bytes, name: bytes) -> tuple[bytes, bytes | None]:
    """The head without the lines of this header (`name` in lower case), and the last one's value; None without any."""
    needle = b"\n" + name + b":"
    lower = head.lower()
    at = lower.find(needle)
    if at < 0:
        return head, None
    kept, start, value = [], 0, b""
    while at >= 0:
        end = _field_end(head, at + len(needle))
        value = head[at + len(needle) : end].strip()
        kept.append(head[start:at])
        start = end
        at = lower.find(needle, end)
    return b"".join((*kept, head[start:])), value


def _field_end(head: bytes, start: int) -> int:
    """The end of the line, and of those that go on with it (RFC 9112 section 5.2)."""
    end = head.find(b"\n", start)
    while end >= 0 and head[end + 1 : end + 2] in (b" ", b"\t"):
        end = head.find(b"\n", end + 1)
    return end if end >= 0 else len(head)
