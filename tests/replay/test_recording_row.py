"""One row out of an exchange and an outcome."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import row
from replay.exchange import Answer, Exchange, Fate, Outcome, Response
from replay.http1 import header_values
from replay.schema import COLUMN_TYPES, SCHEMA
from tests.replay.examples import (
    MS,
    T0,
    failed_outcome,
    make_exchange,
    make_outcome,
    make_request,
    make_response,
)


def as_dict(exchange: Exchange, fate: Fate, reason: str = "", outcome: Outcome | None = None) -> dict[str, Any]:
    values = row.build_row("canary", 3, exchange, fate, reason, outcome)
    assert len(values) == len(COLUMN_TYPES)
    return dict(zip(SCHEMA.names, values, strict=False))


def sha1(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


def test_a_replayed_request_has_both_sides() -> None:
    exchange = make_exchange(make_request("/a?b=1"), make_response(), index=2)
    got = as_dict(exchange, Fate.REPLAYED, "", make_outcome(503, b"sorry", detail="late"))
    assert got == {
        "shadow": "canary",
        "worker": 3,
        "connection": 7,
        "index": 2,
        "client": "192.0.2.1:5555",
        "server": "198.51.100.1:80",
        "fate": "replayed",
        "reason": None,
        "method": "GET",
        "target": "/a?b=1",
        "host": "shop.example",
        "request_body_bytes": 0,
        "request_t_first_ns": T0,
        "request_t_last_ns": T0,
        "status": 200,
        "response_complete": True,
        "response_body_bytes": 4,
        "response_body_sha1": sha1(b"body"),
        "response_t_first_ns": T0 + MS,
        "response_t_last_ns": T0 + 2 * MS,
        "content_type": "text/plain",
        "content_encoding": None,
        "location": None,
        "answer": "ok",
        "upstream": "10.0.0.1:8080",
        "shadow_status": 503,
        "shadow_body_bytes": 5,
        "shadow_body_sha1": sha1(b"sorry"),
        "shadow_t_queued_ns": T0,
        "shadow_t_sent_ns": T0 + MS,
        "shadow_t_first_ns": T0 + 3 * MS,
        "shadow_t_last_ns": T0 + 5 * MS,
        "shadow_content_type": "text/plain",
        "shadow_content_encoding": None,
        "shadow_location": None,
        "detail": "late",
        "shadow_queue_ns": None,
        "shadow_connect_ns": None,
        "shadow_tls": None,
        "shadow_tls_not_after_s": None,
        "body_equal": False,
    }


def test_a_response_without_request_leaves_the_requests_columns_null() -> None:
    got = as_dict(make_exchange(None, make_response()), Fate.INCOMPLETE, "request_lost")
    assert got["method"] is got["target"] is got["request_t_first_ns"] is None
    assert (got["status"], got["reason"], got["answer"]) == (200, "request_lost", None)


def test_a_request_without_anything_else() -> None:
    got = as_dict(make_exchange(make_request()), Fate.DROPPED, "queue_full")
    assert got["status"] is got["response_complete"] is got["answer"] is got["body_equal"] is None


def test_a_shadow_that_gave_no_answer_has_no_status_and_no_times() -> None:
    got = as_dict(make_exchange(make_request(), make_response()), Fate.REPLAYED, "", failed_outcome(Answer.TIMEOUT))
    assert got["shadow_status"] is got["shadow_t_first_ns"] is got["shadow_body_bytes"] is got["body_equal"] is None
    assert (got["answer"], got["detail"], got["shadow_t_sent_ns"]) == ("timeout", "timeout", T0 + MS)


def cut(response: Response, **changes: Any) -> Response:
    return response._replace(**changes)


WHOLE = make_response(body=b"abc")
NOT_KEPT = cut(WHOLE, body=b"a", body_bytes=3)


@pytest.mark.parametrize(
    ("response", "outcome", "expected"),
    [
        (WHOLE, make_outcome(body=b"abc"), (True, True, True)),
        (WHOLE, make_outcome(body=b"abd"), (True, True, False)),
        (WHOLE, make_outcome(body=b"ab"), (True, True, False)),
        (cut(WHOLE, complete=False), make_outcome(body=b"abc"), (False, True, None)),
        (NOT_KEPT, make_outcome(body=b"abc"), (False, True, None)),
        (NOT_KEPT, make_outcome(body=b"ab"), (False, True, False)),
        (NOT_KEPT._replace(body_sha1=sha1(b"abc")), make_outcome(body=b"abc"), (True, True, True)),
        (NOT_KEPT._replace(body_sha1=sha1(b"abx")), make_outcome(body=b"abc"), (True, True, False)),
        (WHOLE, make_outcome(body=b"ab")._replace(body_bytes=3), (True, False, None)),
        (WHOLE, make_outcome(body=b"ab")._replace(body_bytes=4), (True, False, False)),
        (WHOLE, make_outcome(body=b"abc", answer=Answer.RESET), (True, False, None)),
        (None, make_outcome(body=b"abc"), (False, True, None)),
        (WHOLE, None, (True, False, None)),
    ],
)
def test_what_is_known_of_the_bodies(
    response: Response | None, outcome: Outcome | None, expected: tuple[bool, bool, bool | None]
) -> None:
    fate = Fate.REPLAYED if outcome else Fate.SKIPPED
    got = as_dict(make_exchange(make_request(), response), fate, "", outcome)
    known = got["response_body_sha1"] is not None, got["shadow_body_sha1"] is not None, got["body_equal"]
    assert known == expected


def test_large_bodies_are_compared_but_not_hashed() -> None:
    body = b"x" * (row.HASH_LIMIT_BYTES + 1)
    exchange = make_exchange(make_request(), make_response(body=body))
    got = as_dict(exchange, Fate.REPLAYED, "", make_outcome(body=body))
    assert got["body_equal"] is True
    assert got["response_body_sha1"] is got["shadow_body_sha1"] is None
    got = as_dict(exchange, Fate.REPLAYED, "", make_outcome(body=body[:-1] + b"y"))
    assert got["body_equal"] is False


def test_text_from_strangers_is_cut() -> None:
    long = "x" * 70_000
    request = make_request("/" + long, method=long, headers=b"Host: " + long.encode() + b"\r\n")
    response = make_response(headers=b"Content-Type: " + long.encode() + b"\r\n")
    values = row.build_row("s", 0, make_exchange(request, response), Fate.REPLAYED, "", make_outcome(detail=long))
    assert sum(len(v) for v in values if isinstance(v, str)) < row.TARGET_LIMIT_CHARS + 5 * row.FIELD_LIMIT_CHARS + 200


HEADS = [
    (b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n", "a/b"),
    (b"HTTP/1.1 200 OK\r\ncontent-type:a/b\r\n\r\n", "a/b"),
    (b"HTTP/1.1 200 OK\nCONTENT-TYPE:  a/b \n\n", "a/b"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: a/b;\r\n x=1\r\n\r\n", "a/b; x=1"),
    (b"HTTP/1.1 200 OK\r\nX-Content-Type: a/b\r\n\r\n", None),
    (b"HTTP/1.1 200 OK\r\nContent-Type: a/b", "a/b"),
    (b"HTTP/1.1 200 OK\r\nContent-Type:\r\n\r\n", ""),
    (b"HTTP/1.1 200 OK\r\nContent-Type: \xe4\r\n\r\n", "\xe4"),
    (b"", None),
]


@pytest.mark.parametrize(("head", "expected"), HEADS)
def test_a_field_of_a_head(head: bytes, expected: str | None) -> None:
    assert row.field(head, head.lower(), b"\ncontent-type:") == expected


@settings(max_examples=200)
@given(st.lists(st.sampled_from([b"\nhost:", b"\r", b" ", b"a", b"\n", b"\t", b":", b"Host"]), max_size=12))
def test_a_field_never_raises_and_agrees_with_the_careful_reader(parts: list[bytes]) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"".join(parts) + b"\r\n\r\n"
    got = row.field(head, head.lower(), b"\nhost:")
    careful = header_values(head, b"host")
    assert got is None or got.encode() in careful


def test_credentials_are_left_out_of_exemplars() -> None:
    head = (
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\ncookie: a=secret\r\nX-A: 1\r\n"
        b"Set-Cookie:secret\r\n secret\r\nProxy-Authorization : secret\r\n\r\n"
    )
    shown = row.redact(head)
    assert b"secret" not in shown
    assert b"Host: a\r\n" in shown and b"X-A: 1\r\n" in shown and shown.endswith(b"\r\n\r\n")


def differs(response: Response, outcome: Outcome | None) -> bool:
    exchange = make_exchange(make_request(), response)
    return row.differs(row.build_row("s", 0, exchange, Fate.REPLAYED, "", outcome), exchange, outcome)


def test_which_rows_are_worth_an_exemplar() -> None:
    assert not differs(make_response(), make_outcome())
    assert differs(make_response(), make_outcome(404))
    assert differs(make_response(), make_outcome(body=b"other"))
    assert differs(make_response(), make_outcome(answer=Answer.GARBAGE))
    assert not differs(make_response(), failed_outcome(Answer.CONNECT))
    assert not differs(make_response(complete=False), make_outcome(body=b"other"))
