"""Messages and their pairing, case by case."""

from __future__ import annotations

import hashlib

import pytest

from agent.http.limits import HttpLimits
from agent.http.pairing import Pairing
from agent.stream.events import EndReason
from agent.stream.flows import Flows
from replay.exchange import body_sha1
from tests.agent.http.dialogue import CLIENT, SERVER, Dialogue, brief, chunked, get, ok, post
from tests.agent.stream.conversation import Tcp


def test_one_exchange_with_addresses_and_times() -> None:
    d = Dialogue().client(get("/a")[:10], get("/a")[10:]).server(ok(b"hello")[:20], ok(b"hello")[20:])
    (exchange,) = d.over()
    assert (exchange.client, exchange.server, exchange.connection, exchange.index) == (CLIENT, SERVER, 1, 0)
    assert exchange.request is not None and exchange.response is not None
    assert exchange.request.head == get("/a") and exchange.request.version == 11
    assert (exchange.request.t_first_ns, exchange.request.t_last_ns) == (1, 2)
    assert (exchange.response.t_first_ns, exchange.response.t_last_ns) == (3, 4)
    assert exchange.ttfb_ns == 1 and exchange.response.body == b"hello"
    assert d.ready == [exchange] and exchange.incomplete is None


def test_ready_before_finished() -> None:
    d = Dialogue().client(get())
    assert len(d.ready) == 1 and d.finished == []
    d.server(ok())
    assert d.finished == d.ready


def test_keep_alive() -> None:
    d = Dialogue()
    for index in range(5):
        d.client(get(f"/{index}")).server(ok(b"%d" % index))
    assert brief(d.over()) == [(("GET", f"/{i}", b""), (200, b"%d" % i)) for i in range(5)]


def test_pipelining_in_one_segment() -> None:
    d = Dialogue().client(get("/1") + post(b"x", "/2") + get("/3")).server(ok(b"1") + ok(b"2") + ok(b"3"))
    assert brief(d.over()) == [
        (("GET", "/1", b""), (200, b"1")), (("POST", "/2", b"x"), (200, b"2")), (("GET", "/3", b""), (200, b"3")),
    ]  # fmt: skip


def test_chunked_both_ways() -> None:
    body = chunked(b"hello ", b"world", trailer=b"X: y\r\n")
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n"
    d = (
        Dialogue()
        .client(head + body[:7], body[7:])
        .server(b"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n" + body)
    )
    (exchange,) = d.over()
    assert exchange.request is not None and exchange.response is not None
    assert exchange.request.body == exchange.response.body == b"hello world"
    assert exchange.request.wire_body == body and exchange.request.whole


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_responses_without_body(method: str, head: bytes) -> None:
    d = Dialogue().client(f"{method} / HTTP/1.1\r\n\r\n".encode(), get("/2")).server(head, ok(b"2"))
    assert [e[1] for e in brief(d.over())] == [(int(head[9:12]), b""), (200, b"2")]


