"""The control API: what the requests on the control socket mean. HTTP itself is `agent.control.server`'s.

`ROUTES` says what there is; `agent.control.openapi` says the same to clients. No state is kept of a client, and all
that is configured or recorded is the desk's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.control.body import (
    before_of,
    known,
    limit_of,
    only_reason,
    ramp_action,
    ramp_spec,
    reason_of,
    rollback_spec,
    version_number,
)
from agent.control.desk import Desk, ShadowList
from agent.control.readable import readable
from agent.control.request import Call, ControlError, Reply

DOCUMENT = "/v1/openapi.json"

Answer = dict[str, Any]


class Api:
    """Answers calls: the handler of a ControlServer. `say` gets a line for all that somebody changes."""

    def __init__(self, steering: ShadowList, desk: Desk, say: Callable[[str], None]) -> None:
        self._steering = steering
        self._desk = desk
        self._say = say

    def __call__(self, call: Call) -> Reply:
        """ControlError where there is no such path or method, ShadowtapError for what cannot be done."""
        methods, part = _route(call.path)
        allowed = _allowed(methods)
        if call.method not in allowed:
            raise ControlError(405, f"{call.path} takes {', '.join(allowed)}", allow=allowed)
        answer, query = methods["GET" if call.method == "HEAD" else call.method]
        known(call.query, query, "query")
        return Reply(readable(answer(self, call, part)))

    def _status(self, call: Call, part: str) -> Answer:
        return {"shadows": self._steering.status(), **self._desk.status()}

    def _shadows(self, call: Call, part: str) -> Answer:
        return {"shadows": self._steering.status()}

    def _shadow(self, call: Call, name: str) -> Answer:
        found = {shadow["name"]: shadow for shadow in self._steering.status()}
        if name not in found:
            raise ControlError(404, f"no shadow {name[:100]!r}; there is {', '.join(found)}")
        return found[name]

    def _change(self, call: Call, name: str) -> Answer:
        shadow = self._shadow(call, name)
        body = call.body or {}
        reason = reason_of(body)
        fields = {key: value for key, value in body.items() if key != "reason"}
        if not fields:
            return shadow
        self._desk.change(name, fields, call.peer, reason)
        self._tell(call, name, ", ".join(f"{key} is now {value!r}" for key, value in fields.items()), reason)
        return self._shadow(call, name)

    def _verdict(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        return self._desk.verdict(name)

    def _trip(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        reason = only_reason(call, needed=True)
        guard = self._desk.trip(name, reason, call.peer)
        self._tell(call, name, "tripped by hand", reason)
        return guard

    def _reset(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        reason = only_reason(call)
        guard = self._desk.reset(name, reason, call.peer)
        self._tell(call, name, "reset", reason)
        return guard

    def _ramp(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        return self._desk.ramp(name)

    def _start_ramp(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        spec = ramp_spec(call)
        ramp = self._desk.start_ramp(name, spec, call.peer)
        self._tell(call, name, f"a ramp of {len(spec['steps'])} steps begins")
        return ramp

    def _steer_ramp(self, call: Call, name: str) -> Answer:
        self._shadow(call, name)
        action = ramp_action(call)
        ramp = self._desk.steer_ramp(name, action, call.peer)
        self._tell(call, name, f"ramp: {action}")
        return ramp

    def _history(self, call: Call, part: str) -> Answer:
        limit = limit_of(call)
        versions = self._desk.history(limit, before_of(call))
        return {"versions": versions, "next_before": versions[-1]["id"] if len(versions) == limit else None}

    def _version(self, call: Call, text: str) -> Answer:
        number = version_number(text)
        if number is None:
            raise ControlError(404, f"no version {text[:100]!r}: `shadowtap history` lists them")
        return self._desk.version(number)

    def _rollback(self, call: Call, part: str) -> Answer:
        version, reason = rollback_spec(call)
        done = self._desk.rollback(version, reason, call.peer)
        what = "the version before" if version is None else f"version {version}"
        self._say(f"rolled back to {what}{f': {reason}' if reason else ''} ({call.peer})")
        return done

    def _audit(self, call: Call, part: str) -> Answer:
        shadow = call.query.get("shadow")
        if shadow is not None:
            self._shadow(call, shadow)
        return {"entries": self._desk.audit(limit_of(call), shadow)}

    def _alerts(self, call: Call, part: str) -> Answer:
        return {"alerts": self._desk.alerts()}

    def _document(self, call: Call, part: str) -> Answer:
        from agent.control.openapi import document  # most agents are never asked for it

        return document()

    def _tell(self, call: Call, name: str, what: str, reason: str = "") -> None:
        self._say(f"shadow {name}: {what}{f': {reason}' if reason else ''} ({call.peer})")


# By path and method: what answers, and the names that its query may have. {} is one part of the path.
Method = tuple[Callable[[Api, Call, str], Answer], tuple[str, ...]]
ROUTES: dict[str, dict[str, Method]] = {
    "/v1/status": {"GET": (Api._status, ())},
    "/v1/shadows": {"GET": (Api._shadows, ())},
    "/v1/shadows/{name}": {"GET": (Api._shadow, ()), "PATCH": (Api._change, ())},
    "/v1/shadows/{name}/verdict": {"GET": (Api._verdict, ())},
    "/v1/shadows/{name}/trip": {"POST": (Api._trip, ())},
    "/v1/shadows/{name}/reset": {"POST": (Api._reset, ())},
    "/v1/shadows/{name}/ramp": {
        "GET": (Api._ramp, ()),
        "PUT": (Api._start_ramp, ()),
        "PATCH": (Api._steer_ramp, ()),
    },
    "/v1/history": {"GET": (Api._history, ("limit", "before"))},
    "/v1/history/{id}": {"GET": (Api._version, ())},
    "/v1/rollback": {"POST": (Api._rollback, ())},
    "/v1/audit": {"GET": (Api._audit, ("limit", "shadow"))},
    "/v1/alerts": {"GET": (Api._alerts, ())},
    DOCUMENT: {"GET": (Api._document, ())},
}
_SPLIT = [(path.split("/"), methods) for path, methods in ROUTES.items()]


def _route(path: str) -> tuple[dict[str, Method], str]:
    """The methods of a path, and what stands in the place of {}."""
    parts = path.split("/")
    for template, methods in _SPLIT:
        if len(template) != len(parts):
            continue
        variable = [part for name, part in zip(template, parts, strict=True) if name.startswith("{")]
        if all(name == part or name.startswith("{") for name, part in zip(template, parts, strict=True)):
            return methods, "".join(variable)
    raise ControlError(404, f"there is no {path[:200]}; GET {DOCUMENT} says what there is")


def _allowed(methods: dict[str, Method]) -> tuple[str, ...]:
    return tuple(name for method in methods for name in ((method, "HEAD") if method == "GET" else (method,)))
