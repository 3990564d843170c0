"""Reassembly case by case: what TCP does, and what captures do to it."""

from __future__ import annotations

import pytest

from agent.capture.segment import ACK, FIN, RST, SYN, Segment
from agent.stream.events import Chunk, End, Gap
from agent.stream.flows import Flows
from agent.stream.limits import SECOND_NS, FlowLimits
from tests.agent.stream.conversation import CLIENT_KEY, MS, SERVER_KEY, Tcp, check_order, of, text


@pytest.fixture
def flows() -> Flows:
    return Flows()


def run(flows: Flows, *segments: Segment) -> list[Chunk | Gap | End]:
    """Feed the segments one by one, as a live source does."""
    out = [event for segment in segments for event in flows.feed([segment])]
    check_order(out)
    return out


def test_in_order_both_directions_and_close(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 0, b"ask", 2, ack=0),
        tcp.make(1, 0, b"answer", 3, ack=3),
        tcp.make(0, 3, b"more", 4, ack=6),
        tcp.fin(0, 7, 5, ack=6),
        tcp.fin(1, 6, 6, ack=8),
    )
    assert text(events, CLIENT_KEY) == [b"askmore", "fin"]
    assert text(events, SERVER_KEY) == [b"answer", "fin"]
    assert [e.t_ns for e in events if isinstance(e, Chunk)] == [2, 3, 4]
    assert flows.open_flows == 0 and flows.finish() == []


def test_one_batch_equals_one_by_one(flows: Flows) -> None:
    tcp = Tcp()
    segments = [*tcp.handshake(), *(tcp.make(0, 3 * i, b"abc", i + 2, ack=0) for i in range(5)), tcp.fin(0, 15)]
    assert text(flows.feed(segments), CLIENT_KEY) == text(run(Flows(), *segments), CLIENT_KEY) == [b"abc" * 5, "fin"]


def test_who_is_the_client() -> None:
    tcp = Tcp()
    syn, syn_ack = tcp.handshake()
    data = tcp.make(0, 0, b"x", ack=0)
    for segments in ([syn, data], [syn_ack, data]):
        events = [e for e in Flows().feed(segments)]
        assert events[0].half.flow.client is not None and events[0].half.flow.client.key == CLIENT_KEY
    (*_, midstream) = [*Flows().feed([data]), *Flows(server_ports=frozenset({80})).feed([data]), data]
    flows = Flows(server_ports=frozenset({80}))
    flows.feed([tcp.make(1, 0, b"x", ack=0), midstream])
    assert all(e.half.flow.client.key == CLIENT_KEY for e in flows.finish())
    unknown = Flows()
    unknown.feed([data])
    assert all(e.half.flow.client is None for e in unknown.finish())


def test_out_of_order_keeps_the_time_of_each_byte(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 20, ack=0), tcp.make(0, 0, b"abc", 30, ack=0))
    chunks = [e for e in events if isinstance(e, Chunk)]
    assert [(c.offset, c.t_ns, c.data) for c in chunks] == [(0, 30, b"abc"), (3, 20, b"def")]
    assert flows.buffered_bytes == 0 and flows.counters.out_of_order == 1


def test_first_copy_of_a_byte_wins(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 2, b"CD", 2, ack=0),
        tcp.make(0, 6, b"GH", 3, ack=0),
        tcp.make(0, 1, b"bcdefghi", 4, ack=0),
        tcp.make(0, 0, b"az", 5, ack=0),
    )
    assert text(events, CLIENT_KEY) == [b"abCDefGHi"]
    assert [e.t_ns for e in events if isinstance(e, Chunk)] == [5, 4, 2, 4, 3, 4]


def test_retransmission_and_keep_alive_probe_bring_nothing(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 0, b"abc", 2, ack=0),
        tcp.make(0, 0, b"abc", 3, ack=0),
        tcp.make(0, 2, b"\0", 4, ack=0),  # keep-alive with one byte of garbage
        tcp.make(0, 2, b"", 5, ack=0),  # and without
        tcp.make(0, 3, b"d", 6, ack=0),
    )
    assert text(events, CLIENT_KEY) == [b"abcd"]
    assert flows.counters.retransmitted == 2


