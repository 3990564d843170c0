"""Some requests are asked twice; their trials are told once, when both they and their echoes are over."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import echo as module
from agent.echo import FIRST_OF_ROUTE, Asked, Echo, shape
from agent.spacing import SLACK_NS
from replay.exchange import Answer, Dropped, Fate, Outcome, Request, Trial
from tests.replay.examples import MS, failed_outcome, make_exchange, make_outcome, make_request, make_response

EVERY = 1_000_000
DELAY_NS = 25 * MS


class Stage:
    """An echo, what it sent and what it told."""

    def __init__(self, noise_ppm: int = EVERY) -> None:
        self.told: list[tuple[Trial, bool | None]] = []
        self.sent: list[tuple[Request, Asked]] = []
        self.refuse: Dropped | None = None
        self.echo = Echo(noise_ppm, lambda trial, noisy: self.told.append((trial, noisy)))
        self.echo.sender, self.echo.delay_ns = self, DELAY_NS

    def submit(self, request: Request, token: object, origin: object = None) -> Dropped | None:
        assert isinstance(token, Asked) and origin is token.trial.exchange
        if self.refuse is None:
            self.sent.append((request, token))
        return self.refuse

    def ask(self, trial: Trial | None = None, outcome: Outcome | None = None) -> Trial:
        """A first answer has come."""
        trial = trial or a_trial()
        self.echo.consider(trial, outcome or make_outcome())
        return trial


def a_trial(method: str = "GET", target: str = "/a", index: int = 0) -> Trial:
    exchange = make_exchange(make_request(target, method), make_response(), index)
    return Trial(exchange, Fate.REPLAYED, "", make_outcome(), True)


@pytest.mark.parametrize(
    ("second", "noisy"),
    [
        (make_outcome(), False),
        (make_outcome(body=b"other"), True),
        (make_outcome(500), True),
        (failed_outcome(Answer.RESET), None),
        (Dropped.QUEUE_FULL, None),
    ],
)
@pytest.mark.parametrize("first", ["over", "echo"])
def test_a_trial_waits_for_its_echo(second: Outcome | Dropped, noisy: bool | None, first: str) -> None:
    stage = Stage()
    trial = stage.ask()
    ((_, asked),) = stage.sent
    steps = [lambda: stage.echo.over(trial), lambda: stage.echo.answered(asked, second)]
    for step in steps if first == "over" else reversed(steps):
        assert stage.told == []
        step()
    assert stage.told == [(trial, noisy)]
    answered = isinstance(second, Outcome)
    expected = {"asked": 1, "answered": int(answered), "noisy": int(noisy is True), "dropped": int(not answered)}
    assert stage.echo.report() == expected


def test_the_second_is_sent_as_late_as_the_first_and_not_before_its_answer() -> None:
    stage, quick, slow = Stage(), make_outcome(), make_outcome(last_ns=make_outcome().t_sent_ns + 60 * MS)
    for outcome in (quick, slow):
        stage.ask(outcome=outcome)
    due = [request.t_last_ns + DELAY_NS for request, _ in stage.sent]
    assert due == [quick.t_sent_ns + DELAY_NS, slow.t_last_ns + SLACK_NS]
    assert stage.sent[0][0]._replace(t_last_ns=make_request().t_last_ns) == make_request("/a")


@pytest.mark.parametrize(
    "trial",
    [
        a_trial("POST"),
        a_trial("TRACE"),
        Trial(make_exchange(make_request()._replace(body=b"x", body_bytes=1), make_response())),
    ],
)
def test_what_might_have_side_effects_is_never_asked_twice(trial: Trial) -> None:
    stage = Stage()
    stage.ask(trial)
    stage.echo.over(trial)
    assert stage.sent == [] and stage.told == [(trial, None)]


def test_only_whole_answers_are_worth_a_second() -> None:
    stage = Stage()
    for answer in Answer:
        stage.ask(outcome=make_outcome(answer=answer))
    stage.ask(outcome=make_outcome(503))
    assert len(stage.sent) == 2


@pytest.mark.parametrize("switched_off", ["enabled", "sender"])
def test_a_shadow_that_is_off_is_not_asked(switched_off: str) -> None:
    stage = Stage()
    setattr(stage.echo, switched_off, None)
    stage.ask()
    assert stage.sent == []


def test_the_first_of_every_route_then_a_share() -> None:
    stage = Stage(noise_ppm=100_000)
    for index in range(5000):
        stage.ask(a_trial(target=f"/items/{index}", index=index))
        stage.echo._waiting.clear()
    indexes = [asked.trial.exchange.index for _, asked in stage.sent]
    assert indexes[:FIRST_OF_ROUTE] == list(range(FIRST_OF_ROUTE))
    assert abs(len(indexes) - FIRST_OF_ROUTE - 498) < 4 * 21
    again = Stage(noise_ppm=100_000)
    for index in range(5000):
        again.ask(a_trial(target=f"/items/{index}", index=index))
        again.echo._waiting.clear()
    assert [asked.trial.exchange.index for _, asked in again.sent] == indexes, "the same ones every time"


def test_the_table_of_routes_and_the_number_that_wait_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTES_MAX", 3)
    stage = Stage(noise_ppm=0)
    for name in ("a", "b", "c", "d", "a"):
        stage.ask(a_trial(target=f"/{name}"))
    assert [request.target for request, _ in stage.sent] == ["/a", "/b", "/c", "/a"]
    monkeypatch.setattr(module, "WAITING_MAX", 5)
    trials = [stage.ask(a_trial(target="/a")) for _ in range(3)]
    assert len(stage.sent) == 5 and stage.echo.report()["dropped"] == 2
    stage.echo.over(trials[2])
    assert stage.told == [(trials[2], None)]


def test_a_sender_that_is_full() -> None:
    stage = Stage()
    stage.refuse = Dropped.QUEUE_FULL
    trial = stage.ask()
    stage.echo.over(trial)
    assert stage.told == [(trial, None)]
    assert stage.echo.report() == {"asked": 0, "answered": 0, "noisy": 0, "dropped": 1}


def test_at_the_end_the_rest_is_told() -> None:
    stage = Stage()
    over, open_one = stage.ask(), stage.ask()
    stage.echo.over(over)
    stage.echo.finish()
    assert stage.told == [(over, None)]
    stage.echo.over(open_one)
    assert stage.told[1:] == [(open_one, None)]
    stage.echo.answered(stage.sent[0][1], make_outcome())
    assert len(stage.told) == 2 and stage.echo.report()["dropped"] == 2
    stage.ask()
    assert len(stage.sent) == 2, "nothing more is asked"


@given(st.integers(0, 1 << 32))
def test_in_any_order_every_trial_is_told_once(seed: int) -> None:
    rng, stage = random.Random(seed), Stage()
    open_ones: list[Trial] = []
    unanswered: list[Asked] = []
    count = 0
    for _ in range(60):
        step = rng.randrange(3)
        if step == 0:
            stage.refuse = rng.choice([None, None, Dropped.QUEUE_FULL])
            before = len(stage.sent)
            open_ones.append(stage.ask())
            unanswered += [asked for _, asked in stage.sent[before:]]
            count += 1
        elif step == 1 and open_ones:
            stage.echo.over(open_ones.pop(rng.randrange(len(open_ones))))
        elif unanswered:
            result = rng.choice([make_outcome(), make_outcome(404), Dropped.SHUTDOWN])
            stage.echo.answered(unanswered.pop(rng.randrange(len(unanswered))), result)
    for trial in open_ones:
        stage.echo.over(trial)
    stage.echo.finish()
    assert len(stage.told) == len({id(trial) for trial, _ in stage.told}) == count
    report = stage.echo.report()
    assert report["asked"] == len(stage.sent) and report["answered"] + report["dropped"] == count


def test_shapes() -> None:
    assert shape("GET", "/users/4711/orders/a-1") == "GET /users/{id}/orders/{id}"
    assert shape("HEAD", "/users/all") != shape("GET", "/users/all")
