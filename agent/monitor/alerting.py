"""Alerts within the watch process: the service says which should be active, the book says what is new about that, and
the sender tells it to whoever is to know."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.alerts_config import AlertsConfig
from agent.monitor.alerts import KEPT_BYTES, AlertBook
from agent.monitor.judging import write_whole
from agent.monitor.sending import Sender


class Alerting:
    """Owns the book. Times are Unix nanoseconds."""

    def __init__(self, config: AlertsConfig, directory: Path | None, host: str) -> None:
        self._path = directory / "alerts.json" if directory else None
        self._book = self._open(config)
        self._sender = Sender.start(config, host, _log)
        self._problem = ""

    def set(self, wanted: list[dict[str, Any]], now_ns: int) -> None:
        """All alerts that should be active now: others are resolved."""
        named = {(each["name"], each["shadow"]) for each in wanted}
        for alert in self._book.active():
            if (alert.name, alert.shadow) not in named:
                self._book.resolve(alert.name, alert.shadow, now_ns)
        for each in wanted:
            fields = (each["name"], each["shadow"], each["severity"], each["summary"], each["evidence"])
            self._book.fire(*fields, now_ns)
        self.send_due(now_ns)

    def send_due(self, now_ns: int) -> None:
        """Give the sender what is to be told now."""
        self._sender.send(self._book.due(now_ns))

    def message(self) -> list[dict[str, Any]]:
        """The active alerts, for the service; without evidence where that would be too much for a message."""
        found = [alert.as_json() for alert in self._book.active()]
        if len(json.dumps(found)) > KEPT_BYTES:
            found = [{**alert, "evidence": {}} for alert in found]
        return found

    def undelivered(self) -> list[str]:
        """Who could not be told, and why, a line each."""
        return [f"{where}: {problem}" for where, problem in self._sender.problems().items()]

    def problems(self) -> list[str]:
        """What could not be kept, a line each."""
        return [self._problem] if self._problem else []

    def keep(self) -> None:
        """Write the book down."""
        if self._path is None:
            return
        try:
            write_whole(self._path, json.dumps(self._book.as_json()))
            self._problem = ""
        except OSError as error:
            self._problem = f"{self._path}: {error.strerror}: alerts are not kept"

    def close(self) -> None:
        """Keep the book, and let the sender finish what it can."""
        self.keep()
        self._sender.close()

    def _open(self, config: AlertsConfig) -> AlertBook:
        if self._path is not None:
            try:
                return AlertBook.from_json(json.loads(self._path.read_text()), config.resend_s, config.hold_s)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                pass  # none, or damaged: what is active is told again
        return AlertBook(config.resend_s, config.hold_s)


def _log(line: str) -> None:
    print(f"shadowtap: {line}", file=sys.stderr, flush=True)