def test_sequence_numbers_wrap(flows: Flows) -> None:
    tcp = Tcp(client_isn=0xFFFFFFFD, server_isn=0xFFFFFFFF)
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 0, b"abcd", 2, ack=0),
        tcp.make(0, 6, b"gh", 3, ack=0),
        tcp.make(0, 4, b"ef", 4, ack=0),
        tcp.make(1, 0, b"xyz", 5, ack=8),
    )
    assert text(events, CLIENT_KEY) == [b"abcdefgh"] and text(events, SERVER_KEY) == [b"xyz"]


def test_hole_that_is_not_acknowledged_waits(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 2, ack=0))
    for index in range(100):
        events += run(flows, tcp.make(1, index, b"x", 10 + index, ack=0))
    assert text(events, CLIENT_KEY) == [] and text(events, SERVER_KEY) == [b"x" * 100]
    assert text(flows.finish(), CLIENT_KEY) == [3, b"def", "finish"]


def test_hole_that_is_acknowledged_is_a_gap_after_the_slack(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 2, ack=0), tcp.make(1, 0, b"x", 3, ack=6))
    assert text(events, CLIENT_KEY) == []
    assert flows.expire(2 + 199 * MS) == []
    events = flows.expire(2 + 200 * MS)
    assert [type(e) for e in events] == [Gap, Chunk, Chunk]  # the response stays behind what it answers
    assert text(events, CLIENT_KEY) == [3, b"def"] and text(events, SERVER_KEY) == [b"x"]


def test_slack_also_ends_with_segments(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 2, ack=0))
    events = run(flows, *(tcp.make(1, index, b"x", 3, ack=6) for index in range(20)))
    assert text(events, CLIENT_KEY) == [3, b"def"] and text(events, SERVER_KEY) == [b"x" * 20]


def test_disorder_within_the_slack_loses_nothing(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(1, 0, b"answer", 4, ack=3),  # captured before what it answers
        tcp.make(0, 0, b"ask", 3, ack=0),
    )
    assert [e.half.key for e in events] == [CLIENT_KEY, SERVER_KEY]


def test_response_to_a_lost_request_comes_after_the_slack(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(1, 0, b"answer", 3, ack=3))
    assert events == []
    events = flows.expire(3 + 200 * MS)
    assert [(type(e), e.half.key) for e in events] == [(Gap, CLIENT_KEY), (Chunk, SERVER_KEY)]  # in its place a gap
    assert text(events, CLIENT_KEY) == [3] and text(events, SERVER_KEY) == [b"answer"]
    events = run(flows, tcp.make(0, 3, b"ask2", 300 * MS, ack=6), tcp.make(1, 6, b"answer2", 301 * MS, ack=7))
    assert text(events, CLIENT_KEY) == [b"ask2"] and text(events, SERVER_KEY) == [b"answer2"]
    assert run(flows, tcp.make(0, 0, b"ask", 302 * MS, ack=0)) == []  # too late


def test_one_missing_byte_that_was_acknowledged_may_be_a_fin(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 0, b"ask", 2, ack=0), tcp.make(1, 0, b"answer", 3, ack=4))
    assert [type(e) for e in flows.expire(SECOND_NS)] == [Chunk]
    assert text(run(flows, tcp.fin(0, 3, 2 * SECOND_NS, ack=6)), CLIENT_KEY) == ["fin"]


def test_an_acknowledgement_out_of_every_window_makes_no_gap(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 0, b"ask", 2, ack=0), tcp.make(1, 0, b"answer", 3, ack=(1 << 30) + 4))
    assert [type(e) for e in flows.expire(SECOND_NS)] == [Chunk]
    assert text(run(flows, tcp.make(0, 3, b"more", 4, ack=6)), CLIENT_KEY) == [b"more"]


def test_losses_in_both_directions_at_once_resolve(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 5, b"ask2", 2, ack=7),  # request and response 1 were lost
        tcp.make(1, 7, b"answer2", 3, ack=9),
    )
    assert events == []
    events = flows.expire(SECOND_NS)
    assert [(type(e), e.half.key) for e in events] == [
        (Gap, CLIENT_KEY), (Gap, SERVER_KEY), (Chunk, CLIENT_KEY), (Chunk, SERVER_KEY),
    ]  # fmt: skip


def test_hole_is_given_up_after_hole_ns(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 2, ack=0))
    assert flows.expire(30 * SECOND_NS) == []
    assert text(flows.expire(31 * SECOND_NS), CLIENT_KEY) == [3, b"def"]
    assert flows.counters.hole_timeout == 1


