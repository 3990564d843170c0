"""Every trial that says something of the shadow is told once, in figures that are alike on both sides."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.monitor import feed as module
from agent.monitor.feed import OVERDUE_NS, SETTLE_NS, Feed, Teller
from agent.monitor.judging import ShadowJudge
from agent.monitor.pairs import LIMIT_BYTES, REFUSED, Batch, LostRecord, PairRecord, unpack
from agent.watch_config import Judging
from agent.worker import Worker
from replay.account import Account
from replay.exchange import Answer, Dropped, Exchange, Fate, Incomplete, Outcome, Response, Skipped, Trial
from tests.replay.examples import MS, T0, failed_outcome, make_exchange, make_outcome, make_request, make_response

LIMIT_S = 1.0
LIMIT_NS = 10**9
DELAY_NS = 25 * MS
INTENDED_NS = T0 + DELAY_NS


class Reader:
    """The watch process's end."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)

    def batches(self) -> list[Batch]:
        found = []
        while True:
            try:
                found.append(unpack(self.socket.recv(LIMIT_BYTES + 1)))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.socket.close()
        self.theirs.close()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def answered(sent_ns: int = INTENDED_NS + MS, last_ns: int = INTENDED_NS + 6 * MS, status: int = 200) -> Outcome:
    return make_outcome(status, sent_ns=sent_ns, first_ns=last_ns, last_ns=last_ns)


def a_trial(
    result: Outcome | Dropped | Incomplete | Skipped, response: Response | None = None, target: str = "/a/1"
) -> Trial:
    exchange = make_exchange(make_request(target), response, 3)
    fates = {Outcome: Fate.REPLAYED, Dropped: Fate.DROPPED, Incomplete: Fate.INCOMPLETE, Skipped: Fate.SKIPPED}
    if isinstance(result, Outcome):
        return Trial(exchange, Fate.REPLAYED, "", result, True)
    return Trial(exchange, fates[type(result)], result, None, True)


def tell(reader: Reader, *trials: Trial, account: Account | None = None, noisy: bool | None = None) -> Batch:
    feed = Feed(reader.theirs, 2)
    teller = Teller(feed, 1, LIMIT_S, account or Account())
    teller.delay_ns = DELAY_NS
    for trial in trials:
        teller.over(trial, noisy)
    feed.flush()
    (batch,) = reader.batches()
    assert (batch.worker, batch.unsent) == (2, 0)
    return batch


def one_pair(reader: Reader, result: Outcome | Dropped, response: Response, noisy: bool | None = None) -> PairRecord:
    batch = tell(reader, a_trial(result, response), noisy=noisy)
    (pair,) = batch.pairs
    assert batch.lost == []
    return pair


def one_lost(reader: Reader, trial: Trial) -> LostRecord:
    batch = tell(reader, trial)
    (lost,) = batch.lost
    assert batch.pairs == []
    return lost


def test_a_pair(reader: Reader) -> None:
    pair = one_pair(reader, answered(), make_response(), noisy=True)
    assert pair == PairRecord(1, T0, "GET /a/{id}", 2 * MS, 5 * MS, 6 * MS, MS, False, False, False, True, False,
                              200, 200, "ok", 7, 3, "/a/1")  # fmt: skip


def test_noise_and_difference_that_are_not_known(reader: Reader) -> None:
    cut = make_response()._replace(body_bytes=9)
    pair = one_pair(reader, answered()._replace(body_bytes=9), cut)
    assert (pair.different, pair.noisy) == (None, None)
    pair = one_pair(reader, answered(status=404), make_response(), noisy=False)
    assert (pair.different, pair.noisy, pair.shadow_status) == (True, False, 404)


def test_times_are_clipped_and_only_the_lag_may_be_negative(reader: Reader) -> None:
    early = answered(sent_ns=INTENDED_NS - 3 * MS, last_ns=INTENDED_NS - 4 * MS)
    pair = one_pair(reader, early, make_response(first_ns=T0 - MS, last_ns=T0 - MS))
    assert (pair.production_ns, pair.shadow_ns, pair.response_ns, pair.lag_ns) == (0, 0, 0, -3 * MS)


@pytest.mark.parametrize(("status", "error"), [(200, False), (499, False), (500, True), (503, True)])
def test_errors_of_either_side(reader: Reader, status: int, error: bool) -> None:
    pair = one_pair(reader, answered(status=status), make_response())
    assert (pair.production_error, pair.shadow_error, pair.unreachable) == (False, error, False)
    pair = one_pair(reader, answered(), make_response(status))
    assert (pair.production_error, pair.shadow_error) == (error, False)


