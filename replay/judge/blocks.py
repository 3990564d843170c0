"""Collects pairs into blocks of time, in the order in which the requests came.

In the order of completion, slow answers of the shadow would come late and early looks would see only fast ones. So a
pair may be added in any order, and a block is closed when the *watermark* has passed its end: the time before which the
fate of every request is known (now less the timeout).

Nothing here reads a clock. Times are nanoseconds of one clock; a pair older than the last closed block is counted and
left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.judge import measures
from replay.judge.length import Length
from replay.judge.plan import Settings

FEW_PAIRS = 20  # a block with fewer goes on
PENDING_LIMIT = 50_000  # pairs and lost requests that wait for their block to close, per route


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
    """Blocks of one route. `counts` tells what was left out: "late" and "over_limit"."""

    __slots__ = ("_lost", "_pairs", "_settings", "_start_ns", "counts", "length")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pairs: list[Pair] = []
        self._lost: list[Lost] = []
        self._start_ns: int | None = None
        self.length = Length(settings)
        self.counts: Counter[str] = Counter()

    def add(self, each: Pair | Lost) -> None:
        """Take one request whose fate is known."""
        if self._start_ns is not None and each.at_ns < self._start_ns:
            self.counts["late"] += 1
        elif len(self._pairs) + len(self._lost) >= PENDING_LIMIT:
            self.counts["over_limit"] += 1
        elif isinstance(each, Pair):
            self._pairs.append(each)
        else:
            self._lost.append(each)

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
        return len(self._pairs), len(self._lost)

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
        block = make_block(start_ns, end_ns, pairs, lost)
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


def make_block(start_ns: int, end_ns: int, pairs: list[Pair], lost: list[Lost]) -> Block:
    """Reduce the requests of one block, in order of time; there must be pairs."""
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
        dict(Counter(each.reason for each in lost)),
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