def test_buffer_limit_of_a_half() -> None:
    flows = Flows(FlowLimits(half_buffer_bytes=10_000))
    tcp = Tcp()
    events = run(flows, *tcp.handshake())
    for index in range(20):
        events += run(flows, tcp.make(0, 1 + index * 1000, b"x" * 1000, 2, ack=0))
        assert flows.buffered_bytes <= 10_000 + 1256
    assert text(events, CLIENT_KEY)[0] == 1 and flows.counters.half_buffer_full == 1


def test_buffer_limit_of_all_flows() -> None:
    flows = Flows(FlowLimits(total_buffer_bytes=10_000))
    for port in range(50):
        tcp = Tcp(key=CLIENT_KEY[:8] + (port + 1).to_bytes(2, "big") + CLIENT_KEY[10:])
        run(flows, *tcp.handshake(), tcp.make(0, 1, b"x" * 1000, 2, ack=0))
        assert flows.buffered_bytes <= 10_000
    assert flows.counters.total_buffer_full > 0


def test_tiny_segments_count_with_their_overhead() -> None:
    flows = Flows(FlowLimits(half_buffer_bytes=10_000))
    tcp = Tcp()
    run(flows, *tcp.handshake())
    for index in range(200):
        run(flows, tcp.make(0, 2 * index + 1, b"x", 2, ack=0))
    assert flows.counters.half_buffer_full >= 1


def test_cut_segment_is_a_chunk_and_a_gap(flows: Flows) -> None:
    tcp = Tcp()
    events = run(
        flows,
        *tcp.handshake(),
        tcp.make(0, 0, b"abc", 2, ack=0, length=10),
        tcp.make(0, 10, b"def", 3, ack=0, length=5),
        tcp.make(0, 15, b"", 4, ack=0, length=5),
        tcp.make(0, 20, b"g", 5, ack=0),
    )
    assert text(events, CLIENT_KEY) == [b"abc", 7, b"def", 2, 5, b"g"]
    assert flows.counters.cut_bytes == 14 and flows.counters.gap_bytes == 14


def test_data_in_the_syn(flows: Flows) -> None:
    tcp = Tcp()
    syn, syn_ack = tcp.handshake()
    first = syn._replace(payload=b"hello", length=5)
    events = run(flows, first, syn_ack._replace(ack=syn.seq + 6), first, tcp.make(0, 5, b" you", 3, ack=0))
    assert text([*events, *flows.finish()], CLIENT_KEY) == [b"hello you", "finish"]


def test_join_in_the_middle_begins_with_the_earliest_byte(flows: Flows) -> None:
    tcp = Tcp()
    assert run(flows, tcp.make(0, 503, b"def", 2, ack=70), tcp.make(0, 500, b"abc", 3, ack=70)) == []
    events = flows.expire(200 * MS + 2)
    assert text(events, CLIENT_KEY) == [b"abcdef"] and not events[0].half.from_start
    assert text(run(flows, tcp.make(0, 506, b"g", 4, ack=70)), CLIENT_KEY) == [b"g"]


def test_join_in_the_middle_keeps_requests_before_responses(flows: Flows) -> None:
    tcp = Tcp()
    turns = [(0, 500, b"ask", 70), (1, 70, b"answer", 503), (0, 503, b"ask2", 76), (1, 76, b"answer2", 507)]
    events = run(flows, *(tcp.make(side, at, data, 2, ack=ack) for side, at, data, ack in turns))
    events += flows.finish()
    assert [e.data for e in events if isinstance(e, Chunk)] == [b"ask", b"answer", b"ask2", b"answer2"]


def test_join_on_the_syn_ack(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, tcp.handshake()[1], tcp.make(0, 0, b"ask", 2, ack=0))
    assert text(events, CLIENT_KEY) == [b"ask"] and events[0].half.from_start


def test_late_syn_is_disorder_and_not_a_new_connection(flows: Flows) -> None:
    tcp = Tcp()
    syn, syn_ack = tcp.handshake()
    events = run(flows, tcp.make(0, 0, b"ask", 2, ack=0), syn_ack, syn, tcp.make(0, 3, b"!", 3, ack=0))
    assert text([*events, *flows.finish()], CLIENT_KEY) == [b"ask!", "finish"]
    assert flows.counters.flows == 1


