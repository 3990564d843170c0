"""The book of alerts: what is wrong at present, and what is to be told of it to whom. Pure: times are handed in.

An alert is known by its name and its shadow. Its life, for people (log and webhooks):

    (none) --fire--> FIRING --resolve--> QUIET --hold_s without a fire--> (none)
                        ^                  |
                        +-------fire-------+

    message       when
    firing        once when it first fires, and again each time its severity rises
    resolved      once when it has been quiet for hold_s, so a flapping alert is not told again and again

Severity only rises within one life. Evidence and summary may change at any time, which is not worth a message.

Alertmanager sorts out repeats by itself, so it gets the present state: every alert that fires, at once and every
resend_s, with an end a few rounds ahead, so that the alert ends when the agent dies. One that has ended is told at
once, and once more in the next round: to an Alertmanager whose clock is behind, the first end was still to come. There
severity is part of what an alert is known by, so when it rises, the lesser alert ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, StrEnum, auto
from typing import Any
from urllib.parse import quote

ALERTS_MAX = 100  # at once; there are about ten kinds, for each of eight shadows
ROUNDS_AHEAD = 4  # after so many rounds without a word of the agent an alert ends
SUMMARY_CHARS = 300
EVIDENCE_ENTRIES, EVIDENCE_KEY_CHARS, EVIDENCE_CHARS = 32, 40, 2000  # the last of all values together
KEPT_BYTES = 65_536  # of `as_json`: half of what a message takes
SECOND_NS = 1_000_000_000
_LATEST_NS = 1 << 63

_RUNBOOKS = {
    "ShadowFailed": "The judge finds the shadow worse than production: `shadowtap status` says in what and where.",
    "ShadowTripped": "The shadow is switched off, production goes on. Mend the cause, then `shadowtap reset SHADOW`.",
    "ShadowWarning": "The shadow looks worse than production, not yet surely enough to switch it off: watch it.",
    "MirroringHarms": "Production is slower while it is mirrored: lower the percentage, or give the host more room.",
    "DataQuality": "Too little was seen for a verdict: the account in `shadowtap status` says what was lost and why.",
    "ScheduleLag": "Requests reach the shadow late, so its figures are in doubt: lower the percentage or add workers.",
    "AgentOverBudget": "The agent used more than `limits` allows: lower the percentage, or raise the limit.",
    "AlertsUndelivered": "An Alertmanager or webhook cannot be told of alerts: look whether it answers.",
    "StateNotKept": "What the agent decides is not kept: look at the disk and the rights of state.directory.",
    "WatchDown": "Nothing is judged while the watch process is down: see the agent's log for why it ended.",
    "PoolUsageGap": "CPU and memory of a pool are not known: look whether its node_exporter or Prometheus answers.",
}


class Severity(StrEnum):
    """In rising order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


_RANK = {severity: rank for rank, severity in enumerate(Severity)}


class Receiver(Enum):
    """Who is told."""

    ALERTMANAGER = auto()
    PEOPLE = auto()  # log and webhooks


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong. Times are Unix nanoseconds; all text is printable and bounded."""

    name: str
    severity: Severity
    shadow: str  # "": the host as a whole
    summary: str
    evidence: Mapping[str, str]
    started_ns: int
    ended_ns: int | None = None

    @property
    def labels(self) -> tuple[str, str, Severity]:
        """What Alertmanager knows it by."""
        return self.name, self.shadow, self.severity

    @property
    def state(self) -> str:
        """In a word."""
        return "firing" if self.ended_ns is None else "resolved"

    @property
    def runbook(self) -> str:
        """What to do about it."""
        return _RUNBOOKS.get(self.name, "See `shadowtap status`.")

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "severity": str(self.severity), "evidence": dict(self.evidence)}


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of an alert now."""

    receiver: Receiver
    alert: Alert
    ends_ns: int  # when it ended, or will end unless told again


