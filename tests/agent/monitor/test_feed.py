"""Every trial that says something of the shadow is told once, in figures that are alike on both sides."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from agent.monitor import feed as module
from agent.monitor.feed import Feed, Teller
from agent.monitor.pairs import LIMIT_BYTES, Batch, LostRecord, PairRecord, unpack
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
    lost = one_lost(reader, a_trial(answered(), response))
    assert (lost.reason, lost.detail, lost.production_ns) == ("unanswered", "", 0)


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
    feed = Feed(reader.theirs, 2)
    teller = Teller(feed, 0, LIMIT_S, Account())
    first, second = a_trial(answered(), make_response()), a_trial(answered(), make_response())
    for trial in (first, second):
        teller.begun(trial)
    feed.flush()
    teller.over(first)
    teller.over(second)
    feed.flush()
    open_, none_open = reader.batches()
    assert first.exchange.request is not None
    assert open_.known_ns == first.exchange.request.t_first_ns
    assert time.time_ns() - 10**9 < none_open.known_ns < time.time_ns()
