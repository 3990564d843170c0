"""A worker's side of what the watch process hears: makes records of trials that are over, and sends them in batches.

Nothing here waits. When the watch process is behind or being restarted, batches are kept up to a limit, then left out
and counted. Without numpy, like everything in a worker; a pair costs about 3 us.
"""

from __future__ import annotations

import socket
import time
from collections import deque

from agent.monitor.pairs import (
    ANSWER_NUMBERS,
    COMPARED,
    DIFFERENT,
    ECHOED,
    LOST,
    LOST_NUMBERS,
    NOISY,
    PAIR,
    PRODUCTION_ERROR,
    RECORD,
    REFUSED,
    SHADOW_ERROR,
    UNANSWERED,
    UNREACHABLE,
    pack_datagram,
    pack_text,
)
from agent.monitor.repeats import Repeats
from replay.account import Account
from replay.exchange import Answer, Dropped, Exchange, Fate, Incomplete, Outcome, Response, Trial
from replay.sameness import same

BATCH_BYTES = 48_000
KEPT_BYTES = 1 << 20
SETTLE_NS = 250_000_000  # from a packet's capture until its request is a trial
# What is missing in the capture is known a little later than what production never sent (agent/stream/limits.py, and
# the second between two looks), and is no fault of hers.
OVERDUE_NS = SETTLE_NS + 1_250_000_000
ERROR_STATUS = 500  # from here on it is the server's fault
NOT_REACHED = frozenset({Answer.CONNECT, Answer.CONNECT_TIMEOUT, Answer.TLS})

# What became of a request through the agent's own doing; the rest is the client's, and says nothing of anybody.
OURS = frozenset({Incomplete.GAP, Incomplete.EVICTED, Incomplete.REQUEST_LOST, Incomplete.TOO_LARGE})

_NOISE = {None: 0, False: ECHOED, True: ECHOED | NOISY}
_ERROR = PRODUCTION_ERROR
_OK, _REPLAYED = Answer.OK, Fate.REPLAYED
_pack = RECORD.pack
_INDEX_MASK, _CONNECTION_MASK = (1 << 32) - 1, (1 << 64) - 1


