"""What is said of upstreams."""

from __future__ import annotations

import json
import math

import pytest

from replay.compare.statistics import Quantiles
from replay.compare.upstreams import NO_ANSWER, NO_CONNECTION, NO_UPSTREAM, Balancing, Own, Upstream, Waited, as_dict

NOTHING = Waited(0, None, None, None)


def upstream(name: str = "10.0.0.1:80", itself: bool = False) -> Upstream:
    time = Quantiles(60, 1.5, math.inf, None)
    return Upstream(name, itself, 60, {"timeout": 10}, {200: 40, 500: 7, 503: 3}, time, NOTHING, Waited(60, 1, None, 2))


@pytest.mark.parametrize(
    ("status", "stage", "why"),
    [
        (503, NO_UPSTREAM, "no upstream named, as when all health checks fail"),
        (502, NO_UPSTREAM, "no upstream named, as when all health checks fail"),  # nginx
        (503, NO_CONNECTION, "no connection to an upstream"),
        (504, NO_ANSWER, "no whole answer from an upstream"),
        (403, NO_UPSTREAM, ""),
        (302, NO_UPSTREAM, ""),
        (500, NO_UPSTREAM, ""),
    ],
)
def test_why_a_balancer_answered_itself(status: int, stage: str, why: str) -> None:
    assert Own(status, stage, 1, 1).why == why


def test_the_label_says_who_it_is() -> None:
    assert upstream().label == "10.0.0.1:80"
    assert upstream("127.0.0.1:9", True).label == "127.0.0.1:9 (the balancer itself)"
    assert upstream("").label == "no upstream named"


def test_as_json() -> None:
    own = Own(503, NO_UPSTREAM, 3, 2)
    data = json.loads(json.dumps(as_dict(Balancing((upstream(), upstream("b", True)), (own,))), allow_nan=False))
    first = data["upstreams"][0]
    assert (first["requests"], first["share"], first["server_errors"]) == (60, 0.5, 10)
    assert first["failed"] == {"timeout": 10}
    assert first["statuses"] == {"200": 40, "500": 7, "503": 3}
    assert first["time_ms"] == {"n": 60, "p50": 1.5, "p90": None, "p99": None}
    assert first["connect_ms"] == {"n": 60, "p50": 1, "p99": None, "max": 2}
    assert [each["balancer_itself"] for each in data["upstreams"]] == [False, True]
    assert data["own_answers"] == [{"status": 503, "stage": "no upstream", "requests": 3, "worse": 2}]


def test_nothing_at_all() -> None:
    assert as_dict(Balancing()) == {"upstreams": [], "own_answers": [], "perhaps_own": [], "times_from_one_in": 1}
