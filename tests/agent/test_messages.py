"""Messages: there and back, what fits, and what the other side's end and silence look like."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.messages import LIMIT_BYTES, fits, receive, send

Pair = tuple[socket.socket, socket.socket]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_there_and_back(pair: Pair, message: dict[str, Any]) -> None:
    send(pair[0], message)
    assert receive(pair[1]) == message


def test_the_longest_arrives_whole(pair: Pair) -> None:
    message = {"x": "a" * (LIMIT_BYTES - 9)}
    assert fits(message) and not fits({"x": message["x"] + "a"})
    pair[0].setblocking(False)
    send(pair[0], message)
    assert receive(pair[1]) == message


def test_the_end_of_the_other_side(pair: Pair) -> None:
    send(pair[0], {"last": True})
    pair[0].close()
    assert receive(pair[1]) == {"last": True}
    assert receive(pair[1]) is None
    with pytest.raises(OSError):
        send(pair[1], {})
    pair[1].close()
    assert receive(pair[1]) is None


@pytest.mark.parametrize("limit_s", [0.0, 0.01])
def test_silence_is_not_the_end(pair: Pair, limit_s: float) -> None:
    pair[1].settimeout(limit_s)
    with pytest.raises(BlockingIOError):
        receive(pair[1])
    send(pair[0], {"late": 1})
    assert receive(pair[1]) == {"late": 1}


def test_one_that_is_behind(pair: Pair) -> None:
    pair[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            send(pair[0], {"x": "a" * 1000})
