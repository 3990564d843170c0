"""The keeper: it gives sockets until its lifeline ends; whose a filter is; and a worker that does without it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from agent import keeper
from agent.keeper import SO_MARK, SOCKETS_AT_ONCE, MarkedSockets, filter_name, is_stale, serve

MARK = 0x1234
Pair = tuple[socket.socket, socket.socket]


def pair() -> Pair:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@pytest.fixture
def lifeline() -> Iterator[Pair]:
    ours, theirs = pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def serving(lifeline: Pair, *channels: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=serve, args=(lifeline[1], list(channels), MARK), daemon=True)
    thread.start()
    return thread


@pytest.mark.root
def test_every_worker_gets_marked_sockets_of_both_families(lifeline: Pair) -> None:
    workers = [pair(), pair()]
    thread = serving(lifeline, *(theirs for _, theirs in workers))
    for ours, _ in workers:
        sockets = MarkedSockets(ours)
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_INET):
            for _ in range(SOCKETS_AT_ONCE + 1):
                made = sockets.factory(family)
                assert (made.family, made.type) == (family, socket.SOCK_STREAM)
                assert made.getsockopt(socket.SOL_SOCKET, SO_MARK) == MARK
                made.close()
        assert sockets.unmarked == 0
    lifeline[0].close()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.root
def test_a_worker_that_goes_does_not_end_it(lifeline: Pair) -> None:
    (gone, gone_theirs), (ours, theirs) = pair(), pair()
    thread = serving(lifeline, gone_theirs, theirs)
    gone.send(b"4")  # and never takes what it asked for
    gone.close()
    assert MarkedSockets(ours).factory(socket.AF_INET).getsockopt(socket.SOL_SOCKET, SO_MARK) == MARK
    lifeline[0].close()
    thread.join(10)
    assert not thread.is_alive()


def test_without_a_keeper_sockets_have_no_mark_and_are_counted() -> None:
    ours, theirs = pair()
    theirs.close()
    sockets = MarkedSockets(ours)
    for count in (1, 2):
        made = sockets.factory(socket.AF_INET6)
        assert made.family == socket.AF_INET6
        assert sockets.unmarked == count
        made.close()


def test_a_keeper_that_does_not_answer_is_not_waited_for_long() -> None:
    ours, theirs = pair()
    sockets = MarkedSockets(ours)
    assert 0 < (ours.gettimeout() or 0) <= 1
    sockets.factory(socket.AF_INET).close()
    assert sockets.unmarked == 1
    assert theirs.recv(16) == b"4"


def test_an_answer_to_an_earlier_question_goes_where_it_belongs() -> None:
    """A worker died between asking for IPv6 and taking it; its successor has the same channel and asks for IPv4."""
    ours, theirs = pair()
    for family in (socket.AF_INET6, socket.AF_INET):
        made = [socket.socket(family, socket.SOCK_STREAM) for _ in range(2)]
        socket.send_fds(theirs, [b"ok"], [each.fileno() for each in made])
        for each in made:
            each.close()
    sockets = MarkedSockets(ours)
    assert sockets.factory(socket.AF_INET).family == socket.AF_INET
    assert sockets.factory(socket.AF_INET6).family == socket.AF_INET6
    assert sockets.factory(socket.AF_INET).family == socket.AF_INET


def test_a_filter_is_stale_when_its_service_is_gone() -> None:
    assert not is_stale(filter_name(os.getpid()))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    name = filter_name(ended.pid)
    ended.wait()
    assert is_stale(name)
    assert is_stale(f"{keeper.FILTER_NAME}-{os.getpid()}-1")  # the same process id, another time
    assert is_stale(f"{keeper.FILTER_NAME}--")
    assert is_stale(keeper.FILTER_NAME)


@pytest.mark.parametrize("name", ["", "shadowtape-1-2", "cilium", "tap_ingress:[12]", "my-shadowtap-1-2"])
def test_filters_of_others_are_never_stale(name: str) -> None:
    assert not is_stale(name)


def test_nothing_to_attach_is_no_error_and_needs_nothing() -> None:
    assert keeper.attach_clsact(1, [], os.getpid()) == ([], "")
    keeper.detach([])


@pytest.mark.root
def test_an_interface_that_is_gone_is_an_error_in_words() -> None:
    attached, error = keeper.attach_clsact(1 << 30, [0], os.getpid())
    assert attached == []
    assert error.startswith("clsact filter on interface 1073741824: ")