def test_interim_responses() -> None:
    d = Dialogue().client(post(b"x")[:-1]).server(b"HTTP/1.1 100 Continue\r\n\r\n").client(b"x")
    d.server(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", ok(b"y"))
    (exchange,) = d.over()
    assert exchange.interim == (100, 103) and exchange.response is not None
    assert exchange.response.t_first_ns == 5 and brief([exchange]) == [(("POST", "/", b"x"), (200, b"y"))]


def test_interim_responses_without_end_are_not_all_kept() -> None:
    d = Dialogue(HttpLimits(max_interim=2)).client(get()).server(b"HTTP/1.1 102 Processing\r\n\r\n" * 5, ok())
    assert d.over()[0].interim == (102, 102)
    assert (d.pairing.counters.interim, d.pairing.counters.interim_limit) == (5, 3)


def test_body_in_small_and_large_pieces() -> None:
    sizes = (1, 2, 600, 511, 512, 3, 1, 5000, 700, 9)
    pieces = [bytes((n,)) * size for n, size in enumerate(sizes)]
    d = Dialogue().client(get()).server(f"HTTP/1.1 200 X\r\nContent-Length: {sum(sizes)}\r\n\r\n".encode(), *pieces)
    assert brief(d.over()) == [(("GET", "/", b""), (200, b"".join(pieces)))]


def test_body_until_close() -> None:
    d = Dialogue().client(get()).server(b"HTTP/1.0 200 OK\r\n\r\nab", b"cd").end(1)
    assert brief(d.over()) == [(("GET", "/", b""), (200, b"abcd"))]
    assert d.finished[0].response is not None and d.finished[0].response.complete


@pytest.mark.parametrize("reason", [EndReason.RST, EndReason.TIMEOUT, EndReason.FINISH])
def test_body_until_close_without_a_close_is_incomplete(reason: EndReason) -> None:
    d = Dialogue().client(get()).server(b"HTTP/1.0 200 OK\r\n\r\nab").end(reason=reason)
    (exchange,) = d.over()
    assert exchange.response is not None and not exchange.response.complete and exchange.response.body == b"ab"


@pytest.mark.parametrize(
    ("request_bytes", "method", "target"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "GET", "/"),
        (b"get /x http/1.1\n\n", "get", "/x"),
        (b"M-SEARCH * HTTP/1.1\r\n\r\n", "M-SEARCH", "*"),
        (b"GET /a b  c HTTP/1.1\r\n\r\n", "GET", "/a b  c"),
        (b"GET  /two HTTP/1.1 \r\n\r\n", "GET", "/two"),
        (b"\r\n\r\nGET /after-empty-lines HTTP/1.1\r\n\r\n", "GET", "/after-empty-lines"),
        ("GET /ü HTTP/1.1\r\n\r\n".encode("latin-1"), "GET", "/ü"),
    ],
)
def test_odd_request_lines(request_bytes: bytes, method: str, target: str) -> None:
    assert brief(Dialogue().client(request_bytes).server(ok()).over()) == [((method, target, b""), (200, b""))]


def test_upgrade_is_reported_and_the_tunnel_ignored() -> None:
    d = Dialogue().client(b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    d.server(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05hello", get()).client(
        get("/inside")
    )
    (exchange,) = d.over()
    assert exchange.upgraded and d.flow.muted and brief([exchange]) == [(("GET", "/ws", b""), (101, b""))]


def test_refused_upgrade_goes_on() -> None:
    d = Dialogue().client(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n").server(ok(b"1")).client(get("/2")).server(ok(b"2"))
    assert len(d.over()) == 2 and not any(e.upgraded for e in d.finished)


def test_connect() -> None:
    d = Dialogue().client(b"CONNECT a:443 HTTP/1.1\r\n\r\n").server(b"HTTP/1.1 200 OK\r\n\r\n").client(b"\x16\x03\x01")
    (exchange,) = d.over()
    assert exchange.upgraded and exchange.request is not None and exchange.request.method == "CONNECT"


def test_refused_connect_has_a_body() -> None:
    d = Dialogue().client(b"CONNECT a:443 HTTP/1.1\r\n\r\n").server(ok(b"no", 403)).client(get()).server(ok())
    assert brief(d.over())[0] == (("CONNECT", "a:443", b""), (403, b"no")) and len(d.finished) == 2


def test_response_before_the_request_is_whole() -> None:
    d = Dialogue().client(post(b"12345")[:-3]).server(ok(b"no", 413))
    assert d.finished == [] and d.pairing.seen == 1
    d.client(b"345").client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(("POST", "/", b"12345"), (413, b"no")), (("GET", "/2", b""), (200, b"2"))]


def test_early_response_and_the_request_never_whole() -> None:
    d = Dialogue().client(post(b"12345")[:-3]).server(ok(b"no", 413)).end()
    assert brief(d.over()) == [(("POST", "/", b"12"), (413, b"no"), "cut")] and d.ready == []


@pytest.mark.parametrize("sides", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("reason", "incomplete"),
    [
        (EndReason.FIN, "cut"), (EndReason.RST, "cut"), (EndReason.REUSED, "cut"), (EndReason.TIMEOUT, "timeout"),
        (EndReason.EVICTED, "evicted"), (EndReason.FINISH, "end"),
    ],
)  # fmt: skip
def test_end_inside_a_request(sides: tuple[int, int], reason: EndReason, incomplete: str) -> None:
    d = Dialogue().client(post(b"12345")[:-3]).end(*sides, reason=reason)
    assert brief(d.over()) == [(("POST", "/", b"12"), None, incomplete)]
    d = Dialogue().client(get()[:20]).end(*sides, reason=reason)
    assert brief(d.over()) == [(None, None, incomplete)]


def test_end_inside_a_request_line_is_not_seen() -> None:
    assert Dialogue().client(b"GET /unfinished").over() == []


@pytest.mark.parametrize("sides", [(0, 1), (1, 0)])
def test_unanswered_at_the_end(sides: tuple[int, int]) -> None:
    d = Dialogue().client(get("/1"), get("/2")).server(ok(b"1")).end(*sides)
    assert [e[1] for e in brief(d.over())] == [(200, b"1"), None]
    assert d.pairing.counters.unanswered == 1


def test_half_close_by_the_client_still_gets_its_response() -> None:
    d = Dialogue().client(get()).end(0)
    assert d.finished == []
    assert brief(d.server(ok(b"1")).over()) == [(("GET", "/", b""), (200, b"1"))]


def test_request_after_the_server_closed_is_finished_at_once() -> None:
    d = Dialogue().client(get("/1")).server(ok()).end(1).client(get("/2"))
    assert len(d.finished) == 2 and brief(d.over())[1] == (("GET", "/2", b""), None)


def test_response_cut_by_the_end() -> None:
    d = Dialogue().client(get()).server(ok(b"12345")[:-2]).end()
    (exchange,) = d.over()
    assert exchange.response is not None and not exchange.response.complete and exchange.incomplete is None


def test_orphan_response() -> None:
    d = Dialogue(from_start=False).server(ok(b"1")).client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(None, (200, b"1"), "request_lost"), (("GET", "/2", b""), (200, b"2"))]
    assert d.pairing.seen == 2


