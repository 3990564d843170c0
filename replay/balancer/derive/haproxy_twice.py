"""What production's HAProxy does besides balancing, and its shadow must not do a second time.

Logs are written into a buffer in memory that HAProxy always has, so that formats stay checked and cost what they cost
in production. Peers are told off with HAProxy's own word for it, `disabled`: tables declared there, or kept in step
through them, work as before, but here alone. Checked with HAProxy 2.6: no peer is called, and none is listened for.
"""

from __future__ import annotations

from pathlib import Path

from replay.balancer.derive.haproxy_draft import Draft, Reason
from replay.balancer.derive.haproxy_line import is_plain
from replay.balancer.derive.haproxy_source import Statement
from replay.errors import UpstreamError

MEMORY = "ring@buf0"
# Directives of the shadow: sections, first words, reason, what keeps them
_OUT: tuple[tuple[frozenset[str], tuple[str, ...], Reason, str], ...] = tuple(
    (frozenset(sections.split()), tuple(words.split()), reason, keep)
    for sections, words, reason, keep in (
        ("global", "stats socket", Reason.STATS, ""),
        ("global", "stats bind-process", Reason.STATS, ""),
        ("global", "daemon", Reason.SUPERVISED, ""),
        ("global", "pidfile", Reason.SUPERVISED, ""),
        ("global", "master-worker", Reason.SUPERVISED, ""),
        ("global", "server-state-file", Reason.STATE, ""),
        ("global", "server-state-base", Reason.STATE, ""),
        ("global", "stats-file", Reason.STATE, ""),
        ("global", "shm-stats-file", Reason.STATE, ""),
        ("global", "external-check", Reason.EXTERNAL, "external-check"),
        ("defaults backend listen", "load-server-state-from-file", Reason.STATE, ""),
        ("backend listen", "server-state-file-name", Reason.STATE, ""),
        ("defaults backend listen", "option external-check", Reason.EXTERNAL, "external-check"),
        ("defaults backend listen", "external-check", Reason.EXTERNAL, "external-check"),
        ("defaults frontend backend listen", "email-alert", Reason.MAIL, ""),
        ("global", "acme.scheduler", Reason.ACME, ""),
    )
)
_SECTIONS = {  # taken out whole
    "mailers": (Reason.MAIL, ""),
    "program": (Reason.PROGRAM, ""),
    "ring": (Reason.LOG_SINK, "log"),
    "log-forward": (Reason.LOG_SINK, ""),
    "acme": (Reason.ACME, ""),
}
_DIALS = {  # would have the shadow connect to where the client wanted to
    ("option", "transparent"),
    ("option", "http_proxy"),
    ("option", "http-proxy"),
    ("transparent",),
}
_SET_DESTINATION = ("set-dst", "set-dst-port", "attach-srv")


def refuse(draft: Draft) -> None:
    """UpstreamError for what would let a request choose where it goes, which may be production."""
    for at in draft.source.within("defaults", "frontend", "backend", "listen"):
        values = at.values
        rule = values[0] in ("http-request", "tcp-request") and any(word in _SET_DESTINATION for word in values[1:3])
        if rule or any(values[: len(words)] == words for words in _DIALS):
            what = " ".join(values[:3] if rule else values[:2])
            raise draft.source.error(
                at, f"{what!r} lets a request choose where it goes; take the proxy out of the file"
            )


def take_out(draft: Draft, keep: frozenset[str]) -> None:
    """Everything of the tables above, and logging and peers. Conditions stay, or blocks would no longer be balanced."""
    for at in draft.source.statements:
        if at.values[0].startswith("."):
            continue
        reason, keeping = _SECTIONS.get(at.section.kind, (None, ""))
        if reason is not None and keeping not in keep:
            draft.take_out(at, reason)
            if at.begins_section:
                draft.note(f"{at.section.kind} {at.section.name}: taken out, {reason}".replace("  ", " "))
            continue
        _statement(draft, at, keep)


def _statement(draft: Draft, at: Statement, keep: frozenset[str]) -> None:
    kind, values = at.section.kind, at.values
    for sections, words, reason, keeping in _OUT:
        if kind in sections and values[: len(words)] == words and keeping not in keep:
            draft.take_out(at, reason)
            return
    if kind == "peers" and "peers" not in keep:
        _peers(draft, at)
    if values[0] in ("log", "log-stderr") and "log" not in keep and len(values) > 1 and values[1] != "global":
        draft.change(at, {1: MEMORY}, Reason.LOG)
    elif kind == "ring" and values[0] == "backing-file":
        draft.take_out(at, Reason.LOG_SINK)
    elif kind == "crt-store" and values[0] == "load":
        _certificate(draft, at)
    elif kind == "global" and values[0] == "default-path":
        _default_path(draft, at)


def _peers(draft: Draft, at: Statement) -> None:
    if at.begins_section:
        draft.follow(at, f"{draft.source.indent(at.section)}disabled", Reason.PEERS)
        draft.note(f"peers {at.section.name}: its tables start empty and are lost when the shadow is restarted")
    elif at.says("enabled"):
        draft.take_out(at, Reason.PEERS)


def _certificate(draft: Draft, at: Statement) -> None:
    """Certificates that HAProxy gets by ACME are read where it has left them."""
    changed: dict[int, str | None] = {}
    for index, value in enumerate(at.values[:-1]):
        if value in ("acme", "domains"):
            changed |= {index: None, index + 1: None}
    draft.change(at, changed, Reason.ACME)


def _default_path(draft: Draft, at: Statement) -> None:
    """Names relative to the configuration file: the derived file stands somewhere else."""
    folder = Path(draft.source.file).absolute().parent
    policy = at.values[1] if len(at.words) > 1 else ""
    if policy not in ("config", "parent"):
        return
    place = f"{folder}" if policy == "config" else f"{folder}/.."
    if not is_plain(place):
        raise UpstreamError(f"{draft.source.file}:{at.number}: {place!r} needs quotes; move the file to a plain path")
    draft.change(at, {1: f"origin {place}"}, Reason.PATHS)
