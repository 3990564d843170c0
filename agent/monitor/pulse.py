"""A worker's side of the breaker: how the shadows' answers end, told to the service at once when one fails.

The judge takes its time to be sure. A shadow that is plainly broken is to be left alone within milliseconds, so these
counts go another way, straight to the process that holds the switch.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.monitor.feed import ERROR_STATUS, NOT_REACHED, ended_by
from agent.monitor.pairs import REFUSED
from replay.exchange import Answer, Dropped, Exchange, Outcome, Trial

Row = list[int]  # place, answers, failed, production_failed, unreachable


class Pulse:
    """Counts since the last `take`, by the place of the shadow.

    failed              the shadow failed where production did not, or has not answered yet
    production_failed   production answered with a status from 500 on, or ended the connection instead
    unreachable         no connection was made, or none was tried because of that
    """

    def __init__(self, places: int, hurry: Callable[[], object]) -> None:
        """`hurry` is called at the first failure after each `take`."""
        self._rows: list[Row] = [[place, 0, 0, 0, 0] for place in range(places)]
        self._hurry = hurry
        self._hurried = False

    def count(self, place: int, result: Outcome | Dropped, trial: Trial) -> None:
        """One request has ended. What was dropped for the agent's own reasons is no answer."""
        if isinstance(result, Outcome):
            answer = result.answer
            failed = answer is not Answer.OK or result.status >= ERROR_STATUS
            unreachable = failed and answer in NOT_REACHED
        elif result in REFUSED:
            failed = unreachable = True
        else:
            return
        row = self._rows[place]
        row[1] += 1
        if _production_failed(trial.exchange):
            row[3] += 1
        elif failed:
            row[2] += 1
        if unreachable:
            row[4] += 1
        if failed and not self._hurried:
            self._hurried = True
            self._hurry()

    def take(self) -> list[Row] | None:
        """What was counted since the last time; None when nothing was."""
        self._hurried = False
        taken = [row for row in self._rows if row[1]]
        for row in taken:
            self._rows[row[0]] = [row[0], 0, 0, 0, 0]
        return taken or None

    def put_back(self, rows: list[Row]) -> None:
        """They could not be sent: they go with the next."""
        for place, *counts in rows:
            row = self._rows[place]
            row[1:] = [mine + theirs for mine, theirs in zip(row[1:], counts, strict=True)]


def _production_failed(exchange: Exchange) -> bool:
    response = exchange.response
    return (response is not None and response.status >= ERROR_STATUS) or ended_by(exchange) == "server"
