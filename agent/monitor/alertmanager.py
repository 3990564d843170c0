"""What Alertmanager is told, in the form of its API version 2 (`POST /api/v2/alerts`, an array of alerts).

Labels say which alert it is, so they hold nothing that changes while it fires: figures are annotations. A label without
a value is left out, as Alertmanager does itself. Names of labels and annotations are [a-zA-Z_][a-zA-Z0-9_]*; one alert
with another name, or an end before its start, and Alertmanager answers 400 for the whole array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.monitor.alerts import Alert, Notice, Receiver, report_link, rfc3339

PATH = "/api/v2/alerts"
JOB = "shadowtap"
OWN_LABELS = ("alertname", "severity", "shadow", "host", "job")  # nobody else may set these
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """One Alertmanager: where it is, and what it is told besides the alerts. See sending.Destination."""

    name: str
    url: str  # of POST
    headers: Mapping[str, str]
    host: str  # this one
    labels: Mapping[str, str]
    report_url: str
    receiver: Receiver = Receiver.ALERTMANAGER
    together: bool = True

    def body(self, notices: Sequence[Notice]) -> bytes:
        """Of one request."""
        return json.dumps([self._alert(each) for each in notices]).encode()

    def _alert(self, notice: Notice) -> dict[str, Any]:
        alert = notice.alert
        own = (alert.name, str(alert.severity), alert.shadow, self.host, JOB)
        labels = {**self.labels, **dict(zip(OWN_LABELS, own, strict=True))}
        return {
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": annotated(alert),
            "startsAt": rfc3339(alert.started_ns),
            "endsAt": rfc3339(notice.ends_ns),
            "generatorURL": report_link(self.report_url, alert),
        }


def annotated(alert: Alert) -> dict[str, str]:
    """Summary, runbook and the evidence; a piece whose name is taken gets an underscore more."""
    found = {"summary": alert.summary, "runbook": alert.runbook}
    for key, value in alert.evidence.items():
        name = _NOT_IN_A_NAME.sub("_", key) or "_"
        name = f"_{name}" if name[0].isdigit() else name
        while name in found:
            name += "_"
        found[name] = value
    return found


def address(url: str) -> str:
    """Where to POST, of the URL under which an Alertmanager is found."""
    base = url.rstrip("/")
    return base if base.endswith(PATH) else base + PATH
