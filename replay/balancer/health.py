"""Active health checks without their I/O: when they come, what they ask, and how many in a row change the opinion.

    UNTRIED ──good──► UP ──`fall` bad in a row──► DOWN ──`rise` good in a row──► UP
       └──────────────bad──────────────────────────▲

An upstream that was never checked is used: it may be the only one, and the first check comes at once. But it has not
earned patience, so if that first check is bad it goes down by it alone, as with HAProxy (`init-state up`, its default).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from replay.balancer.hashing import hash64
from replay.balancer.settings import HealthCheck

PATTERN_SHOWN_CHARS = 60  # of a pattern, in a reason

Sockaddr = tuple[Any, ...] | str  # as connect() takes it


class State(Enum):
    """Where an upstream stands."""

    UNTRIED = "untried"
    UP = "up"
    DOWN = "down"


# What a check turns a state into, if enough of its kind come in a row; a check that is not here confirms the state.
_TURNS: Mapping[tuple[State, bool], State] = MappingProxyType(
    {
        (State.UNTRIED, True): State.UP,
        (State.UNTRIED, False): State.DOWN,
        (State.UP, False): State.DOWN,
        (State.DOWN, True): State.UP,
    }
)


class CheckResult(NamedTuple):
    """What the checks of one upstream say so far."""

    healthy: bool
    good: int
    bad: int
    skipped: int  # checks that could not be made, or not be judged, because of this host
    reason: str  # of the last bad one
    shortage: str  # of the last skipped one


class Health:
    """One upstream's health. `rise` and `fall` are at least 1."""

    __slots__ = ("_needed", "_row", "bad", "good", "last_reason", "state")

    def __init__(self, rise: int, fall: int) -> None:
        self._needed = {State.UNTRIED: 1, State.UP: fall, State.DOWN: rise}
        self._row = 0  # checks in a row that contradict the state
        self.state = State.UNTRIED
        self.good = 0  # checks, in all
        self.bad = 0
        self.last_reason = ""  # of the last bad check; kept after good ones

    @property
    def healthy(self) -> bool:
        """Whether requests may go there."""
        return self.state is not State.DOWN

    def observe(self, ok: bool, reason: str = "") -> bool:
        """Take the result of a check, with the reason of a bad one. True when `healthy` changed by it."""
        if ok:
            self.good += 1
        else:
            self.bad += 1
            self.last_reason = reason
        turned = _TURNS.get((self.state, ok))
        self._row = self._row + 1 if turned else 0
        if turned is None or self._row < self._needed[self.state]:
            return False
        before = self.healthy
        self.state = turned
        self._row = 0
        return self.healthy is not before


def evaluate(check: HealthCheck, status: int, body: bytes) -> str:
    """Why an HTTP check with this answer is bad, in one line; "" when it is good. `body` may be its beginning only.

    The pattern is searched for in the body as UTF-8, with U+FFFD for what is none. It must be a valid one.
    """
    if not any(low <= status <= high for low, high in check.statuses):
        return f"status {status}"
    if check.body and not re.search(check.body, body.decode("utf-8", "replace")):
        pattern = check.body if len(check.body) <= PATTERN_SHOWN_CHARS else check.body[:PATTERN_SHOWN_CHARS] + "..."
        return f"status {status}, but the body does not hold {pattern!r}"
    return ""


def request_bytes(path: str, host: str, mark: bytes) -> bytes:
    """The request of an HTTP check."""
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: shadowtap\r\nAccept: */*\r\nConnection: close\r\n"
    return head.encode() + (mark + b"\r\n" if mark else b"") + b"\r\n"


def pause_s(check: HealthCheck, seed: int, sockaddr: Sockaddr, made: int) -> float:
    """From the beginning of a check to the next one's, `made` being how many there were: the interval with its jitter.
    The first is put off by up to one jitter, so that those of many upstreams do not come together."""
    share = hash64(repr((sockaddr, made)).encode(), seed) / 2**64
    jitter_s = check.interval_s * check.jitter_ratio
    return jitter_s * share if not made else check.interval_s + jitter_s * (2 * share - 1)
