"""TLS to the shadow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.compare.names import Names
from replay.compare.tls import COLUMNS, Ends, Tls, TlsTally, as_dict, warnings
from tests.replay.compare.recorded import rows
from tests.replay.examples import T0

T0_S = T0 // 1_000_000_000
DAY_S = 86_400
MODERN = "TLSv1.3 TLS_AES_256_GCM_SHA384"
PLAIN = {"upstream": "a:1", "host": "shop.example", "shadow_t_queued_ns": T0, "shadow_t_sent_ns": T0}
AGREED = PLAIN | {"shadow_tls": MODERN, "shadow_tls_not_after_s": T0_S + 63 * DAY_S}

Row = dict[str, Any]


def tls(*given: Row, size: int = 100_000, failures: dict[str, int] | None = None) -> Tls:
    names = Names(100)
    tally = TlsTally(names)
    for at in range(0, len(given), size):
        batch = rows(["upstream", *COLUMNS], *given[at : at + size])
        tally.add(batch.select(COLUMNS), names.codes(batch.column("upstream")))
    return tally.report(failures or {})


def test_what_was_agreed_on() -> None:
    got = tls(AGREED, AGREED | {"shadow_tls": "TLSv1.2 X"}, AGREED, PLAIN)
    assert got.agreed == {MODERN: 2, "TLSv1.2 X": 1}
    assert got.failures == {}
    assert got


def test_the_certificate_that_ends_first() -> None:
    soon = AGREED | {"host": "old.example", "upstream": "b:1", "shadow_tls_not_after_s": T0_S + 20 * DAY_S}
    got = tls(AGREED, soon, AGREED).ends
    assert got == Ends(T0_S + 20 * DAY_S, 20.0, "old.example", "b:1")
    assert got.words == "ends 2025-07-05 15:06:40 UTC, 20 days left"
    assert not got.soon


def test_days_count_from_the_last_request_that_was_sent_or_tried() -> None:
    later = PLAIN | {"shadow_t_sent_ns": None, "shadow_t_queued_ns": T0 + 3 * DAY_S * 10**9}
    got = tls(AGREED, later).ends
    assert got is not None and got.days_left == 60.0


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (14, ["the shadow's certificate for shop.example ends 2025-06-29 15:06:40 UTC, 14 days left"]),
        (-2, ["the shadow's certificate for shop.example ends 2025-06-13 15:06:40 UTC, expired 2 days ago"]),
        (15, []),
    ],
)
def test_a_certificate_that_ends_soon_is_a_warning(days: int, words: list[str]) -> None:
    assert warnings(tls(AGREED | {"shadow_tls_not_after_s": T0_S + days * DAY_S})) == words


def test_without_tls_there_is_nothing_to_say() -> None:
    got = tls(PLAIN, PLAIN)
    assert not got
    assert (got, warnings(got)) == (Tls(), [])
    assert as_dict(got) == {"agreed": {}, "first_certificate_to_end": None, "failures": {}}


def test_a_certificate_that_was_not_verified_has_no_end() -> None:
    got = tls(AGREED | {"shadow_tls_not_after_s": None})
    assert (got.agreed, got.ends) == ({MODERN: 1}, None)


def test_failures_alone_are_something_to_say() -> None:
    assert tls(PLAIN, failures={"certificate has expired": 3})


def test_as_json() -> None:
    got = tls(AGREED, failures={"wrong version number": 2})
    data = json.loads(json.dumps(as_dict(got)))
    assert data["agreed"] == {MODERN: 1}
    assert data["failures"] == {"wrong version number": 2}
    assert data["first_certificate_to_end"] == {
        "not_after_s": T0_S + 63 * DAY_S,
        "not_after": "2025-08-17 15:06:40 UTC",
        "days_left": 63.0,
        "soon": False,
        "host": "shop.example",
        "upstream": "a:1",
    }


def test_strange_values_are_shown_all_the_same() -> None:
    strange = AGREED | {"shadow_tls_not_after_s": 2**62, "host": "\x1b" + "h" * 500}
    ends = tls(strange).ends
    assert ends is not None
    assert ends.words.startswith("ends 9999-12-31 23:59:59 UTC")
    assert len(ends.host) <= 80 and ends.host.isprintable()
    assert tls(AGREED | {"host": None}).ends == Ends(T0_S + 63 * DAY_S, 63.0, "", "a:1")


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "upstream": st.sampled_from(["a:1", "b:1"]),
            "host": st.just("h"),
            "shadow_t_queued_ns": st.sampled_from([None, T0]),
            "shadow_t_sent_ns": st.integers(T0, T0 + 10**15),
            "shadow_tls": st.sampled_from([None, MODERN, "TLSv1.2 X"]),
            "shadow_tls_not_after_s": st.none() | st.integers(1, 2**40),
        }
    ),
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 20))
def test_the_first_end_is_the_first_in_any_batches(given_rows: list[Row], size: int) -> None:
    for row in given_rows:
        if row["shadow_tls"] is None:
            row["shadow_tls_not_after_s"] = None
    got = tls(*given_rows, size=size)
    assert got == tls(*given_rows)
    assert sum(got.agreed.values()) == sum(row["shadow_tls"] is not None for row in given_rows)
    ends = [row["shadow_tls_not_after_s"] for row in given_rows if row["shadow_tls_not_after_s"]]
    assert (got.ends.not_after_s if got.ends else None) == min(ends, default=None)
