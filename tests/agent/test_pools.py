"""The pools of a running agent: what its children find and run, who is told of it, and what is refused."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import balancing, messages
from agent import pools as module
from agent.config import Config, parse
from agent.discovery import scout
from agent.discovery.settings import DnsSource, FileSource, Found, TargetGroup
from agent.errors import LoadError
from agent.order import Order
from agent.pool_order import Front, PoolOrder
from agent.pools import SCOUT_AGAIN_MIN_S, Pools, program_of, source_of
from replay.balancer.program import ProgramSettings
from replay.balancer.settings import UpstreamSpec
from replay.errors import UpstreamError

ARN = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/candidate-2/0123456789abcdef"
HEAD = 'capture: {interface: lo, ports: [80, 8080]}\nproduction: ["198.51.100.99:80"]\nshadows:\n'
LISTED = HEAD + '  one: {upstreams: ["198.51.100.1:80"]}\n  two: {upstreams: ["localhost:9000", "198.51.100.2:80"]}\n'
FOUND = (
    HEAD
    + """
  one: {upstreams: ["198.51.100.1:80"]}
  two: {discovery: {file: /pool.json}}
  three: {discovery: {dns: {name: a, port: 80}}}
"""
)
PROGRAMS = (
    HEAD + "  one: {balancer: {engine: haproxy, from: /one.cfg}}\n  two: {balancer: {engine: nginx, from: /two.conf}}\n"
)
USER = "root" if os.geteuid() == 0 else "nobody"


class Process:
    """In the place of a child's."""

    def __init__(self) -> None:
        self.waits = 0
        self.stuck = False
        self.killed = False

    def wait(self, timeout: float | None = None) -> int:
        self.waits += 1
        if self.stuck and timeout is not None:
            raise subprocess.TimeoutExpired("child", timeout)
        return 0

    def kill(self) -> None:
        self.killed = True


class Child:
    """A child that a test speaks for: `end` is its end of the channel."""

    def __init__(self) -> None:
        self.process = Process()
        self.ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked: Any = None

    def found(self, shadow: str, *addresses: str | UpstreamSpec, problem: str = "") -> None:
        specs = tuple(UpstreamSpec(each) if isinstance(each, str) else each for each in addresses)
        messages.send(self.end, scout.as_message(shadow, Found(specs, 0.0, problem)))

    def runs(self, shadow: str, *fronts: Front, **news: Any) -> None:
        told = [{"port": front.port, "address": front.address, "tls": front.tls} for front in fronts]
        well = {"state": balancing.RUNNING, "problem": "", "restarts": 0, "reloads": 0, "changes": 5}
        messages.send(self.end, {"shadow": shadow, "fronts": told, **well, **news})


class Bench:
    """Pools, with children that are played, and what was said and told."""

    def __init__(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config: Config = parse(text, "f.yaml")
        self.said: list[str] = []
        self.told: list[tuple[int, PoolOrder]] = []
        self.children: dict[str, list[Child]] = {"scout": [Child()], "balancing": [Child()]}
        self.started = {"scout": 0, "balancing": 0}
        self.too_long = False
        self.selector = selectors.DefaultSelector()
        self.pools = Pools(self.config, Order.of(self.config), USER, self.said.append)
        monkeypatch.setattr(scout, "start", lambda sources, user: self.start("scout", sources))
        monkeypatch.setattr(balancing, "start", lambda programs, *_, **__: self.start("balancing", programs))
        monkeypatch.setattr(module, "FIRST_LOOK_S", 0.2)
        monkeypatch.setattr(module, "PROGRAMS_START_S", 0.2)

    def start(self, which: str, asked: Any) -> Any:
        children = self.children[which]
        self.started[which] += 1
        if self.started[which] > len(children):
            children.append(Child())
        child = children[self.started[which] - 1]
        child.asked = asked
        return child.process, child.ours

    @property
    def scout(self) -> Child:
        return self.children["scout"][-1]

    @property
    def balancing(self) -> Child:
        return self.children["balancing"][-1]

    def begin(self) -> Bench:
        """Everything is there and watched; what was said until then is forgotten."""
        self.pools.start()
        self.pools.watch(self.selector, self.tell)
        self.said.clear()
        return self

    def tell(self, place: int, pool: PoolOrder) -> None:
        if self.too_long:
            raise UpstreamError("the lists of upstreams are too long together: name fewer")
        self.told.append((place, pool))

    def turn(self) -> None:
        """Take what has come, as the service does."""
        while ready := self.selector.select(0):
            for key, _ in ready:
                assert key.data is self.pools
                self.pools.take(key.fileobj)

    def upstreams(self, place: int) -> list[str]:
        return [spec.address for spec in self.pools.order.shadows[place].pool.upstreams]

    def close(self) -> None:
        self.pools.close()
        self.selector.close()
        for child in (*self.children["scout"], *self.children["balancing"]):
            child.ours.close()
            child.end.close()


Make = Callable[[str], Bench]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Bench] = []

    def bench(text: str) -> Bench:
        made.append(Bench(text, monkeypatch))
        return made[-1]

    yield bench
    for each in made:
        each.close()


