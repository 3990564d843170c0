"""Whether mirroring slows production down: the evidence of the on and off blocks, judged like everything else.

Which block of a pair had mirroring on was decided by the toss of a coin, so that its number is as likely to be positive
as negative when mirroring does nothing: the test is valid by design, whatever the load does meanwhile.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.monitor.judging import read_state, write_whole
from replay.judge import Judge, as_json
from replay.judge.plan import HARM_SETTINGS


class HarmJudge:
    """Owns the judge of the do-no-harm check; its state is kept across restarts."""

    def __init__(self, directory: Path | None) -> None:
        self.problem = ""
        self._path = directory / "harm.json" if directory else None
        self._judge = self._open()
        self._pairs_of_blocks = 0

    @property
    def begun(self) -> bool:
        """There is evidence, perhaps of an earlier process."""
        return any(finding["blocks"] for finding in self.message()["findings"])

    def take(self, measures: dict[str, float], at_ns: int) -> None:
        """The numbers of one pair of blocks."""
        self._pairs_of_blocks += 1
        for metric, value in measures.items():
            self._judge.measure(metric, value, at_ns)

    def forget(self) -> None:
        """Begin anew."""
        self._judge, self._pairs_of_blocks = Judge(HARM_SETTINGS), 1  # so that this is kept
        self.keep()  # at once, or a crash would bring the old evidence back

    def message(self) -> dict[str, Any]:
        """For the service."""
        return as_json(self._judge.verdict())

    def keep(self) -> None:
        """Write the state down."""
        if self._path is None or not self._pairs_of_blocks:
            return
        try:
            write_whole(self._path, json.dumps(self._judge.as_json()))
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror}: the do-no-harm check's evidence is not kept"

    def _open(self) -> Judge:
        if self._path is not None:
            try:
                return Judge.from_json(read_state(self._path), HARM_SETTINGS)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                pass  # none, or damaged
        return Judge(HARM_SETTINGS)
