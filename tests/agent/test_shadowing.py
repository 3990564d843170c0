"""One shadow's stages together: what is chosen is held, sent, answered and recorded, each request once."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from agent.merge import add_up
from agent.monitor.feed import Feed
from agent.monitor.pairs import LIMIT_BYTES, PairRecord, unpack
from agent.monitor.pulse import Pulse
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select.choice import Rule
from agent.select.client_address import Address
from agent.select.language import parse
from agent.select.sampling import By, Window
from agent.shadowing import Shadowing, open_recorder
from replay.balancer.settings import UpstreamSpec
from replay.errors import RecordingError, UpstreamError
from replay.exchange import Exchange, Fate, Outcome, Skipped
from replay.lane import SocketFactory
from replay.recording import Recorder, RecordingSettings
from replay.settings import ReplaySettings
from replay.sockets import new_socket
from tests.replay.examples import make_exchange, make_request, make_response
from tests.replay.harness import QUICK, Run, run
from tests.replay.scripted_server import Peer, ScriptedServer

__all__ = ["run"]  # the fixture
SETTINGS: ReplaySettings = replace(ReplaySettings(), **QUICK)  # type: ignore[arg-type]
NOTHING = Window(0, 0)
LONG_NS = 3600 * 10**9
ACCEPTED_S = 10.0


class Noted(Recorder):
    """A recorder that also remembers what it was given."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, RecordingSettings(), run="r", worker=0, shadow="candidate", now_ns=1)
        self.given: list[tuple[Exchange, Fate, str, Outcome | None]] = []

    def add(self, exchange: Exchange, fate: Fate, reason: str = "", outcome: Outcome | None = None) -> None:
        self.given.append((exchange, fate, reason, outcome))
        super().add(exchange, fate, reason, outcome)


def serve(peer: Peer) -> None:
    peer.serve()


def pool_of(upstreams: Sequence[str]) -> PoolOrder:
    return PoolOrder(tuple(map(UpstreamSpec, upstreams)))


def an_order(*upstreams: str, **rule: Any) -> Order:
    shadow = ShadowOrder("candidate", Rule(dry_run=not upstreams, **rule), pool_of(upstreams), SETTINGS)
    return Order(shadows=(shadow,))


def exchanges(count: int, at_ns: int | None = None, headers: bytes = b"Host: a\r\n") -> list[Exchange]:
    """Requests one nanosecond apart, the last of them first."""
    start_ns = at_ns or time.time_ns()
    requests = [make_request(f"/{number}", at_ns=start_ns + number, headers=headers) for number in range(count)]
    return [make_exchange(request, make_response()) for request in reversed(requests)]


def targets(server: ScriptedServer) -> list[str]:
    return [request.split(b" ")[1].decode() for request in server.requests]


def shadowing(order: Order, recorder: Recorder | None = None, *, in_kernel: bool = True, place: int = 0) -> Shadowing:
    return Shadowing(order, place, recorder, None, in_kernel=in_kernel)


