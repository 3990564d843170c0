"""Two answers are the same by status and body; what cannot be known is None, as it is in the recording."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.exchange import Answer, Fate, Outcome, Response
from replay.row import build_row
from replay.sameness import HASH_LIMIT_BYTES, alike, known_sha1, same
from tests.replay.examples import failed_outcome, make_exchange, make_outcome, make_request, make_response

CUT = make_response(body=b"ab")._replace(body_bytes=3)
CUT_THERE = make_outcome(body=b"ab")._replace(body_bytes=3)
ABC = hashlib.sha1(b"abc").hexdigest()
BIG = b"x" * (HASH_LIMIT_BYTES + 1)


@pytest.mark.parametrize(
    ("production", "outcome", "expected"),
    [
        (make_response(), make_outcome(), True),
        (make_response(), make_outcome(body=b"BODY"), False),
        (make_response(), make_outcome(body=b""), False),
        (make_response(304), make_outcome(200), False),
        (make_response(body=b""), make_outcome(body=b""), True),
        (make_response(), failed_outcome(Answer.CONNECT), None),
        (make_response(), make_outcome(answer=Answer.TIMEOUT), None),
        (make_response(complete=False), make_outcome(), None),
        (make_response(500, complete=False), make_outcome(), False),
        (CUT, make_outcome(body=b"abc"), None),
        (CUT._replace(body_sha1=ABC), make_outcome(body=b"abc"), True),
        (CUT._replace(body_sha1=ABC), make_outcome(body=b"abx"), False),
        (CUT, CUT_THERE, None),
        (CUT._replace(body_sha1=ABC), CUT_THERE, None),
        (make_response(body=b"abc"), CUT_THERE, None),
        (make_response(body=BIG), make_outcome(body=BIG), True),
        (make_response(body=BIG), make_outcome(body=BIG[:-1] + b"y"), False),
        (make_response(body=BIG)._replace(body=b"", body_sha1=ABC), make_outcome(body=BIG), None),
    ],
)
def test_production_and_shadow(production: Response, outcome: Outcome, expected: bool | None) -> None:
    assert same(production, outcome) is expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (make_outcome(), make_outcome(), True),
        (make_outcome(), make_outcome(404), False),
        (make_outcome(), make_outcome(body=b"BODY"), False),
        (make_outcome(), make_outcome(body=b"longer"), False),
        (make_outcome(), failed_outcome(Answer.RESET), None),
        (CUT_THERE, make_outcome(body=b"abc"), None),
        (CUT_THERE, CUT_THERE, None),
    ],
)
def test_two_answers_of_the_shadow(first: Outcome, second: Outcome, expected: bool | None) -> None:
    assert alike(first, second) is alike(second, first) is expected


def test_what_is_known_by_hash() -> None:
    assert known_sha1(make_response(body=b"abc")) == ABC
    assert known_sha1(make_response(body=b"abc", complete=False)) is known_sha1(CUT) is None
    assert known_sha1(make_response(body=BIG)) is None


@given(
    st.sampled_from([b"", b"abc", b"abd", b"ab"]),
    st.sampled_from([b"", b"abc", b"abd", b"ab"]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([None, ABC]),
    st.booleans(),
)
def test_the_recording_says_the_same(
    ours: bytes, theirs: bytes, our_more: int, their_more: int, sha1: str | None, complete: bool
) -> None:
    response = make_response(body=ours, complete=complete)._replace(body_bytes=len(ours) + our_more, body_sha1=sha1)
    outcome = make_outcome(body=theirs)._replace(body_bytes=len(theirs) + their_more)
    whole = our_more == 0
    if whole:
        response = response._replace(body_sha1=None)  # only what was not kept is hashed on the way
    row = build_row("s", 0, make_exchange(make_request(), response), Fate.REPLAYED, "", outcome)
    assert same(response, outcome) is row[-1]