def test_what_comes_after_the_limit_counts_alike_on_both_sides(reader: Reader) -> None:
    late = make_response(last_ns=T0 + LIMIT_NS + 1)
    slow = answered(sent_ns=INTENDED_NS, last_ns=INTENDED_NS + LIMIT_NS + 1)
    pair = one_pair(reader, slow, late)
    assert (pair.production_ns, pair.production_error) == (pair.shadow_ns, pair.shadow_error) == (LIMIT_NS, True)
    just = one_pair(reader, answered(INTENDED_NS, INTENDED_NS + LIMIT_NS), make_response(last_ns=T0 + LIMIT_NS))
    assert (just.production_ns, just.production_error) == (just.shadow_ns, just.shadow_error) == (LIMIT_NS, False)


@pytest.mark.parametrize("answer", [answer for answer in Answer if answer is not Answer.OK])
def test_a_shadow_without_an_answer(reader: Reader, answer: Answer) -> None:
    pair = one_pair(reader, failed_outcome(answer, INTENDED_NS + 2 * MS), make_response())
    assert (pair.shadow_ns, pair.response_ns, pair.lag_ns) == (LIMIT_NS, LIMIT_NS + 2 * MS, 2 * MS)
    assert (pair.shadow_error, pair.different, pair.answer, pair.shadow_status) == (True, None, answer, 0)
    assert pair.unreachable == (answer in (Answer.CONNECT, Answer.CONNECT_TIMEOUT, Answer.TLS))
    never_sent = one_pair(reader, failed_outcome(answer)._replace(t_sent_ns=0), make_response())
    assert (never_sent.response_ns, never_sent.lag_ns) == (LIMIT_NS, 0)


@pytest.mark.parametrize("drop", list(Dropped))
def test_what_was_dropped(reader: Reader, drop: Dropped) -> None:
    trial = a_trial(drop, make_response())
    gone = a_trial(drop)
    gone.exchange.ended_by = "client"
    assert tell(reader, gone)[3:] == ([], [])
    if drop in (Dropped.BACKOFF, Dropped.NO_UPSTREAM):
        pair = one_pair(reader, drop, make_response())
        assert (pair.shadow_ns, pair.shadow_error, pair.unreachable, pair.answer) == (LIMIT_NS, True, True, drop)
        assert one_lost(reader, a_trial(drop)).reason == "unanswered"
    elif drop is Dropped.SHUTDOWN:
        assert tell(reader, trial)[3:] == ([], [])
    else:
        lost = one_lost(reader, trial)
        assert lost == LostRecord(1, T0, "GET /a/{id}", "dropped", drop, 2 * MS, 200, 7, 3, "/a/1")


@pytest.mark.parametrize("why", list(Incomplete))
def test_what_never_became_whole(reader: Reader, why: Incomplete) -> None:
    ours = ("gap", "evicted", "request_lost", "too_large", "body_limit")
    if why in ours:
        assert one_lost(reader, a_trial(why))[3:5] == ("incomplete", why)
    else:
        assert tell(reader, a_trial(why))[3:] == ([], [])


def test_times_of_what_has_no_request(reader: Reader) -> None:
    lost = one_lost(reader, Trial(make_exchange(None, make_response()), Fate.INCOMPLETE, Incomplete.REQUEST_LOST))
    assert (lost.at_ns, lost.production_ns, lost.route, lost.status) == (T0 + MS, 0, "other", 200)
    assert one_lost(reader, Trial(make_exchange(), Fate.INCOMPLETE, Incomplete.GAP)).at_ns > T0


@pytest.mark.parametrize("response", [None, make_response(complete=False)])
def test_production_did_not_answer(reader: Reader, response: Response | None) -> None:
    """If it ended the connection, that is its failure; if the client did, it says nothing of either side."""
    trial = a_trial(answered(), response)
    lost = one_lost(reader, trial)
    assert (lost.reason, lost.detail, lost.production_ns) == ("unanswered", "", 0)
    trial.exchange.ended_by = "client"
    assert tell(reader, trial)[3:] == ([], [])
    trial.exchange.ended_by = "server"
    pair = tell(reader, trial, noisy=False).pairs[0]
    assert (pair.production_ns, pair.production_error, pair.shadow_error) == (LIMIT_NS, True, False)
    assert (pair.status, pair.different, pair.noisy) == (200 if response else 0, None, False)


def test_both_sides_ended_the_connection_and_look_alike(reader: Reader) -> None:
    for result in (failed_outcome(Answer.RESET, INTENDED_NS), Dropped.BACKOFF):
        trial = a_trial(result)
        trial.exchange.ended_by = "server"
        (pair,) = tell(reader, trial).pairs
        assert (pair.production_ns, pair.production_error) == (pair.shadow_ns, pair.shadow_error) == (LIMIT_NS, True)