class Feed:
    """One for each worker. `channel` is a datagram socket that other processes may share, so its mode is left alone;
    None: nobody listens."""

    def __init__(self, channel: socket.socket | None, worker: int) -> None:
        self._channel = channel
        self._worker = worker
        self._records = bytearray()
        self._count = 0  # of the records
        self._kept: deque[tuple[bytes, int]] = deque()  # datagrams that could not be sent yet, with their counts
        self._kept_bytes = 0
        self._tellers: list[Teller] = []
        self._caught_up_ns = 0
        self._known_ns = 0
        self.sent = 0
        self.unsent = 0

    def follow(self, teller: Teller) -> None:
        """Ask it for what is open, and for what is overdue."""
        self._tellers.append(teller)

    def caught_up(self, at_ns: int) -> None:
        """At this time nothing waited to be read: all that was captured before has been taken."""
        self._caught_up_ns = at_ns

    def add(self, trial: Trial, place: int, limit_ns: int, delay_ns: int, noisy: bool | None = None) -> None:
        """A request and what became of it on both sides. Where production has no whole answer, it failed."""
        exchange, outcome = trial.exchange, trial.outcome
        request, response = exchange.request, exchange.response
        assert request is not None
        # One unpacking costs less than reading each field by its name; and no `max`, for it is a call.
        method, target, _, _, _, _, _, at_ns, asked_ns, _, _ = request
        if response is not None and response.complete:
            status, _, _, _, _, _, answered_ns, _, _ = response
            flags = _NOISE[noisy] | _ERROR if status >= ERROR_STATUS else _NOISE[noisy]
            production_ns = answered_ns - asked_ns
            if production_ns > limit_ns:
                production_ns, flags = limit_ns, flags | _ERROR
            elif production_ns < 0:
                production_ns = 0
        else:
            status = response.status if response is not None else 0
            response, production_ns, flags = None, limit_ns, _NOISE[noisy] | _ERROR
        if outcome is not None and outcome.answer is _OK:
            word, shadow_status = 0, outcome.status
            shadow_ns, response_ns, lag_ns, found = _whole(outcome, response, limit_ns, asked_ns + delay_ns)
        else:
            shadow_status, shadow_ns = 0, limit_ns
            word, response_ns, lag_ns, found = _without(outcome, trial.reason, limit_ns, asked_ns + delay_ns)
        text = pack_text(method, target)
        records = self._records
        records += _pack(
            flags | found, PAIR, place, status, shadow_status, word, exchange.connection & _CONNECTION_MASK,
            exchange.index & _INDEX_MASK, at_ns, production_ns, shadow_ns, response_ns, lag_ns, len(text),
        )  # fmt: skip
        records += text
        self._count += 1
        if len(records) >= BATCH_BYTES:
            self._send_all()

    def lose(
        self, trial: Trial, place: int, limit_ns: int, reason: str, detail: str = "", production_ns: int = 0
    ) -> None:
        """A request of which there is no pair; `agent.monitor.pairs.LOST_WORDS` has the reasons. `production_ns` is
        what is known of it without an answer."""
        exchange = trial.exchange
        request, response = exchange.request, exchange.response
        at_ns, status = 0, 0
        if response is not None:
            at_ns, status = response.t_first_ns, response.status
        if request is not None:
            at_ns = request.t_first_ns
            if response is not None and response.complete:
                production_ns = min(max(response.t_last_ns - request.t_last_ns, 0), limit_ns)
        text = b"" if request is None else pack_text(request.method, request.target)
        word = LOST_NUMBERS[reason, detail]
        connection, index = exchange.connection & _CONNECTION_MASK, exchange.index & _INDEX_MASK
        times = at_ns or time.time_ns(), production_ns, 0, 0, 0
        self._records += _pack(0, LOST, place, status, 0, word, connection, index, *times, len(text)) + text
        self._count += 1
        if len(self._records) >= BATCH_BYTES:
            self._send_all()

    def flush(self) -> None:
        """To be called a few times a second: send what there is, and say up to when everything is told."""
        for teller in self._tellers:
            teller.tell_overdue(self._caught_up_ns)
        open_ns = [min(teller.open.values()) for teller in self._tellers if teller.open]
        self._known_ns = max(0, min([*open_ns, self._caught_up_ns - SETTLE_NS]))
        self._send_all()

    def _send_all(self) -> None:
        """The oldest first; what cannot be sent is kept, or left out when too much is kept. What was known at the last
        `flush` still is, so that looking for the oldest open trial costs nothing here."""
        kept = self._kept
        while kept and self._send(*kept[0]):
            self._kept_bytes -= len(kept.popleft()[0])
        datagram, count = pack_datagram(self._worker, self.unsent, self._known_ns, self._records), self._count
        self._records.clear()
        self._count = 0
        if kept or not self._send(datagram, count):
            if not count:
                return
            if self._channel is None or self._kept_bytes + len(datagram) > KEPT_BYTES:
                self.unsent += count
            else:
                kept.append((datagram, count))
                self._kept_bytes += len(datagram)

    def report(self) -> dict[str, int]:
        """Counters of records, and what waits."""
        return {"sent": self.sent, "unsent": self.unsent, "waiting_bytes": self._kept_bytes + len(self._records)}

    def _send(self, datagram: bytes, count: int) -> bool:
        if self._channel is None:
            return False
        try:
            self._channel.send(datagram, socket.MSG_DONTWAIT)
        except OSError:  # full, or nobody there just now
            return False
        self.sent += count
        return True


def _whole(outcome: Outcome, response: Response | None, limit_ns: int, intended_ns: int) -> tuple[int, int, int, int]:
    """shadow_ns, response_ns, lag_ns and flags of an answer that came, beside production's if it is whole."""
    _, _, status, _, _, _, _, sent_ns, _, last_ns, _, _, _, _, _ = outcome
    equal = None if response is None else same(response, outcome)
    flags = 0 if equal is None else COMPARED if equal else COMPARED | DIFFERENT
    shadow_ns, response_ns = last_ns - sent_ns, last_ns - intended_ns
    if shadow_ns > limit_ns:
        shadow_ns, flags = limit_ns, flags | SHADOW_ERROR
    elif status >= ERROR_STATUS:
        flags |= SHADOW_ERROR
    return shadow_ns if shadow_ns > 0 else 0, response_ns if response_ns > 0 else 0, sent_ns - intended_ns, flags


def _without(outcome: Outcome | None, reason: str, limit_ns: int, intended_ns: int) -> tuple[int, int, int, int]:
    """Answer's number, response_ns, lag_ns and flags where none came; without an outcome it was `reason`."""
    if outcome is None:
        return ANSWER_NUMBERS[reason], limit_ns, 0, SHADOW_ERROR | UNREACHABLE
    lag_ns = outcome.t_sent_ns - intended_ns if outcome.t_sent_ns else 0
    flags = SHADOW_ERROR | UNREACHABLE if outcome.answer in NOT_REACHED else SHADOW_ERROR
    return ANSWER_NUMBERS[outcome.answer], max(limit_ns + lag_ns, 0), lag_ns, flags


