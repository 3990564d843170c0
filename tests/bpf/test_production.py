"""Production's latency as the kernel measures it, on made packets, read as the service reads it."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from agent.capture import kernel
from agent.capture.latency import Histogram, bucket_bounds_ns
from agent.capture.layout import PPM
from agent.capture.tap import Tap, TapOrder, order_for
from agent.select import sampling
from tests.bpf.selections import SEED, arm, select, wanted

pytestmark = pytest.mark.root
PASS = -1
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
MS = 1_000_000
_clients = itertools.count(1)


ROOT = Path(__file__).parents[2]
BUCKETS = r"""
#include <stdio.h>
#include "event.h"
#define __always_inline inline
FUNCTION
int main(void)
{
	unsigned long long ns;
	while (scanf("%llu", &ns) == 1)
		printf("%u\n", bucket_of(ns));
	return 0;
}
"""


@pytest.fixture(scope="module")
def loaded() -> Iterator[Tap]:
    order = order_for("lo", 1, 1 << 16, "clsact")
    tap = Tap.load(TapOrder(order.sources, order.ifindex, False, 14, 1, 1 << 16, "none"))
    tap.watch([80])
    yield tap
    tap.close()


@pytest.fixture
def tap(loaded: Tap) -> Tap:
    select(loaded, wanted(ppm=0))  # nothing is copied
    arm(loaded, 1, harm_ppm=PPM)
    for phase in (1, 0):
        loaded.latency.start(phase)
    return loaded


class Turns:
    """One client's connection."""

    def __init__(self, tap: Tap, mark: int = 0, v6: bool = False) -> None:
        number = next(_clients)
        self.tap, self.mark, self.v6 = tap, mark, v6
        self.client = f"2001:db8::{number:x}" if v6 else f"10.5.{number >> 8}.{number & 255}"
        self.server = "2001:db8:1::1" if v6 else "10.9.8.7"
        self.seq, self.ack = 1000, 5000

    def ask(self, payload: bytes = b"GET / HTTP/1.1\r\n\r\n", flags: str = "PA", back: int = 0) -> None:
        """The client sends; `back`: that much of it again."""
        self._run(0, payload, flags, self.seq - back, self.ack, to_server=True)
        self.seq += max(0, len(payload) - back) + ("S" in flags)

    def answer(self, payload: bytes = OK, flags: str = "PA", back: int = 0) -> None:
        """The server does."""
        self._run(1, payload, flags, self.ack - back, self.seq, to_server=False)
        self.ack += max(0, len(payload) - back) + ("S" in flags)

    def _run(self, hook: int, payload: bytes, flags: str, seq: int, ack: int, *, to_server: bool) -> None:
        ends, ports = (self.client, self.server), (40_000, 80)
        if not to_server:
            ends, ports = ends[::-1], ports[::-1]
        ip: Packet = (IPv6 if self.v6 else IP)(src=ends[0], dst=ends[1])
        numbers = {"seq": seq & 0xFFFFFFFF, "ack": ack & 0xFFFFFFFF}
        tcp = TCP(sport=ports[0], dport=ports[1], flags=flags, **numbers)
        packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / tcp / Raw(payload)
        assert kernel.test_run(self.tap.programs[hook], bytes(packet), mark=self.mark)[0] == PASS


def counted(tap: Tap) -> tuple[int, int]:
    return tap.latency.read(0).count, tap.latency.read(1).count


