"""Failures of the shadow are told at once, and only those that production did not have."""

from __future__ import annotations

import pytest

from agent.monitor.pulse import Pulse
from replay.exchange import Answer, Dropped, Outcome, Response, Trial
from tests.replay.examples import failed_outcome, make_exchange, make_outcome, make_request, make_response


class Stage:
    """A pulse, and how often it hurried."""

    def __init__(self, places: int = 1) -> None:
        self.hurries = 0
        self.pulse = Pulse(places, self.hurry)

    def hurry(self) -> None:
        self.hurries += 1

    def count(self, result: Outcome | Dropped, response: Response | None = None, place: int = 0) -> None:
        self.pulse.count(place, result, Trial(make_exchange(make_request(), response)))


@pytest.mark.parametrize(
    ("result", "response", "counts"),
    [
        (make_outcome(), make_response(), [1, 0, 0, 0]),
        (make_outcome(404), make_response(), [1, 0, 0, 0]),
        (make_outcome(500), make_response(), [1, 1, 0, 0]),
        (make_outcome(500), None, [1, 1, 0, 0]),
        (make_outcome(500), make_response(503), [1, 0, 1, 0]),
        (make_outcome(), make_response(500), [1, 0, 1, 0]),
        (failed_outcome(Answer.TIMEOUT), make_response(), [1, 1, 0, 0]),
        (failed_outcome(Answer.RESET), make_response(), [1, 1, 0, 0]),
        (failed_outcome(Answer.CONNECT), make_response(), [1, 1, 0, 1]),
        (failed_outcome(Answer.CONNECT), make_response(500), [1, 0, 1, 1]),
        (failed_outcome(Answer.CONNECT_TIMEOUT), None, [1, 1, 0, 1]),
        (failed_outcome(Answer.TLS), None, [1, 1, 0, 1]),
        (Dropped.BACKOFF, make_response(), [1, 1, 0, 1]),
        (Dropped.NO_UPSTREAM, None, [1, 1, 0, 1]),
    ],
)
def test_what_counts(result: Outcome | Dropped, response: Response | None, counts: list[int]) -> None:
    stage = Stage()
    stage.count(result, response)
    assert stage.pulse.take() == [[0, *counts]]
    assert stage.pulse.take() is None


@pytest.mark.parametrize("drop", [Dropped.QUEUE_FULL, Dropped.QUEUE_TIMEOUT, Dropped.LIMIT, Dropped.SHUTDOWN])
def test_the_agents_own_drops_do_not(drop: Dropped) -> None:
    stage = Stage()
    stage.count(drop, make_response())
    assert stage.pulse.take() is None and stage.hurries == 0


def test_it_hurries_at_the_first_failure_since_the_last_time() -> None:
    stage = Stage()
    stage.count(make_outcome(), make_response())
    assert stage.hurries == 0
    for _ in range(3):
        stage.count(make_outcome(500), make_response())
    assert stage.hurries == 1
    assert stage.pulse.take() == [[0, 4, 3, 0, 0]]
    stage.count(failed_outcome(Answer.CONNECT))
    assert stage.hurries == 2


def test_only_the_shadows_that_answered_are_told() -> None:
    stage = Stage(3)
    stage.count(make_outcome(), place=2)
    stage.count(make_outcome(500), place=0)
    assert stage.pulse.take() == [[0, 1, 1, 0, 0], [2, 1, 0, 0, 0]]


def test_what_could_not_be_sent_goes_with_the_next() -> None:
    stage = Stage(2)
    stage.count(make_outcome(500), place=1)
    rows = stage.pulse.take()
    assert rows is not None
    stage.count(make_outcome(), place=1)
    stage.pulse.put_back(rows)
    assert rows == [[1, 1, 1, 0, 0]]
    assert stage.pulse.take() == [[1, 2, 1, 0, 0]]


@pytest.mark.parametrize(("who", "counts"), [("server", [1, 0, 1, 0]), ("client", [1, 1, 0, 0]), ("", [1, 1, 0, 0])])
def test_production_that_ends_the_connection_has_failed_as_well(who: str, counts: list[int]) -> None:
    stage = Stage()
    for response in (None, make_response(complete=False)):
        exchange = make_exchange(make_request(), response)
        exchange.ended_by = who
        stage.pulse.count(0, failed_outcome(Answer.RESET), Trial(exchange))
        assert stage.pulse.take() == [[0, *counts]]