def test_half_that_ended_before_it_was_known_who_is_the_client() -> None:
    d = Dialogue(from_start=False, known_client=False).server(b"rest of a download").end(1).client(get()).end(0)
    assert brief(d.over()) == [(("GET", "/", b""), None)]
    d = Dialogue(from_start=False, known_client=False).client(b"rest of an upload").end(0).server(ok(b"1")).end(1)
    assert brief(d.over()) == [(None, (200, b"1"), "request_lost")]


def test_one_direction_only() -> None:
    assert [e[1] for e in brief(Dialogue().client(get("/1"), get("/2")).over())] == [None, None]
    d = Dialogue(from_start=False).server(ok(b"1"), ok(b"2"))
    assert [e[2] for e in brief(d.over())] == ["request_lost"] * 2


@pytest.mark.parametrize("asked", [b"", b"GET /slow"])
def test_server_that_answers_without_being_asked(asked: bytes) -> None:
    d = Dialogue().client(get("/1")).server(ok(b"1"))
    if asked:
        d.client(asked)
    d.server(ok(b"", 408)).end(1).end(0)
    assert brief(d.over()) == [(("GET", "/1", b""), (200, b"1")), (None, (408, b""), "unasked")]
    assert (d.pairing.seen, d.pairing.counters.orphans) == (2, 1)


def test_after_a_gap_a_request_may_be_lost() -> None:
    between = Dialogue().client(get("/1")).server(ok()).client_gap(30).client(get("/2")).server(ok())
    inside = Dialogue().client(post(b"12345")[:-3]).client_gap(3).server(ok())
    before = Dialogue().client_gap(30)
    for d in (between, inside, before):
        assert [e[2:] for e in brief(d.server(ok(b"", 408)).over())][-1] == ("request_lost",)


