"""The account of requests: every request seen has exactly one fate, and the sum says so.

    seen = replayed + incomplete[reason] + skipped[reason] + dropped[reason] + in flight

One account belongs to one worker; the service adds them up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Account:
    """Counters of one run; `answers` splits `replayed` by how the shadow's answer ended."""

    seen: int = 0
    replayed: int = 0
    incomplete: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        """Requests whose fate is still open."""
        ended = self.replayed + self.incomplete.total() + self.skipped.total() + self.dropped.total()
        return self.seen - ended

    def add(self, other: Account) -> None:
        """Add another worker's counters to these."""
        self.seen += other.seen
        self.replayed += other.replayed
        for mine, theirs in self._reasons(other):
            mine.update(theirs)

    def _reasons(self, other: Account) -> list[tuple[Counter[str], Counter[str]]]:
        return [
            (self.incomplete, other.incomplete),
            (self.skipped, other.skipped),
            (self.dropped, other.dropped),
            (self.answers, other.answers),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; `from_dict` reads it back."""
        return {
            "seen": self.seen,
            "replayed": self.replayed,
            "incomplete": _plain(self.incomplete),
            "skipped": _plain(self.skipped),
            "dropped": _plain(self.dropped),
            "in_flight": self.in_flight,
            "answers": _plain(self.answers),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Account:
        """Inverse of `as_dict`; the derived `in_flight` is ignored."""
        return cls(
            seen=data["seen"],
            replayed=data["replayed"],
            incomplete=Counter(data["incomplete"]),
            skipped=Counter(data["skipped"]),
            dropped=Counter(data["dropped"]),
            answers=Counter(data["answers"]),
        )

    def lines(self) -> list[str]:
        """The account for a terminal, one fate a line."""
        out = [f"seen        {self.seen:>10}", f"  replayed  {self.replayed:>10}{_reasons(self.answers)}"]
        for name in ("incomplete", "skipped", "dropped"):
            counter: Counter[str] = getattr(self, name)
            out.append(f"  {name:<10}{counter.total():>10}{_reasons(counter)}")
        out.append(f"  in flight {self.in_flight:>10}")
        return out


def _plain(counter: Counter[str]) -> dict[str, int]:
    return {str(k): v for k, v in sorted(counter.items()) if v}


def _reasons(counter: Counter[str]) -> str:
    parts = ", ".join(f"{reason} {count}" for reason, count in counter.most_common() if count)
    return f"   ({parts})" if parts else ""
