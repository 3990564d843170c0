"""What a webhook is told: one POST of JSON for one message. Its form is a template's, or else

    {"version": 1, "state": "firing", "name": "ShadowTripped", "severity": "critical", "shadow": "candidate",
     "host": "lb1", "summary": "...", "evidence": {"half": "26 of 50"}, "runbook": "...",
     "started": "2026-01-31T12:00:00.000Z", "ended": null, "report_url": ""}

A template is a file of JSON in whose strings ${name}, ${severity} and the like (see VARIABLES) stand for what the alert
says. The JSON is read first and the strings are filled then, so whatever an alert says, the result is JSON, and what
looks like a variable in it stays as it is. Keys are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agent.monitor.alerts import Alert, Notice, Receiver, report_link, rfc3339

TEMPLATE_BYTES = 65_536
VARIABLES = (
    "name",
    "severity",
    "shadow",  # empty: the host as a whole
    "summary",
    "state",  # firing, resolved
    "evidence",  # a line for each piece
    "started",
    "ended",  # empty while it fires
    "report_url",
    "runbook",
    "host",
)
NO_EVIDENCE = "none"  # not empty: Slack refuses a block without text
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """JSON with variables in it, checked."""

    data: Any

    @classmethod
    def parse(cls, text: str) -> Template:
        """ValueError, in one line, when it is no JSON or asks for what is not there."""
        try:
            data = json.loads(text, parse_constant=_refuse)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: not JSON: {error.msg}") from None
        except RecursionError:
            raise ValueError("not JSON that can be read: too deep") from None
        try:
            found = {name for string in _strings(data) for name in _VARIABLE.findall(string)}
            json.dumps(data, allow_nan=False)  # 1e999 is a number to Python
        except RecursionError:
            raise ValueError("too deep") from None
        if unknown := sorted(found - set(VARIABLES)):
            shown = unknown[0][:40] if unknown[0].isprintable() else ascii(unknown[0][:40])
            raise ValueError(f"there is no ${{{shown}}}; there are {', '.join(VARIABLES)}")
        return cls(data)

    @classmethod
    def read(cls, path: Path) -> Template:
        """The same of a file."""
        try:
            if not path.is_file():
                raise ValueError("there is no such file")
            with path.open("rb") as file:
                text = file.read(TEMPLATE_BYTES + 1)
        except OSError as error:
            raise ValueError(f"{error.strerror}; the agent's own user has to be able to read it") from None
        if len(text) > TEMPLATE_BYTES:
            raise ValueError(f"more than {TEMPLATE_BYTES} bytes")
        try:
            return cls.parse(text.decode())
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None

    def filled(self, values: Mapping[str, str]) -> Any:
        """With its variables replaced."""
        return _filled(self.data, values)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One receiver of messages: where it is, and in what form it wants them. See sending.Destination."""

    name: str
    url: str
    headers: Mapping[str, str]
    host: str  # this one
    report_url: str
    template: Template | None = None
    receiver: Receiver = Receiver.PEOPLE
    together: bool = False

    def body(self, notices: Sequence[Notice]) -> bytes:
        """Of one request, for the one notice that there is."""
        alert = notices[0].alert
        texts = values(alert, self.host, self.report_url)
        data = self.template.filled(texts) if self.template is not None else _plain(alert, texts)
        return json.dumps(data).encode()


def values(alert: Alert, host: str, report_url: str) -> dict[str, str]:
    """What the variables stand for."""
    return {
        "name": alert.name,
        "severity": str(alert.severity),
        "shadow": alert.shadow,
        "summary": alert.summary,
        "state": alert.state,
        "evidence": "\n".join(f"{key}: {value}" for key, value in alert.evidence.items()) or NO_EVIDENCE,
        "started": rfc3339(alert.started_ns),
        "ended": "" if alert.ended_ns is None else rfc3339(alert.ended_ns),
        "report_url": report_link(report_url, alert),
        "runbook": alert.runbook,
        "host": host,
    }


def _plain(alert: Alert, texts: Mapping[str, str]) -> dict[str, Any]:
    return {"version": 1, **texts, "evidence": dict(alert.evidence), "ended": texts["ended"] or None}


def _filled(data: Any, values: Mapping[str, str]) -> Any:
    if isinstance(data, str):
        return _VARIABLE.sub(lambda found: values[found[1]], data)
    if isinstance(data, list):
        return [_filled(each, values) for each in data]
    if isinstance(data, dict):
        return {key: _filled(each, values) for key, each in data.items()}
    return data


def _strings(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [string for each in inner for string in _strings(each)]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"not JSON: {constant}")
