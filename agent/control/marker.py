"""What is tripped, in a file that can be written when the disk is full.

    {"tripped": {"candidate": ["judge", "11 % slower ..."]}} and blanks ... sha256 of that ... newline: SIZE bytes

The file is written once in full when it is made, and after that only overwritten in place, which needs no new blocks
(other than on file systems that copy on write). It says less than the database (agent.control.store) and says it when
that one cannot. A write that was cut short, or a file that anything else has changed, reads as: everything is tripped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agent.control.store import StateError

SIZE = 4096
_DIGEST_CHARACTERS = 64
_ROOM = SIZE - _DIGEST_CHARACTERS - 1
_REASON_LENGTHS = (300, 100, 30, 0)  # tried in turn until it fits


class Trip(NamedTuple):
    """Why one shadow is off."""

    cause: str
    reason: str


@dataclass(frozen=True, slots=True)
class Content:
    """What the file says. With a `problem` it says that everything is tripped."""

    tripped: Mapping[str, Trip]
    problem: str = ""

    def of(self, shadow: str) -> Trip | None:
        """Why a shadow is off; None when it is not."""
        return Trip("state", self.problem) if self.problem else self.tripped.get(shadow)


class Marker:
    """The open file. Belongs to one process, as its directory does."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> tuple[Marker, Content]:
        """Open the file or make it, and say what is in it. StateError when neither is possible."""
        try:
            if not path.exists():
                _make(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}: give the agent's user a directory that it can write") from None
        try:
            found = os.pread(descriptor, SIZE + 1, 0)
        except OSError as error:
            return cls(path, descriptor), Content({}, f"the marker cannot be read: {path}: {error.strerror}")
        return cls(path, descriptor), _read(found, path)

    def write(self, tripped: Mapping[str, Trip]) -> None:
        """Replace what the file says. When it returns, that survives a power cut; StateError: it may not."""
        data = _written(tripped)
        try:
            done = os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, SIZE)  # whatever made it longer
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}: what is tripped may be forgotten by a restart") from None
        if done != SIZE:
            raise StateError(f"{self.path}: only {done} of {SIZE} bytes could be written: free some space")

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)


def _make(path: Path) -> None:
    """Under another name first, so that there is never half a file under this one."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(descriptor, _written({})) != SIZE:
            raise OSError(28, "No space left on device")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _written(tripped: Mapping[str, Trip]) -> bytes:
    for length in _REASON_LENGTHS:
        what = {name: [trip.cause, trip.reason[:length]] for name, trip in tripped.items()}
        text = json.dumps({"tripped": what}).encode()
        if len(text) <= _ROOM:
            text = text.ljust(_ROOM)
            return text + hashlib.sha256(text).hexdigest().encode() + b"\n"
    raise StateError(f"{len(tripped)} tripped shadows do not fit into the marker of {SIZE} bytes")


def _read(found: bytes, path: Path) -> Content:
    text, digest = found[:_ROOM], found[_ROOM:]
    if len(found) != SIZE or digest != hashlib.sha256(text).hexdigest().encode() + b"\n":
        return Content({}, f"the marker is damaged: {path}")
    try:
        data: Any = json.loads(text)
        tripped = {str(name): Trip(str(cause), str(reason)) for name, (cause, reason) in data["tripped"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return Content({}, f"the marker is not one of this version: {path}")
    return Content(tripped)
