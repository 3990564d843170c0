"""What a filled agent exposes, as Prometheus would read it, for the tests of the rules and the dashboard."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from agent.monitor.metrics import AgentCollector
from agent.monitor.watch_metrics import families
from tests.agent.monitor.test_metrics import snapshot
from tests.agent.monitor.test_watch_metrics import filled

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
ADDED = {"instance", "job"}  # labels that Prometheus adds itself

_MATCHED = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)\{(?P<inside>(?:[^{}\"]|\"[^\"]*\")*)\}")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")


class Matcher(NamedTuple):
    metric: str
    label: str
    operator: str
    value: str


class _Everything:
    """Each family once, also when the collector has those of the watch process itself."""

    def collect(self) -> Iterator[Metric]:
        watched = list(families(filled()))
        yield from watched
        names = {family.name for family in watched}
        found = snapshot(programs={"candidate": True})
        found.workers["pool"] = {"candidate": {"192.0.2.1:80": {"well": 1}}}
        yield from (family for family in AgentCollector(lambda: found).collect() if family.name not in names)


@functools.cache
def text() -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Everything())
    return generate_latest(registry).decode()


@functools.cache
def samples() -> dict[str, dict[str, set[str]]]:
    """By name of a sample its labels with their values."""
    out: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text()):
        for sample in family.samples:
            labels = out.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return out


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics and recorded series of ours that an expression uses."""
    plain = re.sub(r"\"[^\"]*\"", '""', expression)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*", plain) if "shadowtap" in name}


def matchers_in(expression: str) -> list[Matcher]:
    """Every condition on a label."""
    return [
        Matcher(found["name"], *parts)
        for found in _MATCHED.finditer(expression)
        for parts in _MATCHER.findall(found["inside"])
    ]


def unmatched(expression: str) -> list[Matcher]:
    """Conditions that no sample of the exposition can meet: no such label, or no such value."""
    wrong = []
    for matcher in matchers_in(expression):
        labels = samples().get(matcher.metric)
        if labels is None or matcher.label in ADDED:
            continue
        values = labels.get(matcher.label)
        known = values is not None and ("$" in matcher.value or _met(matcher, values))
        wrong += [] if known else [matcher]
    return wrong


def _met(matcher: Matcher, values: set[str]) -> bool:
    if matcher.operator in ("=", "!="):
        return matcher.operator == "!=" or matcher.value in values
    wanted = set(matcher.value.split("|"))
    return ".*" in wanted or matcher.operator == "!~" or wanted <= values


def promtool(*arguments: str, text_in: str = "", cwd: Path = PACKAGING) -> str:
    """Run the real one; what it said when it was not content, else ""."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: run `make setup`")
    done = subprocess.run(
        ["promtool", *arguments], input=text_in, capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