def test_both_sides_agree_on_the_buckets(tmp_path: Path) -> None:
    """The function in C, compiled for this machine, puts the ends of every bucket where Python says."""
    found = re.search(
        r"static __always_inline __u32 bucket_of.*?^}", (ROOT / "bpf/production.h").read_text(), re.M | re.S
    )
    assert found
    (tmp_path / "buckets.c").write_text(BUCKETS.replace("FUNCTION", found[0]))
    argv = ["gcc", "-O1", "-Wall", "-Wno-unknown-pragmas", f"-I{ROOT / 'bpf'}", "buckets.c", "-o", "buckets"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    ends = [
        (bucket, end) for bucket in range(464) for low, high in [bucket_bounds_ns(bucket)] for end in (low, high - 1)
    ]
    ends += [(463, 1 << 40), (463, (1 << 64) - 1)]
    text = "\n".join(str(end) for _, end in ends)
    done = subprocess.run([tmp_path / "buckets"], input=text, capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == [bucket for bucket, _ in ends]


def test_the_time_from_a_request_to_its_answer_is_counted_once(tap: Tap) -> None:
    for v6 in (False, True):
        tap.latency.start(0)
        turns = Turns(tap, v6=v6)
        turns.ask(b"", "S")
        turns.answer(b"", "SA")
        turns.ask()
        before = time.monotonic_ns()
        time.sleep(0.01)
        most_ns = time.monotonic_ns() - before
        turns.answer()
        turns.answer(b"x" * 100)
        turns.ask(b"", "A")
        histogram = tap.latency.read(0)
        assert (histogram.count, histogram.errors) == (1, 0)
        assert (histogram.quantile(0.5) or 0) * 17 / 16 > 10 * MS
        assert (histogram.quantile(0.5) or 0) * 15 / 16 < most_ns + 5 * MS  # a packet takes scapy its time
        turns.ask()
        turns.answer()
        assert counted(tap) == (2, 0)


def test_a_request_is_over_with_its_last_byte(tap: Tap) -> None:
    turns = Turns(tap)
    turns.ask(b"POST / HTTP/1.1\r\n")
    time.sleep(0.05)
    turns.ask(b"\r\n")
    turns.answer()
    assert (tap.latency.read(0).quantile(1.0) or 0) < 40 * MS


def test_what_is_sent_again_is_not_new(tap: Tap) -> None:
    turns = Turns(tap)
    turns.ask(b"GET /")
    time.sleep(0.02)
    turns.ask(b"GET /", back=5)
    turns.answer()
    assert (tap.latency.read(0).quantile(0.0) or 0) > 19 * MS, "the time is that of the first"
    turns.ask(b"GET /", back=5)
    turns.answer(OK, back=len(OK))
    assert counted(tap) == (1, 0)
    turns.ask()
    turns.answer(OK, back=len(OK))
    assert counted(tap) == (1, 0), "an answer that was there before does not answer the next request"
    turns.answer()
    assert counted(tap) == (2, 0)


def test_ports_that_are_used_again_begin_anew(tap: Tap) -> None:
    turns = Turns(tap)
    turns.ask()
    turns.answer()
    turns.seq -= 500
    turns.ack -= 700
    turns.ask(b"", "S")
    turns.answer(b"", "SA")
    turns.ask()
    turns.answer()
    assert counted(tap) == (2, 0)


def test_an_answer_without_a_request_is_none(tap: Tap) -> None:
    turns = Turns(tap)
    turns.answer()
    assert counted(tap) == (0, 0)


def test_phases_are_counted_apart_and_nothing_that_is_in_two(tap: Tap) -> None:
    one, other, paused = Turns(tap), Turns(tap), Turns(tap)
    one.ask()
    one.answer()
    other.ask()
    tap.latency.pause()
    paused.ask()
    paused.answer()
    paused.ask()
    tap.latency.start(1)
    other.answer()
    paused.answer()
    assert counted(tap) == (1, 0)
    for turns in (one, other):
        turns.ask()
        turns.answer()
    assert counted(tap) == (1, 2)
    tap.latency.start(0)
    assert counted(tap) == (0, 2)
    one.ask()
    tap.latency.start(0)
    one.answer()
    assert counted(tap) == (0, 2), "the same phase, but another run of it"
    one.ask()
    one.answer()
    assert counted(tap) == (1, 2)


def test_nothing_is_counted_across_a_lapse_of_the_lease(tap: Tap) -> None:
    turns = Turns(tap)
    turns.ask()
    arm(tap, 1, lease_ns=0, harm_ppm=PPM)
    turns.answer()
    turns.ask()
    assert tap.renew() > 0
    arm(tap, 1, harm_ppm=PPM)
    turns.answer()
    assert counted(tap) == (0, 0)
    turns.ask()
    turns.answer()
    assert counted(tap) == (1, 0)


@pytest.mark.parametrize(
    ("status_line", "errors"),
    [
        (b"HTTP/1.1 500 Oh\r\n\r\n", 1),
        (b"HTTP/1.0 599\r\n\r\n", 1),
        (b"HTTP/1.1 499 Not 500\r\n\r\n", 0),
        (b"HTTP/1.1  500\r\n", 0),
        (b"HTTP/1.1 5", 1),
        (b"HTTP/1.1 ", 0),
        (b"\x16\x03\x03\x00\x7a\x02\0\0\x76 5", 0),
    ],
)
def test_errors_are_counted(tap: Tap, status_line: bytes, errors: int) -> None:
    turns = Turns(tap)
    turns.ask()
    turns.answer(status_line)
    histogram = tap.latency.read(0)
    assert (histogram.count, histogram.errors) == (1, errors)


def test_only_flows_of_the_share_are_measured(tap: Tap) -> None:
    arm(tap, 1, harm_ppm=PPM // 2)
    expected = 0
    for _ in range(40):
        turns = Turns(tap)
        turns.ask()
        turns.answer()
        key = bytes(map(int, turns.client.split("."))) + bytes((10, 9, 8, 7)) + (40_000 << 16 | 80).to_bytes(4, "big")
        expected += sampling.sampled(sampling.flow_hash(key, SEED), PPM // 2)
    assert 5 < expected < 35
    assert counted(tap) == (expected, 0)
    arm(tap, 1, harm_ppm=0)
    turns = Turns(tap)
    turns.ask()
    turns.answer()
    assert counted(tap) == (expected, 0)


def test_our_own_requests_are_not_production(tap: Tap) -> None:
    arm(tap, 1, harm_ppm=PPM, own_mark=7)
    turns = Turns(tap, mark=7)
    turns.ask()
    turns.answer()
    assert counted(tap) == (0, 0)


def test_it_is_measured_alike_when_everything_is_copied(tap: Tap) -> None:
    for rule in ("random", "path:/nowhere*"):
        select(tap, wanted(rule))
        tap.latency.start(0)
        turns = Turns(tap)
        turns.ask()
        turns.answer()
        assert counted(tap) == (1, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["ask", "answer", "ask again", "answer again", "other"]), max_size=30))
def test_every_turn_is_counted_once(loaded: Tap, script: list[str]) -> None:
    """However segments and their copies follow each other: as many answers as turns."""
    arm(loaded, 1, harm_ppm=PPM)
    loaded.latency.start(1)
    turns, other = Turns(loaded), Turns(loaded)
    asked = told = False
    expected = 0
    for step in script:
        if step == "ask":
            turns.ask()
            asked = True
        elif step == "answer":
            turns.answer()
            expected += asked
            told, asked = told or asked or expected > 0, False
        elif step == "ask again" and turns.seq > 1000:
            turns.ask(b"x" * 10, back=10)
        elif step == "answer again" and expected:
            turns.answer(b"x" * 10, back=10)
        elif step == "other":
            other.answer()
    found: Histogram = loaded.latency.read(1)
    assert (found.count, found.errors) == (expected, 0)