@dataclass(slots=True)
class _Entry:
    alert: Alert
    told: Severity | None = None  # the highest that people know of
    fresh: bool = True  # Alertmanager is to know at once
    fired: bool = True  # since the start of this process


@dataclass(slots=True)
class _Ending:
    alert: Alert
    told: bool = False


@dataclass(slots=True)
class AlertBook:
    """All alerts of a host. One thread's own."""

    resend_s: float = 60
    hold_s: float = 60
    refused: int = 0  # new alerts beyond ALERTS_MAX
    _live: dict[tuple[str, str], _Entry] = field(default_factory=dict)
    _endings: dict[tuple[str, str, Severity], _Ending] = field(default_factory=dict)
    _round_ns: int | None = None

    def fire(
        self, name: str, shadow: str, severity: str, summary: str, evidence: Mapping[str, object], now_ns: int
    ) -> None:
        """This is wrong, or still is. `severity` is one of `Severity`; texts are cut and made printable."""
        alert = Alert(name, Severity(severity), shadow, one_line(summary), _bounded(evidence), now_ns)
        entry = self._live.get((name, shadow))
        if entry is not None:
            self._fire_again(entry, alert, now_ns)
        elif len(self._live) >= ALERTS_MAX:
            self.refused += 1
            return
        else:
            entry = self._live[name, shadow] = _Entry(alert)
        self._endings.pop(entry.alert.labels, None)

    def _fire_again(self, entry: _Entry, alert: Alert, now_ns: int) -> None:
        old, entry.fired = entry.alert, True
        severity = max(old.severity, alert.severity, key=_RANK.__getitem__)
        entry.alert = replace(alert, severity=severity, started_ns=old.started_ns)
        if old.ended_ns is not None:
            entry.fresh = True
        elif severity != old.severity:
            entry.fresh = True
            self._end(old, now_ns)

    def resolve(self, name: str, shadow: str, now_ns: int) -> None:
        """This is wrong no longer, or never was."""
        entry = self._live.get((name, shadow))
        if entry is not None and entry.alert.ended_ns is None:
            entry.alert, entry.fresh = self._end(entry.alert, now_ns), False

    def _end(self, alert: Alert, now_ns: int) -> Alert:
        ended = replace(alert, ended_ns=max(now_ns, alert.started_ns))
        self._endings[alert.labels] = _Ending(ended)
        return ended

    def due(self, now_ns: int) -> list[Notice]:
        """What is to be told now; each is given once, so the caller sees to it that it arrives. Call it often."""
        is_round = self._round_ns is None or not _within(self._round_ns, self.resend_s, now_ns)
        if is_round:
            self._round_ns = now_ns
        return self._for_people(now_ns) + self._for_alertmanager(now_ns, is_round)

    def _for_people(self, now_ns: int) -> list[Notice]:
        notices = []
        for key, entry in list(self._live.items()):
            alert = entry.alert
            if entry.told != alert.severity:
                entry.told = alert.severity
                notices.append(Notice(Receiver.PEOPLE, replace(alert, ended_ns=None), now_ns))
            if alert.ended_ns is not None and not _within(alert.ended_ns, self.hold_s, now_ns):
                notices.append(Notice(Receiver.PEOPLE, alert, alert.ended_ns))
                del self._live[key]
        return notices

    def _for_alertmanager(self, now_ns: int, is_round: bool) -> list[Notice]:
        told = []
        for entry in self._live.values():
            if entry.alert.ended_ns is None and (is_round or entry.fresh):
                told.append(entry.alert)
                entry.fresh = False
        for labels, ending in list(self._endings.items()):
            if is_round or not ending.told:
                told.append(ending.alert)
            if is_round and ending.told:
                del self._endings[labels]
            ending.told = True
        return [Notice(Receiver.ALERTMANAGER, each, self._ends_ns(each, now_ns)) for each in told]

    def _ends_ns(self, alert: Alert, now_ns: int) -> int:
        ahead_ns = now_ns + int(ROUNDS_AHEAD * self.resend_s * SECOND_NS)
        return max(ahead_ns, alert.started_ns) if alert.ended_ns is None else alert.ended_ns

    def active(self) -> list[Alert]:
        """What fires, the worst first, then the oldest."""
        alerts = [each.alert for each in self._live.values() if each.alert.ended_ns is None]
        return sorted(alerts, key=lambda alert: (-_RANK[alert.severity], alert.started_ns))

    def unconfirmed(self) -> list[tuple[str, str]]:
        """Name and shadow of each that fired before a restart and not since: to be resolved by whoever knows that it is
        over, for nobody else will."""
        return [key for key, each in self._live.items() if each.alert.ended_ns is None and not each.fired]

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads, of at most about KEPT_BYTES: where it would be more, evidence is left out."""
        data = self._as_json(True)
        return data if len(json.dumps(data)) <= KEPT_BYTES else self._as_json(False)

    def _as_json(self, evidence: bool) -> dict[str, Any]:
        def kept(alert: Alert) -> dict[str, Any]:
            return alert.as_json() if evidence else replace(alert, evidence={}).as_json()

        return {
            "live": [{"alert": kept(each.alert), "told": each.told and str(each.told)} for each in self._live.values()],
            "endings": [{"alert": kept(each.alert), "told": each.told} for each in self._endings.values()],
        }

    @classmethod
    def from_json(cls, data: Any, resend_s: float = 60, hold_s: float = 60) -> AlertBook:
        """The book as it was; ValueError when the data is damaged."""
        book = cls(resend_s, hold_s)
        try:
            for each in data["live"][:ALERTS_MAX]:
                alert, told = _read(each["alert"]), each["told"]
                entry = _Entry(alert, Severity(told) if told is not None else None, alert.ended_ns is None, False)
                book._live[alert.name, alert.shadow] = entry
            for each in data["endings"][:ALERTS_MAX]:
                alert = _read(each["alert"])
                if alert.ended_ns is None:
                    raise ValueError("without its end")
                book._endings[alert.labels] = _Ending(alert, bool(each["told"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"alerts kept from before cannot be read: {one_line(repr(error))}") from None
        return book


def one_line(text: str, limit: int = SUMMARY_CHARS) -> str:
    """Printable, and not too long."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text[: 4 * limit].split())[:limit])


