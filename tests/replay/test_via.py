"""The header in which a balancer program names its choice: taken off wherever it stands, whatever is around it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replay.balancer.derive.haproxy_via import parse_via
from replay.balancer.derive.nginx_via import parse_nginx_via
from replay.http1 import HEAD_LIMIT_BYTES
from replay.via import Via, take_off

NAME = b"x-shadowtap-upstream"
NEEDLE = b"\n" + NAME + b":"
WRITTEN = (NAME, b"X-Shadowtap-Upstream", b"X-SHADOWTAP-UPSTREAM")
STATUS = b"HTTP/1.1 200 OK"
OTHERS = (
    b"Content-Length: 2",
    b"X-Shadowtap-Upstream-Other: a",
    b"Not-X-Shadowtap-Upstream: b",
    b"X-Shadowtap: 1",
    b"Via: x-shadowtap-upstream: c",
    b"Empty:",
    b"Latin: \xff\xfe",
    b"Folded: a\n b",
)

# Lines of a response: of another header, or ours with a value and what follows it on continuation lines.
values = st.binary(max_size=12).map(lambda text: text.translate(None, b"\r\n").strip())
ours = st.tuples(st.sampled_from(WRITTEN), values, st.sampled_from([b"", b"\n more", b"\n\tand\n more"]))
lines = st.lists(st.one_of(st.sampled_from(OTHERS), ours), max_size=8)
ends = st.sampled_from([b"\r\n", b"\n"])


@given(lines=lines, end=ends)
def test_its_lines_are_gone_and_the_others_are_as_they_were(
    lines: list[bytes | tuple[bytes, bytes, bytes]], end: bytes
) -> None:
    def head_of(kept: list[bytes]) -> bytes:
        return end.join([STATUS, *kept, b"", b""])

    written = [each if isinstance(each, bytes) else each[0] + b": " + each[1] + each[2] for each in lines]
    others = [each for each in lines if isinstance(each, bytes)]
    said = [each[1] + each[2] for each in lines if not isinstance(each, bytes)]
    head, value = take_off(head_of(written), NAME)
    assert head == head_of(others)
    assert value == (said[-1].strip() if said else None)


@given(head=st.lists(st.sampled_from([NEEDLE, b"\n", b"\r", b" ", b":", b"x", NAME, b"\0", b"\xff"])).map(b"".join))
@example(head=NEEDLE * 3)
@example(head=b"\n" + NEEDLE + b"\n " + NEEDLE)
def test_nothing_of_it_is_left_in_any_bytes(head: bytes) -> None:
    left, value = take_off(head, NAME)
    assert NEEDLE not in left.lower()
    assert (value is None) == (NEEDLE not in head.lower())
    assert take_off(left, NAME) == (left, None)
    assert len(left) <= len(head)


def test_a_head_full_of_it_takes_no_time() -> None:
    head = STATUS + NEEDLE * (HEAD_LIMIT_BYTES // len(NEEDLE)) + b"1\r\n\r\n"
    began = time.process_time()
    assert take_off(head, NAME) == (STATUS + b"\n\r\n", b"1")
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize("read", [parse_via, parse_nginx_via])
@given(value=st.one_of(st.binary(max_size=80), st.text("ab1:.,;/[]- ", max_size=60).map(str.encode)))
@example(value=b"")
@example(value=b"a/b [::1]:80 0 0 0")
@example(value=b"192.0.2.1:80, 192.0.2.2:80;0.001, 0.002;app;")
@example(value=b";" * 5000)
def test_reading_its_value_never_raises(read: Callable[[bytes], Via | None], value: bytes) -> None:
    via = read(value)
    assert via is None or isinstance(via, Via)
    if via is not None:
        assert isinstance(via.upstream, str)
        assert via.queue_ns >= -1 and via.connect_ns >= -1


@pytest.mark.parametrize(
    ("via", "upstream"),
    [
        (Via("app", "web1", "192.0.2.1:80", 0, 0), "192.0.2.1:80"),
        (Via("app", "web1", "", 0, 0), "web1"),
        (Via("app", "", "", -1, -1), ""),
    ],
)
def test_an_outcome_names_the_address_or_else_the_server(via: Via, upstream: str) -> None:
    assert via.upstream == upstream
