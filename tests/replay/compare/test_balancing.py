"""What each upstream did, and which of them is the balancer itself, against rows counted by hand.

The times of a balancer program's own answers are those that HAProxy 2.6 and nginx 1.22 were seen to give.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.account import Account
from replay.compare.balancing import COLUMNS, BalancingTally, own_addresses
from replay.compare.failures import Change
from replay.compare.names import Names
from replay.compare.read import open_recording
from replay.compare.upstreams import NO_ANSWER, NO_CONNECTION, NO_UPSTREAM, Balancing, Own, Upstream
from tests.replay.compare.recorded import SECOND, open_recorder, rows
from tests.replay.examples import MS, T0

FRONT = "127.0.0.1:39123"  # a balancer program's own address
WEB = "10.0.0.1:8080"
LOCAL = "127.0.0.1:9001"  # an upstream on this host
PLAIN = {
    "upstream": WEB,
    "answer": "ok",
    "status": 200,
    "shadow_status": 200,
    "shadow_t_sent_ns": T0,
    "shadow_t_last_ns": T0 + 5 * MS,
}
TOLD = PLAIN | {"shadow_queue_ns": 0, "shadow_connect_ns": MS}  # as HAProxy tells of a server's answer
OWN = PLAIN | {"upstream": FRONT, "shadow_status": 503}

Row = dict[str, Any]


def tally_of(*batches: list[Row], limit: int = 1_000_000) -> BalancingTally:
    names = Names(1024)
    tally = BalancingTally(names, limit)
    for batch in batches:
        made = rows(["upstream", *COLUMNS], *batch)
        tally.add(made.select(COLUMNS), names.codes(made.column("upstream")))
    return tally


def balancing(*given: Row, known: set[str] | None = None) -> Balancing:
    return tally_of([PLAIN | row for row in given]).report(known)


def only(*given: Row) -> Upstream:
    (upstream,) = balancing(*given).upstreams
    return upstream


def test_requests_errors_and_times_of_an_upstream() -> None:
    answers = [{"shadow_t_last_ns": T0 + n * MS} for n in range(1, 501)]
    wrong = [{"shadow_status": 503}, {"shadow_status": 404}, {"answer": "connect", "shadow_status": None}]
    got = only(*answers, *wrong)
    assert (got.name, got.itself, got.requests) == (WEB, False, 503)
    assert got.statuses == {200: 500, 404: 1, 503: 1}
    assert (got.server_errors, got.failed) == (1, {"connect": 1})
    assert got.time[:2] == (502, 250.0)
    assert (got.queue.n, got.queue.max, got.connect.n, got.connect.max) == (0, None, 0, None)


def test_upstreams_are_told_by_number_of_requests() -> None:
    got = balancing(PLAIN, PLAIN | {"upstream": "b"}, PLAIN | {"upstream": "b"}, PLAIN | {"upstream": "a"})
    assert [(each.name, each.requests) for each in got.upstreams] == [("b", 2), (WEB, 1), ("a", 1)]
    assert got.requests == 4


def test_a_timeout_is_later_than_anything_and_other_failures_have_no_time() -> None:
    got = only(*[{"answer": "timeout"}] * 10, *[{"answer": "reset"}] * 10)
    assert got.time[:2] == (10, math.inf)
    assert got.failed == {"timeout": 10, "reset": 10}
    assert got.statuses == {}


def test_queue_and_connect_times() -> None:
    given = [{"shadow_queue_ns": n * MS, "shadow_connect_ns": 2 * n * MS} for n in range(501)]
    got = only(*given, {"shadow_queue_ns": None, "shadow_connect_ns": 7 * MS})
    assert got.queue == (501, 250.0, 495.0, 500.0)
    assert (got.connect.n, got.connect.max) == (502, 1000.0)


def test_few_queue_times_have_a_longest_only() -> None:
    assert only(TOLD, TOLD | {"shadow_queue_ns": 3 * MS}).queue == (2, None, None, 3.0)


@pytest.mark.parametrize(
    ("times", "status", "stage"),
    [
        ((None, None), 503, NO_UPSTREAM),  # HAProxy: all down; nginx: "no live upstreams" is a 502
        ((None, None), 403, NO_UPSTREAM),  # denied
        ((None, None), 200, NO_UPSTREAM),  # http-request return, a page of statistics
        ((0, None), 503, NO_CONNECTION),  # refused
        ((0, 0), 504, NO_ANSWER),  # timeout server
        ((0, 0), 502, NO_ANSWER),  # closed without an answer
    ],
)
def test_the_balancer_s_own_answers(times: tuple[int | None, int | None], status: int, stage: str) -> None:
    own = OWN | {"shadow_queue_ns": times[0], "shadow_connect_ns": times[1], "shadow_status": status}
    got = balancing(TOLD, TOLD, own)
    assert got.itself == {FRONT}
    assert got.own == (Own(status, stage, 1, int(status >= 400)),)
    assert got.perhaps_own == ()


def test_own_answers_are_grouped_and_failures_are_none() -> None:
    given = [OWN, OWN | {"status": 503}, OWN | {"shadow_queue_ns": 0}, OWN | {"answer": "tls", "shadow_status": None}]
    got = balancing(TOLD, *given)
    assert got.own == (Own(503, NO_UPSTREAM, 2, 1), Own(503, NO_CONNECTION, 1, 1))


def test_upstreams_on_this_host_are_not_the_balancer() -> None:
    got = balancing(TOLD | {"upstream": LOCAL}, TOLD | {"upstream": LOCAL, "shadow_status": 500}, OWN)
    assert got.itself == {FRONT}


def test_an_upstream_elsewhere_is_never_the_balancer() -> None:
    """nginx tells no connect time of an upstream that refuses connections."""
    got = balancing(TOLD, PLAIN | {"upstream": "10.0.0.2:8080", "shadow_status": 502}, OWN)
    assert got.itself == {FRONT}


def test_the_embedded_engine_tells_no_times_so_nobody_is_the_balancer() -> None:
    got = balancing(PLAIN | {"upstream": LOCAL}, PLAIN)
    assert (got.itself, got.own, got.perhaps_own) == (frozenset(), (), ())


def test_errors_of_this_host_alone_may_be_anybody_s() -> None:
    """All health checks of a program failing looks like an upstream on this host that fails."""
    got = balancing(*[OWN] * 5)
    assert (got.itself, got.perhaps_own) == (frozenset(), (FRONT,))


def test_what_is_known_of_the_program_s_addresses_decides() -> None:
    assert balancing(*[OWN] * 5, known={FRONT}).own == (Own(503, NO_UPSTREAM, 5, 5),)
    embedded = balancing(*[OWN] * 5, known=set())
    assert (embedded.itself, embedded.own, embedded.perhaps_own) == (frozenset(), (), ())
    assert balancing(TOLD | {"upstream": LOCAL, "shadow_status": 500}, OWN, known={FRONT}).itself == {FRONT}


def test_no_name_at_all_is_the_balancer_where_a_program_balances() -> None:
    assert balancing(TOLD, OWN | {"upstream": ""}).itself == {""}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([{}], None),
        ([{"capture": {"seen": 1}}, {"balancer": "x"}, {"balancer": {"addresses": 7}}], None),
        ([{"balancer": {"program": "", "addresses": []}}], set()),
        ([{"balancer": {"addresses": ["a"]}}, {}, {"balancer": {"addresses": ["b"]}}], {"a", "b"}),
    ],
)
def test_the_program_s_addresses_are_read_from_the_run_files(
    tmp_path: Path, told: list[dict[str, Any]], expected: set[str] | None
) -> None:
    for worker, extra in enumerate(told):
        open_recorder(tmp_path, worker).close(SECOND, Account(), extra)
    assert own_addresses(open_recording(tmp_path).run_files) == expected


def test_beyond_the_limit_times_are_a_sample_of_every_upstream() -> None:
    """Strictly in turns, as a round robin: had every second one been kept, one upstream would have none."""
    turns = [PLAIN | {"upstream": f"10.0.0.{n % 2}:80", "shadow_queue_ns": n} for n in range(8000)]
    tally = tally_of(*(turns[at : at + 100] for at in range(0, 8000, 100)), limit=1000)
    got = tally.report(None)
    assert got.every == 8 or got.every == 16
    assert len(tally.sample().time) <= 1000
    for each in got.upstreams:
        assert each.requests == 4000
        assert each.time.n == pytest.approx(4000 / got.every, rel=0.3)
    assert max(each.queue.max or 0 for each in got.upstreams) == pytest.approx(7999 / MS)


STATUSES = st.sampled_from([None, 200, 302, 404, 502, 503])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "upstream": st.sampled_from([WEB, FRONT, LOCAL, "", None]),
            "answer": st.sampled_from(["ok", "ok", "timeout", "tls"]),
            "status": STATUSES,
            "shadow_status": STATUSES,
            "shadow_t_sent_ns": st.sampled_from([None, T0]),
            "shadow_t_last_ns": st.sampled_from([None, T0 - 1, T0 + MS]),
            "shadow_queue_ns": st.sampled_from([None, 0, MS]),
            "shadow_connect_ns": st.sampled_from([None, 0, MS]),
        }
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 40))
def test_any_rows_are_all_counted_in_any_batches(given_rows: list[Row], size: int) -> None:
    whole = tally_of(given_rows).report(None)
    parts = tally_of(*(given_rows[at : at + size] for at in range(0, len(given_rows), size))).report(None)
    assert parts == whole
    counted = Counter(row["upstream"] or "" for row in given_rows)
    assert {each.name: each.requests for each in whole.upstreams} == counted
    for each in whole.upstreams:
        assert each.requests == sum(each.failed.values()) + sum(each.statuses.values())
    ok = sum(row["answer"] == "ok" and (row["upstream"] or "") in whole.itself for row in given_rows)
    assert sum(own.requests for own in whole.own) == ok


@given(st.integers(100, 599), st.integers(100, 599))
def test_worse_is_worse_everywhere(ours: int, theirs: int) -> None:
    got = balancing(OWN | {"status": ours, "shadow_status": theirs}, known={FRONT})
    assert got.own[0].worse == int(Change(ours, theirs, 1, {}, "").worse)


def test_times_are_bounded_in_memory() -> None:
    assert sum(np.dtype(column.dtype).itemsize for column in tally_of([PLAIN]).sample()) == 14