@pytest.fixture
def found(make: Make) -> Bench:
    """Upstreams of two of three shadows are found; those of the second are there."""
    bench = make(FOUND)
    bench.scout.found("two", "198.51.100.21:80")
    bench.scout.found("three")
    return bench.begin()


@pytest.fixture
def programs(make: Make) -> Bench:
    bench = make(PROGRAMS)
    bench.balancing.runs("one", Front(80, "127.0.0.1:20001"), Front(443, "127.0.0.1:20002", True))
    bench.balancing.runs("two", Front(80, "127.0.0.1:20003"))
    return bench.begin()


# What the configuration asks for


def test_how_upstreams_are_looked_up() -> None:
    def source(fields: str) -> object:
        return source_of(parse(HEAD + f"  one: {fields}\n", "f.yaml").shadows["one"])

    assert source("{}") is None
    assert source('{upstreams: ["198.51.100.1:80"]}') is None
    assert source("{discovery: {file: /pool-*.yaml}}") == FileSource("/pool-*.yaml")
    assert source("{discovery: {dns: {name: a, port: 80, nameservers: ['192.0.2.53']}}}") == DnsSource(
        "a", 80, "auto", ("192.0.2.53",)
    )
    assert source("{discovery: {dns: {name: a, type: SRV}}}") == DnsSource("a", 0, "SRV")
    assert source(f"{{shadowPoolArn: '{ARN}'}}") == TargetGroup(ARN)
    assert source(f"{{shadowPoolArn: '{ARN}', discovery: {{endpoint_url: 'http://x'}}}}") == TargetGroup(
        ARN, "http://x"
    )


def test_what_a_program_is_to_run() -> None:
    text = HEAD + (
        "  one: {balancer: {engine: nginx, from: /candidate.conf, production: /nginx.conf, servers: {'*': ['a:80']},\n"
        "        bind: '443', keep: [lua], allow_production: true, program: /opt/nginx}}\n  two: {}\n"
    )
    config = parse(text, "f.yaml")
    assert program_of(config, "two") is None
    assert program_of(config, "one") == ProgramSettings(
        kind="nginx",
        source="/candidate.conf",
        production="/nginx.conf",
        servers={"*": ["a:80"]},
        bind="443",
        keep=("lua",),
        allow_production=True,
        binary="/opt/nginx",
        addresses=("198.51.100.99:80", "*:80", "*:8080"),
    ), "this host's captured ports are production, too"


# The start


def test_listed_upstreams_need_no_child(make: Make) -> None:
    bench = make(LISTED)
    order = bench.pools.start()
    assert bench.started == {"scout": 0, "balancing": 0}
    assert [spec.address for spec in order.shadows[1].pool.upstreams] in (
        ["127.0.0.1:9000", "198.51.100.2:80"],
        ["[::1]:9000", "198.51.100.2:80"],
    )
    assert order is bench.pools.order


