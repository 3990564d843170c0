"""The fate of every request: chosen or skipped, sent or dropped, answered, and recorded once both sides are final.

It stands between the pipeline (which yields exchanges) and the replay client (which yields outcomes), live and offline
alike, and keeps the account. There is one Mirror for each shadow; all are given every exchange, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from replay.account import Account
from replay.exchange import NOT_RECORDED, Dropped, Exchange, Fate, Incomplete, Origin, Outcome, Request, Skipped, Trial

Record = Callable[[Trial], None]
Choose = Callable[[Exchange], Skipped | None]  # why a whole request is not for the shadow, or None


class Sender(Protocol):
    """What the mirror needs of `replay.client.Replayer`."""

    def submit(self, request: Request, token: object, origin: Origin | None = None) -> Dropped | None:
        """Take a request; `Mirror.answered` is called for it later, exactly once. Or say why not."""


class Mirror:
    """Owns one shadow's account. `take` and `answered` may come in any order for one exchange; its trial is recorded
    when both came. `place` is the shadow's among those of `Exchange.trials`."""

    def __init__(
        self, choose: Choose, record: Record | None = None, place: int = 0, begun: Record | None = None
    ) -> None:
        """`record` is told of each trial that is over, `begun` of each whose request is on its way."""
        self.account = Account()
        self.sender: Sender | None = None  # None: capture only
        self.choose = choose
        self._record = record
        self._begun = begun
        self._place = place

    def take(self, ready: Iterable[Exchange], finished: Iterable[Exchange], seen: int) -> None:
        """Exchanges from the pipeline, and how many requests it has begun in all."""
        self.account.seen = seen
        for exchange in ready:
            trial = Trial(exchange)
            exchange.trials.append(trial)
            self._decide(trial)
        for exchange in finished:
            if len(exchange.trials) <= self._place:  # it never became whole
                exchange.trials.append(Trial(exchange))
            known = exchange.trials[self._place]
            assert known is not None
            known.finished = True
            if known.fate is not None:
                self._over(known)
            elif exchange.incomplete is not None:
                self._end(known, Fate.INCOMPLETE, exchange.incomplete)

    def answered(self, token: object, result: Outcome | Dropped) -> None:
        """The replay client's callback."""
        assert isinstance(token, Trial)
        if isinstance(result, Outcome):
            token.outcome = result
            self.account.answers[result.answer] += 1
            self._end(token, Fate.REPLAYED)
        else:
            self._end(token, Fate.DROPPED, result)

    def _decide(self, trial: Trial) -> None:
        exchange = trial.exchange
        request = exchange.request
        assert request is not None
        skip = self.choose(exchange)
        if skip is not None:
            self._end(trial, Fate.SKIPPED, skip)
        elif not request.whole:
            self._end(trial, Fate.INCOMPLETE, Incomplete.BODY_LIMIT)
        elif self.sender is None:
            self._end(trial, Fate.SKIPPED, Skipped.DRY_RUN)
        elif (drop := self.sender.submit(request, trial, exchange)) is not None:
            self._end(trial, Fate.DROPPED, drop)
        elif self._begun is not None:
            self._begun(trial)

    def _end(self, trial: Trial, fate: Fate, reason: str = "") -> None:
        trial.fate, trial.reason = fate, reason
        account = self.account
        if fate is Fate.REPLAYED:
            account.replayed += 1
        elif fate is Fate.SKIPPED:
            account.skipped[reason] += 1
        elif fate is Fate.DROPPED:
            account.dropped[reason] += 1
        else:
            account.incomplete[reason] += 1
        if trial.finished:
            self._over(trial)

    def _over(self, trial: Trial) -> None:
        trial.exchange.trials[self._place] = None  # else both would wait for the garbage collector, which seldom comes
        if self._record is not None and trial.reason not in NOT_RECORDED:
            self._record(trial)