def connect(
    made: Shadowing, delay_ns: int = 0, production: tuple[str, ...] = (), factory: SocketFactory | None = None
) -> None:
    made.connect(asyncio.get_running_loop(), production, factory, time.time_ns, delay_ns)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(ACCEPTED_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_without_upstreams_it_captures_only(run: Run, tmp_path: Path) -> None:
    recorder, taken = Noted(tmp_path), exchanges(2)
    made = shadowing(an_order(), recorder)

    async def main() -> None:
        connect(made)
        made.mirror.take(taken, (), 2)
        assert recorder.given == [], "production's side is open"
        made.mirror.take((), taken, 2)
        await made.drain(ACCEPTED_S)

    run(main())
    assert (made.replayer, made.sender, made.mirror.sender) == (None, None, None)
    assert made.mirror.account.skipped == {"dry_run": 2} and made.mirror.account.in_flight == 0
    assert recorder.given == [(exchange, Fate.SKIPPED, Skipped.DRY_RUN, None) for exchange in taken]


def test_what_is_chosen_is_replayed_and_recorded_once(run: Run, tmp_path: Path) -> None:
    recorder, taken = Noted(tmp_path), exchanges(3)
    other = make_exchange(make_request("/post", "POST", time.time_ns()), make_response())

    async def main() -> None:
        made = shadowing(an_order(server.address), recorder)
        connect(made)
        made.mirror.take([*taken, other], [*taken[:2], other], 4)
        await until(lambda: made.mirror.account.replayed == 3)
        assert len(recorder.given) == 3, "production's answer to one is still open"
        made.mirror.take((), taken[2:], 4)
        await made.drain(ACCEPTED_S)
        account = made.mirror.account
        assert (account.seen, account.replayed, account.in_flight) == (4, 3, 0)
        assert (account.answers, account.skipped) == ({"ok": 3}, {"method": 1})
        assert made.report()["replay"]["done"] == 3

    with ScriptedServer(serve) as server:
        run(main())
    assert sorted(targets(server)) == ["/0", "/1", "/2"]
    assert {id(exchange) for exchange, *_ in recorder.given} == {id(exchange) for exchange in [*taken, other]}
    assert len(recorder.given) == 4
    for exchange, fate, reason, outcome in recorder.given:
        if exchange is other:
            assert (fate, reason, outcome) == (Fate.SKIPPED, Skipped.METHOD, None)
        else:
            assert fate is Fate.REPLAYED and reason == "" and outcome is not None
            assert (outcome.status, outcome.body) == (200, b"ok")


def test_the_recording_is_of_this_shadow(tmp_path: Path) -> None:
    order = Order(shadows=(ShadowOrder("one"), ShadowOrder("two")), recording_directory=str(tmp_path))
    recorders = [open_recorder(order.directory_of(s.name), {"exemplars": 0}, "run", 3, s.name) for s in order.shadows]
    everyone = [Shadowing(order, place, one, None, in_kernel=False) for place, one in enumerate(recorders)]
    taken = exchanges(2)
    for made in everyone:
        made.mirror.take(taken, taken, 2)
    for made, name in zip(everyone, ("one", "two"), strict=True):
        assert made.recorder is not None and made.order.name == name
        made.recorder.close(time.time_ns(), made.mirror.account)
        assert made.recorder.convert()
        rows = [row for path in (tmp_path / name).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        assert [(row["shadow"], row["worker"], row["target"]) for row in rows] == [(name, 3, "/1"), (name, 3, "/0")]


def test_a_recorder_only_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    assert open_recorder(None, {}, "run", 0, "a") is None
    recorder = open_recorder(tmp_path / "new", {"rotate_seconds": 7}, "run", 0, "a")
    assert recorder is not None and (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RecordingError, match="recording directory"):
        open_recorder(tmp_path / "file", {}, "run", 0, "a")


def test_requests_are_held_for_their_delay(run: Run) -> None:
    now_ns = [10**18]

    async def main() -> None:
        made = shadowing(an_order(server.address))
        made.connect(asyncio.get_running_loop(), (), None, lambda: now_ns[0], 20_000_000)
        made.mirror.take(exchanges(2, at_ns=now_ns[0] - 1_000_000), (), 2)
        await asyncio.sleep(0.1)
        assert made.report()["spacing"] == {"held": 2, "late": 0} and server.accepted == 0
        now_ns[0] += 30_000_000
        await until(lambda: made.mirror.account.replayed == 2)
        made.mirror.take(exchanges(1, at_ns=now_ns[0] - LONG_NS), (), 3)
        assert made.report()["spacing"]["late"] == 1
        await until(lambda: made.mirror.account.replayed == 3)
        await made.drain(ACCEPTED_S)

    with ScriptedServer(serve) as server:
        run(main())
    assert len(server.requests) == 3


def test_draining_sends_what_is_held_in_its_order_and_waits_for_the_answers(run: Run, tmp_path: Path) -> None:
    recorder, taken = Noted(tmp_path), exchanges(20)

    def slowly(peer: Peer) -> None:
        while peer.request():
            peer.pause(0.005)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        settings = replace(SETTINGS, max_connections=1)
        made = shadowing(
            Order(shadows=(ShadowOrder("candidate", Rule(), pool_of([server.address]), settings),)), recorder
        )
        connect(made, LONG_NS)
        made.mirror.take(taken, taken, 20)
        await asyncio.sleep(0.05)
        assert (made.report()["spacing"]["held"], server.accepted, recorder.given) == (20, 0, [])
        await made.drain(ACCEPTED_S)
        assert (made.mirror.account.replayed, made.mirror.account.in_flight) == (20, 0)
        assert made.report()["spacing"]["held"] == 0

    with ScriptedServer(slowly) as server:
        run(main())
    assert targets(server) == [f"/{number}" for number in range(20)]
    assert len(recorder.given) == 20


def test_draining_ends_in_time_whatever_the_shadow_does(run: Run, tmp_path: Path) -> None:
    """What is not answered is dropped, and recorded as such."""
    recorder, taken = Noted(tmp_path), exchanges(3)

    async def main() -> None:
        slow = ReplaySettings(timeout_s=60, max_connections=1)
        made = shadowing(Order(shadows=(ShadowOrder("candidate", Rule(), pool_of([server.address]), slow),)), recorder)
        connect(made, LONG_NS)
        made.mirror.take(taken, taken, 3)
        async with asyncio.timeout(ACCEPTED_S):
            await made.drain(0.1)
        account = made.mirror.account
        assert account.in_flight == 0 and account.dropped == {"shutdown": 3}

    with ScriptedServer(lambda peer: peer.hold()) as server:
        run(main())
    assert [(fate, reason) for _, fate, reason, _ in recorder.given] == [(Fate.DROPPED, "shutdown")] * 3


def test_draining_before_it_was_connected(run: Run) -> None:
    made = shadowing(an_order("127.0.0.1:9"))
    run(made.drain(ACCEPTED_S))
    assert made.report() == {"replay": {}, "spacing": {}, "pool": {"candidate": {}}, "recording": {}}


def test_no_connection_to_production(run: Run) -> None:
    async def main() -> None:
        made = shadowing(an_order("127.0.0.1:8080"))
        with pytest.raises(UpstreamError, match=r"127\.0\.0\.1:8080"):
            connect(made, production=("*:8080",))
        assert made.mirror.sender is None

    run(main())


def test_sockets_come_from_the_factory(run: Run) -> None:
    families = []

    def factory(family: socket.AddressFamily) -> socket.socket:
        families.append(family)
        return new_socket(family)

    async def main() -> None:
        made = shadowing(an_order(server.address))
        connect(made, factory=factory)
        made.mirror.take(exchanges(1), (), 1)
        await until(lambda: made.mirror.account.replayed == 1)
        await made.drain(ACCEPTED_S)

    with ScriptedServer(serve) as server:
        run(main())
    assert len(families) == server.accepted == 1


def skips(made: Shadowing, headers: bytes = b"Host: a\r\n") -> Skipped | None:
    """Why a request is not for it now."""
    return made.choice(exchanges(1, headers=headers)[0])


def test_a_rule_is_changed_from_one_request_to_the_next() -> None:
    made = shadowing(an_order("192.0.2.1:80"))
    marked = b"X-Test: 1\r\n"
    assert skips(made) is skips(made, marked) is None
    made.change(Rule(criteria=parse("header:X-Test")))
    assert skips(made) is Skipped.CRITERIA and skips(made, marked) is None
    made.change(Rule(enabled=False))
    assert skips(made) is skips(made, marked) is Skipped.DISABLED
    made.change(Rule(methods=("POST",)))
    assert skips(made) is Skipped.METHOD
    made.change(Rule())
    assert skips(made) is None


def test_a_changed_rule_decides_for_the_mirror_and_not_for_what_is_held(run: Run) -> None:
    async def main() -> None:
        made = shadowing(an_order(server.address))
        connect(made, LONG_NS)
        made.mirror.take(exchanges(2), (), 2)
        made.change(Rule(methods=()))
        made.mirror.take(exchanges(3), (), 5)
        await made.drain(ACCEPTED_S)
        assert (made.mirror.account.replayed, made.mirror.account.skipped) == (2, {"method": 3})

    with ScriptedServer(serve) as server:
        run(main())
    assert len(server.requests) == 2


def test_a_shadow_that_is_switched_off_gets_nothing_of_what_is_held(run: Run) -> None:
    async def main() -> None:
        made = shadowing(an_order(server.address))
        connect(made, LONG_NS)
        made.mirror.take(exchanges(2), (), 2)
        made.change(Rule(enabled=False))
        made.mirror.take(exchanges(3), (), 5)
        await made.drain(ACCEPTED_S)
        assert made.mirror.account.dropped == {"switched_off": 2}
        assert made.mirror.account.skipped == {"disabled": 3}

    with ScriptedServer(serve) as server:
        run(main())
    assert server.requests == []


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_percentage_that_the_kernel_took_is_not_taken_again(in_kernel: bool) -> None:
    """Until the rule changes: what the ring still holds then was copied by another."""
    again = None if in_kernel else Skipped.UNSAMPLED
    made = shadowing(an_order("192.0.2.1:80", window=NOTHING), in_kernel=in_kernel)
    assert skips(made) is again
    for by in (By.REQUEST, By.CLIENT, By.CONNECTION):
        made.change(Rule(by=by, window=NOTHING))
        assert skips(made) is Skipped.UNSAMPLED


def test_countries_are_asked_for_where_there_is_a_database() -> None:
    def locate(address: Address) -> frozenset[str]:
        return frozenset({"US"}) if str(address) == "192.0.2.1" else frozenset()

    rule, other = Rule(criteria=parse("geo:US")), Rule(criteria=parse("geo:DE"))
    order = Order(shadows=(ShadowOrder("candidate", rule),))
    made = Shadowing(order, 0, None, locate, in_kernel=True)
    assert skips(made) is None
    made.change(other)
    assert skips(made) is Skipped.CRITERIA
    made.change(rule)
    assert skips(made) is None
    assert skips(shadowing(order)) is Skipped.CRITERIA


def test_several_have_their_own_place_rule_and_recorder(run: Run, tmp_path: Path) -> None:
    """Both are given the same exchanges."""
    wanted, other = exchanges(2, headers=b"X-Test: 1\r\n"), exchanges(3)
    recorders = [Noted(tmp_path / name) for name in ("one", "two")]

    async def main() -> None:
        rules = Rule(), Rule(criteria=parse("header:X-Test"))
        shadows = [ShadowOrder(f"s{n}", rule, pool_of([server.address]), SETTINGS) for n, rule in enumerate(rules)]
        order = Order(shadows=tuple(shadows))
        both = [shadowing(order, recorders[place], in_kernel=False, place=place) for place in range(2)]
        for made in both:
            connect(made)
        for made in both:
            made.mirror.take([*wanted, *other], (), 5)
        await until(lambda: [made.mirror.account.replayed for made in both] == [5, 2])
        for made in both:
            made.mirror.take((), [*wanted, *other], 5)
        await asyncio.gather(*(made.drain(ACCEPTED_S) for made in both))
        assert [made.mirror.account.skipped for made in both] == [{}, {"criteria": 3}]
        assert [made.mirror.account.in_flight for made in both] == [0, 0]

    with ScriptedServer(serve) as server:
        run(main())
    assert len(server.requests) == 7
    assert [len(recorder.given) for recorder in recorders] == [5, 2], "what the criteria do not want has no row"
    for recorder in recorders:
        assert len({id(exchange) for exchange, *_ in recorder.given}) == len(recorder.given)
        assert {fate for _, fate, _, _ in recorder.given} == {Fate.REPLAYED}


@pytest.mark.parametrize("replaying", [True, False])
@pytest.mark.parametrize("recording", [True, False])
def test_the_report_is_plain_and_can_be_added_up(run: Run, tmp_path: Path, replaying: bool, recording: bool) -> None:
    reports: list[dict[str, Any]] = []

    async def main(upstreams: list[str]) -> None:
        made = shadowing(an_order(*upstreams), Noted(tmp_path) if recording else None)
        connect(made)
        taken = exchanges(2, at_ns=time.time_ns() - LONG_NS)
        made.mirror.take(taken, taken, 2)
        await made.drain(ACCEPTED_S)
        reports.append(made.report())

    server: AbstractContextManager[Any] = ScriptedServer(serve) if replaying else nullcontext()
    with server as there:
        run(main([there.address] if replaying else []))
    (report,) = reports
    assert set(report) == {"replay", "spacing", "pool", "recording"}
    assert bool(report["replay"]) == bool(report["spacing"]) == replaying
    assert bool(report["recording"]) == recording
    if replaying:
        assert report["replay"]["submitted"] == 2 and report["spacing"] == {"held": 0, "late": 2}
    if recording:
        assert report["recording"]["rows"] == 2
    assert json.loads(json.dumps(report)) == report
    both = add_up([report, report])
    assert set(both) == set(report)
    assert both["recording"].get("rows", 0) == 4 * recording and both["replay"].get("done", 0) == 4 * replaying


def pairs_in(reader: socket.socket) -> list[PairRecord]:
    """All pairs that were sent."""
    found: list[PairRecord] = []
    while True:
        try:
            found += unpack(reader.recv(LIMIT_BYTES, socket.MSG_DONTWAIT)).pairs
        except BlockingIOError:
            return found


@pytest.mark.parametrize("noise_ppm", [0, 1_000_000])
def test_pairs_are_told_and_echoes_are_counted_apart(run: Run, tmp_path: Path, noise_ppm: int) -> None:
    """The shadow answers every request with another body each time."""
    recorder, taken, hurries = Noted(tmp_path), exchanges(10), list[None]()
    pulse = Pulse(1, lambda: hurries.append(None))
    reader, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    feed = Feed(theirs, 0)

    def restless(peer: Peer) -> None:
        while request := peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n%016x" % (id(request) ^ time.time_ns()))

    async def main() -> None:
        made = Shadowing(
            an_order(server.address), 0, recorder, None, in_kernel=True, feed=feed, pulse=pulse, noise_ppm=noise_ppm
        )
        connect(made)
        made.mirror.take(taken, taken, 10)
        await until(lambda: made.mirror.account.replayed == 10)
        echoes = {"answered": 0}
        if noise_ppm:
            await until(lambda: made.report()["echo"]["candidate"]["answered"] == 10)
            echoes = made.report()["echo"]["candidate"]
            assert echoes == {"asked": 10, "answered": 10, "noisy": 10, "dropped": 0}
        await made.drain(ACCEPTED_S)
        both = add_up([made.report(), made.report()])
        assert both.get("echo") == ({"candidate": {n: 2 * each for n, each in echoes.items()}} if noise_ppm else None)
        account = made.mirror.account
        assert (account.seen, account.replayed, account.in_flight, account.answers) == (10, 10, 0, {"ok": 10})
        assert made.report()["replay"]["done"] == 10 + echoes["answered"]

    with ScriptedServer(restless) as server:
        run(main())
    feed.flush()
    told = pairs_in(reader)
    reader.close()
    theirs.close()
    assert len(recorder.given) == len(told) == 10
    assert {pair.noisy for pair in told} == {True if noise_ppm else None} and all(pair.different for pair in told)
    assert sorted(pair.target for pair in told) == [f"/{number}" for number in range(10)]
    assert pulse.take() == [[0, 10, 0, 0, 0]] and hurries == []


def test_what_waits_for_its_echo_is_told_at_the_end(run: Run) -> None:
    """The echoes are held for an hour, and the shadow is switched off meanwhile."""
    reader, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    feed, taken = Feed(theirs, 0), exchanges(3, at_ns=time.time_ns() - LONG_NS)

    async def main() -> None:
        made = Shadowing(an_order(server.address), 0, None, None, in_kernel=True, feed=feed, noise_ppm=1_000_000)
        connect(made, LONG_NS)
        made.mirror.take(taken, taken, 3)
        await until(lambda: made.mirror.account.replayed == 3)
        assert made.report()["echo"]["candidate"]["asked"] == 3 and feed.report()["waiting_bytes"] == 0
        made.change(Rule(enabled=False))
        await made.drain(ACCEPTED_S)
        counts = made.report()["echo"]["candidate"]
        assert counts["dropped"] + counts["answered"] == 3

    with ScriptedServer(serve) as server:
        run(main())
    feed.flush()
    assert len(pairs_in(reader)) == 3
    reader.close()
    theirs.close()


def test_a_dead_shadow_hurries_the_pulse(run: Run) -> None:
    hurries: list[None] = []
    pulse = Pulse(1, lambda: hurries.append(None))

    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            order = an_order(f"127.0.0.1:{nobody.getsockname()[1]}")
            made = Shadowing(order, 0, None, None, in_kernel=True, pulse=pulse)
            connect(made)
            made.mirror.take(exchanges(5), (), 5)
            await until(lambda: made.mirror.account.in_flight == 0)
            await made.drain(ACCEPTED_S)

    run(main())
    assert len(hurries) == 1 and pulse.take() == [[0, 5, 5, 0, 5]]
