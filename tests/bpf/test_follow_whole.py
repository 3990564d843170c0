"""The kernel's filter and the stages behind it together: whatever clients do and however criteria change meanwhile,
each request that the criteria in force want comes up whole, and with its own answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.ring import Ring
from agent.capture.tap import Tap
from agent.http.pairing import Pairing
from agent.stream.flows import Flows
from replay.exchange import Exchange
from tests.bpf import test_follow
from tests.bpf.selections import arm, select, wanted
from tests.bpf.test_follow import Dialogue

pytestmark = pytest.mark.root
tap, ring = test_follow.tap, test_follow.ring
RULES = ("header:X-Shadow-Test", "path:/w*", "random", "cidr:192.0.2.0/24", "header:X-Other or path:/w*")


@dataclass
class Story:
    """One client's connection, and what becomes of it. Its changes leave it in the state that they name."""

    tap: Tap
    dialogue: Dialogue
    rule: str = RULES[0]
    on: bool = True
    asked: int = 0
    settled: bool = False  # a whole exchange was on this connection
    due: set[str] = field(default_factory=set)  # targets that must come up
    plain: set[str] = field(default_factory=set)  # of them, those whose answer must come up, too

    def ask(self, want: bool, split: bool, *, plain: bool = True) -> bytes:
        """A request, whole or in two pieces; its answer."""
        self.asked += 1
        target = f"/{'w' if want else 'u'}{self.asked}"
        head = f"GET {target} HTTP/1.1\r\nHost: a\r\n{'X-Shadow-Test: 1' if want else 'X: 1'}\r\n\r\n".encode()
        if self.on and (self.rule == "random" or (want and not self.rule.startswith("cidr"))):
            self.due.add(target)
            if plain:
                self.plain.add(target)
        for piece in (head[:9], head[9:]) if split else (head,):
            self.dialogue.send(piece)
        body = f"answer to {target}".encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def exchange(self, want: bool, split: bool) -> None:
        """A request, and its answer in two pieces."""
        answer = self.ask(want, split)
        self.dialogue.answer(answer[:20])
        self.dialogue.answer(answer[20:])
        self.settled = True

    def pipelined(self, first: bool, second: bool) -> None:
        """Two requests, then both answers. (Where a connection is joined in the middle of that, pairing can guess.)"""
        if not self.settled:
            return
        answers = [self.ask(first, False), self.ask(second, False)]
        for answer in answers:
            self.dialogue.answer(answer)

    def change(self, rule: str) -> None:
        """Other criteria."""
        self.rule, self.settled = rule, False
        self._set()

    def turn(self, on: bool) -> None:
        """Off or on."""
        self.on, self.settled = on, False
        self.tap.tables.enabled = int(on)

    def reopen(self, closed: bool, back: int) -> None:
        """The same ports again, from another sequence number; perhaps nobody saw the end of the old connection."""
        if closed:
            self.dialogue.send(b"", "FA")
            self.dialogue.answer(b"", "FA")
        self.dialogue.seq += 500_000 - back
        self.dialogue.ack += 777_777
        self.settled = False
        self.dialogue.open()

    def _set(self) -> None:
        select(self.tap, wanted(self.rule))
        self.tap.tables.enabled = int(self.on)


steps = st.one_of(
    st.tuples(st.just("exchange"), st.booleans(), st.booleans()),
    st.tuples(st.just("exchange"), st.booleans(), st.just(False)),
    st.tuples(st.just("pipelined"), st.booleans(), st.booleans()),
    st.tuples(st.just("change"), st.sampled_from(RULES)),
    st.tuples(st.just("turn"), st.booleans()),
    st.tuples(st.just("reopen"), st.booleans(), st.sampled_from((0, 1 << 28))),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, min_size=1, max_size=12))
def test_every_wanted_request_comes_up_with_its_own_answer(
    tap: Tap, ring: Ring, script: list[tuple[object, ...]]
) -> None:
    story = Story(tap, Dialogue(tap, ring))
    story.change(RULES[0])
    story.dialogue.open()
    for name, *arguments in script:
        getattr(story, str(name))(*arguments)
    found = exchanges(story.dialogue)
    for target in story.due:
        assert target in found, f"{target} was lost: {sorted(found)}"
    for target, exchange in found.items():
        response = exchange.response
        if response is not None and response.complete and target in story.due:
            assert response.body == f"answer to {target}".encode()
    for target in story.due & story.plain:
        assert found[target].response is not None, target


def exchanges(dialogue: Dialogue) -> dict[str, Exchange]:
    """What the stages make of the segments that were copied, by target."""
    flows, pairing = Flows(server_ports=frozenset({80})), Pairing()
    ready, finished = pairing.feed(flows.feed(dialogue.copied))
    late_ready, late_finished = pairing.feed(flows.finish())
    whole = {id(exchange) for exchange in (*ready, *late_ready)}
    some = [exchange for exchange in (*finished, *late_finished) if id(exchange) in whole]
    return {exchange.request.target: exchange for exchange in some if exchange.request is not None}


def test_a_lapse_of_the_lease_is_a_time_out_of_sight(tap: Tap, ring: Ring) -> None:
    story = Story(tap, Dialogue(tap, ring))
    story.change(RULES[0])
    story.dialogue.open()
    story.exchange(False, False)
    arm(tap, 1, lease_ns=0)
    story.reopen(False, 1_000_000)
    arm(tap, 1)
    tap.tables.missed()
    story.exchange(True, False)
    assert "/w2" in exchanges(story.dialogue)
