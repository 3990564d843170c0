"""What a worker is ordered to do: the part of the configuration it needs, there and back as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.config import parse
from agent.order import Order
from replay.errors import UpstreamError
from replay.recording import RecordingSettings

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


def test_every_setting_reaches_its_stage() -> None:
    found = order()
    assert (found.shadow, found.upstreams) == ("candidate", ("198.51.100.1:80", "198.51.100.2:80"))
    assert found.production == ("198.51.100.9:80", "*:80", "*:8080")
    assert (found.methods, found.ports) == (("GET", "POST"), (80, 8080))
    assert (found.poll_s, found.stop_timeout_s, found.nice, found.scheduler) == (0.002, 4, 5, "idle")
    assert (found.http.body_limit_bytes, found.http.hash_bodies) == (1000, True)
    replay = found.replay
    assert (replay.timeout_s, replay.connect_timeout_s, replay.queue_timeout_s) == (3, 0.5, 2)
    assert (replay.max_connections, replay.queue_entries, replay.queue_bytes) == (9, 77, 2 << 20)
    assert replay.body_limit_bytes == 1000
    assert found.directory == Path("/tmp/x")
    assert RecordingSettings(**found.recording) == RecordingSettings(3 << 20, 60, 50 << 20, 7)


def test_there_and_back() -> None:
    for text in (TEXT, "capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\n"):
        found = order(text)
        assert Order.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_disabled_shadow_has_no_upstreams() -> None:
    found = order(TEXT.replace("candidate:", "candidate:\n    enabled: false"))
    assert found.upstreams == ()


def test_the_balancer_refuses_production() -> None:
    assert [upstream.name for upstream in order().balancer().upstreams] == ["198.51.100.1:80", "198.51.100.2:80"]
    for address in ("198.51.100.9:80", "127.0.0.1:8080"):
        with pytest.raises(UpstreamError, match="is the production address"):
            order(TEXT.replace("198.51.100.1:80", address)).balancer()
    order(TEXT.replace("198.51.100.1:80", "127.0.0.1:81")).balancer()


def test_the_service_needs_no_recording() -> None:
    found = order("capture: {interface: lo, ports: [80]}\nshadows: {a: {}}\n")
    assert (found.directory, found.recording) == (None, {})
