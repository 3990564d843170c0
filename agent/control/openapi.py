"""The control API as an OpenAPI document, for clients that are written elsewhere; `/v1/openapi.json` serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agent.control.body import PAGE_DEFAULT, PAGE_MAX
from agent.control.schemas import COUNT, SCHEMAS, SHADOW_NAME, TEXT, VERSION, Schema, reference

ERRORS = {
    400: "The request is wrong",
    404: "There is no such thing",
    405: "The path does not take this method",
    409: "Not in this state",
    411: "A body needs a Content-Length",
    413: "The request is too long",
    500: "A bug of the agent",
    507: "It cannot be recorded, so it is not done",
}
_ALWAYS = (400, 404, 405, 411, 413, 500)
_CHANGING = (409, 507)

Parameter = dict[str, Any]

_NAME: Parameter = {"name": "name", "in": "path", "required": True, "description": "A shadow", "schema": SHADOW_NAME}
_ID: Parameter = {"name": "id", "in": "path", "required": True, "description": "A version", "schema": VERSION}
_LIMIT = {
    "name": "limit",
    "in": "query",
    "description": "How many entries at most",
    "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
}
_BEFORE = {"name": "before", "in": "query", "description": "Only entries below this number", "schema": VERSION}
_SHADOW = {"name": "shadow", "in": "query", "description": "Only of this shadow", "schema": SHADOW_NAME}


@dataclass(frozen=True, slots=True)
class _Operation:
    """`answer` and `body` are names of SCHEMAS; a body may be left out unless it is needed."""

    summary: str
    answer: str
    body: str = ""
    body_needed: bool = False
    query: tuple[Parameter, ...] = ()


OPERATIONS: dict[tuple[str, str], _Operation] = {
    ("/v1/status", "get"): _Operation("What the agent does", "Status"),
    ("/v1/shadows", "get"): _Operation("The shadows", "Shadows"),
    ("/v1/shadows/{name}", "get"): _Operation("One shadow", "Shadow"),
    ("/v1/shadows/{name}", "patch"): _Operation("Change what a shadow takes", "Shadow", "ShadowChange"),
    ("/v1/shadows/{name}/verdict", "get"): _Operation("The whole verdict, with all its numbers", "Verdict"),
    ("/v1/shadows/{name}/trip", "post"): _Operation(
        "Switch a shadow off until it is reset", "Guard", "NeededReason", body_needed=True
    ),
    ("/v1/shadows/{name}/reset", "post"): _Operation("Let a tripped shadow take traffic again", "Guard", "Reason"),
    ("/v1/shadows/{name}/ramp", "get"): _Operation("The shadow's ramp", "Ramp"),
    ("/v1/shadows/{name}/ramp", "put"): _Operation("Begin a ramp", "Ramp", "RampStart", body_needed=True),
    ("/v1/shadows/{name}/ramp", "patch"): _Operation(
        "Pause, resume or abort a ramp", "Ramp", "RampSteer", body_needed=True
    ),
    ("/v1/history", "get"): _Operation("Versions of the configuration", "History", query=(_LIMIT, _BEFORE)),
    ("/v1/history/{id}", "get"): _Operation("One version, with the configuration", "Version"),
    ("/v1/rollback", "post"): _Operation("Put an older version in force", "Rollback", "RollbackOrder"),
    ("/v1/audit", "get"): _Operation("What was done, by whom and why", "Audit", query=(_LIMIT, _SHADOW)),
    ("/v1/alerts", "get"): _Operation("Alerts that are active", "Alerts"),
    ("/v1/openapi.json", "get"): _Operation("This document", "Document"),
}


def document() -> dict[str, Any]:
    """The whole, anew at each call."""
    paths: dict[str, Any] = {}
    for (path, method), operation in OPERATIONS.items():
        item = paths.setdefault(path, {"parameters": _path_parameters(path)})
        item[method] = _described(path, method, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shadowtap control API",
            "version": "1",
            "description": "HTTP/1.1 with JSON on the agent's Unix socket. A connection carries one request; who may "
            "use it is a matter of the socket's permissions. HEAD is taken wherever GET is. Unknown keys are refused.",
        },
        "servers": [{"url": "/", "description": "The control socket, by default /run/shadowtap/control.sock"}],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _path_parameters(path: str) -> list[Parameter]:
    return [each for each in (_NAME, _ID) if "{" + each["name"] + "}" in path]


def _described(path: str, method: str, operation: _Operation) -> dict[str, Any]:
    changes = method != "get"
    found: dict[str, Any] = {
        "operationId": _operation_id(path, method),
        "summary": operation.summary,
        "responses": {
            "200": _response("Done" if changes else "Found", reference(operation.answer)),
            **{str(status): _response(ERRORS[status], reference("Error")) for status in _errors(changes)},
        },
    }
    found["responses"]["405"]["headers"] = {"Allow": {"description": "Methods that it takes", "schema": TEXT}}
    if operation.query:
        found["parameters"] = list(operation.query)
    if operation.body:
        found["requestBody"] = {
            "required": operation.body_needed,
            "content": {"application/json": {"schema": reference(operation.body)}},
        }
    return found


def _errors(changes: bool) -> list[int]:
    return sorted(_ALWAYS + (_CHANGING if changes else ()))


def _response(description: str, schema: Schema) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"Content-Length": {"description": "Bytes of the body", "schema": COUNT}},
        "content": {"application/json": {"schema": schema}},
    }


def _operation_id(path: str, method: str) -> str:
    words = [part.strip("{}").replace(".json", "") for part in path.split("/")[2:]]
    return "_".join([method, *words])
