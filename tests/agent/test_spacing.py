"""Requests keep their distance: each goes out a constant time after it was captured, or at once when that is over."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from agent.spacing import HELD_MAX, STEP_NS, SpacedSender, Spacing
from replay.client import Replayer
from replay.exchange import Dropped, Outcome, Request
from replay.settings import ReplaySettings
from replay.wire import wire_size
from tests.replay.examples import make_request

DELAY_NS = 25_000_000
BASE_NS = 1_700_000_000_000_000_000


def spacing(limit_bytes: int = 1000) -> Spacing[int]:
    return Spacing(DELAY_NS, limit_bytes)


def test_a_request_goes_out_its_delay_after_it_was_captured() -> None:
    held = spacing()
    held.add(BASE_NS, BASE_NS + 1_000_000, 1)
    assert held.take(BASE_NS + DELAY_NS - STEP_NS) == []
    assert held.wait_s(BASE_NS + DELAY_NS - STEP_NS) == 1.5 * STEP_NS / 1e9
    assert held.take(BASE_NS + DELAY_NS) == [1]
    assert held.wait_s(BASE_NS) is None


def test_those_of_one_step_go_together() -> None:
    held = spacing()
    for number in range(10):
        held.add(BASE_NS + number * STEP_NS // 4, BASE_NS + STEP_NS * 3, number)
    wait_s = held.wait_s(BASE_NS + DELAY_NS)
    assert wait_s is not None
    assert held.take(BASE_NS + DELAY_NS + round(wait_s * 1e9)) == [0, 1, 2, 3, 4]


def test_what_is_late_or_of_another_clock_goes_at_once() -> None:
    held = spacing()
    held.add(BASE_NS, BASE_NS + DELAY_NS + 1, 1)
    held.add(BASE_NS + 3600 * 10**9, BASE_NS, 2)
    assert held.late == 1
    assert set(held.take(BASE_NS + DELAY_NS + 1)) == {1, 2}


def test_there_is_a_limit() -> None:
    held = spacing(limit_bytes=10)
    assert [held.add(BASE_NS, BASE_NS, number, 4) for number in range(3)] == [True, True, False]
    assert (len(held), held.held_bytes) == (2, 8)
    assert held.take(BASE_NS + DELAY_NS) == [0, 1]
    assert held.held_bytes == 0 and held.add(BASE_NS, BASE_NS, 3, 10)
    held = spacing()
    assert all(held.add(BASE_NS, BASE_NS, number) for number in range(HELD_MAX))
    assert not held.add(BASE_NS, BASE_NS, 0)


@given(st.lists(st.integers(0, DELAY_NS), min_size=1, max_size=50))
def test_each_is_sent_once_in_order_and_within_a_step_of_its_time(ages_ns: list[int]) -> None:
    held = spacing()
    for age_ns in ages_ns:
        held.add(BASE_NS - age_ns, BASE_NS, age_ns)
    now_ns, sent = BASE_NS, []
    while (wait_s := held.wait_s(now_ns)) is not None:
        now_ns += round(wait_s * 1e9) + 1
        for age_ns in held.take(now_ns):
            sent.append(age_ns)
            assert abs(BASE_NS - age_ns + DELAY_NS - now_ns) <= STEP_NS // 2 + 1
    assert sent == sorted(ages_ns, reverse=True)


class Client:
    """Stands in for the replay client."""

    settings = ReplaySettings(queue_bytes=3 * wire_size(make_request()))

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.refuse: Dropped | None = None

    def submit(self, request: Request, token: object, origin: object = None) -> Dropped | None:
        self.sent.append(token)
        return self.refuse


def test_the_sender_waits_tells_refusals_and_sends_the_rest_at_the_end() -> None:
    async def story() -> None:
        client, told = Client(), []

        def answered(token: object, result: Outcome | Dropped) -> None:
            told.append((token, result))

        now_ns = BASE_NS
        loop = asyncio.get_running_loop()
        sender = SpacedSender(loop, cast(Replayer, client), answered, lambda: now_ns, STEP_NS)
        request = make_request()._replace(t_last_ns=BASE_NS)
        assert [sender.submit(request, n) for n in range(4)] == [None, None, None, Dropped.QUEUE_FULL]
        assert client.sent == []
        now_ns += 2 * STEP_NS
        await asyncio.sleep(0.05)
        assert client.sent == [0, 1, 2]
        client.refuse = Dropped.NO_UPSTREAM
        sender.submit(request._replace(t_last_ns=now_ns), 4)
        sender.finish()
        assert client.sent == [0, 1, 2, 4]
        assert told == [(4, Dropped.NO_UPSTREAM)]

    asyncio.run(story())
