"""SPOE: agents are not called, and their backends lead nowhere."""

from __future__ import annotations

from pathlib import Path

from tests.replay.balancer.derive.haproxy_harness import (
    ENVIRONMENT,
    SHADOWS,
    derive,
    derive_file,
)


def test_agents_are_not_called(here: Path) -> None:
    _, derived = derive_file("waf_spoe")
    assert {each.shadow for each in derived.servers if each.name.startswith("spoe-modsecurity/")} == {
        "unix:/run/shadow/nowhere.sock"
    }
    assert "http-request deny if { var(txn.modsec.code) -m int gt 0 }" in derived.text
    _, kept = derive_file("waf_spoe", keep=frozenset(["spoe"]))
    assert "filter spoe engine modsecurity config" in kept.text
    assert {each.shadow for each in kept.servers if each.name.startswith("spoe-")} == set(SHADOWS)


def test_a_backend_that_also_serves_requests_needs_a_mapping(here: Path) -> None:
    text = Path("waf_spoe.cfg").read_text().replace("default_backend web", "default_backend spoe-modsecurity")
    derived = derive(text, environment=ENVIRONMENT)
    assert {each.shadow for each in derived.servers if each.name.startswith("spoe-")} == set(SHADOWS)