ASKED = len(get("/lost"))


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([(1, 0, ok(b"", 400), 0)], ["unasked"]),  # the server refuses at once
        ([(1, 0, ok(b"", 408), ASKED)], ["request_lost"]),  # acknowledges what was not captured
        ([(1, 0, ok(b"", 408), 0), (1, len(ok(b"", 408)), ok(), ASKED)], ["unasked", "request_lost"]),
        ([(1, 0, ok(), ASKED), (0, ASKED, get("/2"), len(ok())), (1, len(ok()), ok(), ASKED + len(get("/2")))],
         ["request_lost", None]),
        ([(0, 0, get("/"), 0), (1, 0, ok(), len(get("/"))), (1, len(ok()), ok(b"", 408), len(get("/")))],
         [None, "unasked"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("heard", [False, True])
def test_acknowledgements_tell_lost_requests_from_none(
    segments: list[tuple[int, int, bytes, int]], expected: list[str | None], heard: bool, one_by_one: bool
) -> None:
    """Also when the client's SYN was not captured, and however many segments come at once."""
    tcp, flows, pairing = Tcp(), Flows(), Pairing()
    said = tcp.handshake()[not heard :]
    said += [tcp.make(side, at, data, 10 + n, ack) for n, (side, at, data, ack) in enumerate(segments)]
    batches = [[segment] for segment in said] if one_by_one else [said]
    finished = [e for batch in batches for e in pairing.feed(flows.feed(batch))[1]]
    finished += pairing.feed(flows.finish())[1]
    assert [e.incomplete for e in sorted(finished, key=lambda e: e.index)] == expected


def test_unasked_after_the_client_closed() -> None:
    tcp, flows, pairing = Tcp(), Flows(), Pairing()
    refusal = ok(b"", 400)
    said = [*tcp.handshake(), tcp.fin(0, 0, 5), tcp.make(1, 0, refusal, 6, ack=1), tcp.fin(1, len(refusal), 7)]
    _, finished = pairing.feed(flows.feed(said))
    assert [e.incomplete for e in finished] == ["unasked"]


def test_gap_in_a_body_of_known_length_is_skipped_by_count() -> None:
    d = Dialogue().client(get("/1"), get("/2")).server(ok(b"0123456789")[:-8]).server_gap(5).server(b"789" + ok(b"2"))
    first, second = d.over()
    assert first.response is not None and not first.response.complete and first.response.body_bytes == 10
    assert first.response.body == b"01789" and body_sha1(first.response) is None
    assert brief([second]) == [(("GET", "/2", b""), (200, b"2"))] and second.response and second.response.complete


def test_gap_that_ends_with_the_body() -> None:
    d = Dialogue().client(get("/1"), get("/2")).server(ok(b"0123")[:-4]).server_gap(4).server(ok(b"2"))
    assert [e[1] for e in brief(d.over())] == [(200, b""), (200, b"2")]


def test_gap_in_a_request_body() -> None:
    d = Dialogue().client(post(b"0123456789")[:-8]).client_gap(8).server(ok()).client(get("/2")).server(ok())
    assert brief(d.over())[0] == (("POST", "/", b"01"), (200, b""), "gap") and len(d.ready) == 1


def test_gap_beyond_a_body_resynchronises() -> None:
    d = Dialogue().client(get("/1"), get("/2"), get("/3")).server(ok(b"0123")[:-2])
    d.server_gap(50).server(b"rest of 2", ok(b"3"))
    assert [e[1] for e in brief(d.over())] == [(200, b"01"), None, (200, b"3")]


def test_lost_response_leaves_its_request_without() -> None:
    d = Dialogue().client(get("/1")).server().client(get("/2")).server_gap(500).server(ok(b"2"))
    assert [e[1] for e in brief(d.over())] == [None, (200, b"2")]


def test_gap_in_a_request_head() -> None:
    d = Dialogue().client(get("/1")[:20]).client_gap(30).server(ok(b"1")).client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(None, (200, b"1"), "gap"), (("GET", "/2", b""), (200, b"2"))]


def test_gap_in_a_response_head() -> None:
    d = Dialogue().client(get("/1")).server(ok(b"1")[:12]).server_gap(9).client(get("/2")).server(ok(b"2"))
    assert [e[1] for e in brief(d.over())] == [None, (200, b"2")]


def test_gap_inside_a_chunk_and_across_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    d = Dialogue().client(get("/1")).server(head + b"a\r\n012").server_gap(4).server(b"789\r\n0\r\n\r\n")
    d.client(get("/2")).server(head + b"a\r\n012").server_gap(9).server(b"nonsense").client(get("/3")).server(ok(b"3"))
    assert [e[1] for e in brief(d.over())] == [(200, b"012789"), (200, b"012"), (200, b"3")]
    assert [e.response.complete for e in d.finished if e.response] == [False, False, True]


def test_gap_in_a_body_until_close() -> None:
    d = Dialogue().client(get()).server(b"HTTP/1.0 200 OK\r\n\r\nab").server_gap(3).server(b"fg").end(1)
    (exchange,) = d.over()
    assert exchange.response is not None and not exchange.response.complete and exchange.response.body_bytes == 7


def test_join_in_the_middle_starts_at_the_next_request() -> None:
    d = Dialogue(from_start=False).client(b"rest of some upload").server(b"rest of a download", b"HTTP/ is nice")
    d.client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(("GET", "/2", b""), (200, b"2"))]


