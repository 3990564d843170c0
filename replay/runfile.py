"""The run file: what one worker of one run last said of itself (its account, the capture's counters), as JSON beside
the rows.

It is replaced as a whole every second, so after a kill the last one is there and is at most a second old.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from replay.account import Account
from replay.errors import RecordingError

RUN_SUFFIX = ".run.json"
VERSION = 1


@dataclass(slots=True)
class RunFile:
    """One worker's last word. `state` is "running" until the worker ended in order."""

    run: str
    worker: int
    shadow: str
    state: str
    started_ns: int
    updated_ns: int
    account: Account
    recording: dict[str, int] = field(default_factory=dict)  # the recorder's own counters
    extra: dict[str, Any] = field(default_factory=dict)  # what the owner adds; see `Recorder.flush`

    def write(self, path: Path, *, durable: bool) -> None:
        """Replace the file in one step; `durable` also waits for the disk. OSError when that fails."""
        data = {one.name: getattr(self, one.name) for one in fields(self)}
        data |= {"version": VERSION, "account": self.account.as_dict()}
        part = path.with_name(path.name + ".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(data, file, default=str)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)


def new_run_id(now_ns: int) -> str:
    """A name for one run of the agent, the same for all its workers: the time and something random."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 1_000_000_000)) + "-" + os.urandom(3).hex()


def read_run_file(path: Path) -> RunFile:
    """Read one back; RecordingError when it is not one, or newer than this."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.pop("version")
        if version > VERSION:
            raise RecordingError(f"{path}: version {version}, this shadowtap reads up to {VERSION}")
        data["account"] = Account.from_dict(data["account"])
        return RunFile(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(f"{path}: not a run file ({error}); move it away to compare without it") from error
