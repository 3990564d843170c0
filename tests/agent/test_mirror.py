"""Every request has exactly one fate, is recorded exactly once, and only when both sides are final."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.mirror import Mirror
from agent.select.choice import Choice, Rule
from agent.select.client_address import ClientAddress
from agent.select.language import parse
from replay.exchange import Answer, Dropped, Exchange, Fate, Incomplete, Outcome, Request, Skipped, Trial
from tests.replay.examples import failed_outcome, make_exchange, make_outcome, make_request, make_response

MARK = b"X-Shadowtap: 1"
METHODS = ("GET", "HEAD", "OPTIONS")


class Sender:
    """Takes what it is told to take, and answers when it is told to."""

    def __init__(self) -> None:
        self.refuse: Dropped | None = None
        self.taken: list[object] = []

    def submit(self, request: Request, token: object, origin: object = None) -> Dropped | None:
        if self.refuse is None:
            self.taken.append(token)
        return self.refuse


def choice(**rule: object) -> Choice:
    """Everything is taken but what `rule` says."""
    return Choice(Rule(**{"methods": METHODS, "mark": MARK, **rule}), 0, ClientAddress(), in_kernel=True)


class Stage:
    """A mirror, its sender, and the exchanges it recorded."""

    def __init__(self, *, dry_run: bool = False, **rule: object) -> None:
        self.trials: list[Trial] = []
        self.mirror = Mirror(choice(dry_run=dry_run, **rule), self.trials.append)
        self.sender = Sender()
        self.mirror.sender = None if dry_run else self.sender
        self.seen = 0

    @property
    def recorded(self) -> list[Exchange]:
        return [trial.exchange for trial in self.trials]

    def ready(self, *exchanges: Exchange) -> None:
        self.seen += len(exchanges)
        self.mirror.take(exchanges, (), self.seen)

    def finished(self, *exchanges: Exchange, new: int = 0) -> None:
        self.seen += new
        self.mirror.take((), exchanges, self.seen)


def an_exchange(method: str = "GET", headers: bytes = b"Host: a\r\n") -> Exchange:
    return make_exchange(make_request(method=method, headers=headers), make_response())


@pytest.mark.parametrize("first", ["answer", "finish"])
def test_a_request_is_recorded_when_both_sides_are_final(first: str) -> None:
    stage, exchange, outcome = Stage(), an_exchange(), make_outcome()
    stage.ready(exchange)
    assert stage.mirror.account.in_flight == 1
    steps = [lambda: stage.mirror.answered(stage.sender.taken[0], outcome), lambda: stage.finished(exchange)]
    for step in steps if first == "answer" else reversed(steps):
        assert stage.recorded == []
        step()
    assert stage.recorded == [exchange]
    (trial,) = stage.trials
    assert exchange.trials == [None], "or it would be a cycle that only the garbage collector ends"
    assert (trial.fate, trial.outcome) == (Fate.REPLAYED, outcome)
    account = stage.mirror.account
    assert (account.seen, account.replayed, account.answers, account.in_flight) == (1, 1, {"ok": 1}, 0)


@pytest.mark.parametrize(
    ("method", "headers", "why"),
    [
        ("POST", b"Host: a\r\n", Skipped.METHOD),
        ("get", b"Host: a\r\n", Skipped.METHOD),
        ("CONNECT", b"Host: a\r\n", Skipped.TUNNEL),
        ("GET", b"Host: a\r\nUPGRADE: websocket\r\n", Skipped.TUNNEL),
        ("GET", b"x-shadowtap: 1\r\n", Skipped.SHADOW_TRAFFIC),
        ("GET", b"A: b\r\nX-SHADOWTAP: 1\r\n", Skipped.SHADOW_TRAFFIC),
        ("GET", b"A: X-Shadowtap: 1\r\n", None),
        ("HEAD", b"X-Upgrade: 1\r\n", None),
    ],
)
def test_who_is_skipped(method: str, headers: bytes, why: Skipped | None) -> None:
    stage, exchange = Stage(), an_exchange(method, headers)
    stage.ready(exchange)
    stage.finished(exchange)
    assert [trial.reason for trial in stage.trials] == ([why] if why else [])
    assert stage.mirror.account.skipped == ({why: 1} if why else {})
    assert len(stage.recorded) == (why is not None)
    assert len(stage.sender.taken) == (why is None)


def test_without_a_mark_nothing_is_shadow_traffic() -> None:
    assert choice(mark=b"")(an_exchange()) is None


def test_a_dry_run_skips_everything() -> None:
    stage, exchange = Stage(dry_run=True), an_exchange("POST")
    stage.ready(exchange)
    stage.finished(exchange)
    assert stage.mirror.account.skipped == {"dry_run": 1}


def test_what_is_not_whole_is_incomplete() -> None:
    stage, cut = Stage(), an_exchange()
    assert cut.request is not None
    cut.request = cut.request._replace(body_bytes=9)
    stage.ready(cut)
    (trial,) = cut.trials
    assert trial is not None
    assert (trial.fate, trial.reason, stage.sender.taken) == (Fate.INCOMPLETE, Incomplete.BODY_LIMIT, [])
    orphan = make_exchange(None, make_response(), incomplete=Incomplete.REQUEST_LOST)
    headless = make_exchange(None, None, incomplete=Incomplete.GAP)
    stage.finished(cut, orphan, headless, new=2)
    assert stage.recorded == [cut, orphan, headless]
    assert stage.mirror.account.incomplete == {"body_limit": 1, "request_lost": 1, "gap": 1}
    assert stage.mirror.account.in_flight == 0


def test_drops_at_once_and_later() -> None:
    stage, one, other = Stage(), an_exchange(), an_exchange()
    stage.sender.refuse = Dropped.QUEUE_FULL
    stage.ready(one)
    stage.sender.refuse = None
    stage.ready(other)
    stage.finished(one, other)
    assert stage.recorded == [one]
    stage.mirror.answered(other.trials[0], Dropped.SHUTDOWN)
    assert stage.recorded == [one, other]
    assert stage.mirror.account.dropped == {"queue_full": 1, "shutdown": 1}


def test_it_works_without_a_recorder() -> None:
    mirror, exchange = Mirror(choice()), an_exchange()
    mirror.take([exchange], [exchange], 1)
    assert mirror.account.skipped == {"dry_run": 1}


@settings(max_examples=200)
@given(st.integers(0, 1 << 32), st.integers(1, 40))
def test_any_order_of_events(seed: int, count: int) -> None:
    """Requests come, end, are refused and answered in any order: the account closes and all are recorded once."""
    rng, stage = random.Random(seed), Stage()
    everyone: list[Exchange] = []
    open_ones: list[Exchange] = []
    while len(everyone) < count or open_ones or stage.sender.taken:
        step = rng.randrange(3)
        if step == 0 and len(everyone) < count:
            stage.sender.refuse = rng.choice([None, None, Dropped.QUEUE_FULL, Dropped.NO_UPSTREAM])
            if rng.random() < 0.2:
                exchange = make_exchange(None, None, incomplete=rng.choice(list(Incomplete)))
                stage.finished(exchange, new=1)
            else:
                exchange = an_exchange(rng.choice(["GET", "POST", "HEAD"]))
                open_ones.append(exchange)
                stage.ready(exchange)
            everyone.append(exchange)
        elif step == 1 and open_ones:
            stage.finished(open_ones.pop(rng.randrange(len(open_ones))))
        elif step == 2 and stage.sender.taken:
            token = stage.sender.taken.pop(rng.randrange(len(stage.sender.taken)))
            result: Outcome | Dropped = rng.choice([make_outcome(), failed_outcome(Answer.TIMEOUT), Dropped.SHUTDOWN])
            stage.mirror.answered(token, result)
        account = stage.mirror.account
        assert account.in_flight == len(stage.sender.taken)
        assert account.answers.total() == account.replayed
    assert {id(e) for e in stage.recorded} == {id(e) for e in everyone}
    assert len(stage.recorded) == len(everyone) == stage.mirror.account.seen
    assert all(trial.fate is not None and trial.finished for trial in stage.trials)
    assert all(exchange.trials == [None] for exchange in everyone)


def test_what_was_never_meant_for_the_shadow_is_counted_and_not_recorded() -> None:
    for rule, why in (
        ({"criteria": parse("header:X-Test")}, Skipped.CRITERIA),
        ({"enabled": False}, Skipped.DISABLED),
    ):
        stage, exchange = Stage(**rule), an_exchange()
        stage.ready(exchange)
        stage.finished(exchange)
        assert stage.mirror.account.skipped == {why: 1}
        assert stage.recorded == []


def test_several_mirrors_decide_and_record_for_themselves() -> None:
    recorded: list[tuple[int, Exchange]] = []
    senders = [Sender(), Sender()]
    mirrors = [
        Mirror(choice(), lambda trial: recorded.append((0, trial.exchange)), 0),
        Mirror(choice(criteria=parse("method:HEAD")), lambda trial: recorded.append((1, trial.exchange)), 1),
    ]
    for mirror, sender in zip(mirrors, senders, strict=True):
        mirror.sender = sender
    get, head, lost = an_exchange(), an_exchange("HEAD"), make_exchange(None, None, incomplete=Incomplete.GAP)
    for mirror in mirrors:
        mirror.take([get, head], [get, head, lost], 3)
    assert [len(sender.taken) for sender in senders] == [2, 1]
    for mirror, sender in zip(mirrors, senders, strict=True):
        for token in sender.taken:
            mirror.answered(token, make_outcome())
    assert recorded == [(0, lost), (1, lost), (0, get), (0, head), (1, head)]
    assert [mirror.account.as_dict()["in_flight"] for mirror in mirrors] == [0, 0]
    assert mirrors[1].account.skipped == {"criteria": 1} and mirrors[0].account.replayed == 2