@pytest.mark.parametrize("address", ["198.51.100.99:80", "127.0.0.1:8080", "localhost:80"])
def test_production_is_refused_at_the_start(make: Make, address: str) -> None:
    with pytest.raises(UpstreamError, match=f"upstream '{address}' is the production address"):
        make(LISTED.replace("198.51.100.1:80", address)).pools.start()


def test_files_for_tls_that_workers_cannot_read_are_told(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    path.chmod(0o600)
    text = LISTED.replace('["198.51.100.1:80"]', f'["198.51.100.1:80"], balancer: {{tls: {{ca: {path}}}}}')
    bench = make(text)
    bench.pools._user = "nobody"
    with pytest.raises(
        LoadError, match=rf"shadows\.one\.balancer\.tls: user nobody cannot read {path}: give that user"
    ):
        bench.pools.start()


def test_programs_are_waited_for(make: Make) -> None:
    bench = make(PROGRAMS)
    fronts = (Front(80, "127.0.0.1:20001"), Front(443, "127.0.0.1:20002", True))
    bench.balancing.runs("two", Front(80, "127.0.0.1:20003"))
    bench.balancing.runs("one", *fronts)
    one, two = bench.pools.start().shadows
    assert (one.pool.fronts, two.pool.fronts) == (fronts, (Front(80, "127.0.0.1:20003"),))
    assert sorted(bench.balancing.asked) == ["one", "two"]
    assert bench.balancing.asked["one"].source == "/one.cfg"
    assert bench.pools.program_states() == {"one": True, "two": True}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            {"shadow": "two", "error": "shadows.two: /two.conf: refused by nginx: unknown directive"},
            "shadows.two: /two",
        ),
        (None, "it ended at once; what it printed above says why"),
        ({}, "not ready within 0 s"),
    ],
)
def test_a_program_that_cannot_be_started_is_told(make: Make, answer: dict[str, Any] | None, says: str) -> None:
    bench = make(PROGRAMS)
    bench.balancing.runs("one", Front(80, "127.0.0.1:20001"))
    if answer is None:
        bench.balancing.end.close()
    elif answer:
        messages.send(bench.balancing.end, answer)
    with pytest.raises(LoadError, match=f"the balancer program could not be started: {says}"):
        bench.pools.start()
    bench.pools.close()
    assert bench.balancing.process.waits == 1


def test_the_first_look_is_waited_for(make: Make) -> None:
    bench = make(FOUND)
    bench.scout.found("three", UpstreamSpec("198.51.100.31:80", 3, "c"), "198.51.100.32:80")
    bench.scout.found("two", problem="/pool.json: No such file or directory")
    order = bench.pools.start()
    assert bench.scout.asked == {"two": FileSource("/pool.json"), "three": DnsSource("a", 80)}
    assert order.shadows[2].pool.upstreams == (
        UpstreamSpec("198.51.100.31:80", 3, "c"),
        UpstreamSpec("198.51.100.32:80"),
    )
    assert order.shadows[1].pool.upstreams == ()
    assert bench.said == [
        "shadow three: 2 upstreams: 198.51.100.31:80, 198.51.100.32:80",
        "shadow two: /pool.json: No such file or directory",
    ]


@pytest.mark.parametrize("ended", [True, False])
def test_the_agent_starts_without_upstreams_all_the_same(make: Make, ended: bool) -> None:
    bench = make(FOUND)
    bench.scout.found("two", "198.51.100.21:80")
    if ended:
        bench.scout.end.close()
    bench.pools.start()
    assert bench.said == [
        "shadow two: 1 upstreams: 198.51.100.21:80",
        "shadow three: no upstreams are known yet; requests are dropped until some are found",
    ]


# What is found later


def test_what_is_found_is_told_to_the_workers(found: Bench) -> None:
    found.scout.found("two", "198.51.100.22:80", UpstreamSpec("198.51.100.21:80", 5))
    found.turn()
    ((place, pool),) = found.told
    assert place == 1
    assert pool.upstreams == (UpstreamSpec("198.51.100.22:80"), UpstreamSpec("198.51.100.21:80", 5))
    assert found.pools.order.shadows[1].pool == pool
    assert found.said == ["shadow two: 2 upstreams: 198.51.100.22:80, 198.51.100.21:80"]


