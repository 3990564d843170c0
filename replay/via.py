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
    found = None
    needle = b"\n" + name + b":"
    while (at := head.lower().find(needle)) >= 0:
        end = head.find(b"\n", at + 1)
        if end < 0:
            end = len(head)
        found = head[at + len(needle) : end].strip()
        head = head[:at] + head[end:]
    return head, found