def test_a_whole_answer_is_one_whoever_ends_the_connection(reader: Reader) -> None:
    trial = a_trial(answered(), make_response())
    trial.exchange.ended_by = "client"
    assert not tell(reader, trial).pairs[0].production_error


def test_what_was_skipped_is_not_told(reader: Reader) -> None:
    assert tell(reader, *(a_trial(why, make_response()) for why in Skipped))[3:] == ([], [])


def test_of_what_nobody_knows_whether_it_was_wanted_a_share_is_told(reader: Reader) -> None:
    account = Account()
    feed = Feed(reader.theirs, 0)
    teller = Teller(feed, 0, LIMIT_S, account)

    def told(count: int, seen: int, skipped: int) -> int:
        account.seen += seen + count
        account.skipped["criteria"] += skipped
        account.incomplete["gap"] += count
        for _ in range(count):
            teller.over(a_trial(Incomplete.GAP))
        feed.flush()
        return sum(len(batch.lost) for batch in reader.batches())

    assert told(100, 1000, 900) in (9, 10)
    teller.rule_changed()
    assert told(100, 1000, 0) == 100
    teller.rule_changed()
    assert told(100, 1000, 1000) == 0
    teller.over(a_trial(Incomplete.BODY_LIMIT))
    feed.flush()
    assert [len(batch.lost) for batch in reader.batches()] == [1], "of that it is known"


def test_batches_are_bounded_and_in_order(reader: Reader) -> None:
    feed = Feed(reader.theirs, 0)
    teller = Teller(feed, 0, LIMIT_S, Account())
    found: list[Batch] = []
    for number in range(2000):
        teller.over(a_trial(answered(), make_response(), f"/{number}?{'x' * 300}"))
        found += reader.batches()
    feed.flush()
    found += reader.batches()
    assert len(found) > 5
    targets = [pair.target.partition("?")[0] for batch in found for pair in batch.pairs]
    assert targets == [f"/{number}" for number in range(2000)]
    assert feed.report() == {"sent": 2000, "unsent": 0, "waiting_bytes": 0}


def test_a_reader_that_is_behind_loses_whole_batches_that_are_counted(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 200_000)
    feed = Feed(reader.theirs, 0)
    teller = Teller(feed, 0, LIMIT_S, Account())
    trials = [a_trial(answered(), make_response(), f"/{number}") for number in range(20_000)]
    for trial in trials:
        teller.over(trial)
    assert feed.unsent > 0 and 0 < feed.report()["waiting_bytes"] <= 200_000 + module.BATCH_BYTES + 400
    found = []
    for _ in range(50):
        feed.flush()
        found += reader.batches()
    told = [pair.target for batch in found for pair in batch.pairs]
    assert len(told) == len(set(told)) == feed.sent and feed.sent + feed.unsent == 20_000
    assert told[:1000] == [f"/{number}" for number in range(1000)], "the oldest are kept"
    teller.over(trials[0])
    feed.flush()
    assert reader.batches()[-1].unsent == feed.unsent


def test_nobody_listens(reader: Reader) -> None:
    reader.socket.close()
    for channel in (reader.theirs, None):
        feed = Feed(channel, 0)
        feed.add(a_trial(answered(), make_response()), 0, LIMIT_NS, 0)
        feed.flush()
        feed.flush()
        assert feed.sent == 0 and feed.unsent == (channel is None)


def test_the_mode_of_a_shared_socket_is_left_alone(reader: Reader) -> None:
    Feed(reader.theirs, 0).flush()
    assert reader.theirs.getblocking()


def test_numbers_beyond_their_fields_do_no_harm(reader: Reader) -> None:
    exchange = Exchange("a:1", "b:2", 1 << 70, 1 << 40, make_request()._replace(target="/\u20ac"), make_response())
    pair = tell(reader, Trial(exchange, Fate.REPLAYED, "", answered(), True)).pairs[0]
    assert (pair.connection, pair.position, pair.target) == (0, 0, "/?")


def test_what_is_known_goes_up_to_the_oldest_request_that_is_open(reader: Reader) -> None:
    """Which need not be the one that became whole first."""
    stage = Stage(reader)
    trials = [stage.begun(T0 + at) for at in (5, 3, 4)]
    known = []
    for trial in [None, trials[1], trials[0], trials[2]]:
        if trial is not None:
            stage.teller.over(trial)
        stage.flush(T0 + LIMIT_NS)
        known.append(reader.batches()[-1].known_ns)
    assert known == [T0 + 3, T0 + 4, T0 + 4, T0 + LIMIT_NS - SETTLE_NS]


