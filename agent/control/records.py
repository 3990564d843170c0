"""What the agent remembers, and what it does when it cannot: versions, audit entries, trips, in a store and a marker.

Nothing here stands in the way of switching a shadow off: such writes never raise, they leave a `problem`. What would
bring a shadow on or change what it takes is refused while it cannot be recorded (`must_record`). At the start, a state
that cannot be read means that every shadow is off, with cause `state`, until a person resets it; production goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agent.control.marker import Content, Marker, Trip
from agent.control.request import ControlError
from agent.control.store import StateError, Store, set_aside

MARKER = "tripped"
CANNOT_RECORD = 507  # Insufficient Storage


class Records:
    """Made by the unprivileged service. `unreadable` is why nothing that was kept may be believed, or ""."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._marker: Marker | None = None
        self._store = Store.open(None)
        self.content = Content({})
        self.unreadable = ""
        self._problems = {"store": "", "marker": ""}  # with the last write of each
        self.open()

    @property
    def problem(self) -> str:
        """What could not be written the last time it was tried, or ""."""
        return "; ".join(problem for problem in self._problems.values() if problem)

    def open(self) -> None:
        """Open what is kept; what is wrong with it is told by `unreadable`."""
        if self._directory is None:
            return
        try:
            self._store = Store.open(self._directory)
            self._marker, self.content = Marker.open(self._directory / MARKER)
            self.unreadable = self.content.problem
        except StateError as error:
            self.unreadable = str(error)

    def look_through(self, names: Iterable[str]) -> None:
        """Read what is kept under these names: damage within a file that is whole shows only then."""
        try:
            for name in names:
                self._store.kept(name)
        except StateError as error:
            self.unreadable = self.unreadable or str(error)

    def begin_anew(self) -> bool:
        """Set aside what cannot be read and start with nothing; False when there was no need to. ControlError when that
        is impossible, too."""
        if not self.unreadable or self._directory is None:
            return False
        self.close()
        self._store = Store.open(None)
        try:
            set_aside(self._directory, time.time_ns())
            marker = self._directory / MARKER
            if marker.exists():
                marker.rename(marker.with_name(f"{MARKER}.damaged-{time.time_ns()}"))
        except (OSError, StateError) as error:
            raise ControlError(CANNOT_RECORD, f"{self._directory}: {error}: make room, or name another place") from None
        self.unreadable = ""
        self.open()
        if self.unreadable:
            raise ControlError(CANNOT_RECORD, self.unreadable)
        return True

    def close(self) -> None:
        """Give the files up."""
        self._store.close()
        if self._marker is not None:
            self._marker.close()
            self._marker = None

    # What must be possible always

    def mark(self, tripped: Mapping[str, Trip]) -> None:
        """Say in the marker which shadows are off."""
        if self._marker is not None:
            self._try(lambda marker=self._marker: marker.write(tripped), "marker")

    def note(self, author: str, action: str, shadow: str, reason: str, detail: dict[str, Any] | None = None) -> None:
        """An audit entry."""
        self._try(lambda: self._store.audit(author, action, shadow, reason, detail or {}))

    def keep(self, name: str, data: dict[str, Any]) -> None:
        """Remember something small under a name."""
        self._try(lambda: self._store.keep(name, data))

    def mark_bad(self, version: int, shadow: str, reason: str) -> None:
        """The version was tripped with."""
        self._try(lambda: self._store.mark_bad(version, shadow, reason))

    def version_if_possible(
        self, config: dict[str, Any], author: str, reason: str, known_bad: bool = False
    ) -> int | None:
        """A new version, or None when it cannot be recorded; see `Store.add_version`."""
        found: list[int] = []
        self._try(lambda: found.append(self._store.add_version(config, author, reason, known_bad)))
        return found[0] if found else None

    # What is refused when it cannot be recorded

    def must_record(self) -> None:
        """ControlError while changes cannot be recorded."""
        if self.unreadable:
            raise ControlError(CANNOT_RECORD, f"{self.unreadable}; `shadowtap reset` begins anew without it")
        try:
            self._store.keep("writable", time.time_ns())
        except StateError as error:
            raise ControlError(CANNOT_RECORD, f"{error}: changes cannot be recorded, so they are not made") from None

    def new_version(self, config: dict[str, Any], author: str, reason: str) -> int:
        """Record a configuration; its number."""
        try:
            return self._store.add_version(config, author, reason)
        except StateError as error:
            raise ControlError(CANNOT_RECORD, str(error)) from None

    # Reading

    @property
    def store(self) -> Store:
        """For reading."""
        return self._store

    def _try(self, write: Any, what: str = "store") -> None:
        try:
            write()
            self._problems[what] = ""
        except StateError as error:
            self._problems[what] = str(error)
