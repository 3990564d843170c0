"""Counts what each upstream of the shadow did, and finds out which of them is the balancer program itself.

Times of upstreams are from a sample, drawn at random: every second answer of a round robin over two would be one
upstream's alone. Counts and the longest times are complete.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from replay.compare.names import Names
from replay.compare.statistics import quantiles
from replay.compare.upstreams import NO_ANSWER, NO_CONNECTION, NO_UPSTREAM, Balancing, Own, Upstream, Waited
from replay.exchange import Answer
from replay.runfile import RunFile

COLUMNS = [
    "answer", "status", "shadow_status", "shadow_t_sent_ns", "shadow_t_last_ns", "shadow_queue_ns", "shadow_connect_ns",
]  # fmt: skip

UPSTREAM_LIMIT = 1024  # upstreams counted apart
SAMPLE_LIMIT = 1_000_000  # answers whose times are kept, 14 bytes each
SEED = 1
OWN_HOST = "127.0.0.1:"  # where a program's private addresses are (`child.free_port`)

_KEYS = ["upstream", "answer", "shadow_status", "stage", "worse"]
_STAGES = (NO_UPSTREAM, NO_CONNECTION, NO_ANSWER)
_CONNECTED = 2


class Kind(NamedTuple):
    """What replayed requests that are counted together have in common."""

    upstream: int
    answer: str
    status: int | None  # the shadow's
    stage: int  # how far a balancer program had come, place in _STAGES
    worse: bool  # production had answered with less of an error


class Sample(NamedTuple):
    """Times in ms; not-a-number: not known, infinity: no answer in time."""

    upstream: NDArray[np.int16]
    time: NDArray[np.float32]
    queue: NDArray[np.float32]
    connect: NDArray[np.float32]

    def of(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Sample:
        """Those that are chosen."""
        return Sample._make(column[which] for column in self)


class BalancingTally:
    """Feed it replayed rows with COLUMNS, and the number of each row's upstream in `names`."""

    def __init__(self, names: Names, sample_limit: int = SAMPLE_LIMIT) -> None:
        self.every = 1  # about one answer in so many is in the sample
        self._names = names
        self._kinds: Counter[Kind] = Counter()
        self._limit = sample_limit
        self._random = np.random.default_rng(SEED)
        ms = np.array([], dtype=np.float32)
        self._parts = [Sample(np.array([], dtype=np.int16), ms, ms, ms)]
        self._kept = 0
        self._longest = np.full((2, UPSTREAM_LIMIT + 1), -1, dtype=np.float32)  # queue and connect, by upstream

    def add(self, rows: pa.RecordBatch, upstreams: NDArray[np.int32]) -> None:
        """Count rows."""
        queue, connect = (_waited_ms(rows.column(name)) for name in ("shadow_queue_ns", "shadow_connect_ns"))
        stage = np.where(np.isnan(connect), np.where(np.isnan(queue), 0, 1), _CONNECTED).astype(np.int8)
        answer, status = rows.column("answer"), rows.column("shadow_status")
        columns = [pa.array(upstreams), answer, status, pa.array(stage), _worse(rows)]
        groups = pa.table(columns, names=_KEYS).group_by(_KEYS).aggregate([([], "count_all")])
        for *values, count in zip(*(groups[name].to_pylist() for name in (*_KEYS, "count_all")), strict=True):
            self._kinds[Kind(*values)] += count
        np.fmax.at(self._longest[0], upstreams, queue)
        np.fmax.at(self._longest[1], upstreams, connect)
        self._keep(Sample(upstreams.astype(np.int16), _total_ms(rows), queue, connect))

    def report(self, own_addresses: Collection[str] | None) -> Balancing:
        """`own_addresses` are those that a balancer program is known to have had; None when nothing is known of it."""
        itself = self._itself(own_addresses)
        kept = self.sample()
        sample = kept.of(np.argsort(kept.upstream, kind="stable"))
        by_upstream: defaultdict[int, Counter[Kind]] = defaultdict(Counter)
        for kind, n in self._kinds.items():
            by_upstream[kind.upstream][kind] += n
        found = [self._upstream(number, kinds, number in itself, sample) for number, kinds in by_upstream.items()]
        found.sort(key=lambda upstream: (-upstream.requests, upstream.name))
        unknown = own_addresses is None and not self._times_told
        perhaps = [each.name for each in found if unknown and _is_local(each.name) and each.server_errors]
        return Balancing(tuple(found), self._own(itself), tuple(perhaps), self.every)

    def sample(self) -> Sample:
        """The times that are kept."""
        return Sample._make(np.concatenate(columns) for columns in zip(*self._parts, strict=True))

    @property
    def _times_told(self) -> bool:
        """Only a balancer program tells queue and connect times."""
        return any(kind.stage for kind in self._kinds)

    def _itself(self, own_addresses: Collection[str] | None) -> frozenset[int]:
        """Numbers of the addresses that are the program's own.

        When nobody said, they are those on this host by which nothing was passed on. What a program passes on has a
        connect time; so has its own 5xx for an upstream that did not answer.
        """
        names = dict(enumerate(self._names.all))
        names.pop(0)
        if own_addresses is not None:
            return frozenset(number for number, name in names.items() if name in own_addresses)
        if not self._times_told:
            return frozenset()
        passed_on = {k.upstream for k in self._kinds if k.stage == _CONNECTED and k.status and k.status < 500}
        return frozenset(number for number, name in names.items() if _is_local(name) and number not in passed_on)

    def _upstream(self, number: int, kinds: Counter[Kind], itself: bool, sample: Sample) -> Upstream:
        """`sample` is in the order of upstreams."""
        failed: Counter[str] = Counter()
        statuses: Counter[int] = Counter()
        for kind, n in kinds.items():
            if kind.answer == Answer.OK:
                statuses[kind.status or 0] += n
            else:
                failed[kind.answer or ""] += n
        times = sample.of(slice(*np.searchsorted(sample.upstream, [number, number + 1]).tolist()))
        longest_queue, longest_connect = self._longest[:, number].tolist()
        return Upstream(
            self._names.all[number],
            itself,
            kinds.total(),
            dict(failed.most_common()),
            dict(sorted(statuses.items())),
            quantiles(times.time.astype(np.float64)),
            _waited(times.queue, longest_queue),
            _waited(times.connect, longest_connect),
        )

    def _own(self, itself: frozenset[int]) -> tuple[Own, ...]:
        counts: Counter[tuple[int, str]] = Counter()
        worse: Counter[tuple[int, str]] = Counter()
        for kind, n in self._kinds.items():
            if kind.upstream in itself and kind.answer == Answer.OK:
                key = (kind.status or 0, _STAGES[kind.stage])
                counts[key] += n
                worse[key] += n * kind.worse
        return tuple(Own(*key, n, worse[key]) for key, n in sorted(counts.items(), key=lambda item: (-item[1], item)))

    def _keep(self, part: Sample) -> None:
        mask = ~(np.isnan(part.time) & np.isnan(part.queue) & np.isnan(part.connect))
        if self.every > 1:
            mask &= self._random.random(len(mask)) * self.every < 1
        self._parts.append(part.of(mask))
        self._kept += int(mask.sum())
        while self._kept > self._limit:
            whole = self.sample()
            half = whole.of(self._random.random(self._kept) < 0.5)
            self._parts, self._kept, self.every = [half], len(half.time), self.every * 2


