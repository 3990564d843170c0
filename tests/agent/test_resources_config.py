"""The configuration of resources: what may be written, and what each rule says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.resources_config import PoolSources, RequestCounter, Resources, Target, parse_target

SHADOW = {"candidate": {"targets": ["10.0.0.21:9100"]}}


def resources(**changes: Any) -> Resources:
    return Resources.model_validate({"production": {"targets": ["10.0.0.11:9100"]}, "shadows": SHADOW, **changes})


def refused(**changes: Any) -> str:
    with pytest.raises(ValidationError) as error:
        resources(**changes)
    return str(error.value)


@pytest.mark.parametrize(
    "text, target",
    [
        ("10.0.0.11:9100", Target(False, "10.0.0.11", 9100, "/metrics")),
        ("app.example:80/", Target(False, "app.example", 80, "/metrics")),
        ("127.0.0.1:8404/stats?a=b", Target(False, "127.0.0.1", 8404, "/stats?a=b")),
        ("[2001:db8::1]:9100", Target(False, "2001:db8::1", 9100, "/metrics")),
        ("http://app.example", Target(False, "app.example", 80, "/metrics")),
        ("https://app.example/m", Target(True, "app.example", 443, "/m")),
        ("https://app.example:9443", Target(True, "app.example", 9443, "/metrics")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "not an address"),
        ("app.example", "port is missing"),
        ("app.example/metrics", "port is missing"),
        ("app.example:99999", "not an address"),
        ("app.example:0", "not an address"),
        ("app.example:x", "not an address"),
        ("[::1:9100", "not an address"),
        (":9100", "not an address"),
        ("ftp://app.example", "not an address"),
        ("unix:///run/app.sock", "not an address"),
        ("app.example:80/a b", "not an address"),
        ("app.example:80/\r\nX: y", "not an address"),
        ("app.example:80/#a", "not an address"),
        ("http://me:secret@app.example", "password"),
    ],
)
def test_what_is_no_target_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_target(text)
    assert says in refused(production={"targets": [text]})


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except ValueError:
        return
    assert target.host and 0 <= target.port <= 65535 and target.path.startswith("/")


def test_what_is_not_said_has_a_default() -> None:
    made = resources()
    assert (made.interval_s, made.timeout_s, made.prometheus) == (5, 2, None)
    assert made.production.requests == "" and made.production.queries == {} and made.production.window_s == 0


def test_a_counter_of_requests() -> None:
    counter = {"target": "127.0.0.1:8404/metrics", "metric": 'haproxy_backend_http_responses_total{proxy="web"}'}
    made = resources(production={"targets": ["10.0.0.11:9100"], "requests": counter}).production.requests
    assert isinstance(made, RequestCounter)
    assert made.selector.labels == {("proxy", "web")}
    wrong = {"targets": ["10.0.0.11:9100"], "requests": {**counter, "metric": "sum(rate(a[1m]))"}}
    assert "name of a metric" in refused(production=wrong)


def test_it_goes_through_json() -> None:
    counter = {"target": "127.0.0.1:8404", "metric": 'a{b="c"}'}
    for requests in (counter, "sum(rate(a[1m]))", ""):
        production = {"targets": ["10.0.0.11:9100"], "requests": requests}
        made = resources(production=production, prometheus="https://p.example", ca="/etc/ca.pem")
        assert Resources.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made


def test_queries_need_a_server() -> None:
    asked = {"cpu": "sum(rate(node_cpu_seconds_total[1m]))", "memory": "sum(m)", "requests": "sum(rate(r[2m30s]))"}
    assert "prometheus: missing" in refused(production=asked)
    made = resources(production=asked, prometheus="http://127.0.0.1:9090").production
    assert list(made.queries) == ["cpu", "memory", "requests"]
    assert made.window_s == 150


@pytest.mark.parametrize("server", ["127.0.0.1:9090", "http://a/?x=y", "ftp://a", "http://a b", "http://u:p@a"])
def test_a_server_is_a_url(server: str) -> None:
    assert "prometheus" in refused(prometheus=server)


@pytest.mark.parametrize(
    "query, seconds", [("rate(a[5m])", 300), ("a", 0), ("rate(a[30s:5s]) / rate(b[ 1h ])", 3600), ("a[500ms]", 0.5)]
)
def test_how_far_a_query_looks_back(query: str, seconds: float) -> None:
    assert PoolSources(cpu=query).window_s == seconds
    assert PoolSources(cpu="a", memory=query).window_s == 0


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"production": {}}, "name targets"),
        ({"production": {"targets": ["a:1"], "cpu": "x"}}, "not both"),
        ({"production": {"targets": ["a:1", "a:1/metrics"]}}, "named twice"),
        ({"production": {"targets": ["a:1"], "hosts": 2}}, "hosts is for queries"),
        ({"production": {"targets": ["10.0.0.21:9100"]}}, "production's, too"),
        ({"shadows": {"production": {"targets": ["b:1"]}}}, "cannot be told"),
        ({"shadows": {"c": {"targets": ["b:1"], "requests": {"target": "b:1", "metric": "r"}}}}, "leave it out"),
        ({"interval_s": 60}, "memory_step_s"),
        ({"interval_s": 0}, "interval_s"),
        ({"unknown": 1}, "unknown"),
        ({"production": {"targets": ["a:1"], "idle_cores": float("nan")}}, "idle_cores"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    assert says in refused(**changes)