def ended_by(exchange: Exchange) -> str:
    """Who ended the connection before production's answer was whole: "client", "server", or "" where it is whole or
    that is not known."""
    response = exchange.response
    return "" if response is not None and response.complete else exchange.ended_by


class Teller:
    """One shadow's trials to the feed: which of them are pairs, which are lost, which say nothing. Each is told once.

    A trial whose production side stays silent for longer than the limit is told then, and not when that side ends, or
    answers that take minutes would come too late to count, while those of the shadow count as the limit. If it turns
    out that the answer was missing in the capture, the trial is told as lost besides, so that the loss is seen.
    """

    def __init__(self, feed: Feed, place: int, limit_s: float, account: Account) -> None:
        """`limit_s` is the shadow's time limit for an answer."""
        self.delay_ns = 0  # of agent.spacing
        self._feed = feed
        self._place = place
        self._limit_ns = round(limit_s * 1e9)
        self.open: dict[Trial, int] = {}  # not told yet, as their requests became whole; and when these came
        self._told: set[Trial] = set()  # whose production side is still open
        feed.follow(self)
        self._share = _Share(account)
        self._repeats = Repeats()

    def rule_changed(self) -> None:
        """What the shadow takes is another share from now on."""
        self._share.begin()

    def begun(self, trial: Trial) -> None:
        """A request is on its way to the shadow."""
        request = trial.exchange.request
        assert request is not None
        self.open[trial] = request.t_first_ns

    def over(self, trial: Trial, noisy: bool | None = None) -> None:
        """Both sides are final, and so is what is known of `noisy`."""
        self.open.pop(trial, None)
        if self._told and trial in self._told:
            self._told.remove(trial)
            response = trial.exchange.response
            if (response is None or not response.complete) and not ended_by(trial.exchange):
                self._lose(trial, UNANSWERED)
            return
        fate, reason = trial.fate, trial.reason
        if fate is _REPLAYED or (fate is Fate.DROPPED and reason in REFUSED):
            response = trial.exchange.response
            if response is not None and response.complete:
                request = trial.exchange.request
                assert request is not None
                differs = self._repeats.differ(request, response)
                self._add(trial, differs if noisy is None else noisy)
            elif (ended := ended_by(trial.exchange)) == "server":
                self._add(trial, noisy)
            elif ended != "client":  # who gives up says nothing of anybody
                self._lose(trial, UNANSWERED)
        elif fate is Fate.DROPPED:
            if reason != Dropped.SHUTDOWN and ended_by(trial.exchange) != "client":
                self._lose(trial, "dropped", reason)
        elif reason == Incomplete.BODY_LIMIT or (reason in OURS and self._share.next()):
            self._lose(trial, "incomplete", reason)

    def tell_overdue(self, caught_up_ns: int) -> None:
        """Tell the trials that wait for production alone, and for too long, as if she had answered after the limit.
        All that was captured before `caught_up_ns` is known."""
        asked_before_ns = caught_up_ns - OVERDUE_NS - self._limit_ns
        overdue = []
        for trial in self.open:
            request = trial.exchange.request
            assert request is not None
            if request.t_last_ns >= asked_before_ns:
                break  # those behind it became whole later
            if trial.fate is not None and not trial.finished:
                overdue.append(trial)
        for trial in overdue:
            del self.open[trial]
            self._told.add(trial)
            if trial.fate is _REPLAYED or trial.reason in REFUSED:
                self._add(trial, None)
            elif trial.reason != Dropped.SHUTDOWN:
                self._lose(trial, "dropped", trial.reason, self._limit_ns)

    def _add(self, trial: Trial, noisy: bool | None) -> None:
        self._feed.add(trial, self._place, self._limit_ns, self.delay_ns, noisy)

    def _lose(self, trial: Trial, reason: str, detail: str = "", production_ns: int = 0) -> None:
        self._feed.lose(trial, self._place, self._limit_ns, reason, detail, production_ns)


class _Share:
    """Of what never became whole nobody knows whether the shadow would have got it. It is told in the share that the
    shadow takes of the others, or a shadow that takes little would seem to lose much."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._owed = 0.0
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self._since = self._now()

    def next(self) -> bool:
        """Whether the next one is to be told."""
        offered, skipped = (now - before for now, before in zip(self._now(), self._since, strict=True))
        self._owed += 1 - skipped / offered if offered > 0 else 1.0
        if self._owed < 1:
            return False
        self._owed -= 1
        return True

    def _now(self) -> tuple[int, int]:
        account = self._account
        return account.seen - account.incomplete.total(), account.skipped.total()