def test_who_is_the_client_is_read_from_the_content() -> None:
    d = Dialogue(from_start=False, known_client=False).client(b"upload").server(b"download")
    d.client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(("GET", "/2", b""), (200, b"2"))] and d.pairing.counters.undecided_bytes == 14
    d = Dialogue(from_start=False, known_client=False).server(ok(b"1")).client(get("/2")).server(ok(b"2"))
    assert [e[0] for e in brief(d.over())] == [None, ("GET", "/2", b"")]


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"),
        (b"\x00\x01\x02", "not_http"),
        (b"averyveryverylongwordthatisnomethodatall", "not_http"),
    ],
)
def test_other_protocols_are_muted(data: bytes, counter: str) -> None:
    d = Dialogue().client(data)
    assert d.flow.muted and d.over() == [] and getattr(d.pairing.counters, counter) == 1


def test_server_that_speaks_first_and_not_http() -> None:
    d = Dialogue().server(b"220 mail ESMTP\r\n").client(b"EHLO x\r\n")
    assert d.flow.muted and d.over() == []


def test_request_to_a_server_of_another_protocol() -> None:
    d = Dialogue().client(get()).server(b"SSH-2.0-x\r\n", b"more")
    assert brief(d.over()) == [(("GET", "/", b""), None)] and d.pairing.counters.not_http_server == 1


def test_malformed_request_is_counted_and_its_response_too() -> None:
    d = Dialogue().client(b"GET /x\r\n\r\n").server(ok(b"?", 400)).client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(None, (400, b"?"), "request_lost"), (("GET", "/2", b""), (200, b"2"))]
    assert d.pairing.counters.malformed_requests == 1


