"""What went wrong at the shadow, in groups: requests without a whole answer by reason, and changed statuses.

Each group has the requests' number, who answered them or was to, and one of them as an example. The tables have
limits, since reasons hold what strangers send; what does not fit is counted together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from replay.compare.names import Names
from replay.compare.routes import OTHER, printable
from replay.exchange import Answer

COLUMNS = ["answer", "detail", "status", "shadow_status", "method", "target"]

GROUP_LIMIT = 256  # of each kind, counted apart
REASON_LIMIT_CHARS = 120
EXAMPLE_LIMIT_CHARS = 80

_COUNT = r"(^| )\d+( |$)"  # bytes that had come, and other numbers that would make a group of every request

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Failure:
    """Requests that got no whole answer, for one reason."""

    answer: str
    reason: str  # the detail without its numbers, cut; "" when there is none
    requests: int
    upstreams: dict[str, int]  # by name, the most frequent first
    example: str  # "GET /path"


@dataclass(frozen=True, slots=True)
class Change:
    """Requests to which the shadow answered with another status than production."""

    production: int
    shadow: int
    requests: int
    upstreams: dict[str, int]
    example: str

    @property
    def worse(self) -> bool:
        """An error where production had none, or only one of the client's."""
        return self.shadow >= 400 > self.production or self.shadow >= 500 > self.production


@dataclass(frozen=True, slots=True)
class Failures:
    """All groups, the most frequent first."""

    failures: tuple[Failure, ...] = ()
    changes: tuple[Change, ...] = ()
    other_changes: int = 0  # requests that found the table full

    def of(self, answer: str) -> dict[str, int]:
        """Reasons of one kind of failure with their requests, the most frequent first."""
        return {each.reason: each.requests for each in self.failures if each.answer == answer}


class FailureTally:
    """Feed it replayed rows with COLUMNS, and the number of each row's upstream in `names`."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._failures: _Groups[tuple[str, str]] = _Groups()
        self._changes: _Groups[tuple[int, int]] = _Groups()

    def add(self, rows: pa.RecordBatch, upstreams: NDArray[Any]) -> None:
        """Count rows."""
        table = pa.Table.from_batches([rows.select(COLUMNS)]).append_column("upstream", pa.array(upstreams))
        ok = pc.equal(table["answer"], Answer.OK).fill_null(False)
        failed = table.filter(pc.invert(ok))
        if failed.num_rows:
            detail = pc.utf8_slice_codeunits(failed["detail"].fill_null(""), 0, 2 * REASON_LIMIT_CHARS)
            for _ in range(2):  # a match takes the space that the next one would begin with
                detail = pc.replace_substring_regex(detail, _COUNT, r"\1N\2")
            failed = failed.append_column("why", detail)
            for answer, why, *rest in _grouped(failed, ["answer", "why", "upstream"]):
                self._failures.add((answer or "", _reason(answer, why)), (answer or "", OTHER), *rest)
        changed = table.filter(pc.and_(ok, pc.not_equal(table["status"], table["shadow_status"])))
        for ours, theirs, *rest in _grouped(changed, ["status", "shadow_status", "upstream"]):
            self._changes.add((ours, theirs), None, *rest)

    def report(self) -> Failures:
        """What was counted so far."""
        names = self._names.all
        failures = [Failure(answer, why, *group.told(names)) for (answer, why), group in self._failures.groups.items()]
        changes = [Change(ours, theirs, *group.told(names)) for (ours, theirs), group in self._changes.groups.items()]
        failures.sort(key=lambda each: (-each.requests, each.answer, each.reason))
        changes.sort(key=lambda each: (-each.requests, each.production, each.shadow))
        return Failures(tuple(failures), tuple(changes), self._changes.other)


@dataclass(slots=True)
class _Group:
    example: str
    upstreams: Counter[int] = field(default_factory=Counter)

    def told(self, names: list[str]) -> tuple[int, dict[str, int], str]:
        found: Counter[str] = Counter()
        for number, n in self.upstreams.items():
            found[names[number]] += n
        return self.upstreams.total(), dict(found.most_common()), self.example


class _Groups(Generic[Key]):
    def __init__(self) -> None:
        self.groups: dict[Key, _Group] = {}
        self.other = 0

    def add(
        self, key: Key, spill: Key | None, upstream: int, requests: int, method: str | None, target: str | None
    ) -> None:
        """`spill` is the key when the table is full; None to count only. There are few different ones."""
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= GROUP_LIMIT:
                if spill is None:
                    self.other += requests
                    return
                key = spill
            group = self.groups.setdefault(key, _Group(_example(method, target)))
        group.upstreams[upstream] += requests


def as_dict(failures: Failures) -> dict[str, Any]:
    """For JSON."""
    return {
        "failures": [{"answer": each.answer, "reason": each.reason, **_told(each)} for each in failures.failures],
        "changes": [
            {"production": each.production, "shadow": each.shadow, "worse": each.worse, **_told(each)}
            for each in failures.changes
        ],
        "other_changes": failures.other_changes,
    }


def by_whom(upstreams: Mapping[str, int], itself: Iterable[str], shown: int = 2) -> str:
    """ "10.0.0.1:8080, the balancer itself": whose answers a group's are, the most frequent first."""
    own = frozenset(itself)
    names = list(dict.fromkeys("the balancer itself" if name in own else name or OTHER for name in upstreams))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _told(group: Failure | Change) -> dict[str, Any]:
    return {"requests": group.requests, "upstreams": group.upstreams, "example": group.example}


def _grouped(table: pa.Table, keys: list[str]) -> Iterator[tuple[Any, ...]]:
    """For each group the keys, the count, and method and target of its first row."""
    whole = pc.ScalarAggregateOptions(skip_nulls=False)  # both are to be of the same row
    firsts = [("method", "first", whole), ("target", "first", whole)]
    groups = table.group_by(keys, use_threads=False).aggregate([([], "count_all"), *firsts])
    names = [*keys, "count_all", "method_first", "target_first"]
    return zip(*(groups[name].to_pylist() for name in names), strict=True)


def _reason(answer: str | None, detail: str) -> str:
    """The first words of a detail; "" when it says no more than the answer."""
    if len(detail) > REASON_LIMIT_CHARS:
        detail = detail[:REASON_LIMIT_CHARS].rpartition(" ")[0] or detail[:REASON_LIMIT_CHARS]
        detail += " ..."
    return "" if detail == answer else printable(detail)


def _example(method: str | None, target: str | None) -> str:
    """Without the query, in which there may be secrets."""
    if target is None:
        return ""
    path, asked, _ = target.partition("?")
    path += "?..." if asked else ""
    text = printable(f"{method or '?'} {path}")
    return text if len(text) <= EXAMPLE_LIMIT_CHARS else text[:EXAMPLE_LIMIT_CHARS] + "..."