def test_syn_repeated(flows: Flows) -> None:
    tcp = Tcp()
    syn, syn_ack = tcp.handshake()
    events = run(flows, syn, syn, syn_ack, syn_ack, tcp.make(0, 0, b"ask", 2, ack=0))
    assert text(events, CLIENT_KEY) == [b"ask"]
    assert (flows.counters.flows, flows.counters.syn_repeated) == (1, 2)


@pytest.mark.parametrize("closed", [True, False])
def test_port_reuse_begins_a_new_flow(flows: Flows, closed: bool) -> None:
    old, new = Tcp(), Tcp(client_isn=5_000_000, server_isn=7_000_000)
    events = run(flows, *old.handshake(), old.make(0, 0, b"old", 2, ack=0))
    if closed:
        events += run(flows, old.fin(0, 3), old.fin(1, 0, ack=4))
    events += run(flows, *new.handshake(), new.make(0, 0, b"new", 3, ack=0))
    assert text(events, CLIENT_KEY) == [b"old", "fin" if closed else "reused", b"new"]
    assert len({e.half.flow.number for e in events}) == 2
    assert flows.counters.reused == (not closed)


def test_reset_ends_both_halves_and_flushes(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(1, 5, b"late", 2, ack=0))
    events = run(flows, tcp.rst(0, 0, 3), tcp.make(1, 9, b"too late", 4, ack=0))
    assert text(events, SERVER_KEY) == [5, b"late", "rst"] and text(events, CLIENT_KEY) == ["rst"]
    assert flows.counters.after_end == 1


def test_a_reset_behind_missing_bytes_shows_the_gap_and_who_sent_it(flows: Flows) -> None:
    for side in (0, 1):
        tcp = Tcp(key=CLIENT_KEY[:8] + (side + 1).to_bytes(2, "big") + CLIENT_KEY[10:])
        run(flows, *tcp.handshake(), tcp.make(side, 0, b"abc", 2, ack=0))
        events = run(flows, tcp.rst(side, 8, 3))
        assert text(events, tcp.keys[side]) == [5, "rst"] and text(events, tcp.keys[1 - side]) == ["rst"]
        assert {e.half.key: e.by_peer for e in events if isinstance(e, End)} == {
            tcp.keys[side]: False, tcp.keys[1 - side]: True,
        }  # fmt: skip


def test_blind_reset_is_ignored(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 0, b"abc", 2, ack=0))
    assert run(flows, tcp.rst(0, 1 << 28), tcp.rst(0, -(1 << 28))) == []
    assert flows.counters.reset_ignored == 2
    assert text(run(flows, tcp.make(0, 3, b"d", 3, ack=0)), CLIENT_KEY) == [b"d"]


def test_fin_with_a_hole_pending(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(0, 0, b"a", 2, ack=0), tcp.fin(0, 4, 3))
    assert text(events, CLIENT_KEY) == [b"a"]
    events = run(flows, tcp.make(0, 1, b"bcd", 4, ack=0))
    assert text(events, CLIENT_KEY) == [b"bcd", "fin"]


def test_fin_carries_data_and_comes_again(flows: Flows) -> None:
    tcp = Tcp()
    fin = tcp.make(0, 0, b"bye", 2, ack=0, flags=FIN)
    events = run(flows, *tcp.handshake(), fin, fin, tcp.make(1, 0, b"answer", 3, ack=4))
    assert text(events, CLIENT_KEY) == [b"bye", "fin"] and text(events, SERVER_KEY) == [b"answer"]


def test_stragglers_of_a_closed_flow_open_no_other(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 0, b"a", 2, ack=0), tcp.fin(0, 1), tcp.fin(1, 0, ack=2))
    assert run(flows, tcp.make(0, 0, b"a", 3, ack=0), tcp.fin(1, 0, ack=2)) == []
    assert flows.counters.after_end == 2
    flows.expire(60 * SECOND_NS)
    assert len(flows._table.by_key) == 0


def test_idle_flow_times_out(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 0, b"a", 2, ack=0))
    assert flows.expire(300 * SECOND_NS) == []
    assert text(flows.expire(301 * SECOND_NS), CLIENT_KEY) == ["timeout"]
    assert flows.open_flows == 0 and flows.counters.timed_out == 1