def test_what_is_the_same_is_not_told(found: Bench) -> None:
    found.scout.found("two", "198.51.100.21:80", problem="no nameserver answers")
    found.scout.found("two", "198.51.100.21:80", problem="no nameserver answers")
    found.scout.found("two", "198.51.100.21:80")
    found.turn()
    assert found.told == []
    assert found.said == ["shadow two: no nameserver answers"], "once"
    found.scout.found("two", "198.51.100.21:80", problem="no nameserver answers")
    found.turn()
    assert len(found.said) == 2


def test_an_empty_pool_is_taken_at_its_word(found: Bench) -> None:
    found.scout.found("two")
    found.turn()
    assert [(place, pool.upstreams) for place, pool in found.told] == [(1, ())]
    assert found.told[0][1].replays, "some may still be found"


@pytest.mark.parametrize("address", ["198.51.100.99:80", "127.0.0.1:8080", "[::ffff:127.0.0.1]:80", "localhost:80"])
def test_production_is_not_taken_into_a_pool(found: Bench, address: str) -> None:
    found.scout.found("two", "198.51.100.22:80", address)
    found.turn()
    assert found.upstreams(1) == ["198.51.100.22:80"]
    assert any(f"upstream '{address}' is the production address" in line for line in found.said)
    status = found.pools.status({})["two"]
    assert "is the production address" in status["problem"]
    found.said.clear()
    found.scout.found("two", "198.51.100.22:80", address)
    found.turn()
    assert found.said == [], "it is said once"
    found.scout.found("two", address)
    found.turn()
    assert found.upstreams(1) == [], "and never used instead of none"
    found.scout.found("two", "198.51.100.22:80")
    found.turn()
    assert found.pools.status({})["two"]["problem"] == ""


def test_production_may_be_allowed(make: Make) -> None:
    bench = make(FOUND.replace("{file: /pool.json}", "{file: /pool.json}, balancer: {allow_production: true}"))
    bench.scout.found("two", "198.51.100.99:80")
    bench.pools.start()
    assert bench.upstreams(1) == ["198.51.100.99:80"]


def test_one_address_written_twice_is_one_upstream(found: Bench) -> None:
    found.scout.found("two", "198.51.100.22:80", "[::ffff:198.51.100.22]:80", "198.51.100.22:80")
    found.turn()
    assert found.upstreams(1) == ["198.51.100.22:80"]


def test_a_pool_too_long_to_be_told_leaves_the_old_one(found: Bench) -> None:
    found.too_long = True
    found.scout.found("two", "198.51.100.22:80")
    found.turn()
    assert found.upstreams(1) == ["198.51.100.21:80"]
    assert found.said == ["shadow two: the lists of upstreams are too long together: name fewer"]
    found.too_long = False
    found.scout.found("two", "198.51.100.22:80")
    found.turn()
    assert found.upstreams(1) == ["198.51.100.22:80"]