def test_a_worker_that_is_behind_knows_nothing_of_what_waits(reader: Reader) -> None:
    feed = Feed(reader.theirs, 0)
    for at_ns in (None, T0, T0 + 1):
        if at_ns is not None:
            feed.caught_up(at_ns)
        feed.flush()
        feed.flush()
    assert [batch.known_ns for batch in reader.batches()] == [0] * 2 + [T0 - SETTLE_NS] * 2 + [T0 + 1 - SETTLE_NS] * 2


def test_the_worker_says_when_it_found_its_ring_empty(reader: Reader) -> None:
    """And of the time before it looked: what came while it did may still be there."""
    times: list[int] = []

    class Ring:
        waiting = 3

        def read(self) -> list[object]:
            times.append(time.time_ns())
            self.waiting -= self.waiting > 0
            return [None] if self.waiting else []

    worker: Any = object.__new__(Worker)
    worker._ring, worker._feed = Ring(), Feed(reader.theirs, 0)
    worker._flows, worker._take = SimpleNamespace(feed=lambda segments: []), lambda events: None
    assert worker._read_ring(2) == (2, True) and worker._feed._caught_up_ns == 0
    assert worker._read_ring(2) == (0, False)
    assert times[1] < worker._feed._caught_up_ns <= times[2]


# Answers that do not come within the limit