def rfc3339(time_ns: int) -> str:
    """Of Unix nanoseconds, to the millisecond, in UTC."""
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % SECOND_NS // 1_000_000:03d}Z"


def report_link(template: str, alert: Alert) -> str:
    """Where the report of the alert's shadow is; "" when nobody said."""
    return template.replace("{shadow}", quote(alert.shadow, safe=""))


def _within(since_ns: int, span_s: float, now_ns: int) -> bool:
    """Not yet so long ago. A clock that was set back makes everything long ago: better told twice than not at all."""
    return 0 <= now_ns - since_ns < span_s * SECOND_NS


def _bounded(evidence: Mapping[str, object]) -> dict[str, str]:
    left, bounded = EVIDENCE_CHARS, {}
    for key, value in list(evidence.items())[:EVIDENCE_ENTRIES]:
        lines = str(value)[:left].split("\n")
        text = "\n".join("".join(char if char.isprintable() else "?" for char in line) for line in lines)
        bounded[one_line(str(key), EVIDENCE_KEY_CHARS)] = text
        left -= len(text)
    return bounded


def _read(data: Any) -> Alert:
    times = [data["started_ns"]] + [data["ended_ns"]] * (data["ended_ns"] is not None)
    if any(type(each) is not int or not 0 <= each < _LATEST_NS for each in times) or times != sorted(times):
        raise ValueError("times")
    texts = [data[key] for key in ("name", "shadow", "summary")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("texts")
    name, shadow, summary = map(one_line, texts)
    evidence = _bounded(data["evidence"])
    return Alert(name, Severity(data["severity"]), shadow, summary, evidence, data["started_ns"], data["ended_ns"])