addresses = st.one_of(
    st.sampled_from(["198.51.100.99:80", "198.51.100.5:80", "[2001:db8::1]:80", "[2001:DB8::0:1]:80", "0.0.0.0:80"]),
    st.sampled_from(
        ["[::ffff:198.51.100.5]:80", "unix:/a", "unix:b", "127.0.0.1:80", "127.0.0.1:81", "", "x:0", "a:b"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(pool=st.lists(st.builds(UpstreamSpec, addresses, st.integers(0, 9), st.text(max_size=3)), max_size=6))
def test_whatever_is_found_the_service_lives(pool: list[UpstreamSpec]) -> None:
    config = parse(FOUND, "f.yaml")
    made = Pools(config, Order.of(config), USER, lambda line: None)
    for _ in range(2):
        made._hear_scout(scout.as_message("two", Found(tuple(pool), 0.0, "")))
        taken = [spec.address for spec in made.order.shadows[1].pool.upstreams]
        assert len(set(taken)) == len(taken)
        assert not {"198.51.100.99:80", "127.0.0.1:80", "0.0.0.0:80"} & set(taken)
        assert made.order.resolved() == made.order, "workers take it as it is"


# What people change


def test_a_listed_pool_is_changed_and_changed_back(make: Make) -> None:
    bench = make(LISTED).begin()
    before = bench.pools.order
    undo = bench.pools.change("one", [UpstreamSpec("198.51.100.5:80", 0), UpstreamSpec("127.0.0.1:9001")])
    ((place, pool),) = bench.told
    assert (place, pool) == (0, bench.pools.order.shadows[0].pool)
    assert pool.upstreams[0] == UpstreamSpec("198.51.100.5:80", 0)
    assert pool.upstreams[1].address in ("127.0.0.1:9001", "[::1]:9001"), "workers look nothing up"
    assert bench.pools.order.shadows[1:] == before.shadows[1:]
    undo()
    assert bench.pools.order == before
    assert bench.told[-1] == (0, before.shadows[0].pool)


def test_names_of_the_start_stay_what_they_were(make: Make) -> None:
    """The configuration says names, and a change of it says all upstreams: the others have to stay."""
    bench = make(LISTED).begin()
    before = bench.upstreams(1)
    bench.pools.change("two", [UpstreamSpec("localhost:9000", 3), UpstreamSpec("198.51.100.5:80")])
    assert bench.upstreams(1) == [before[0], "198.51.100.5:80"]
    with pytest.raises(UpstreamError, match="upstream 'localhost:9001': at run time, give the address in numbers"):
        bench.pools.change("two", [UpstreamSpec("localhost:9000"), UpstreamSpec("localhost:9001")])
    with pytest.raises(UpstreamError, match="localhost:9000"):
        bench.pools.change("one", [UpstreamSpec("localhost:9000")])


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("198.51.100.99:80", "is the production address"),
        ("127.0.0.1:80", "is the production address"),
        ("no-such-host.invalid:80", "at run time, give the address in numbers"),
        ("198.51.100.1:80", "is listed twice"),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(make: Make, address: str, says: str) -> None:
    bench = make(LISTED).begin()
    before = bench.pools.order
    with pytest.raises(UpstreamError, match=says):
        bench.pools.change("one", [UpstreamSpec("198.51.100.1:80"), UpstreamSpec(address)])
    bench.too_long = True
    with pytest.raises(UpstreamError, match="too long"):
        bench.pools.change("one", [UpstreamSpec("198.51.100.5:80")])
    assert (bench.pools.order, bench.told) == (before, [])


def test_pools_that_are_not_listed_are_not_for_people(found: Bench) -> None:
    with pytest.raises(UpstreamError, match="shadow two: its upstreams are not listed"):
        found.pools.change("two", [UpstreamSpec("198.51.100.5:80")])
    found.pools.change("one", [UpstreamSpec("198.51.100.5:80")])


def test_a_program_s_pool_is_not_for_people(programs: Bench) -> None:
    with pytest.raises(UpstreamError, match="shadow one: its upstreams are not listed"):
        programs.pools.change("one", [UpstreamSpec("198.51.100.5:80")])


# Programs


def test_a_death_and_a_return_are_said(programs: Bench) -> None:
    fronts = programs.pools.order.shadows[1].pool.fronts
    programs.balancing.runs("two", *fronts, state=balancing.DEAD, problem="nginx died: it said nothing")
    programs.turn()
    assert programs.pools.program_states() == {"one": True, "two": False}
    programs.balancing.runs("two", *fronts, problem="nginx died: it said nothing", restarts=1)
    programs.balancing.runs("two", *fronts, restarts=1)
    programs.turn()
    assert programs.pools.program_states() == {"one": True, "two": True}
    assert programs.said == [
        "shadow two: nginx died: it said nothing",
        "shadow two: the balancer program runs well again",
    ]
    assert programs.told == [], "it listens where it did"


def test_new_addresses_are_told_to_the_workers(programs: Bench) -> None:
    programs.balancing.runs("one", Front(80, "127.0.0.1:20009"), reloads=1, changes=7)
    programs.turn()
    ((place, pool),) = programs.told
    assert (place, pool.fronts) == (0, (Front(80, "127.0.0.1:20009"),))
    assert programs.said == ["shadow one: the changed configuration was taken over (7 changes)"]


def test_the_end_of_the_process_is_the_end_of_its_programs(programs: Bench) -> None:
    programs.balancing.end.close()
    programs.turn()
    assert programs.pools.program_states() == {"one": False, "two": False}
    assert programs.said == ["the process that runs the balancer programs died, and they with it: restart the agent"]
    assert len(programs.selector.get_map()) == 0
    programs.pools.look(time.monotonic() + 1000)
    assert programs.started["balancing"] == 1


# What is shown


def test_the_status_of_each_kind(found: Bench, make: Make) -> None:
    states = {"one": {"198.51.100.1:80": {"well": 2}}}
    found.scout.found("three", problem="a has no A record")
    found.turn()
    assert found.pools.status(states) == {
        "one": {"engine": "embedded", "upstreams": ["198.51.100.1:80"], "states": states["one"]},
        "two": {"engine": "embedded", "upstreams": ["198.51.100.21:80"], "problem": "", "states": {}},
        "three": {"engine": "embedded", "upstreams": [], "problem": "a has no A record", "states": {}},
    }
    assert found.pools.program_states() == {}


def test_the_status_of_programs(programs: Bench) -> None:
    shown = programs.pools.status({"two": {"127.0.0.1:20003": {"well": 1}}})
    well = {"state": "running", "restarts": 0, "reloads": 0, "changes": 5, "problem": ""}
    assert shown == {
        "one": {"engine": "haproxy", "upstreams": ["127.0.0.1:20001", "127.0.0.1:20002"], **well, "states": {}},
        "two": {
            "engine": "nginx",
            "upstreams": ["127.0.0.1:20003"],
            **well,
            "states": {"127.0.0.1:20003": {"well": 1}},
        },
    }
    json.dumps(shown)


# Children that end


def test_discovery_that_died_is_started_again_after_ever_longer_pauses(found: Bench) -> None:
    pauses = []
    for number in range(1, 9):
        found.scout.end.close()
        found.turn()
        assert found.scout.process.waits == 1, "nothing of it is left"
        assert len(found.selector.get_map()) == 0
        began_s = time.monotonic()
        pauses.append(round(found.pools._scout_due_s - began_s))
        found.pools.look(began_s)
        assert found.started["scout"] == number, "not at once"
        found.pools.look(found.pools._scout_due_s)
        assert found.started["scout"] == number + 1
        found.pools.look(began_s + 1e6)
        assert found.started["scout"] == number + 1, "there is one"
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert found.said == ["discovery died: the upstreams stay as they are, and it is started again"] * 8
    assert found.upstreams(1) == ["198.51.100.21:80"]
    found.scout.found("two", "198.51.100.23:80")
    found.turn()
    assert found.upstreams(1) == ["198.51.100.23:80"], "the new one is heard"


def test_discovery_that_has_lived_for_long_is_started_again_soon(found: Bench) -> None:
    for _ in range(3):
        found.scout.end.close()
        found.turn()
        found.pools.look(found.pools._scout_due_s)
    found.pools._scout_due_s -= 100
    found.scout.end.close()
    found.turn()
    assert found.pools._scout_due_s - time.monotonic() <= SCOUT_AGAIN_MIN_S


def test_nothing_is_started_that_is_not_asked_for(make: Make) -> None:
    bench = make(LISTED).begin()
    bench.pools.look(time.monotonic() + 1000)
    assert bench.started == {"scout": 0, "balancing": 0}


def test_the_end_is_told_to_all_and_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make(FOUND + "  four: {balancer: {engine: haproxy, from: /four.cfg}}\n")
    bench.balancing.runs("four", Front(80, "127.0.0.1:20001"))
    bench.scout.found("two")
    bench.scout.found("three")
    bench.begin()
    bench.balancing.process.stuck = True
    bench.pools.close()
    for child in (bench.scout, bench.balancing):
        assert messages.receive(child.end) is None
    assert len(bench.selector.get_map()) == 0
    assert (bench.scout.process.killed, bench.balancing.process.killed) == (False, True)
    bench.pools.close()
    assert bench.scout.process.waits == 1


def test_nothing_to_hear_is_no_end(found: Bench) -> None:
    found.pools.take(found.scout.ours)
    assert found.said == []


# With children of flesh and blood


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_real_scout_is_heard_killed_and_heard_again() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "pool.json")
        path.parent.chmod(0o755)
        said: list[str] = []
        told: list[tuple[int, PoolOrder]] = []

        def write(*targets: str) -> None:
            path.with_suffix(".new").write_text(json.dumps([{"targets": targets}]))
            path.with_suffix(".new").rename(path)

        write("198.51.100.1:80")
        config = parse(HEAD + f"  one: {{discovery: {{file: {path}}}}}\n", "f.yaml")
        pools = Pools(config, Order.of(config), USER, said.append)
        selector = selectors.DefaultSelector()

        def heard(address: str) -> bool:
            for key, _ in selector.select(0):
                pools.take(key.fileobj)
            pools.look(time.monotonic())
            return [spec.address for spec in pools.order.shadows[0].pool.upstreams] == [address]

        try:
            pools.start()
            pools.watch(selector, lambda place, pool: told.append((place, pool)))
            assert heard("198.51.100.1:80")
            write("198.51.100.2:80", "198.51.100.99:80")
            until(lambda: heard("198.51.100.2:80"))
            assert pools._scout is not None
            pools._scout[0].kill()
            until(lambda: not heard("198.51.100.2:80") or pools._scout is None)
            write("198.51.100.3:80")
            until(lambda: heard("198.51.100.3:80"))
            assert [pool.upstreams[0].address for _, pool in told] == ["198.51.100.2:80", "198.51.100.3:80"]
            (process, _) = cast(Any, pools._scout)
        finally:
            pools.close()
            selector.close()
        assert process.returncode == 0


def test_a_real_program_is_started_and_ended(tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n"
        "frontend web\n bind :80\n default_backend app\nbackend app\n server web1 198.51.100.10:8080\n"
    )
    balancer = f"{{engine: haproxy, from: {path}, servers: {{'*': '198.51.100.20:80'}}}}"
    config = parse(HEAD + f"  one: {{balancer: {balancer}}}\n", "f.yaml")
    pools = Pools(config, Order.of(config), USER, lambda line: None)
    try:
        (front,) = pools.start().shadows[0].pool.fronts
        host, _, port = front.address.partition(":")
        socket.create_connection((host, int(port)), 5).close()
    finally:
        pools.close()
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0


def test_a_real_program_that_is_this_host_s_own_port_is_refused(tmp_path: Path) -> None:
    """It would ask production, which would be copied, which would ask production ..."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(
        "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n"
        "frontend web\n bind :80\n default_backend app\nbackend app\n server web1 198.51.100.10:8080\n"
    )
    balancer = f"{{engine: haproxy, from: {path}, servers: {{'*': '127.0.0.1:80'}}}}"
    config = parse(HEAD + f"  one: {{balancer: {balancer}}}\n", "f.yaml")
    pools = Pools(config, Order.of(config), USER, lambda line: None)
    try:
        with pytest.raises(LoadError, match=r"which is production's 127\.0\.0\.1:80: map it in balancer\.servers"):
            pools.start()
    finally:
        pools.close()


def test_a_process_that_cannot_begin_is_told(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = parse(PROGRAMS, "f.yaml")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pools = Pools(config, Order.of(config), USER, lambda line: None)
    try:
        with pytest.raises(LoadError, match="it ended at once; what it printed above says why"):
            pools.start()
    finally:
        pools.close()
