"""The same request asked again: whether production answers it as before."""

from __future__ import annotations

import tracemalloc

import pytest

from agent.monitor.repeats import REQUESTS_MAX, WITHIN_NS, Repeats
from tests.replay.examples import MS, T0, make_request, make_response

HOST = b"Host: shop.example\r\n"


def differ(repeats: Repeats, body: bytes, at_ns: int = T0, target: str = "/", headers: bytes = HOST) -> bool | None:
    return repeats.differ(make_request(target, at_ns=at_ns, headers=headers), make_response(body=body))


def test_the_same_answer_and_another() -> None:
    repeats = Repeats()
    assert differ(repeats, b"one") is None
    assert differ(repeats, b"one", T0 + MS) is False
    assert differ(repeats, b"two", T0 + 2 * MS) is True
    assert differ(repeats, b"two", T0 + 3 * MS) is False


def test_a_status_and_a_length_are_parts_of_an_answer() -> None:
    repeats = Repeats()
    repeats.differ(make_request(), make_response(200, b"x"))
    assert repeats.differ(make_request(), make_response(404, b"x")) is True
    assert repeats.differ(make_request(), make_response(404, b"xx")) is True


@pytest.mark.parametrize(
    ("target", "headers"), [("/other", HOST), ("/", HOST + b"Cookie: a=1\r\n"), ("/", b"host: shop.example\r\n")]
)
def test_a_request_with_another_head_is_another(target: str, headers: bytes) -> None:
    repeats = Repeats()
    differ(repeats, b"one")
    assert differ(repeats, b"two", T0 + MS, target, headers) is None
    assert differ(repeats, b"one", T0 + 2 * MS) is False


def test_content_changes_with_time_so_only_a_short_one_counts() -> None:
    repeats = Repeats()
    differ(repeats, b"one")
    assert differ(repeats, b"two", T0 + WITHIN_NS) is True
    assert differ(repeats, b"three", T0 + 2 * WITHIN_NS + 1) is None
    assert differ(repeats, b"four", T0 + 2 * WITHIN_NS + 2) is True


def test_a_clock_that_was_set_back_compares_nothing() -> None:
    repeats = Repeats()
    differ(repeats, b"one", T0)
    assert differ(repeats, b"two", T0 - MS) is None
    assert differ(repeats, b"two", T0) is False


def test_only_safe_methods_without_a_body_and_answers_that_were_kept() -> None:
    repeats = Repeats()
    for method, expected in (("GET", False), ("HEAD", False), ("OPTIONS", False), ("POST", None), ("get", None)):
        request = make_request(method=method)
        repeats.differ(request, make_response())
        assert repeats.differ(request, make_response()) is expected, method
    with_body = make_request("/body")._replace(body_bytes=3)
    repeats.differ(with_body, make_response())
    assert repeats.differ(with_body, make_response()) is None
    cut = make_response()._replace(body_bytes=10)
    repeats.differ(make_request("/cut"), cut)
    assert repeats.differ(make_request("/cut"), cut) is None


def test_memory_is_bounded_and_the_oldest_request_goes_first() -> None:
    repeats = Repeats()
    for number in range(REQUESTS_MAX):
        assert differ(repeats, b"one", target=f"/{number}") is None
    assert differ(repeats, b"one", target="/0") is False  # and is the newest now
    assert differ(repeats, b"one", target="/more") is None
    assert differ(repeats, b"one", target="/0") is False
    assert differ(repeats, b"one", target="/1") is None
    assert len(repeats._answers) == REQUESTS_MAX


def test_memory_does_not_grow_with_the_heads() -> None:
    """Of 4096 heads of 4 KB it would be 16 MB."""
    repeats = Repeats()
    tracemalloc.start()
    for number in range(REQUESTS_MAX):
        differ(repeats, b"one", target=f"/{number}", headers=b"Cookie: " + b"x" * 4000 + b"\r\n")
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 2_000_000
