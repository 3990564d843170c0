"""Filters that tell other programs of each request: SPOE agents (a WAF, bot detection) and OpenTracing.

An agent that is called a second time counts, blocks or charges twice. So the filter goes, and so do the lines that send
to it by name. Lines that read what an agent has set stay: its variables are unset, as they are in production while the
agent is down. A backend that serves only agents stays as well, with a socket that does not exist for its servers'
address: nothing can reach the agents by mistake, and whatever else refers to the backend finds it.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_line import LineError, split_line
from replay.balancer.derive.haproxy_source import PROXIES, Source, Statement

KEEP_SPOE = "spoe"
KEEP_TRACING = "opentracing"
_FILTERS = {"spoe": KEEP_SPOE, "opentracing": KEEP_TRACING}
_SENDS = {"send-spoe-group": KEEP_SPOE, "ot-group": KEEP_TRACING}
_AGENT_MODES = {"spop": KEEP_SPOE, "log": "log"}  # HAProxy 3.1 and 2.9: modes of backends that serve nothing else


def disable_agents(draft: Draft, keep: frozenset[str]) -> frozenset[str]:
    """Take the filters out, and say which backends serve nothing else."""
    source = draft.source
    served: set[str] = set()
    for at in source.within(*PROXIES):
        named = at.values[1] if len(at.words) > 1 else ""
        if at.says("filter") and named in _FILTERS and _FILTERS[named] not in keep:
            draft.take_out(at, Reason.AGENTS)
            draft.note(f"{at.section.kind} {at.section.name}: filter {named} is disabled, and what it sets is not set")
            served |= _backends(_read_config(at, source.folder)) if named == "spoe" else set()
        elif any(word in _SENDS and _SENDS[word] not in keep for word in at.values[1:3]):
            draft.take_out(at, Reason.AGENTS)
    served -= _chosen(source)
    for section in source.sections:
        keeping = _AGENT_MODES.get(source.mode(section), "") if section.kind in ("backend", "listen") else ""
        if keeping and keeping not in keep:
            served.add(section.name)
    return frozenset(served)


def _read_config(at: Statement, folder: Path) -> str:
    """The filter's own file; empty if it cannot be read, which HAProxy itself will say."""
    name = next((value for before, value in pairwise(at.values) if before == "config"), "")
    try:
        return (folder / name).read_text("utf-8", "replace")
    except OSError:
        return ""


def _backends(config: str) -> set[str]:
    """The backends that a SPOE configuration sends to."""
    found = set()
    for line in config.split("\n"):
        try:
            values = [word.value for word in split_line(line, {})]
        except LineError:
            continue
        if values[:1] == ["use-backend"] and len(values) > 1:
            found.add(values[1])
    return found


def _chosen(source: Source) -> set[str]:
    """Backends that requests are sent to by name."""
    return {
        at.values[1]
        for at in source.within("defaults", "frontend", "listen")
        if at.values[0] in ("use_backend", "default_backend") and len(at.words) > 1
    }