def own_addresses(files: Iterable[RunFile]) -> frozenset[str] | None:
    """The addresses that a balancer program had, where the workers' "balancer": {"addresses": [...]} says so; empty
    for the embedded engine, None when they say nothing."""
    found: set[str] | None = None
    for file in files:
        told = file.extra.get("balancer")
        if isinstance(told, dict) and isinstance(told.get("addresses"), list):
            found = (found or set()) | {str(address) for address in told["addresses"]}
    return None if found is None else frozenset(found)


def _is_local(name: str) -> bool:
    return not name or name.startswith(OWN_HOST)


def _worse(rows: pa.RecordBatch) -> pa.Array:
    """Whether the shadow answered with an error where production had none, or only one of the client's."""
    ours, theirs = rows.column("status"), rows.column("shadow_status")
    error = pc.and_(pc.less(ours, 400), pc.greater_equal(theirs, 400))
    server_error = pc.and_(pc.less(ours, 500), pc.greater_equal(theirs, 500))
    return pc.or_(error, server_error).fill_null(False)


def _waited(values: NDArray[np.float32], longest: float) -> Waited:
    found = quantiles(values.astype(np.float64))
    return Waited(found.n, found.p50, found.p99, None if longest < 0 else longest)


def _waited_ms(column: pa.Array) -> NDArray[np.float32]:
    values: NDArray[np.int64] = column.fill_null(-1).to_numpy()
    return np.where(values < 0, np.nan, values / 1e6).astype(np.float32)


def _total_ms(rows: pa.RecordBatch) -> NDArray[np.float32]:
    """From the sending to the answer's last byte."""
    sent, last = (rows.column(name).fill_null(0).to_numpy() for name in ("shadow_t_sent_ns", "shadow_t_last_ns"))
    ok, late = (_is(rows.column("answer"), answer) for answer in (Answer.OK, Answer.TIMEOUT))
    good = ok & (sent > 0) & (last >= sent)
    return np.where(late, np.inf, np.where(good, (last - sent) / 1e6, np.nan)).astype(np.float32)


def _is(column: pa.Array, value: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.equal(column, value).fill_null(False).to_numpy(zero_copy_only=False)
    return found
