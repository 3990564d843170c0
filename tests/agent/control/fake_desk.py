"""An agent's desk and shadows without an agent: enough state for the API, the document and the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.control.request import ControlError
from agent.errors import ConfigError

AT_NS = 1_767_225_600_123_000_000  # 2026-01-01T00:00:00.123Z
AT = "2026-01-01T00:00:00.123Z"

FINDING = {
    "route": "all",
    "metric": "latency",
    "kind": "ratio",
    "word": "fail",
    "rollback": True,
    "reason": "",
    "sentence": "latency: fail; shadow +20.1% [+15.0%, +25.0%] over 42 blocks; evidence for more than +10.0%: 2000",
    "blocks": 42,
    "pairs": 12_345,
    "effect": 0.1832,
    "interval": {"low": 0.14, "high": 0.22},
    "floors": {"warn": 0.0198, "rollback": 0.0953, "margin": 0.0953},
    "log_e": {"warn": 9.0, "rollback": 7.6, "pass": -20.0},
    "examples": [
        {
            "at_ns": AT_NS,
            "route": "GET /api/items/{}",
            "production_ns": 5_100_000,
            "shadow_ns": 60_000_000,
            "production_error": False,
            "shadow_error": False,
            "different": None,
            "noisy": None,
            "reference": "GET /api/items/5\x1b[31m",
        }
    ],
}
VERDICT = {
    "version": 1,
    "word": "fail",
    "rollback": True,
    "reason": "latency",
    "failed_at_ns": AT_NS,
    "p_warn": 0.0001,
    "p_rollback": 0.0005,
    "blocks": 42,
    "pairs": 12_345,
    "problem": "",
    "lost_share": 0.001,
    "blocks_left_out": 0,
    "left_out": {"late": 3},
    "findings": [FINDING],
}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


SETTINGS: dict[str, Callable[[Any], bool]] = {
    "enabled": lambda value: isinstance(value, bool),
    "percentage": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100,
    "criteria": lambda value: isinstance(value, str),
    "sample_by": lambda value: isinstance(value, str),
    "exclusive": lambda value: isinstance(value, bool | str),
    "methods": _texts,
    "upstreams": lambda value: isinstance(value, list) and all(isinstance(each, str | dict) for each in value),
}


class FakeSteering:
    """Two shadows."""

    def __init__(self) -> None:
        common: dict[str, Any] = {
            "criteria": "path:/api/*",
            "sample_by": "client",
            "exclusive": False,
            "methods": ["GET"],
            "upstreams": ["198.51.100.1:80"],
            "places_ppm": (0, 125_000),
        }
        self.shadows: list[dict[str, Any]] = [
            {"name": "candidate", "enabled": True, "percentage": 12.5, **common},
            {"name": "other", "enabled": False, "percentage": 1.0, **common},
        ]

    def status(self) -> list[dict[str, Any]]:
        return [dict(shadow) for shadow in self.shadows]


class FakeDesk:
    """Does what is asked and remembers it. `refusal` is raised where it is set."""

    def __init__(self, steering: FakeSteering) -> None:
        self.steering = steering
        self.calls: list[tuple[Any, ...]] = []
        self.refusal: Exception | None = None
        self.more: dict[str, Any] = {}  # of the status
        self.verdicts: dict[str, dict[str, Any]] = {"candidate": VERDICT}
        self.guards = {name: self._guard("active") for name in ("candidate", "other")}
        self.ramps: dict[str, dict[str, Any]] = {}
        self.versions = [self._version(number) for number in (3, 2, 1)]
        self.entries = [
            {"id": 2, "at_ns": AT_NS, "author": "uid 0 (root)", "action": "trip", "shadow": "candidate",
             "reason": "looks wrong", "detail": {"cause": "manual"}},
            {"id": 1, "at_ns": AT_NS, "author": "agent", "action": "start", "shadow": None, "reason": "", "detail": {}},
        ]  # fmt: skip

    def status(self) -> dict[str, Any]:
        return {"accounts": {}, "kernel": {}, "restarts": 0, "pools": {}, "guards": self.guards, **self.more}

    def change(self, name: str, fields: dict[str, Any], author: str, reason: str) -> None:
        for key, value in fields.items():
            if key not in SETTINGS or not SETTINGS[key](value):
                raise ConfigError(f"shadows.{name}.{key[:50]}: no such setting, or no such value")
        self._note("change", name, fields, author, reason)
        next(shadow for shadow in self.steering.shadows if shadow["name"] == name).update(fields)

    def verdict(self, name: str) -> dict[str, Any]:
        return {"shadow": name, "period": {"started_ns": AT_NS, "version": 3}, "verdict": self.verdicts.get(name)}

    def trip(self, name: str, reason: str, author: str) -> dict[str, Any]:
        self._note("trip", name, reason, author)
        self.guards[name] = self._guard("tripped", cause="manual", reason=reason, trips=1, permanent=True)
        return self.guards[name]

    def reset(self, name: str, reason: str, author: str) -> dict[str, Any]:
        self._note("reset", name, reason, author)
        if self.guards[name]["state"] == "active":
            raise ControlError(409, f"shadow {name} is active: there is nothing to reset")
        self.guards[name] = self._guard("active", trips=1)
        return self.guards[name]

    def ramp(self, name: str) -> dict[str, Any]:
        return self.ramps.get(name, {"state": "none"})

    def start_ramp(self, name: str, spec: dict[str, Any], author: str) -> dict[str, Any]:
        self._note("start_ramp", name, spec, author)
        percentage = spec["steps"][0]["percentage"]
        self.ramps[name] = {"state": "running", "step": 1, "held_s": 0.0, "percentage": percentage, **spec}
        return self.ramps[name]

    def steer_ramp(self, name: str, action: str, author: str) -> dict[str, Any]:
        self._note("steer_ramp", name, action, author)
        if name not in self.ramps:
            raise ControlError(409, f"shadow {name} has no ramp")
        self.ramps[name]["state"] = {"pause": "paused", "resume": "running", "abort": "aborted"}[action]
        return self.ramps[name]

    def history(self, limit: int, before: int | None) -> list[dict[str, Any]]:
        return [each for each in self.versions if before is None or each["id"] < before][:limit]

    def version(self, number: int) -> dict[str, Any]:
        for each in self.versions:
            if each["id"] == number:
                return {**each, "config": {"shadows": {"candidate": {"percentage": 5}}}}
        raise ControlError(404, f"no version {number}: `shadowtap history` lists them")

    def rollback(self, version: int | None, reason: str, author: str) -> dict[str, Any]:
        self._note("rollback", version, reason, author)
        self.version(version or 2)
        return {"version": 4, "restored": version or 2, "diff": ["shadows.candidate.percentage: 5.0 -> 1.0"]}

    def audit(self, limit: int, shadow: str | None) -> list[dict[str, Any]]:
        return [each for each in self.entries if shadow in (None, each["shadow"])][:limit]

    def alerts(self) -> list[dict[str, Any]]:
        return [
            {"name": "ShadowTripped", "severity": "critical", "shadow": "candidate", "summary": "it is off",
             "started_ns": AT_NS, "evidence": {"cause": "judge"}}
        ]  # fmt: skip

    def _note(self, *call: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(call)

    @staticmethod
    def _guard(state: str, **more: Any) -> dict[str, Any]:
        plain = {"cause": "", "reason": "", "since_ns": AT_NS, "trips": 0, "cooldown_left_s": None, "permanent": False}
        return {"state": state, **plain, **more}

    @staticmethod
    def _version(number: int) -> dict[str, Any]:
        return {
            "id": number,
            "at_ns": AT_NS,
            "author": "uid 1000 (ann)",
            "reason": f"try {number}",
            "diff": [f"shadows.candidate.percentage: {number - 1}.0 -> {number}.0"],
            "bad": {"candidate": "latency"} if number == 2 else {},
            "current": number == 3,
        }
