"""The control API: what the requests on the control socket mean. HTTP itself is `agent.control.server`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.control.request import Call, ControlError, Reply
from agent.control.steering import Steering

SHADOWS, STATUS = "/v1/shadows", "/v1/status"


class Api:
    """Answers calls. `status` gives what `GET /v1/status` adds to the shadows."""

    def __init__(self, steering: Steering, status: Callable[[], dict[str, Any]], say: Callable[[str], None]) -> None:
        self._steering = steering
        self._status = status
        self._say = say

    def __call__(self, call: Call) -> Reply:
        """The handler of a ControlServer."""
        if call.path in (SHADOWS, STATUS):
            _only(call, "GET", "HEAD")
            shadows: dict[str, Any] = {"shadows": self._steering.status()}
            return Reply(shadows if call.path == SHADOWS else {**shadows, **self._status()})
        parent, _, name = call.path.rpartition("/")
        if parent != SHADOWS:
            raise ControlError(404, f"there is no {call.path}; there are {SHADOWS}, {SHADOWS}/NAME and {STATUS}")
        found = {shadow["name"]: shadow for shadow in self._steering.status()}
        if name not in found:
            raise ControlError(404, f"no shadow {name!r}; there is {', '.join(found)}")
        _only(call, "GET", "HEAD", "PATCH")
        if call.method != "PATCH":
            return Reply(found[name])
        fields = call.body or {}
        self._steering.change(name, fields)
        self._say(f"shadow {name}: {', '.join(f'{k} is now {v!r}' for k, v in fields.items())} ({call.peer})")
        return Reply(next(shadow for shadow in self._steering.status() if shadow["name"] == name))


def _only(call: Call, *methods: str) -> None:
    if call.method not in methods:
        raise ControlError(405, f"{call.path} takes {', '.join(methods)}", allow=methods)
