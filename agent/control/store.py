"""What outlives the process: versions of the configuration, who did what, and the state of guards, ramps and alerts.

    versions ── sections (a digest of what each shadow has in it) ── bad (which of these did not do well)
    audit       kept

One SQLite file, of one agent at a time. It has a rollback journal that stays (PERSIST) and no write-ahead log: on a
full disk the file can still be rolled back and read, rows that change in place can often still be written, and with
synchronous=FULL whatever a method has returned from survives a power cut. A write that fails raises StateError,
changes nothing, and leaves the rest readable. Reading takes no fsync and little time, except `Store.open`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.control.diff import diff
from replay.errors import ShadowtapError

SCHEMA_VERSION = 1
FILE = "state.db"
LOCK = "lock"
VERSIONS_LIMIT = 1000
VERSIONS_BYTES = 32 << 20
AUDIT_LIMIT = 10_000
TEXT_CHARACTERS = 500  # of a reason or an author
DETAIL_CHARACTERS = 8192
JOURNAL_BYTES = 1 << 20
ROOM_STEP, ROOM_STEPS = 64, 1024  # written over at each start; the journal then has that room, however full the disk

_SCHEMA = f"""
CREATE TABLE versions (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, author TEXT NOT NULL,
    reason TEXT NOT NULL, config TEXT NOT NULL, diff TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE sections (version INTEGER NOT NULL REFERENCES versions ON DELETE CASCADE, shadow TEXT NOT NULL,
    digest TEXT NOT NULL, PRIMARY KEY (shadow, version)) WITHOUT ROWID;
CREATE TABLE bad (version INTEGER NOT NULL REFERENCES versions ON DELETE CASCADE, shadow TEXT NOT NULL,
    reason TEXT NOT NULL, PRIMARY KEY (version, shadow)) WITHOUT ROWID;
CREATE INDEX sections_of_version ON sections (version);
CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, author TEXT NOT NULL,
    action TEXT NOT NULL, shadow TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX audit_of_shadow ON audit (shadow, id);
CREATE TABLE kept (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE opened (id INTEGER PRIMARY KEY, room TEXT NOT NULL);
INSERT INTO opened VALUES (1, printf('%.*c', {ROOM_STEP * ROOM_STEPS}, '-'));
PRAGMA user_version = {SCHEMA_VERSION};
"""
_PRAGMAS = (
    "locking_mode = EXCLUSIVE",  # a reader from outside must not make the agent wait
    "journal_mode = PERSIST",
    f"journal_size_limit = {JOURNAL_BYTES}",
    "synchronous = FULL",
    "temp_store = MEMORY",
    "foreign_keys = ON",
)
NOT_RESTORED = ("enabled", "ramp")
_FREE = "free some space on its disk"
_WRITABLE = "give the agent's user a directory that it can write"
_ADVICE = {
    sqlite3.SQLITE_FULL: f"the disk is full: {_FREE}",
    sqlite3.SQLITE_IOERR: f"reading or writing failed: see to its disk, or {_FREE}",
    sqlite3.SQLITE_BUSY: "another program has it open: close that one",
    sqlite3.SQLITE_READONLY: "it cannot be written: give it to the agent's user",
    sqlite3.SQLITE_PERM: "it cannot be written: give it to the agent's user",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: give its directory to the agent's user",
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StateError(ShadowtapError):
    """What the agent is to remember cannot be read or written."""


class DamagedError(StateError):
    """It cannot be believed: `set_aside` makes room for a new beginning."""


@dataclass(frozen=True, slots=True)
class Version:
    """A configuration that was in force; `bad` says for which shadows it did not do well, and why."""

    id: int
    at_ns: int
    author: str
    reason: str
    diff: tuple[str, ...]
    bad: dict[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that was done, by a person or by the agent itself; `shadow` is "" when it was for all."""

    id: int
    at_ns: int
    author: str
    action: str
    shadow: str
    reason: str
    detail: dict[str, Any]


class Store:
    """Belongs to one thread. Every method can raise StateError."""

    def __init__(self, connection: sqlite3.Connection, place: str, clock: Callable[[], int]) -> None:
        """Made by `open`."""
        self._connection = connection
        self._place = place
        self._clock = clock
        self._closing = ExitStack()

    @classmethod
    def open(cls, directory: Path | None, clock: Callable[[], int] = time.time_ns) -> Store:
        """Open or make the file in a directory, as the user whom it is to belong to; None: in memory. StateError in one
        line when another agent has it, it is damaged (DamagedError), of a newer agent, or cannot be written."""
        with ExitStack() as closing:
            if directory is not None:
                closing.callback(os.close, _locked(directory))
            path = None if directory is None else directory / FILE
            connection = _connected(path)
            closing.callback(connection.close)
            store = cls(connection, str(path or "the state in memory"), clock)
            store._begin()
            store._closing = closing.pop_all()
        return store

    def close(self) -> None:
        """Let another agent have it."""
        self._closing.close()

    def add_version(self, config: dict[str, Any], author: str, reason: str, known_bad: bool = False) -> int:
        """Keep a configuration (`Config.data`) that is in force now; the id it has, which is the newest one's when
        nothing has changed since. What a person sets again has a new chance; with `known_bad`, as for a file that is
        only read again, sections that did not do well before stay bad."""
        text = json.dumps(config, default=str)
        config = json.loads(text)
        found = self._read("SELECT id, config FROM versions ORDER BY id DESC LIMIT 1")
        newest = self._parsed(found[0][1]) if found else {}
        if found and newest == config and list(newest.get("shadows", ())) == list(config.get("shadows", ())):
            return int(found[0][0])
        lines = json.dumps(diff(newest, config) if found else [])
        row = (self._clock(), _text(author), _text(reason), text, lines, len(text) + len(lines))
        sections = [(shadow, _digest(section)) for shadow, section in config.get("shadows", {}).items()]
        with self._write() as write:
            insert = "INSERT INTO versions (at_ns, author, reason, config, diff, size) VALUES (?, ?, ?, ?, ?, ?)"
            number = write.execute(insert, row).lastrowid or 0
            write.executemany(
                "INSERT INTO sections VALUES (?, ?, ?)", [(number, shadow, digest) for shadow, digest in sections]
            )
            if known_bad:
                write.execute(
                    "INSERT OR IGNORE INTO bad SELECT ?, new.shadow, max(bad.reason) FROM sections AS new "
                    "JOIN sections AS old ON old.shadow = new.shadow AND old.digest = new.digest "
                    "JOIN bad ON bad.version = old.version AND bad.shadow = old.shadow "
                    "WHERE new.version = ? GROUP BY new.shadow",
                    (number, number),
                )
            self._forget_old_versions(number, dict(sections))
        return number

    def versions(self, limit: int = 20, before: int | None = None) -> list[Version]:
        """The newest first; `before` an id, for the next page."""
        return self._versions("id < ? ORDER BY id DESC LIMIT ?", _before(before), _page(limit, VERSIONS_LIMIT))

    def version(self, number: int) -> tuple[Version, dict[str, Any]] | None:
        """One of them with its configuration, which `agent.config.validated` reads; None when it is not kept."""
        rows = self._read("SELECT config FROM versions WHERE id = ?", number) if abs(number) < 1 << 62 else []
        return (self._versions("id = ?", number)[0], self._parsed(rows[0][0])) if rows else None

    def mark_bad(self, number: int, shadow: str, reason: str) -> None:
        """What this version has in it for a shadow did not do well: nor will any other one kept by now, if it has the
        same."""
        with self._write() as write:
            write.execute(
                "INSERT OR REPLACE INTO bad SELECT version, shadow, ? FROM sections WHERE shadow = ? AND digest = "
                "(SELECT digest FROM sections WHERE shadow = ? AND version = ?)",
                (_text(reason), shadow, shadow, number),
            )

    def previous_good(self, shadow: str, current: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest version (id and configuration) that has something else in it for a shadow than the current
        configuration, and that is not known to be bad; None when there is none."""
        section = current.get("shadows", {}).get(shadow)
        number = self._newest_good(shadow, None if section is None else _digest(section))
        found = None if number is None else self.version(number)
        return (found[0].id, found[1]) if found else None

    def audit(self, author: str, action: str, shadow: str, reason: str, detail: dict[str, Any] | None = None) -> int:
        """Note what was done; the id of the entry."""
        text = json.dumps(detail or {}, default=str)
        if len(text) > DETAIL_CHARACTERS:
            text = json.dumps({"cut": text[: DETAIL_CHARACTERS // 2]})
        row = (self._clock(), _text(author), _text(action), _text(shadow), _text(reason), text)
        with self._write() as write:
            insert = "INSERT INTO audit (at_ns, author, action, shadow, reason, detail) VALUES (?, ?, ?, ?, ?, ?)"
            number = write.execute(insert, row).lastrowid or 0
            write.execute("DELETE FROM audit WHERE id <= ?", (number - AUDIT_LIMIT,))
        return number

    def audits(self, limit: int = 20, shadow: str | None = None, before: int | None = None) -> list[Entry]:
        """The newest first, of one shadow or all; `before` an id, for the next page."""
        which, of = ("shadow = ? AND", [_text(shadow)]) if shadow is not None else ("", [])
        rows = self._read(
            f"SELECT * FROM audit WHERE {which} id < ? ORDER BY id DESC LIMIT ?",
            *of,
            _before(before),
            _page(limit, AUDIT_LIMIT),
        )
        return [
            Entry(number, at_ns, author, action, about, reason, self._parsed(detail))
            for number, at_ns, author, action, about, reason, detail in rows
        ]

    def keep(self, name: str, data: Any) -> None:
        """Replace what is kept under a name; costs no fsync when it is the same."""
        text = json.dumps(data, default=str)
        if self._read("SELECT 1 FROM kept WHERE name = ? AND json = ?", name, text):
            return
        with self._write() as write:
            write.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, text))

    def kept(self, name: str) -> Any:
        """What is kept under a name; None when nothing is."""
        rows = self._read("SELECT json FROM kept WHERE name = ?", name)
        return self._parsed(rows[0][0]) if rows else None

    def _begin(self) -> None:
        with _explained(self._place):
            for pragma in _PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
        found = self._read("PRAGMA user_version")[0][0]
        if found > SCHEMA_VERSION:
            raise StateError(f"{self._place}: written by a newer shadowtap: use that one, or give another directory")
        if problems := [row[0] for row in self._read("PRAGMA quick_check(1)") if row[0] != "ok"]:
            raise DamagedError(f"{self._place}: damaged: {' '.join(str(problems[0]).split())}")
        with self._write() as write:
            for statement in _SCHEMA.split(";")[:-1] if found == 0 else ():
                write.execute(statement)
        with self._write() as write:  # whether it can be written is to be known now
            room = f"{self._clock():<{ROOM_STEP}}" * ROOM_STEPS
            write.execute("UPDATE opened SET room = ? WHERE id = 1", (room,))
            write.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # the first page, too, as at the next start

    def _versions(self, where: str, *values: object) -> list[Version]:
        rows = self._read(f"SELECT id, at_ns, author, reason, diff FROM versions WHERE {where}", *values)
        bad: dict[int, dict[str, str]] = {row[0]: {} for row in rows}
        if rows:
            between = min(bad), max(bad)
            for number, shadow, why in self._read("SELECT * FROM bad WHERE version BETWEEN ? AND ?", *between):
                bad.setdefault(number, {})[shadow] = why
        return [
            Version(number, at_ns, author, reason, tuple(self._parsed(lines)), bad[number])
            for number, at_ns, author, reason, lines in rows
        ]

    def _newest_good(self, shadow: str, unlike: str | None) -> int | None:
        rows = self._read(
            "SELECT version FROM sections NATURAL LEFT JOIN bad "
            "WHERE shadow = ? AND reason IS NULL AND digest IS NOT ? ORDER BY version DESC LIMIT 1",
            shadow,
            unlike,
        )
        return int(rows[0][0]) if rows else None

    def _forget_old_versions(self, newest: int, sections: dict[str, str]) -> None:
        """The oldest go, except those to which a shadow would go back."""
        total = "(SELECT id, sum(size) OVER (ORDER BY id DESC) AS bytes FROM versions)"
        over = self._read(f"SELECT max(id) FROM {total} WHERE bytes > ?", VERSIONS_BYTES)[0][0] or 0
        oldest = min(max(newest - VERSIONS_LIMIT, over), newest - 1)
        good = [self._newest_good(shadow, but) for shadow, digest in sections.items() for but in (None, digest)]
        marks = ", ".join("?" * len(good))
        self._connection.execute(f"DELETE FROM versions WHERE id <= ? AND id NOT IN ({marks})", (oldest, *good))

    def _parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise DamagedError(f"{self._place}: damaged: something in it is not JSON") from None

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with _explained(self._place):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or none."""
        with _explained(self._place):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends it by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise


def set_aside(directory: Path, at_ns: int) -> list[Path]:
    """Give a damaged file another name, so that `Store.open` makes a new one; the names it and its journal have now.
    StateError when an agent has it open."""
    lock = _locked(directory)
    try:
        found = [directory / name for name in (FILE + "-journal", FILE) if (directory / name).exists()]
        return [path.rename(f"{path}.damaged-{at_ns}") for path in found]
    except OSError as error:
        raise StateError(f"{directory}: {error.strerror}: {_WRITABLE}") from None
    finally:
        os.close(lock)


def _locked(directory: Path) -> int:
    """A descriptor that keeps other agents out until it is closed, whoever's end closes it."""
    try:
        directory.mkdir(mode=0o750, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateError(f"{directory}: {error.strerror}: {_WRITABLE}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StateError(f"{directory}: another agent uses it: give each one its own state.directory") from None
    return lock


def _connected(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        try:  # SQLite's journal will have the mode of the file beside it
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}: {_WRITABLE}") from None
    with _explained(str(path)):
        return sqlite3.connect(path or ":memory:", timeout=0, isolation_level=None)


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF  # without what extends it
        if code in _DAMAGED:
            raise DamagedError(f"{place}: damaged: {error}") from None
        raise StateError(f"{place}: {_ADVICE.get(code, str(error))}") from None


def _before(number: int | None) -> int:
    return 1 << 62 if number is None else max(min(number, 1 << 62), 0)


def _page(limit: int, most: int) -> int:
    return min(max(limit, 0), most)


def _digest(section: Any) -> str:
    """Of what a rollback restores of a shadow: whether it is on is no setting that does well or not."""
    if isinstance(section, dict):
        section = {key: value for key, value in section.items() if key not in NOT_RESTORED}
    return hashlib.sha256(json.dumps(section, sort_keys=True, default=str).encode()).hexdigest()


def _text(value: str) -> str:
    """Short, and without halves of surrogate pairs, which SQLite does not take."""
    return value.encode("utf-8", "replace").decode()[:TEXT_CHARACTERS]
