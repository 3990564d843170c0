"""What the control API needs of the agent: a desk where things are asked for and done.

All texts of a desk's answers may come from strangers; the API hands them on as JSON, and who shows them sees to the
rest. Times are Unix nanoseconds in keys that end in `_ns`: the API adds the readable form. The shapes of the answers
are those of `agent.control.schemas`.
"""

from __future__ import annotations

from typing import Any, Protocol


class ShadowList(Protocol):
    """Who knows the shadows as they are configured now."""

    def status(self) -> list[dict[str, Any]]:
        """One object a shadow, with its `name`."""


class Desk(Protocol):
    """ConfigError for what does not fit (400), ControlError for what is not there (404), not in this state (409) or
    cannot be recorded (507). A shadow's name is one that there is: the API has looked. Called in the service's loop."""

    def status(self) -> dict[str, Any]:
        """What `GET /v1/status` says besides the shadows."""

    def change(self, name: str, fields: dict[str, Any], author: str, reason: str) -> None:
        """Change settings of a shadow."""

    def verdict(self, name: str) -> dict[str, Any]:
        """The whole verdict on a shadow; its `verdict` is None before there is one."""

    def trip(self, name: str, reason: str, author: str) -> dict[str, Any]:
        """Switch a shadow off by hand until it is reset; its guard."""

    def reset(self, name: str, reason: str, author: str) -> dict[str, Any]:
        """Let a tripped shadow take traffic again; its guard."""

    def ramp(self, name: str) -> dict[str, Any]:
        """A shadow's ramp; its `state` is "none" where there is none."""

    def start_ramp(self, name: str, spec: dict[str, Any], author: str) -> dict[str, Any]:
        """Begin a ramp, with `steps` and `inconclusive` as `agent.control.body.ramp_spec` has read them."""

    def steer_ramp(self, name: str, action: str, author: str) -> dict[str, Any]:
        """Pause, resume or abort a ramp."""

    def history(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        """Versions of the configuration, the newest first; those older than version `before`."""

    def version(self, number: int) -> dict[str, Any]:
        """One version, with its `config`."""

    def rollback(self, version: int | None, reason: str, author: str) -> dict[str, Any]:
        """Make an older version the one in force; None is the one before the present."""

    def audit(self, limit: int, shadow: str | None) -> list[dict[str, Any]]:
        """What was done, by whom and why, the newest first."""

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are active."""
