"""What a request's query and body say, checked before the desk is asked: whatever arrives here fits the document at
`/v1/openapi.json`, or is refused with 400 in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from agent.control.ramp import HOLD_LIMIT_S, INCONCLUSIVE_LIMIT, STEPS_LIMIT
from agent.control.request import Call, ControlError

REASON_LIMIT_CHARS = 500
HOLD_MIN_S = 1
PAGE_DEFAULT, PAGE_MAX = 50, 1000
NUMBER_MAX = 2**53 - 1  # of a version: what every JSON reader keeps exact
RAMP_ACTIONS = ("pause", "resume", "abort")
_DIGITS = re.compile(r"[0-9]{1,16}")


def known(given: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Refuse what has no meaning there: who sends it expects that it has."""
    for name in given:
        if name not in names:
            there = f"there is {', '.join(names)}" if names else "there is none"
            raise ControlError(400, f"{name[:100]!r} is unknown in the {where}: {there}")


def reason_of(body: Mapping[str, Any], needed: bool = False) -> str:
    """Why something is done, as one printable line; "" where nobody says."""
    text = body.get("reason", "")
    if not isinstance(text, str) or len(text) > REASON_LIMIT_CHARS:
        raise ControlError(400, f"reason: give a text of at most {REASON_LIMIT_CHARS} characters")
    words = "".join(c if c.isprintable() or c in " \t\n\r" else ascii(c)[1:-1] for c in text).split()
    if needed and not words:
        raise ControlError(400, "reason: say why, it will be asked for later")
    return " ".join(words)


def only_reason(call: Call, needed: bool = False) -> str:
    """Of a body that has nothing else."""
    body = call.body or {}
    known(body, ("reason",), "body")
    return reason_of(body, needed)


def rollback_spec(call: Call) -> tuple[int | None, str]:
    """Version, None for the one before the present, and reason."""
    body = call.body or {}
    known(body, ("version", "reason"), "body")
    version = body.get("version")
    if version is not None and not _whole(version, 1, NUMBER_MAX):
        raise ControlError(400, "version: give a number of `shadowtap history`, or leave it out for the one before")
    return None if version is None else int(version), reason_of(body)


def ramp_spec(call: Call) -> dict[str, Any]:
    """Steps and how much patience there is with INCONCLUSIVE."""
    body = call.body or {}
    known(body, ("steps", "inconclusive"), "body")
    steps, patience = body.get("steps"), body.get("inconclusive", 0)
    if not isinstance(steps, list) or not 1 <= len(steps) <= STEPS_LIMIT:
        raise ControlError(400, f'steps: give 1 to {STEPS_LIMIT} like {{"percentage": 5, "hold_s": 300}}')
    if not _whole(patience, 0, INCONCLUSIVE_LIMIT):
        raise ControlError(400, f"inconclusive: give a whole number from 0 to {INCONCLUSIVE_LIMIT}")
    return {"steps": [_step(number, step) for number, step in enumerate(steps)], "inconclusive": int(patience)}


def _step(number: int, step: Any) -> dict[str, float]:
    where = f"steps.{number}"
    if not isinstance(step, dict) or set(step) != {"percentage", "hold_s"}:
        raise ControlError(400, f"{where}: give percentage and hold_s")
    if not _is_number(step["percentage"]) or not 0 < step["percentage"] <= 100:
        raise ControlError(400, f"{where}.percentage: give a number above 0, up to 100")
    if not _is_number(step["hold_s"]) or not HOLD_MIN_S <= step["hold_s"] <= HOLD_LIMIT_S:
        raise ControlError(400, f"{where}.hold_s: give seconds from {HOLD_MIN_S} to {HOLD_LIMIT_S:.0f}")
    return {"percentage": float(step["percentage"]), "hold_s": float(step["hold_s"])}


def ramp_action(call: Call) -> str:
    """What is to become of a ramp."""
    body = call.body or {}
    known(body, ("action",), "body")
    action = body.get("action")
    if action not in RAMP_ACTIONS:
        raise ControlError(400, f"action: give one of {', '.join(RAMP_ACTIONS)}")
    return str(action)


def limit_of(call: Call) -> int:
    """How many entries a page may have."""
    return _asked(call, "limit", PAGE_MAX) or PAGE_DEFAULT


def before_of(call: Call) -> int | None:
    """The number that a page's entries are below."""
    return _asked(call, "before", NUMBER_MAX)


def version_number(text: str) -> int | None:
    """Of a path; None when there can be no such version."""
    return int(text) if _DIGITS.fullmatch(text) and 1 <= int(text) <= NUMBER_MAX else None


def _asked(call: Call, name: str, most: int) -> int | None:
    text = call.query.get(name)
    if text is None:
        return None
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= most:
        raise ControlError(400, f"{name}: give a whole number from 1 to {most}")
    return int(text)


def _whole(value: Any, least: int, most: int) -> bool:
    """5.0 is as whole as 5: JSON does not tell them apart."""
    return _is_number(value) and least <= value <= most and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
