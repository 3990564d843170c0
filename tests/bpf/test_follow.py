"""What the kernel program leaves where request heads decide: nothing that the exact choice takes, and hardly more."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from agent.capture import kernel
from agent.capture.layout import RESUMED_FLAG
from agent.capture.ring import Ring
from agent.capture.segment import FIN, SYN, Segment
from agent.capture.tap import Tap, TapOrder, order_for
from agent.select.criteria import Criteria
from agent.select.exact import compile_criteria
from agent.select.language import write
from tests.agent.select import trees
from tests.agent.select.places import CLIENTS, geo_networks, locate
from tests.bpf.selections import arm, select, wanted

pytestmark = pytest.mark.root
RING_BYTES = 1 << 20
PASS = -1
_clients = itertools.count(1)


@pytest.fixture(scope="module")
def tap() -> Iterator[Tap]:
    order = order_for("lo", 1, RING_BYTES, "clsact")
    tap = Tap.load(TapOrder(order.sources, order.ifindex, False, 14, 1, RING_BYTES, "none"))
    tap.watch([80])
    arm(tap, 1)
    yield tap
    tap.close()


@pytest.fixture(scope="module")
def ring(tap: Tap) -> Ring:
    return Ring(tap.rings[0], RING_BYTES)


@dataclass
class Dialogue:
    """One connection, from an address that no other test has; what of it came out of the ring."""

    tap: Tap
    ring: Ring
    client: str = ""
    seq: int = 1000
    ack: int = 5000
    copied: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        number = next(_clients)
        self.client = self.client or f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self.port = 1024 + number % 60_000

    def open(self) -> Dialogue:
        self.send(b"", "S")
        self.answer(b"", "SA")
        return self

    def send(self, payload: bytes, flags: str = "PA") -> bool:
        """A segment of the client; whether it was copied."""
        took = self._run(0, payload, flags, self.seq, self.ack, to_server=True)
        self.seq += len(payload) + ("S" in flags or "F" in flags)
        return took

    def answer(self, payload: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", flags: str = "PA") -> bool:
        """A segment of the server."""
        took = self._run(1, payload, flags, self.ack, self.seq, to_server=False)
        self.ack += len(payload) + ("S" in flags or "F" in flags)
        return took

    def asks(self, *pieces: bytes) -> list[bool]:
        """A request in pieces, and its answer: which of them were copied."""
        return [*(self.send(piece) for piece in pieces), self.answer()]

    def _run(self, hook: int, payload: bytes, flags: str, seq: int, ack: int, *, to_server: bool) -> bool:
        ends = (self.client, "10.9.8.7") if ":" not in self.client else (self.client, "2001:db8::1")
        ports = (self.port, 80)
        if not to_server:
            ends, ports = ends[::-1], ports[::-1]
        ip: Packet = (IP if ":" not in self.client else IPv6)(src=ends[0], dst=ends[1])
        numbers = {"seq": seq & 0xFFFFFFFF, "ack": ack & 0xFFFFFFFF}
        tcp = TCP(sport=ports[0], dport=ports[1], flags=flags, **numbers)
        packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / tcp / Raw(payload)
        assert kernel.test_run(self.tap.programs[hook], bytes(packet))[0] == PASS
        came = self.ring.read()
        self.copied += came
        return bool(came)


@pytest.fixture
def dialogue(tap: Tap, ring: Ring) -> Dialogue:
    select(tap, wanted("header:X-Shadow-Test"))
    return Dialogue(tap, ring)


PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TEST = b"GET / HTTP/1.1\r\nHost: a\r\nX-Shadow-Test: 1\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n"


def test_an_unwanted_connection_stays_in_the_kernel(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.asks(PLAIN) + dialogue.asks(PLAIN) == [False] * 4
    assert not dialogue.send(b"", "FA") and not dialogue.answer(b"", "FA")
    assert dialogue.copied == []


def test_a_wanted_request_among_others_is_copied_with_its_answer(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.asks(PLAIN) == [False, False]
    assert dialogue.asks(TEST) == [True, True]
    assert dialogue.asks(PLAIN) == [False, False]
    assert dialogue.asks(TEST) == [True, True]
    assert [segment.payload for segment in dialogue.copied[::2]] == [TEST, TEST]
    assert all(segment.flags & RESUMED_FLAG for segment in dialogue.copied)


def test_what_follows_without_a_break_is_not_resumed(dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.asks(TEST)
    dialogue.asks(TEST)
    assert [bool(segment.flags & RESUMED_FLAG) for segment in dialogue.copied] == [True, True, False, False]


def test_the_end_of_a_followed_connection_is_told(dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.asks(TEST)
    dialogue.asks(PLAIN)
    assert dialogue.send(b"", "FA") and dialogue.answer(b"", "FA")
    assert [segment.flags & (FIN | RESUMED_FLAG) for segment in dialogue.copied[-2:]] == [FIN | RESUMED_FLAG] * 2


def test_ports_that_are_used_again_begin_anew(dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.asks(TEST)
    dialogue.seq += 1_000_000
    assert dialogue.send(b"", "S"), "user space knew the old connection"
    assert dialogue.copied[-1].flags & SYN
    dialogue.answer(b"", "SA")
    assert dialogue.asks(PLAIN) == [False, False]


def test_a_head_in_pieces_is_copied_and_the_next_is_decided_again(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.asks(PLAIN[:7], PLAIN[7:]) == [True, True, True]
    assert dialogue.asks(PLAIN) == [False, False]
    assert dialogue.asks(TEST[:40], TEST[40:]) == [True, True, True]


def test_bodies_belong_to_their_requests(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.asks(BODY + b"0123456789") == [False, False]
    assert dialogue.asks(BODY + b"01234", b"56789") == [False, False, False]
    assert dialogue.asks(BODY[:-2] + b"X-Shadow-Test: 1\r\n\r\n01234", b"56789") == [True, True, True]
    assert dialogue.asks(PLAIN) == [False, False]
    evil = b"POST / HTTP/1.1\r\nContent-Length: 27\r\n\r\n"
    assert dialogue.asks(evil, PLAIN, TEST) == [False, False, True, True], "a body that looks like a request is none"


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        PLAIN + PLAIN,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 3000 + b"\r\n\r\n",
    ],
)
def test_what_cannot_be_followed_is_copied_to_the_end(dialogue: Dialogue, request_head: bytes) -> None:
    dialogue.open()
    assert dialogue.asks(request_head) == [True, True]
    assert dialogue.asks(b"whatever") == [True, True]
    assert dialogue.asks(PLAIN) == [True, True]


def test_pipelining_and_holes_are_copied_to_the_end(dialogue: Dialogue) -> None:
    dialogue.open()
    assert [dialogue.send(PLAIN), dialogue.send(PLAIN), dialogue.answer()] == [False, True, True]
    other = Dialogue(dialogue.tap, dialogue.ring).open()
    other.seq += 100
    assert other.asks(PLAIN) == [True, True]


def test_an_unwanted_request_does_not_cut_the_answer_before_it(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.send(TEST) and dialogue.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    acknowledged, dialogue.ack = dialogue.ack, dialogue.ack - 1
    assert dialogue.send(PLAIN), "the client has not had all of the answer yet"
    dialogue.ack = acknowledged
    assert dialogue.answer(b"123456789") and dialogue.answer()


def test_an_unwanted_end_comes_without_its_payload(dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.asks(TEST)
    dialogue.send(PLAIN)
    assert dialogue.answer(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "FPA")
    last = dialogue.copied[-1]
    assert (last.payload, last.length, last.seq) == (b"", 0, dialogue.ack - 1)


def test_a_lost_segment_is_not_resumed_in_its_middle(tap: Tap, ring: Ring, dialogue: Dialogue) -> None:
    dialogue.open()
    arm(tap, 1, budget_bytes=1)
    assert dialogue.asks(TEST) == [False, False]
    arm(tap, 1)
    assert dialogue.asks(TEST) == [True, True]
    assert not any(segment.flags & RESUMED_FLAG for segment in dialogue.copied)


def test_a_folded_header_counts_as_wanted(dialogue: Dialogue) -> None:
    assert dialogue.open().asks(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n") == [True, True]


def test_joining_in_the_middle_begins_with_a_request(dialogue: Dialogue) -> None:
    assert dialogue.asks(b"the rest of a body\r\n") == [True, True]
    assert dialogue.asks(PLAIN) == [False, False]
    assert dialogue.asks(TEST) == [True, True]
    other = Dialogue(dialogue.tap, dialogue.ring)
    assert other.asks(PLAIN) + other.asks(TEST) == [False, False, True, True]


def test_copies_of_what_was_sent_follow_what_was_decided(dialogue: Dialogue) -> None:
    dialogue.open()
    for request, copied in ((PLAIN, False), (TEST, True)):
        dialogue.send(request)
        dialogue.seq -= len(request)
        assert dialogue.send(request) == copied
        dialogue.answer()


def test_a_change_of_tables_in_the_middle_of_a_head(tap: Tap, ring: Ring, dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.send(PLAIN[:7])
    select(tap, wanted("header:Other"))
    assert dialogue.asks(PLAIN[7:]) == [True, True]
    other = Dialogue(tap, ring).open()
    assert other.asks(TEST) == [False, False]
    select(tap, wanted("header:X-Shadow-Test"))
    assert other.asks(TEST) == [True, True]


def test_turned_off_by_one_store(tap: Tap, dialogue: Dialogue) -> None:
    dialogue.open()
    dialogue.asks(TEST)
    before = tap.counters().unsampled
    tap.tables.enabled = 0
    assert dialogue.asks(TEST) == [False, False]
    assert tap.counters().unsampled == before + 2


@pytest.mark.parametrize("rule", ["random", "cidr:192.0.2.0/24", ""])
def test_ports_that_were_used_again_out_of_sight(tap: Tap, dialogue: Dialogue, rule: str) -> None:
    """Meanwhile other tables decided, or nothing was on: what is known of the flow is of another connection."""
    dialogue.open()
    assert dialogue.asks(PLAIN) == [False, False]
    if rule:
        select(tap, wanted(rule))
    else:
        tap.tables.enabled = 0
    dialogue.seq -= 1_000_000
    dialogue.asks(PLAIN)
    select(tap, wanted("header:X-Shadow-Test"))
    assert dialogue.asks(TEST) + dialogue.asks(TEST) == [True] * 4
    assert dialogue.asks(PLAIN) == [False, False]


def test_a_stray_syn_hides_nothing(dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.asks(PLAIN) == [False, False]
    dialogue.seq += 50_000
    dialogue.send(b"", "S")
    dialogue.seq -= 50_001
    assert dialogue.asks(TEST) + dialogue.asks(TEST) == [True] * 4


def test_answers_on_their_way_outlive_a_change_to_tests_on_heads(tap: Tap, ring: Ring) -> None:
    select(tap, wanted())
    dialogue = Dialogue(tap, ring).open()
    assert dialogue.send(TEST)
    select(tap, wanted("header:X-Shadow-Test"))
    assert dialogue.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n") and dialogue.answer(b"12")
    assert dialogue.asks(PLAIN) == [False, False]


def test_state_that_others_pushed_out_costs_no_answer(tap: Tap, ring: Ring, dialogue: Dialogue) -> None:
    dialogue.open()
    assert dialogue.send(TEST) and dialogue.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
    syn = bytearray(
        bytes(
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src="11.0.0.0", dst="10.9.8.7")
            / TCP(sport=5, dport=80, flags="S")
        )
    )
    for number in range(1 << 17):
        syn[26:30] = (0x0B000000 + number).to_bytes(4, "big")
        kernel.test_run(tap.programs[0], bytes(syn))
    assert dialogue.answer(b"2")
    ring.read()


def test_addresses_decide_without_a_head(tap: Tap, ring: Ring) -> None:
    select(tap, wanted("cidr:192.0.2.0/24 or cidr:2001:db8:1::/48"))
    for client in ("192.0.2.7", "2001:db8:1::5"):
        assert Dialogue(tap, ring, client).asks(PLAIN) == [True, True]
    for client in ("192.0.3.7", "2001:db8:2::5"):
        assert Dialogue(tap, ring, client).asks(PLAIN) == [False, False]


def test_address_and_head_together(tap: Tap, ring: Ring) -> None:
    before = tap.counters().unmatched
    select(tap, wanted("not cidr:192.0.2.0/24 and (method:GET or path:/api/*)"))
    assert Dialogue(tap, ring, "192.0.2.8").open().asks(PLAIN) == [False, False]
    assert Dialogue(tap, ring, "192.0.3.8").open().asks(PLAIN) == [True, True]
    assert Dialogue(tap, ring, "192.0.3.9").open().asks(b"PUT / HTTP/1.1\r\n\r\n") == [False, False]
    assert Dialogue(tap, ring, "192.0.3.9").open().asks(b"PUT /api/ HTTP/1.1\r\n\r\n") == [True, True]
    assert tap.counters().unmatched > before


def test_several_shadows_share_what_is_copied(tap: Tap, ring: Ring) -> None:
    half = 500_000
    select(tap, wanted("header:A", half), wanted("header:B", half, start=half))
    a, b = (b"GET / HTTP/1.1\r\n%s: 1\r\n\r\n" % name for name in (b"A", b"B"))
    took = [(Dialogue(tap, ring).open().asks(a)[0], Dialogue(tap, ring).open().asks(b)[0]) for _ in range(60)]
    assert 10 < sum(first for first, _ in took) < 50 and 10 < sum(second for _, second in took) < 50


def pieces(data: bytes, cuts: Sequence[float]) -> list[bytes]:
    """The data cut at some places."""
    at = sorted({0, len(data), *(round(cut * len(data)) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@settings(max_examples=400, deadline=None)
@given(st.lists(trees.cases(), min_size=1, max_size=3), st.lists(st.floats(0, 1), max_size=3), st.data())
def test_whatever_the_exact_choice_takes_the_kernel_copies(
    tap: Tap, ring: Ring, cases: list[tuple[Criteria, trees.Request]], cuts: list[float], data: st.DataObject
) -> None:
    """Random criteria, and random requests one after the other on one connection, cut anywhere."""
    criteria = cases[0][0]
    select(tap, wanted(write(criteria)), geo=geo_networks)
    decide = compile_criteria(criteria, locate)
    dialogue = Dialogue(tap, ring, data.draw(st.sampled_from(CLIENTS))).open()
    for _, request in cases:
        whole = request.head + request.body
        copied = dialogue.asks(*pieces(whole, cuts if data.draw(st.booleans()) else []))
        if decide(request, ipaddress.ip_address(dialogue.client)):
            assert all(copied), (write(criteria), whole, copied)
