"""What a worker is ordered to do: the part of the configuration it needs, there and back as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.layout import PPM
from agent.config import parse
from agent.order import Order, ShadowOrder
from agent.pool_order import PoolOrder
from agent.select.choice import Rule
from agent.select.client_address import ClientAddress, client_address
from agent.select.criteria import Always
from agent.select.language import parse as criteria
from agent.select.sampling import EVERYTHING, By, Window
from replay.errors import UpstreamError
from replay.recording import RecordingSettings
from replay.settings import ReplaySettings
from tests.agent.select import trees

TEXT = """
capture: {interface: lo, ports: [80, 8080], poll_ms: 2, nice: 5, scheduler: idle}
shadows:
  candidate:
    upstreams: ["198.51.100.1:80", "198.51.100.2:80"]
    methods: [GET, POST]
    timeout_s: 3
    connect_timeout_s: 0.5
    queue_timeout_s: 2
    max_connections: 9
    queue_entries: 77
    queue_mib: 2
http: {body_limit_bytes: 1000, hash_bodies: true}
recording: {directory: /tmp/x, rotate_mib: 3, rotate_s: 60, limit_mib: 50, exemplars: 7}
production: ["198.51.100.9:80"]
stop_timeout_s: 4
"""


def order(text: str = TEXT) -> Order:
    return Order.of(parse(text, "f.yaml"))


MINIMAL = "capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\n"
SEVERAL = """
capture: {interface: lo, ports: [80]}
shadows:
  one: {percentage: 1, criteria: 'header:X-Test and not (geo:DE or cidr:2001:db8::/32)', sample_by: client}
  two:
    {percentage: 10, exclusive: true, sample_by: 'header:X-User', upstreams: ["198.51.100.1:80"], methods: [PUT],
     criteria: 'path:~"^/a (b|c)"'}
  three: {percentage: 20, exclusive: true, sample_by: 'header:X-User', enabled: false, queue_mib: 3}
