"""When the agent's own requests left: the program at egress, on made packets, read as a worker reads it."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from agent.capture import kernel
from agent.capture.layout import SENT_SLOTS
from agent.capture.segment import KEY_V4_BYTES
from agent.capture.sent import SentTimes
from agent.capture.tap import Tap, TapOrder, order_for
from agent.select.sampling import flow_hash
from tests.bpf.selections import arm

pytestmark = pytest.mark.root
PASS = -1
MARK = 0x5AD0
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_ports = itertools.count(20_000)


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Tap, SentTimes]]:
    order = order_for("lo", 1, 1 << 16, "clsact")
    tap = Tap.load(TapOrder(order.sources, order.ifindex, False, 14, 1, 1 << 16, "none"))
    times = SentTimes(tap.sent_slots)
    yield tap, times
    times.close()
    tap.close()


@dataclass
class Sender:
    """One connection of ours, from the side that sends requests."""

    tap: Tap
    times: SentTimes
    source: str = "10.1.1.1"
    target: str = "10.2.2.2"
    port: int = 0
    seq: int = 1000
    ack: int = 5000
    mark: int = MARK
    tag: bool = False

    def __post_init__(self) -> None:
        self.port = self.port or next(_ports)
        ip = self._ip()
        ends = bytes(ip)[12:20] if isinstance(ip, IP) else bytes(ip)[8:40]
        self.key = ends + struct.pack("!HH", self.port, 8080)

    def open(self) -> Sender:
        self.send(b"", "S")
        self.seq += 1
        self.send(b"", "A")
        return self

    def send(self, payload: bytes = GET, flags: str = "PA", back: int = 0) -> None:
        """A segment with new payload, or such that begins `back` bytes earlier."""
        numbers = {"seq": self.seq - back & 0xFFFFFFFF, "ack": 0 if flags == "S" else self.ack & 0xFFFFFFFF}
        self.pass_on(TCP(sport=self.port, dport=8080, flags=flags, **numbers) / Raw(payload))
        self.seq += max(0, len(payload) - back)

    def pass_on(self, transport: Packet) -> None:
        link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        packet = (link / Dot1Q(vlan=5) if self.tag else link) / self._ip() / transport
        assert kernel.test_run(self.tap.sent_program, bytes(packet), mark=self.mark)[0] == PASS

    def left_ns(self, since_ns: int) -> int:
        return self.times.sent_ns(self.key, since_ns)

    def _ip(self) -> Packet:
        return (IPv6 if ":" in self.source else IP)(src=self.source, dst=self.target)


@pytest.fixture
def sender(loaded: tuple[Tap, SentTimes]) -> Sender:
    arm(loaded[0], 1, own_mark=MARK)
    return Sender(*loaded).open()


def now_ns() -> int:
    """The present, and a moment in which nothing happens before and after it: no two times are within the slack."""
    time.sleep(0.0001)
    now = time.time_ns()
    time.sleep(0.0001)
    return now


def test_a_request_has_the_time_of_its_first_segment(sender: Sender) -> None:
    before = now_ns()
    sender.send()
    after = now_ns()
    sender.send(b"more")
    assert before < sender.left_ns(before) < after
    assert after < sender.left_ns(after) < now_ns()
    assert sender.left_ns(now_ns()) == 0


def test_what_begins_after_an_answer_is_the_next_request(sender: Sender) -> None:
    sender.send()
    sender.ack += 100
    before = now_ns()
    sender.send()
    after = now_ns()
    sender.send(b"last")
    assert before < sender.left_ns(0) < after


@pytest.mark.parametrize("back", [len(GET), len(GET) - 1])
def test_what_is_sent_again_changes_nothing(sender: Sender, back: int) -> None:
    sender.send()
    left = sender.left_ns(0)
    sender.ack += 100
    sender.send(GET[:back], back=back)
    assert sender.left_ns(0) == left
    assert sender.left_ns(now_ns()) == 0


def test_sequence_numbers_go_around(sender: Sender) -> None:
    sender.seq = sender.ack = (1 << 32) - 40
    sender.open()
    for _ in range(4):
        before = now_ns()
        sender.send()
        sender.ack += 30
        assert before < sender.left_ns(0) < now_ns()


def test_acknowledgements_and_goodbyes_are_no_requests(sender: Sender) -> None:
    sender.ack += 100
    for flags in ("A", "FA", "R"):
        sender.send(b"", flags)
    assert sender.left_ns(0) == 0


def test_both_families_and_tags(sender: Sender) -> None:
    for more in ({"source": "2001:db8::1", "target": "2001:db8::2"}, {"tag": True}):
        other = Sender(sender.tap, sender.times, **more).open()  # type: ignore[arg-type]
        before = now_ns()
        other.send()
        assert before < other.left_ns(before) < now_ns()


@pytest.mark.parametrize(("mark", "own_mark"), [(0, MARK), (MARK + 1, MARK), (0, 0), (MARK, 0)])
def test_what_is_not_ours_is_not_noted(loaded: tuple[Tap, SentTimes], mark: int, own_mark: int) -> None:
    arm(loaded[0], 1, own_mark=own_mark)
    sender = Sender(*loaded, mark=mark).open()
    sender.send()
    assert sender.left_ns(0) == 0


def test_nothing_is_noted_without_a_lease(sender: Sender) -> None:
    sender.tap.stop()
    sender.send()
    assert sender.left_ns(0) == 0


def test_a_connection_whose_beginning_was_not_seen_has_no_times(sender: Sender) -> None:
    late = Sender(sender.tap, sender.times)
    late.send()
    assert late.left_ns(0) == 0


def test_the_upstreams_half_is_not_ours(sender: Sender) -> None:
    """Its sockets may carry the mark, too (net.ipv4.tcp_fwmark_accept)."""
    sender.send()
    left = sender.left_ns(0)
    for flags, payload in (("SA", b""), ("PA", b"HTTP/1.1 200 OK\r\n\r\n")):
        ends = {"sport": 8080, "dport": sender.port}
        back = Sender(sender.tap, sender.times, sender.target, sender.source)
        back.pass_on(TCP(flags=flags, seq=1, ack=1, **ends) / Raw(payload))
    assert sender.left_ns(0) == left


def test_a_slot_is_the_newest_connections(sender: Sender) -> None:
    def slot(key: bytes) -> int:
        return flow_hash(key, 0) % SENT_SLOTS

    sender.send()
    rivals = (f"10.3.{n >> 8}.{n & 255}" for n in range(1 << 16))
    port = struct.pack("!HH", sender.port, 8080)
    rival = next(r for r in rivals if slot(bytes(map(int, r.split("."))) + sender.key[4:8] + port) == slot(sender.key))
    newer = Sender(sender.tap, sender.times, rival, port=sender.port)
    newer.send()
    assert sender.left_ns(0), "without a SYN the slot is not taken"
    newer.open().send()
    before = now_ns()
    sender.send()
    assert sender.left_ns(0) == 0, "none is better than a wrong one"
    assert 0 < newer.left_ns(0) < before


def test_the_same_ports_again(sender: Sender) -> None:
    sender.send()
    sender.seq, sender.ack = 7, 9
    sender.open()
    assert sender.left_ns(0) == 0
    before = now_ns()
    sender.send()
    assert sender.left_ns(0) > before


def test_other_packets_are_let_on(sender: Sender) -> None:
    sender.pass_on(UDP(sport=1, dport=2) / Raw(b"x"))
    sender.pass_on(TCP(sport=sender.port, dport=8080, flags="PA", dataofs=4) / Raw(GET))
    sender.pass_on(TCP(sport=sender.port, dport=8080, flags="PA", dataofs=15))
    assert (sender.left_ns(0), len(sender.key)) == (0, KEY_V4_BYTES)
