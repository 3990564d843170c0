"""Asks the shadow some requests a second time: what differs between its own two answers is noise, and no difference
between the shadow and production.

Only requests that may be sent twice and have no body, only when the first answer was whole, and only a share of them:
those of which a hash says so, and the first few of every route, so that rare ones are known, too. The second goes out
as long after the first as the first went out after the request.

These requests are in no account, no recording and no pulse; they have counters of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from agent.mirror import Sender
from agent.select.sampling import request_hash, sampled
from agent.spacing import SLACK_NS
from replay.exchange import Answer, Dropped, Outcome, Request, Trial
from replay.sameness import alike

METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FIRST_OF_ROUTE = 20
ROUTES_MAX = 1000
WAITING_MAX = 2000
PATH_LIMIT_CHARS = 512
SHAPES_KEPT = 2048

_DIGIT = re.compile(r"\d")

Tell = Callable[[Trial, bool | None], None]


class Asked:
    """A trial whose request was asked again, and the first answer. It is the second request's token."""

    __slots__ = ("answered", "first", "noisy", "over", "trial")

    def __init__(self, trial: Trial, first: Outcome) -> None:
        self.trial = trial
        self.first = first
        self.over = False  # both sides of the trial are final
        self.answered = False  # the second request has ended
        self.noisy: bool | None = None


class Echo:
    """One shadow's. A trial that was asked again is told when both it and the second request are over."""

    def __init__(self, noise_ppm: int, tell: Tell) -> None:
        self.sender: Sender | None = None
        self.delay_ns = 0  # of agent.spacing
        self.enabled = True
        self._noise_ppm = noise_ppm
        self._tell = tell
        self._routes: dict[str, int] = {}
        self._waiting: dict[Trial, Asked] = {}
        self.counts = {"asked": 0, "answered": 0, "noisy": 0, "dropped": 0}

    def consider(self, trial: Trial, outcome: Outcome) -> None:
        """The first answer has come, and the trial is not over yet: ask again if it is one of those."""
        request = trial.exchange.request
        if outcome.answer is not Answer.OK or request is None or request.method not in METHODS:
            return
        if not self.enabled or self.sender is None or request.body_bytes or not self._chosen(trial, request):
            return
        if len(self._waiting) >= WAITING_MAX:
            self.counts["dropped"] += 1
            return
        asked = Asked(trial, outcome)
        # As long after the first as that was after its request, but not before its answer.
        at_ns = max(outcome.t_sent_ns, outcome.t_last_ns - self.delay_ns + SLACK_NS)
        if self.sender.submit(request._replace(t_last_ns=at_ns), asked, trial.exchange) is not None:
            self.counts["dropped"] += 1
            return
        self.counts["asked"] += 1
        self._waiting[trial] = asked

    def over(self, trial: Trial) -> None:
        """Both sides of a trial are final: tell it, or keep it until its second answer has come."""
        asked = self._waiting.get(trial) if self._waiting else None
        if asked is None:
            self._tell(trial, None)
            return
        asked.over = True
        self._end(asked)

    def answered(self, asked: Asked, result: Outcome | Dropped) -> None:
        """The second request has ended."""
        if asked.answered:
            return  # given up by `finish`
        asked.answered = True
        if isinstance(result, Outcome):
            equal = alike(asked.first, result)
            asked.noisy = None if equal is None else not equal
            self.counts["answered"] += 1
            self.counts["noisy"] += asked.noisy is True
        else:
            self.counts["dropped"] += 1
        self._end(asked)

    def finish(self) -> None:
        """Nothing more will come: tell the rest."""
        self.enabled = False
        for asked in tuple(self._waiting.values()):
            self.answered(asked, Dropped.SHUTDOWN)

    def report(self) -> dict[str, int]:
        """What was asked, answered, found noisy, and given up."""
        return dict(self.counts)

    def _end(self, asked: Asked) -> None:
        if asked.over and asked.answered:
            del self._waiting[asked.trial]
            self._tell(asked.trial, asked.noisy)

    def _chosen(self, trial: Trial, request: Request) -> bool:
        exchange, routes = trial.exchange, self._routes
        route = shape(request.method, request.target[:PATH_LIMIT_CHARS].partition("?")[0])
        count = routes.get(route, 0)
        if count < FIRST_OF_ROUTE and (count or len(routes) < ROUTES_MAX):
            routes[route] = count + 1
            return True
        return sampled(request_hash(exchange.connection, exchange.index), self._noise_ppm)


@lru_cache(SHAPES_KEPT)
def shape(method: str, path: str) -> str:
    """A route, roughly: whatever has a digit is taken for an identifier. Enough to give rare ones their turn."""
    return method + " " + "/".join("{id}" if _DIGIT.search(part) else part for part in path.split("/"))