def test_syn_flood_does_not_evict_flows_with_data() -> None:
    flows = Flows(FlowLimits(max_flows=10, max_embryonic=20))
    good = Tcp()
    run(flows, *good.handshake(), good.make(0, 0, b"a", 2, ack=0))
    for port in range(1, 5000):
        tcp = Tcp(key=CLIENT_KEY[:8] + port.to_bytes(2, "big") + CLIENT_KEY[10:])
        assert flows.feed([tcp.handshake()[0]]) == []
    assert flows.open_flows == 21 and flows.counters.evicted_embryonic == 4979
    flows.expire(60 * SECOND_NS)
    assert len(flows._table.by_key) == 2 and len(flows._table._unheard) <= 1
    assert text(run(flows, good.make(0, 1, b"b", 3, ack=0)), CLIENT_KEY) == [b"b"]


def test_lingering_flows_are_limited() -> None:
    flows = Flows(FlowLimits(max_lingering=10))
    for port in range(1, 200):
        tcp = Tcp(key=CLIENT_KEY[:8] + port.to_bytes(2, "big") + CLIENT_KEY[10:])
        run(flows, *tcp.handshake(), tcp.make(0, 0, b"a", 2, ack=0), tcp.rst(0, 1))
    assert len(flows._table.by_key) == 20 and flows.counters.evicted_lingering == 189


def test_longest_idle_flow_is_evicted() -> None:
    flows = Flows(FlowLimits(max_flows=2))
    each = [Tcp(key=CLIENT_KEY[:8] + port.to_bytes(2, "big") + CLIENT_KEY[10:]) for port in (1, 2, 3)]
    for t_ns, tcp in enumerate(each[:2]):
        run(flows, *tcp.handshake(t_ns), tcp.make(0, 0, b"a", t_ns, ack=0))
    run(flows, each[0].make(0, 1, b"b", 10, ack=0))
    events = run(flows, *each[2].handshake(20), each[2].make(0, 0, b"a", 20, ack=0))
    assert text(events, each[1].keys[0]) == ["evicted"] and flows.counters.evicted == 1


def test_muted_flow_gives_its_end_only(flows: Flows) -> None:
    tcp = Tcp()
    events = run(flows, *tcp.handshake(), tcp.make(0, 0, b"a", 2, ack=0))
    events[0].half.flow.mute()
    assert run(flows, tcp.make(0, 1, b"b", 3, ack=0), tcp.make(1, 5, b"c", 4, ack=2)) == []
    events = flows.feed([tcp.fin(0, 2), tcp.fin(1, 6, ack=3)])
    assert text(events, CLIENT_KEY) == ["fin"] and text(events, SERVER_KEY) == ["fin"]
    assert flows.counters.muted == 4 and flows.open_flows == 0


def test_directions_with_different_vlan_tags_are_one_flow(flows: Flows) -> None:
    tcp = Tcp()
    syn, syn_ack = tcp.handshake()
    ask, answer = tcp.make(0, 0, b"ask", 2, ack=0), tcp.make(1, 0, b"answer", 3, ack=3)
    tagged = [s._replace(key=s.key + b"\x00\x07") for s in (syn, ask)]
    events = run(flows, tagged[0], syn_ack, tagged[1], answer)
    assert flows.counters.flows == 1
    assert text(events, SERVER_KEY) == [b"answer"]


def test_vlans_with_equal_addresses_are_two_flows(flows: Flows) -> None:
    tcp = Tcp()
    each = [[s._replace(key=s.key + tag) for s in tcp.handshake()] for tag in (b"\x00\x01", b"\x00\x02")]
    run(flows, each[0][0], each[1][0], each[0][1], each[1][1])
    assert flows.counters.flows == 2


def test_pure_acks_are_not_needed_but_tell_of_holes(flows: Flows) -> None:
    tcp = Tcp()
    run(flows, *tcp.handshake(), tcp.make(0, 3, b"def", 2, ack=0))
    events = run(flows, tcp.make(1, 0, b"", 3, ack=6))
    events += flows.expire(SECOND_NS)
    assert text(events, CLIENT_KEY) == [3, b"def"]


def test_segments_without_payload_open_nothing(flows: Flows) -> None:
    tcp = Tcp()
    assert run(flows, tcp.fin(0, 5), tcp.rst(0, 5), tcp.make(0, 5, b"", ack=1)) == []
    assert flows.open_flows == 0 and flows.counters.unopened == 3


def test_counters_have_names(flows: Flows) -> None:
    flows.feed(Tcp().handshake())
    assert flows.counters.as_dict()["flows"] == 1
    assert {ACK, SYN, RST} and of([], CLIENT_KEY) == []