geo: {database: /var/lib/some.mmdb}
client: {source: X-Forwarded-For, trusted: [10.0.0.0/8, "2001:db8::/32"]}
recording: {directory: /tmp/x, rotate_mib: 3, limit_mib: 48}
seed: 77
"""


def test_every_setting_reaches_its_stage() -> None:
    found = order()
    (shadow,) = found.shadows
    assert (shadow.name, addresses(shadow.pool)) == ("candidate", ["198.51.100.1:80", "198.51.100.2:80"])
    assert found.production == ("198.51.100.9:80", "*:80", "*:8080")
    assert (shadow.rule.methods, found.ports) == (("GET", "POST"), (80, 8080))
    assert (found.poll_s, found.stop_timeout_s, found.nice, found.scheduler) == (0.002, 4, 5, "idle")
    assert (found.http.body_limit_bytes, found.http.hash_bodies, found.http.proxy_protocol) == (1000, True, False)
    replay = shadow.replay
    assert (replay.timeout_s, replay.connect_timeout_s, replay.queue_timeout_s) == (3, 0.5, 2)
    assert (replay.max_connections, replay.queue_entries, replay.queue_bytes) == (9, 77, 2 << 20)
    assert replay.body_limit_bytes == 1000
    assert found.directory_of("candidate") == Path("/tmp/x")
    assert RecordingSettings(**found.recording) == RecordingSettings(3 << 20, 60, 50 << 20, 7)


def test_every_setting_of_each_shadow_reaches_its_rule() -> None:
    found = order(SEVERAL)
    one, two, three = found.shadows
    text = "header:X-Test and not (geo:DE or cidr:2001:db8::/32)"
    base = Rule(mark=ReplaySettings().mark, dry_run=True)
    assert base.mark, "our own traffic is told by its mark"
    assert one.rule == replace(base, criteria=criteria(text), by=By.CLIENT, window=Window(0, 10_000))
    assert two.rule == replace(
        base, criteria=criteria('path:~"^/a (b|c)"'), by=By.HEADER, name="x-user", window=Window(0, 100_000),
        methods=("PUT",), dry_run=False,
    )  # fmt: skip
    assert three.rule == replace(base, by=By.HEADER, name="x-user", window=Window(100_000, 300_000), enabled=False), (
        "an exclusive window begins where the one before ends"
    )
    assert [shadow.replay.queue_bytes >> 20 for shadow in found.shadows] == [16, 16, 3]
    assert (found.seed, found.geo_database) == (77, "/var/lib/some.mmdb")
    assert found.client == client_address("x-forwarded-for", ["10.0.0.0/8", "2001:db8::/32"])
    assert found.needs_geography and not order().needs_geography
    assert found.replays and not order(MINIMAL).replays


def test_several_shadows_share_the_place_of_the_recording() -> None:
    found = order(SEVERAL)
    assert [found.directory_of(name) for name in ("one", "two")] == [Path("/tmp/x/one"), Path("/tmp/x/two")]
    assert found.recording["directory_bytes"] == 16 << 20


def test_the_defaults_take_everything_and_send_nothing() -> None:
    (shadow,) = order(MINIMAL).shadows
    assert (shadow.rule.criteria, shadow.rule.window, shadow.rule.by) == (Always(), EVERYTHING, By.CONNECTION)
    assert shadow.rule.dry_run and shadow.rule.enabled
    assert Order().shadows == (ShadowOrder(),)


@pytest.mark.parametrize("text", [TEXT, SEVERAL, MINIMAL, MINIMAL + "client: {source: proxy_protocol}\n"])
def test_there_and_back(text: str) -> None:
    found = order(text)
    assert Order.from_json(json.loads(json.dumps(found.as_json()))) == found
    for shadow in found.shadows:
        assert ShadowOrder.from_json(json.loads(json.dumps(shadow.as_json()))) == shadow


texts = st.text(st.characters(max_codepoint=0xFF), max_size=10)
rules = st.builds(
    Rule,
    enabled=st.booleans(),
    criteria=trees.criteria(),
    by=st.sampled_from(By),
    name=texts,
    window=st.builds(Window, st.integers(0, PPM), st.integers(0, PPM)),
    methods=st.lists(texts, max_size=3).map(tuple),
    mark=st.binary(max_size=8),
    dry_run=st.booleans(),
)


@given(st.lists(st.builds(ShadowOrder, name=texts, rule=rules), min_size=1, max_size=3))
def test_any_rule_comes_back_from_json(shadows: list[ShadowOrder]) -> None:
    found = Order(shadows=tuple(shadows))
    assert Order.from_json(json.loads(json.dumps(found.as_json()))) == found


@pytest.mark.parametrize(
    ("text", "in_kernel"),
    [
        (TEXT, True),
        (MINIMAL, True),
        (SEVERAL, False),
        (MINIMAL + "client: {source: proxy_protocol}\n", False),
        (MINIMAL + "client: {source: X-Forwarded-For, trusted: [10.0.0.0/8]}\n", False),
        (MINIMAL.replace("{a: {}}", "{a: {}, b: {}}"), False),
    ],
)
def test_the_kernel_decides_alone_for_one_shadow_of_plain_clients(text: str, in_kernel: bool) -> None:
    found = order(text)
    assert found.in_kernel is in_kernel
    assert found.http.proxy_protocol is (found.client == ClientAddress("proxy_protocol"))


def test_a_disabled_shadow_is_ready_to_be_enabled() -> None:
    """It keeps its upstreams: they are connected to, and checked, from the start."""
    found = order(TEXT.replace("candidate:", "candidate:\n    enabled: false"))
    assert not found.shadows[0].rule.enabled
    assert found == replace(order(), shadows=(replace(order().shadows[0], rule=found.shadows[0].rule),))


def addresses(pool: PoolOrder) -> list[str]:
    return [spec.address for spec in pool.upstreams]


def upstreams(found: Order) -> list[str]:
    return [upstream.name for upstream in found.shadows[0].pool.engine(found.production).upstreams]


def test_the_balancer_refuses_production() -> None:
    assert upstreams(order()) == ["198.51.100.1:80", "198.51.100.2:80"]
    for address in ("198.51.100.9:80", "127.0.0.1:8080"):
        with pytest.raises(UpstreamError, match="is the production address"):
            upstreams(order(TEXT.replace("198.51.100.1:80", address)))
    upstreams(order(TEXT.replace("198.51.100.1:80", "127.0.0.1:81")))


def test_names_are_resolved_once_for_every_worker() -> None:
    found = order(TEXT.replace("198.51.100.1:80", "localhost:81")).resolved()
    assert found.shadows[0].pool.upstreams[0].address in ("127.0.0.1:81", "[::1]:81")
    assert order(SEVERAL).resolved() == order(SEVERAL), "where there is nothing to resolve, nothing changes"
    with pytest.raises(UpstreamError, match="is the production address"):
        order(TEXT.replace("198.51.100.2:80", "198.51.100.9:80")).resolved()


def test_the_service_needs_no_recording() -> None:
    found = order(MINIMAL)
    assert (found.directory_of("a"), found.recording) == (None, {})