class Stage:
    """A teller whose trials have begun, and the time is what the test says."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.feed = Feed(reader.theirs, 0)
        self.teller = Teller(self.feed, 0, LIMIT_S, Account())
        self.teller.delay_ns = DELAY_NS

    def begun(self, at_ns: int = T0, result: Outcome | Dropped | None = None) -> Trial:
        """One of which production's side is open, and the shadow's unless there is a `result`."""
        trial = a_trial(result or answered())
        request = trial.exchange.request
        assert request is not None
        trial.exchange.request = request._replace(t_first_ns=at_ns, t_last_ns=at_ns)
        trial.finished = False
        if result is None:
            trial.fate = None
        self.teller.begun(trial)
        return trial

    def flush(self, at_ns: int) -> None:
        self.feed.caught_up(at_ns)
        self.feed.flush()

    def told(self) -> list[PairRecord | LostRecord]:
        """What came since the last time."""
        found: list[PairRecord | LostRecord] = []
        for batch in self.reader.batches():
            found += batch.pairs
            found += batch.lost
        return found


LATEST_NS = LIMIT_NS + OVERDUE_NS


def test_production_that_stays_silent_is_told_as_if_it_had_answered_after_the_limit_and_once(reader: Reader) -> None:
    stage = Stage(reader)
    trial = stage.begun(result=answered())
    stage.flush(T0 + LATEST_NS)
    assert stage.told() == []
    stage.flush(T0 + LATEST_NS + 1)
    (pair,) = stage.told()
    wanted = one_pair(reader, answered(), make_response(last_ns=T0 + LIMIT_NS + 1))
    assert pair == wanted._replace(place=0, status=0, different=None)
    assert (wanted.production_ns, wanted.production_error) == (LIMIT_NS, True)
    assert len(stage.teller.open) == 0
    stage.flush(T0 + 2 * LATEST_NS)
    trial.exchange.response, trial.finished = make_response(last_ns=T0 + 3 * LATEST_NS), True
    stage.teller.over(trial)
    stage.flush(T0 + 4 * LATEST_NS)
    assert stage.told() == [] and stage.teller._told == set()


@pytest.mark.parametrize(("who", "lost"), [("client", 0), ("server", 0), ("", 1)])
def test_if_the_answer_was_missing_in_the_capture_that_is_seen(reader: Reader, who: str, lost: int) -> None:
    stage = Stage(reader)
    trial = stage.begun(result=answered())
    stage.flush(T0 + 2 * LATEST_NS)
    assert len(stage.told()) == 1
    trial.finished, trial.exchange.ended_by = True, who
    stage.teller.over(trial)
    stage.flush(T0 + 2 * LATEST_NS)
    assert [record.reason for record in stage.told() if isinstance(record, LostRecord)] == ["unanswered"] * lost


def test_the_shadow_is_waited_for_and_so_is_its_second_answer(reader: Reader) -> None:
    stage = Stage(reader)
    trial = stage.begun()
    stage.flush(T0 + 9 * LATEST_NS)
    assert stage.told() == []
    trial.fate, trial.reason, trial.outcome, trial.finished = Fate.REPLAYED, "", answered(), True
    trial.exchange.response = make_response()  # it is over, and asked again
    stage.flush(T0 + 9 * LATEST_NS)
    assert stage.told() == []
    stage.teller.over(trial, noisy=True)
    stage.flush(T0 + 9 * LATEST_NS)
    (pair,) = stage.told()
    assert isinstance(pair, PairRecord) and pair.noisy and not pair.production_error


@pytest.mark.parametrize("drop", list(Dropped))
def test_what_was_dropped_while_production_is_silent(reader: Reader, drop: Dropped) -> None:
    stage = Stage(reader)
    stage.begun(result=drop)
    stage.flush(T0 + LATEST_NS + 1)
    told = stage.told()
    if drop is Dropped.SHUTDOWN:
        assert told == []
    elif drop in REFUSED:
        assert isinstance(told[0], PairRecord) and told[0].production_error and told[0].shadow_error
    else:
        assert isinstance(told[0], LostRecord)
        assert (told[0].reason, told[0].detail, told[0].production_ns) == ("dropped", drop, LIMIT_NS)


@given(st.lists(st.tuples(st.integers(0, 3 * LATEST_NS), st.integers(0, 9 * LATEST_NS)), max_size=60))
def test_nothing_is_open_for_much_longer_than_the_limit_and_each_is_told_once(times: list[tuple[int, int]]) -> None:
    """By when requests came, and how long production took; the shadow answered at once."""
    reader = Reader()
    stage, found = Stage(reader), []
    events = [(T0 + came, number, False) for number, (came, _) in enumerate(times)]
    events += [(T0 + came + took, number, True) for number, (came, took) in enumerate(times)]
    events += [(T0 + at, -1, False) for at in range(0, 13 * LATEST_NS, LATEST_NS // 4)]
    trials: dict[int, Trial] = {}
    for at_ns, number, ends in sorted(events, key=lambda event: (event[0], event[2])):
        if number < 0:
            stage.flush(at_ns)
            found += stage.told()
            assert all(at_ns - came_ns <= LATEST_NS for came_ns in stage.teller.open.values())
        elif ends:
            trial = trials[number]
            trial.exchange.response, trial.finished = make_response(last_ns=at_ns), True
            stage.teller.over(trial)
        else:
            trials[number] = stage.begun(at_ns, answered(at_ns, at_ns + MS))
    reader.close()
    assert len(found) == len(times) and stage.teller._told == set() and not stage.teller.open
    took = sorted(min(each, LIMIT_NS) for _, each in times)
    assert sorted(record.production_ns for record in found) == took


@pytest.mark.parametrize("mended", [True, False])
def test_stalls_of_both_sides_beyond_the_limit_are_alike(reader: Reader, mended: bool) -> None:
    """Told when production's answer comes, those of production would be too late to count, and that is seen."""
    chance, stage, judge = random.Random(4), Stage(reader), ShadowJudge("candidate", None)
    settings = Judging().settings()
    order = {"shadow": "candidate", "fingerprint": "", "fresh": True, "timeout_s": LIMIT_S, "settings": settings}
    judge.begin(order, T0)

    def took() -> int:
        stalls = chance.random() < 0.004
        return round(chance.uniform(2e9, 20e9) if stalls else 5e6 * chance.lognormvariate(0, 0.5))

    late: list[tuple[int, Trial]] = []
    for at_ns in range(T0, T0 + 90 * 10**9, 5 * MS):
        production, shadow = took(), took()
        sent_ns = at_ns + DELAY_NS
        result = answered(sent_ns, sent_ns + shadow) if shadow < LIMIT_NS else failed_outcome(Answer.TIMEOUT, sent_ns)
        trial = stage.begun(at_ns, result)
        trial.exchange.response, trial.finished = make_response(last_ns=at_ns + production), production < LIMIT_NS
        if trial.finished:
            stage.teller.over(trial)
        else:
            late.append((at_ns + production, trial))
            trial.exchange.response = None
        if at_ns // MS % 250 == 0:
            for ended_ns, each in [each for each in late if each[0] <= at_ns]:
                late.remove((ended_ns, each))
                each.exchange.response, each.finished = make_response(last_ns=ended_ns), True
                stage.teller.over(each)
            if mended:
                stage.flush(at_ns)
            else:
                stage.feed._send_all()
            for batch in reader.batches():
                judge.take(batch.pairs, batch.lost)
                judge.advance(at_ns, batch.known_ns)
    message = judge.message()
    assert message is not None
    found = message["verdict"]
    assert all(each["word"] != "fail" for each in found["findings"])
    assert (found["problem"] == "", found["left_out"] == {}) == (mended, mended)
    assert mended or found["problem"].startswith("slow requests were lost more often")
