"""A pool as workers are told of it: from the configuration, there and back as JSON, and the engine that comes of it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import trustme
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.config import parse
from agent.pool_order import Front, PoolOrder, pool_order, specs_as_json, specs_from_json
from replay.balancer.engine import Embedded, Program
from replay.balancer.policy import POLICIES
from replay.balancer.settings import (
    BalancerSettings,
    HashBy,
    HealthCheck,
    OutlierSettings,
    TlsSettings,
    UpstreamSpec,
)
from replay.balancer.upstream import PLAIN, Transport, Upstream
from replay.errors import UpstreamError
from replay.exchange import Dropped
from replay.via import Via
from tests.replay.harness import From, make_request

ANYWHERE: tuple[str, ...] = ()
FRONTS = (Front(443, "127.0.0.1:20443", True), Front(80, "127.0.0.1:20080"), Front(443, "127.0.0.1:29999"))


def order_of(**shadow: Any) -> PoolOrder:
    text = yaml.safe_dump({"capture": {"interface": "lo", "ports": [80]}, "shadows": {"candidate": shadow}})
    return pool_order(parse(text, "f.yaml").shadows["candidate"])


def specs(*addresses: str) -> tuple[UpstreamSpec, ...]:
    return tuple(map(UpstreamSpec, addresses))


def program(kind: str = "haproxy", tls: TlsSettings | None = None) -> PoolOrder:
    return PoolOrder(fronts=FRONTS, program=kind, balancer=BalancerSettings(tls=tls))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pem") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


# From the configuration


def test_what_is_not_said_is_the_engine_s_default() -> None:
    made = order_of(upstreams=["198.51.100.1:80"])
    assert made == PoolOrder(specs("198.51.100.1:80"))
    assert made.balancer == BalancerSettings()
    assert made.replays and not order_of().replays


def test_every_setting_reaches_the_engine() -> None:
    made = order_of(
        upstreams=["198.51.100.1:80", {"address": "198.51.100.2:80", "weight": 3, "cookie": "b"}],
        balancer={
            "policy": "maglev",
            "hash_by": "cookie:session",
            "slow_start_s": 30,
            "sticky_cookie": "SRV",
            "sticky_entries": 99,
            "panic_percent": 25,
            "max_requests": 7,
            "health_check": {
                "type": "http", "path": "/health", "host": "shop", "statuses": "200-299, 404", "body": "ok",
                "interval_s": 3, "jitter_percent": 20, "timeout_s": 2, "rise": 4, "fall": 5,
            },
            "outlier": {
                "consecutive_errors": 9, "statuses": "502-504", "ejection_s": 11, "ejection_max_s": 12,
                "ejected_max_percent": 10,
            },
            "tls": {"verify": False, "server_name": "", "ca": "/ca", "certificate": "/own", "key": "/key"},
            "proxy_protocol": True,
            "forwarded_for": False,
            "allow_production": True,
        },
    )  # fmt: skip
    assert made.upstreams == (UpstreamSpec("198.51.100.1:80"), UpstreamSpec("198.51.100.2:80", 3, "b"))
    assert made.allow_production and not made.changes and not made.program
    assert made.balancer == BalancerSettings(
        policy="maglev",
        hash_by=HashBy("cookie", "session"),
        slow_start_s=30.0,
        sticky_cookie="SRV",
        sticky_entries=99,
        panic_ratio=0.25,
        max_requests=7,
        health=HealthCheck("http", "/health", "shop", ((200, 299), (404, 404)), "ok", 3.0, 0.2, 2.0, 4, 5),
        outlier=OutlierSettings(9, ((502, 504),), 11.0, 12.0, 0.1),
        tls=TlsSettings(False, "", "/ca", "/own", "/key"),
        proxy_protocol=True,
        forwarded_for=False,
    )


def test_a_program_and_a_discovery_have_no_upstreams_yet() -> None:
    made = order_of(balancer={"engine": "nginx", "from": "/nginx.conf", "tls": {"server_name": "shop.example"}})
    assert (made.program, made.upstreams, made.fronts, made.replays) == ("nginx", (), (), True)
    assert made.balancer == BalancerSettings(tls=TlsSettings(server_name="shop.example"))
    found = order_of(discovery={"file": "/pool.json"})
    assert (found.changes, found.upstreams, found.replays) == (True, (), True)


# JSON

words = st.text(max_size=5)
seconds = st.floats(0, 1000)
ranges = st.lists(st.tuples(st.integers(100, 599), st.integers(100, 599)), max_size=3).map(tuple)
upstreams = st.builds(UpstreamSpec, words, st.integers(0, 1000), words)
balancers = st.builds(
    BalancerSettings,
    policy=st.sampled_from(sorted(POLICIES)),
    hash_by=st.builds(HashBy, words, words),
    seed=st.integers(0, 1 << 64),
    slow_start_s=seconds,
    sticky_cookie=words,
    max_requests=st.integers(0, 9),
    health=st.none() | st.builds(HealthCheck, kind=words, statuses=ranges, interval_s=seconds, fall=st.integers(1, 9)),
    outlier=st.none() | st.builds(OutlierSettings, statuses=ranges, ejection_s=seconds),
    tls=st.none() | st.builds(TlsSettings, st.booleans(), words, words, words, words),
    proxy_protocol=st.booleans(),
    forwarded_for=st.booleans(),
)
orders = st.builds(
    PoolOrder,
    upstreams=st.lists(upstreams, max_size=3).map(tuple),
    balancer=balancers,
    fronts=st.lists(st.builds(Front, st.integers(0, 65535), words, st.booleans()), max_size=2).map(tuple),
    program=st.sampled_from(["", "haproxy", "nginx"]),
    changes=st.booleans(),
    allow_production=st.booleans(),
)


@given(orders)
def test_there_and_back(order: PoolOrder) -> None:
    back = PoolOrder.from_json(json.loads(json.dumps(order.as_json())))
    assert back == order
    assert hash(back.balancer) == hash(order.balancer), "no list is left in it"


def test_everything_is_told() -> None:
    """A field that is added has to be in both directions."""
    assert set(PoolOrder().as_json()) == {field.name for field in fields(PoolOrder)}


@given(st.lists(upstreams, max_size=4).map(tuple))
def test_upstreams_there_and_back(pool: tuple[UpstreamSpec, ...]) -> None:
    assert specs_from_json(json.loads(json.dumps(specs_as_json(pool)))) == pool


def test_an_address_alone_is_told_as_such() -> None:
    pool = (
        UpstreamSpec("198.51.100.1:80"),
        UpstreamSpec("198.51.100.2:80", 3),
        UpstreamSpec("198.51.100.3:80", 1, "c"),
    )
    assert specs_as_json(pool) == ["198.51.100.1:80", ["198.51.100.2:80", 3, ""], ["198.51.100.3:80", 1, "c"]]


# Names and production


def test_names_become_the_addresses_that_were_checked() -> None:
    made = PoolOrder((UpstreamSpec("localhost:8080", 3, "c"), UpstreamSpec("[2001:DB8:0::1]:80")))
    (first, second) = made.resolved(ANYWHERE).upstreams
    assert first in (UpstreamSpec("127.0.0.1:8080", 3, "c"), UpstreamSpec("[::1]:8080", 3, "c"))
    assert second == UpstreamSpec("[2001:db8::1]:80")
    assert made.resolved(ANYWHERE).resolved(ANYWHERE) == made.resolved(ANYWHERE)


def test_nothing_to_resolve() -> None:
    for made in (PoolOrder(), PoolOrder(changes=True), program()):
        assert made.resolved(("*:80",)) == made


@pytest.mark.parametrize("production", ["198.51.100.1:80", "*:8080", "127.0.0.1:8080", "0.0.0.0:8080"])
@pytest.mark.parametrize("address", ["198.51.100.1:80", "localhost:8080"])
def test_production_is_no_shadow_unless_it_is_allowed(production: str, address: str) -> None:
    made = PoolOrder(specs("198.51.100.7:80", address))
    if ("198" in production) is not ("198" in address):
        assert made.resolved((production,)).upstreams[1]
        return
    with pytest.raises(UpstreamError, match=f"upstream '{address}' is the production address"):
        made.resolved((production,))
    with pytest.raises(UpstreamError, match="is the production address"):
        made.engine((production,))
    allowed = replace(made, allow_production=True)
    assert len(allowed.resolved((production,)).upstreams) == 2
    assert len(allowed.engine((production,)).upstreams) == 2


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        (specs("198.51.100.1:80", "198.51.100.1:80"), "listed twice"),
        (specs("no-such-host.invalid:80"), "does not resolve"),
        (specs("0.0.0.0:80"), "not the address of one host"),
        (specs("unix:relative"), "write a Unix socket as unix:/its/path"),
    ],
)
def test_a_pool_that_cannot_be(pool: tuple[UpstreamSpec, ...], says: str) -> None:
    with pytest.raises(UpstreamError, match=says):
        PoolOrder(pool).resolved(ANYWHERE)


# Engines


def test_the_embedded_engine(ca: str) -> None:
    balancer = BalancerSettings(policy="weighted", tls=TlsSettings(server_name="a", ca=ca), proxy_protocol=True)
    made = PoolOrder((UpstreamSpec("198.51.100.1:80", 3), UpstreamSpec("198.51.100.2:80", cookie="b")), balancer)
    engine = made.engine(ANYWHERE)
    assert isinstance(engine, Embedded)
    assert [(u.name, u.weight, u.cookie) for u in engine.upstreams] == [
        ("198.51.100.1:80", 3, ""),
        ("198.51.100.2:80", 1, "b"),
    ]
    transports = {u.transport for u in engine.upstreams}
    assert len(transports) == 1, "one context for all"
    (transport,) = transports
    assert transport.tls is not None
    assert (transport.server_name, transport.proxy_protocol, transport.forwarded_for) == ("a", True, True)


def test_by_default_it_is_plain_and_names_the_client() -> None:
    (upstream,) = PoolOrder(specs("198.51.100.1:80")).engine(ANYWHERE).upstreams
    assert upstream.transport == Transport(forwarded_for=True)
    assert PoolOrder(specs("198.51.100.1:80")).pool(ANYWHERE)[0].transport == PLAIN, (
        "to see who is there takes no context"
    )


def test_upstreams_that_are_still_to_be_found() -> None:
    engine = PoolOrder(changes=True).engine(ANYWHERE)
    assert isinstance(engine, Embedded)
    assert engine.assign(make_request()) is Dropped.NO_UPSTREAM


def test_a_program_by_the_port_that_production_took_it_on(ca: str) -> None:
    engine = program(tls=TlsSettings(ca=ca)).engine(ANYWHERE)
    assert isinstance(engine, Program)

    def name(server: str | None) -> str:
        upstream = engine.assign(make_request(), From(server=server) if server else None)
        assert not isinstance(upstream, Dropped)
        return upstream.name

    assert name("203.0.113.1:443") == name("[2001:db8::1]:443") == "127.0.0.1:20443", "the first of a port counts"
    assert name("203.0.113.1:80") == "127.0.0.1:20080"
    assert name("203.0.113.1:8080") == name(None) == "127.0.0.1:20443", "the first of all is for the rest"


def test_two_addresses_with_one_port_are_two_fronts() -> None:
    first, second = Front(80, "127.0.0.1:1", host="203.0.113.1"), Front(80, "127.0.0.1:2", host="2001:db8::2")
    engine = PoolOrder(program="haproxy", fronts=(first, second)).engine(ANYWHERE)
    servers = ("203.0.113.1:80", "[2001:db8::2]:80", "192.0.2.1:80")
    found = [engine.assign(make_request(), From(server=server)) for server in servers]
    assert [each.name for each in found if not isinstance(each, Dropped)] == [f"127.0.0.1:{n}" for n in (1, 2, 1)]


def routed(order: PoolOrder) -> tuple[dict[str, Upstream], Upstream]:
    return order.routes(order.transport)


def test_how_requests_travel_to_a_program(ca: str) -> None:
    fronts, default = routed(program(tls=TlsSettings(server_name="shop.example", ca=ca)))
    assert (fronts["*:443"], sorted(fronts)) == (default, ["*:443", "*:80"])
    assert fronts["*:443"].transport.tls is not None and fronts["*:80"].transport.tls is None
    for upstream in fronts.values():
        transport = upstream.transport
        assert (transport.proxy_protocol, transport.forwarded_for) == (True, False), "production's own file says more"
        assert transport.via_header == b"x-shadowtap-upstream"
    assert fronts["*:443"].transport.server_name == "shop.example"


@pytest.mark.parametrize(
    ("kind", "value"),
    [("haproxy", b"app/web1 198.51.100.9:8080 0 1 2"), ("nginx", b"198.51.100.9:8080;0.001;app;")],
)
def test_each_program_says_it_in_its_own_way(kind: str, value: bytes) -> None:
    (upstream, *_) = program(kind).engine(ANYWHERE).upstreams
    read = upstream.transport.read_via
    assert read is not None
    via = read(value)
    assert isinstance(via, Via)
    assert via.upstream == "198.51.100.9:8080"


def test_a_program_without_tls_reads_no_file() -> None:
    plain = replace(program(tls=TlsSettings(ca="/no/such/file")), fronts=FRONTS[1:2])
    assert plain.transport.tls is None
    assert [each.name for each in plain.engine(ANYWHERE).upstreams] == ["127.0.0.1:20080"]


@pytest.mark.parametrize("made", [program(tls=TlsSettings(ca="/no/ca.pem")), PoolOrder(specs("198.51.100.1:80"))])
def test_a_file_for_tls_that_is_not_there(made: PoolOrder) -> None:
    made = replace(made, balancer=BalancerSettings(tls=TlsSettings(ca="/no/ca.pem")))
    with pytest.raises(UpstreamError, match=r"tls ca '/no/ca\.pem': no such file or directory"):
        _ = made.transport
    with pytest.raises(UpstreamError, match="no such file"):
        made.engine(ANYWHERE)


def test_a_worker_that_is_told_has_the_same_engine() -> None:
    made = order_of(upstreams=["198.51.100.1:80", "198.51.100.2:80"], balancer={"policy": "least_request"})
    told = PoolOrder.from_json(json.loads(json.dumps(made.resolved(ANYWHERE).as_json())))
    assert [u.name for u in told.engine(("*:80",)).upstreams] == ["198.51.100.1:80", "198.51.100.2:80"]