def test_contradictory_length_is_malformed() -> None:
    d = Dialogue().client(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx").server(ok(b"", 400))
    assert brief(d.over()) == [(None, (400, b""), "malformed")] and d.pairing.seen == 1


def test_contradictory_length_of_a_response() -> None:
    d = Dialogue().client(get()).server(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nx")
    (exchange,) = d.over()
    assert exchange.response is not None and not exchange.response.complete


def test_broken_chunks() -> None:
    head = b"Transfer-Encoding: chunked\r\n\r\n"
    d = Dialogue().client(b"POST / HTTP/1.1\r\n" + head + b"zz\r\n").server(b"HTTP/1.1 400 X\r\n" + head + b"zz\r\n")
    (exchange,) = d.over()
    assert exchange.incomplete == "malformed" and exchange.response is not None and not exchange.response.complete


def test_head_limit() -> None:
    limits = HttpLimits(head_limit_bytes=100)
    d = Dialogue(limits).client(b"GET / HTTP/1.1\r\nX: " + b"x" * 50, b"x" * 50, b"\r\n\r\n").server(ok(b"", 431))
    d.client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(None, (431, b""), "too_large"), (("GET", "/2", b""), (200, b"2"))]
    whole = Dialogue(limits).client(b"GET / HTTP/1.1\r\nX: " + b"x" * 100 + b"\r\n\r\n")
    assert brief(whole.over()) == [(None, None, "too_large")]


def test_body_limit_counts_and_hashes_the_rest() -> None:
    body = bytes(range(256))
    for hashed in (False, True):
        d = Dialogue(HttpLimits(body_limit_bytes=100, hash_bodies=hashed))
        (exchange,) = d.client(post(body)[:-200], post(body)[-200:]).server(ok(body)).over()
        assert exchange.incomplete == "body_limit" and exchange.request is not None and exchange.response is not None
        for message in (exchange.request, exchange.response):
            assert message.complete and message.body == body[:100] and message.body_bytes == 256
            assert body_sha1(message) == (hashlib.sha1(body).hexdigest() if hashed else None)


def test_pipeline_limit_gives_up_the_oldest_and_keeps_the_pairing() -> None:
    d = Dialogue(HttpLimits(max_pipelined=3))
    d.client(*(get(f"/{i}") for i in range(5)))
    assert len(d.finished) == 2 and d.pairing.counters.pipeline_limit == 2
    d.server(*(ok(b"%d" % i) for i in range(5)))
    assert [e[1] for e in brief(d.over())] == [None, None, (200, b"2"), (200, b"3"), (200, b"4")]


def test_limit_of_all_that_is_kept() -> None:
    d = Dialogue(HttpLimits(total_kept_bytes=1500))
    d.client(*(get("/" + "x" * 60) for _ in range(10)))
    assert 1000 < d.pairing.budget.kept_bytes <= 1500 and d.pairing.counters.kept_limit > 0
    assert {e[2] for e in brief(d.finished)} == {"evicted"}
    d.server(*(ok() for _ in range(10)))
    assert d.pairing.counters.orphans == 0
    d.over()


def test_limit_of_all_that_is_kept_for_bodies_and_heads() -> None:
    d = Dialogue(HttpLimits(total_kept_bytes=700)).client(get()).server(ok(b"x" * 500)[:-300], b"x" * 300)
    assert d.finished[0].response is not None and d.finished[0].response.body_bytes == 500
    assert len(d.finished[0].response.body) == 200 and d.pairing.counters.kept_limit == 1
    d = Dialogue(HttpLimits(total_kept_bytes=600)).client(b"GET / HTTP/1.1\r\n", b"X: " + b"x" * 100, b"y")
    assert brief(d.over()) == [(None, None, "evicted")]


def test_messages_that_begin_when_too_much_is_kept_are_given_up() -> None:
    full = HttpLimits(total_kept_bytes=600)
    d = Dialogue(full).client(post(b"12345")[:-1].replace(b"Host", b"Hostess: " + b"x" * 99)).server(ok(b"no", 413))
    assert [e[1:] for e in brief(d.over())] == [(None, "evicted")] and d.pairing.counters.orphans == 0
    d = Dialogue(full).client(get()).server(ok(b"12345")[:-1].replace(b"X", b"X" * 99))
    (exchange,) = d.finished
    assert exchange.incomplete is None and exchange.response is not None and not exchange.response.complete


def test_early_response_when_too_much_is_kept() -> None:
    d = Dialogue(HttpLimits(total_kept_bytes=700)).client(post(b"12345")[:-3]).server(ok(b"x" * 200, 413))
    assert [e[1:] for e in brief(d.finished)] == [((413, b"x" * 200), "evicted")]
    assert brief(d.client(b"345", get("/2")).server(ok(b"2")).over())[1] == (("GET", "/2", b""), (200, b"2"))


def test_counters_have_names() -> None:
    d = Dialogue().client(get()).server(ok())
    assert d.pairing.counters.as_dict()["requests"] == 1 and d.pairing.counters.responses == 1


def test_a_gap_before_anything_else_is_a_join_in_the_middle() -> None:
    """The first request and the head of its response are lost: what is left of that body is not a foreign protocol."""
    d = Dialogue().client_gap(50).server_gap(1400).server(b"rest of a body").client(get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(("GET", "/2", b""), (200, b"2"))]
    assert d.pairing.counters.not_http_server == 0
    d = Dialogue().client_gap(50).client(b"rest of a body", get("/2")).server(ok(b"2"))
    assert brief(d.over()) == [(("GET", "/2", b""), (200, b"2"))]
