"""Collects pairs into blocks of time, in the order in which the requests came.

In the order of completion, slow answers of the shadow would come late and early looks would see only fast ones. So a
pair may be added in any order, and a block is closed when the *watermark* has passed its end: the time before which the
fate of every request is known (now less the timeout).

Nothing here reads a clock. Times are nanoseconds of one clock; a pair older than the last closed block is left out and
counts as lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.judge import measures
from replay.judge.length import Length
from replay.judge.plan import Settings

FEW_PAIRS = 20  # a block with fewer goes on
PENDING_LIMIT = 50_000  # pairs that wait for their block to close, per route
LOST_LIMIT = 50_000  # likewise lost requests with their time and latency; beyond it they are only counted
NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pair:
    """One request and both answers. Latencies are measured in the same way on both sides.

    Where the shadow gave no answer in time, `shadow_ns` is the timeout and `shadow_error` is set. What production
    answered later than that counts in the same way, or the two sides would differ where nothing does.
    """

    at_ns: int  # when the request came
    route: str
    production_ns: int
    shadow_ns: int
    production_error: bool = False
    shadow_error: bool = False
    different: bool | None = None  # the answers; None when they could not be compared
    noisy: bool | None = None  # whether two answers of the shadow to it differ; None when it was asked once
    reference: str = ""  # where a person finds it


@dataclass(frozen=True, slots=True)
class Lost:
    """A request that was meant for the shadow and of which no pair came, through no fault of the shadow."""

    at_ns: int
    route: str
    reason: str  # "incomplete" or "dropped", or any other word
    production_ns: int = 0  # 0 when unknown
    count: int = 1  # of so many alike


@dataclass(frozen=True, slots=True)
class Block:
    """A closed block, as numbers; each but `differences` changes its sign when the sides are swapped."""

    start_ns: int
    end_ns: int
    pairs: int
    level: float
    tail: float
    errors: float
    differences: float | None  # None when no answers could be compared
    lost: dict[str, int]
    lost_slow: float  # above 0 when slow requests were lost more often
    burst_ns: float
    examples: dict[str, Pair]  # by metric, the pair that shows it best

    @property
    def numbers(self) -> dict[str, float]:
        """By name of the metric."""
        found = {"latency": self.level, "tail": self.tail, "errors": self.errors}
        if self.differences is not None:
            found["differences"] = self.differences
        return found


class BlockBuilder:
    """Blocks of one route. `counts` tells what came "late", or "over_limit". Such pairs are lost requests of the block
    that is open then: whether the slow ones are late is what has to be seen."""

    __slots__ = ("_lost", "_lost_limit", "_more_lost", "_pairs", "_settings", "_start_ns", "counts", "length")

    def __init__(self, settings: Settings, lost_limit: int | None = None) -> None:
        """`lost_limit` is for builders whose lost requests need no more than to be counted."""
        self._settings = settings
        self._lost_limit = LOST_LIMIT if lost_limit is None else lost_limit
        self._pairs: list[Pair] = []
        self._lost: list[Lost] = []
        self._more_lost: Counter[str] = Counter()  # by reason, for the next block
        self._start_ns: int | None = None
        self.length = Length(settings)
        self.counts: Counter[str] = Counter()

    def add(self, each: Pair | Lost) -> None:
        """Take one request whose fate is known."""
        late = self._start_ns is not None and each.at_ns < self._start_ns
        if isinstance(each, Lost):
            self._lose(each)
        elif late or len(self._pairs) >= PENDING_LIMIT:
            word = "late" if late else "over_limit"
            self.counts[word] += 1
            self._lose(Lost(each.at_ns, each.route, word, each.production_ns))
        else:
            self._pairs.append(each)

    def _lose(self, lost: Lost) -> None:
        start_ns = self._start_ns
        if len(self._lost) >= self._lost_limit:
            self._more_lost[lost.reason] += lost.count
        elif start_ns is not None and lost.at_ns < start_ns:
            self._lost.append(replace(lost, at_ns=start_ns))
        else:
            self._lost.append(lost)

    def close(self, watermark_ns: int) -> list[Block]:
        """Blocks that are over: all requests that came before the watermark have been added."""
        closed: list[Block] = []
        if len(self._pairs) < FEW_PAIRS:
            return closed
        self._pairs.sort(key=_time)
        if self._start_ns is None:
            self._start_ns = self._pairs[0].at_ns
        while (end_ns := self._end(self._start_ns)) is not None and end_ns <= watermark_ns:
            closed.append(self._cut(self._start_ns, end_ns))
            self._start_ns = end_ns
        return closed

    @property
    def waiting(self) -> tuple[int, int]:
        """Pairs, and lost requests, whose block is still open."""
        return len(self._pairs), sum(each.count for each in self._lost) + self._more_lost.total()

    def _end(self, start_ns: int) -> int | None:
        """Where the block that began at `start_ns` ends: after a whole number of lengths, with enough pairs."""
        if len(self._pairs) < FEW_PAIRS:
            return None
        length_ns = self.length.next_ns
        lengths = (self._pairs[FEW_PAIRS - 1].at_ns - start_ns) // length_ns + 1
        return start_ns + max(lengths, 1) * length_ns

    def _cut(self, start_ns: int, end_ns: int) -> Block:
        count = sum(pair.at_ns < end_ns for pair in self._pairs)
        pairs, self._pairs = self._pairs[:count], self._pairs[count:]
        lost = [each for each in self._lost if each.at_ns < end_ns]
        self._lost = [each for each in self._lost if each.at_ns >= end_ns]
        block = make_block(start_ns, end_ns, pairs, lost, self._more_lost)
        self._more_lost.clear()
        self.length.learn(end_ns - start_ns, count, block.burst_ns, block.level, block.tail)
        return block

    def as_json(self) -> dict[str, Any]:
        """The state without the requests of the open block: a restart cuts it short, and it is left out."""
        return {"start_ns": self._start_ns, "length": self.length.as_json(), "counts": dict(self.counts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        start = state["start_ns"]
        self._start_ns = None if start is None else int(start)
        self.length.restore(state["length"])
        self.counts = Counter({str(name): int(n) for name, n in state["counts"].items()})


def _time(pair: Pair) -> int:
    return pair.at_ns


def make_block(
    start_ns: int, end_ns: int, pairs: list[Pair], lost: list[Lost], more_lost: Mapping[str, int] = NONE
) -> Block:
    """Reduce the requests of one block, in order of time; there must be pairs. Of `more_lost` only the number is known,
    by reason."""
    reasons = Counter(more_lost)
    for each in lost:
        reasons[each.reason] += each.count
    production = measures.logs(np.array([pair.production_ns for pair in pairs], dtype=np.float64))
    shadow = measures.logs(np.array([pair.shadow_ns for pair in pairs], dtype=np.float64))
    at = np.array([pair.at_ns - start_ns for pair in pairs], dtype=np.float64)
    failed = [np.array([getattr(pair, name) for pair in pairs]) for name in ("production_error", "shadow_error")]
    examples = {
        "latency": pairs[measures.typical_pair(production, shadow)],
        "tail": pairs[measures.tail_pair(production, shadow)],
    }
    for name, example in (
        ("errors", next((p for p in pairs if p.shadow_error and not p.production_error), None)),
        ("differences", next((p for p in pairs if p.different and not p.noisy), None)),
    ):
        if example is not None:
            examples[name] = example
    return Block(
        start_ns,
        end_ns,
        len(pairs),
        float(measures.level(production, shadow)),
        float(measures.tail(production, shadow)),
        float(measures.excess(*failed)),
        _differences(pairs),
        dict(reasons),
        _lost_slow(production, lost),
        measures.longest_burst(at, production, shadow),
        examples,
    )


def _differences(pairs: list[Pair]) -> float | None:
    """Share of the compared answers that differ, less those in which the shadow differs from itself.

    Where the shadow was asked twice for some requests, only those count: both shares must be of the same requests.
    """
    compared = [pair for pair in pairs if pair.different is not None]
    compared = [pair for pair in compared if pair.noisy is not None] or compared
    if not compared:
        return None
    noisy = np.array([bool(pair.noisy) for pair in compared])
    return float(measures.excess(noisy, np.array([bool(pair.different) for pair in compared])))


def _lost_slow(production: NDArray[np.float64], lost: list[Lost]) -> float:
    known = [each.production_ns for each in lost if each.production_ns > 0]
    if not known:
        return 0.0
    latency = np.concatenate([production, measures.logs(np.array(known, dtype=np.float64))])
    return float(measures.slow_share(latency, np.arange(len(latency)) >= len(production)))
