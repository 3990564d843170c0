"""What can be set for the discovery of a pool's upstreams, and what all sources share. Loads nothing.

A source is looked at again and again. What it says once stays valid until it says something else: a question that
fails leaves the last answer in place, is told as a problem, and is asked again after pauses that double.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from replay.balancer.address import parse_host_port
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

UPSTREAMS_MAX = 1024  # of one pool
POOL_BYTES = 120_000  # of one pool, as JSON: it has to fit one message
WEIGHT_MAX = 1000  # as in the configuration
DNS_PORT = 53
AGAIN_MIN_S, AGAIN_MAX_S = 1.0, 300.0  # between two looks, whatever a source asks for
LOOK_S = 20.0  # after so long a look asks nothing more: the rest has its turn in the next
PROBLEMS_TOLD = 3  # of one look, one by one
PROBLEM_CHARS = 400  # of one look, together
_ENTRY_BYTES = 60  # of an upstream as JSON, without its address and its cookie

Clock = Callable[[], float]  # seconds, monotonic
Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class DnsSource:
    """Address or SRV records of a name."""

    name: str
    port: int = 0  # with addresses; SRV records bring their own
    type: str = "auto"  # "A", "AAAA", "SRV"; auto: SRV of a name that begins with "_", else A and AAAA together
    nameservers: tuple[str, ...] = ()  # "192.0.2.53", "[2001:db8::53]:5353"; none: those of /etc/resolv.conf


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file in Prometheus' file_sd form. The last element of the path may hold `*`."""

    path: str


@dataclass(frozen=True, slots=True)
class TargetGroup:
    """A target group of AWS."""

    arn: str
    endpoint_url: str = ""  # of AWS, where it is not the usual one


Settings = DnsSource | FileSource | TargetGroup
_KINDS: dict[str, type[Settings]] = {"dns": DnsSource, "file": FileSource, "target_group": TargetGroup}


def as_json(settings: Settings) -> dict[str, Any]:
    """Plain dict for JSON; `from_json` reads it back."""
    kind = next(kind for kind, made in _KINDS.items() if made is type(settings))
    return {"kind": kind, **asdict(settings)}


def from_json(data: dict[str, Any]) -> Settings:
    """Inverse of `as_json`."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return _KINDS[fields.pop("kind")](**fields)


def read_nameserver(text: str) -> tuple[str, int]:
    """Take "192.0.2.53", "192.0.2.53:5353", "2001:db8::53" or "[2001:db8::53]:5353" apart; UpstreamError."""
    try:
        return str(ipaddress.ip_address(text)), DNS_PORT
    except ValueError:
        pass
    try:
        host, port = parse_host_port(text)
        return str(ipaddress.ip_address(host)), port
    except (UpstreamError, ValueError):
        raise UpstreamError(f"nameserver {text!r}: give its numeric address, with or without a port") from None


class Found(NamedTuple):
    """What a look found: sorted by address, each address once, within the limits.

    With a problem, what stands nevertheless: the last known upstreams in place of those that could not be found out.
    Without one, an empty pool is what the source says.
    """

    upstreams: tuple[UpstreamSpec, ...]
    again_in_s: float
    problem: str  # one line, "" for none; the same as long as the trouble is the same


class Source(Protocol):
    """Where upstreams come from."""

    def look(self) -> Found:
        """Find out what is due to be found out. Blocks for a bounded time; raises nothing."""


def found(upstreams: Iterable[UpstreamSpec], again_in_s: float, problems: Iterable[str]) -> Found:
    """Put what was found in order. Of two upstreams with one address the heavier one counts."""
    unique = {each.address: each for each in sorted(upstreams, key=attrgetter("weight", "cookie"))}
    ordered = sorted(unique.values(), key=attrgetter("address"))
    kept = _within_limits(ordered)
    told = list(problems)
    if len(kept) < len(ordered):
        told.insert(0, f"{len(ordered)} upstreams are too many: only the first {len(kept)} by address are used")
    return Found(kept, min(max(again_in_s, AGAIN_MIN_S), AGAIN_MAX_S), summed_up(told))


def summed_up(problems: Iterable[str]) -> str:
    """Several problems as one line of bounded length, each once."""
    unique = list(dict.fromkeys(problems))
    more = len(unique) - PROBLEMS_TOLD
    text = "; ".join(unique[:PROBLEMS_TOLD] + ([f"and {more} more"] if more > 0 else []))
    text = " ".join(text.split())
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= PROBLEM_CHARS else text[: PROBLEM_CHARS - 3] + "..."


def _within_limits(ordered: list[UpstreamSpec]) -> tuple[UpstreamSpec, ...]:
    room, kept = POOL_BYTES, []
    for each in ordered[:UPSTREAMS_MAX]:
        room -= len(json.dumps([each.address, each.cookie])) + _ENTRY_BYTES
        if room < 0:
            break
        kept.append(each)
    return tuple(kept)


@dataclass(slots=True)
class _Known(Generic[A]):
    """What is known about one question."""

    answer: A | None = None
    asked_s: float = -math.inf
    due_s: float = -math.inf
    failures: int = 0  # since the last answer
    problem: str = ""


class Answers(Generic[Q, A]):
    """The last answer to each question of one kind, with when it is to be asked again."""

    def __init__(self, ask: Callable[[Q], tuple[A, float]], clock: Clock, retry_s: float, retry_max_s: float) -> None:
        """`ask` gives the answer, which is never None, and for how many seconds it is good. UpstreamError: it has none,
        and is asked again after `retry_s`, then twice as long, up to `retry_max_s`."""
        self._ask = ask
        self._clock = clock
        self._retry_s = retry_s
        self._retry_max_s = retry_max_s
        self._known: dict[Q, _Known[A]] = {}

    def look(self, questions: Iterable[Q]) -> dict[Q, A]:
        """Ask those that are due, and give the answers there are. What is not among the questions is forgotten."""
        self._known = {question: self._known.get(question) or _Known() for question in questions}
        stop_s = self._clock() + LOOK_S
        for question, known in sorted(self._known.items(), key=lambda item: item[1].asked_s):
            if known.due_s <= self._clock() < stop_s:
                self._renew(question, known)
        return {question: known.answer for question, known in self._known.items() if known.answer is not None}

    def _renew(self, question: Q, known: _Known[A]) -> None:
        known.asked_s = self._clock()
        try:
            known.answer, good_s = self._ask(question)
            known.failures, known.problem = 0, ""
        except UpstreamError as error:
            good_s = min(self._retry_s * 2**known.failures, self._retry_max_s)
            known.failures = min(known.failures + 1, 30)
            known.problem = str(error)
        known.due_s = self._clock() + min(max(good_s, AGAIN_MIN_S), AGAIN_MAX_S)

    @property
    def again_in_s(self) -> float:
        """When the next question is due; at most AGAIN_MAX_S."""
        now_s = self._clock()
        return max(0.0, min([known.due_s - now_s for known in self._known.values()] + [AGAIN_MAX_S]))

    @property
    def problems(self) -> list[str]:
        """Of the questions that have no answer, or an old one."""
        problems = [known.problem for known in self._known.values() if known.problem]
        if left := sum(known.asked_s == -math.inf for known in self._known.values()):
            problems.append(f"{left} names are still to be looked up")
        return problems
