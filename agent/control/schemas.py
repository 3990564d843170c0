"""The shapes of the control API's bodies, as JSON Schema: the components of the document at `/v1/openapi.json`.

Only what every reader may rely on is required. Objects that other parts of the agent fill in may have more keys than
stand here; what a client sends may not.
"""

from __future__ import annotations

from typing import Any

from agent.control.body import HOLD_MIN_S, NUMBER_MAX, RAMP_ACTIONS, REASON_LIMIT_CHARS
from agent.control.ramp import HOLD_LIMIT_S, INCONCLUSIVE_LIMIT, STEPS_LIMIT

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
UNIX_NS: Schema = {"type": "integer", "minimum": 0, "description": "Unix time in nanoseconds"}
VERSION: Schema = {"type": "integer", "minimum": 1, "maximum": NUMBER_MAX}
REASON: Schema = {"type": "string", "maxLength": REASON_LIMIT_CHARS, "description": "Kept in history and audit"}
NAME_PATTERN = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
SHADOW_NAME: Schema = {"type": "string", "pattern": NAME_PATTERN}


def reference(name: str) -> Schema:
    """One of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    """The same, or null where it is not known."""
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def listed(schema: Schema) -> Schema:
    """A list of them."""
    return {"type": "array", "items": schema}


def by_shadow(schema: Schema) -> Schema:
    """An object with a key for each shadow of which there is something to say."""
    return {"type": "object", "additionalProperties": schema}


def answered(description: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object that may have further keys."""
    properties = {**required, **(optional or {})}
    found = {"type": "object", "description": description, "properties": properties, "additionalProperties": True}
    return {**found, "required": list(required)} if required else found


def sent(required: dict[str, Schema], optional: dict[str, Schema]) -> Schema:
    """An object that may have no other keys."""
    properties = {**required, **optional}
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


_SHADOW_SETTINGS: dict[str, Schema] = {
    "enabled": FLAG,
    "percentage": {"type": "number", "minimum": 0, "maximum": 100},
    "criteria": TEXT,
    "sample_by": TEXT,
    "exclusive": {"type": ["boolean", "string"]},
    "methods": listed(TEXT),
    "upstreams": listed({"type": ["string", "object"]}),
}
_STEP: Schema = sent(
    {
        "percentage": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "hold_s": {"type": "number", "minimum": HOLD_MIN_S, "maximum": HOLD_LIMIT_S},
    },
    {},
)
_WORD: Schema = {"type": "string", "enum": ["fail", "pass", "inconclusive"]}
_SIDE = answered(
    "One side's traffic of late; latencies are null where there were no requests",
    {},
    {
        "requests_per_s": nullable(NUMBER),
        "error_share": nullable(NUMBER),
        "p50_ns": nullable(NUMBER),
        "p90_ns": nullable(NUMBER),
        "p99_ns": nullable(NUMBER),
    },
)
_USAGE = answered(
    "CPU and memory of one pool; null is not measured, `missing` says why",
    {},
    {
        "cpu_cores": nullable(NUMBER),
        "memory_bytes": nullable(NUMBER),
        "requests_per_s": nullable(NUMBER),
        "cpu_seconds_per_request": nullable(NUMBER),
        "missing": {"type": ["array", "object"]},
    },
)
_FINDING = answered(
    "One metric of one route",
    {"route": TEXT, "metric": TEXT, "word": _WORD},
    {"rollback": FLAG, "reason": TEXT, "sentence": TEXT, "blocks": COUNT, "pairs": COUNT, "effect": nullable(NUMBER)},
)
_VERDICT = answered(
    "What the judge says",
    {"word": _WORD},
    {"rollback": FLAG, "reason": TEXT, "blocks": COUNT, "pairs": COUNT, "findings": listed(_FINDING)},
)
_VERSION = answered(
    "A stored configuration",
    {
        "id": VERSION,
        "at": nullable(TIME),
        "author": TEXT,
        "reason": TEXT,
        "diff": listed(TEXT),
        "bad": {"type": "object", "additionalProperties": TEXT, "description": "Why it was left, by shadow"},
        "current": FLAG,
    },
    {"at_ns": UNIX_NS},
)

SCHEMAS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "string", "description": "One line: what is wrong, and what to do"}},
        "required": ["error"],
        "additionalProperties": False,
    },
    "Status": answered(
        "All that the agent says of itself at once; a part that is switched off is missing or empty",
        {"shadows": listed(reference("Shadow"))},
        {
            "accounts": by_shadow(answered("The account of requests", {})),
            "kernel": answered("What the kernel program counted", {}),
            "restarts": COUNT,
            "pools": by_shadow(answered("Upstreams and how they are", {})),
            "guards": by_shadow(reference("Guard")),
            "verdicts": by_shadow(_VERDICT),
            "traffic": by_shadow(reference("Traffic")),
            "resources": answered(
                "", {}, {"production": nullable(reference("Usage")), "shadows": by_shadow(nullable(reference("Usage")))}
            ),
            "ramps": by_shadow(reference("Ramp")),
            "harm": {"type": ["object", "null"], "description": "Whether mirroring slows production: a verdict, or {}"},
            "alerts": listed(reference("Alert")),
            "problems": listed(TEXT),
            "version": nullable(VERSION),
        },
    ),
    "Shadow": answered("A shadow as it is configured now", {"name": TEXT, "enabled": FLAG}, _SHADOW_SETTINGS),
    "ShadowChange": sent({}, {**_SHADOW_SETTINGS, "reason": REASON}),
    "Shadows": answered("", {"shadows": listed(reference("Shadow"))}),
    "Traffic": answered(
        "Of the last seconds",
        {},
        {
            "seconds": {**NUMBER, "description": "How long"},
            "production": _SIDE,
            "shadow": {**_SIDE, "description": "Service time: from when the request left"},
            "shadow_response": {**_SIDE, "description": "Response time: from when it should have left"},
            "different_share": nullable(NUMBER),
            "lost_per_s": NUMBER,
            "lag_p99_ns": nullable(NUMBER),
        },
    ),
    "Usage": _USAGE,
    "Guard": answered(
        "Whether a shadow may take traffic: active, tripped (switched off because of `cause`) or probing",
        {"state": {"type": "string", "enum": ["active", "tripped", "probing"]}},
        {
            "cause": TEXT,
            "reason": TEXT,
            "since": nullable(TIME),
            "since_ns": UNIX_NS,
            "trips": COUNT,
            "cooldown_left_s": nullable(NUMBER),
            "retries_left": COUNT,
            "notes": {"type": "array", "items": TEXT, "description": "Reasons of further trips meanwhile"},
            "permanent": {"type": "boolean", "description": "It stays tripped until it is reset"},
        },
    ),
    "Reason": sent({}, {"reason": REASON}),
    "NeededReason": sent({"reason": {**REASON, "pattern": "[^ \\t\\n\\r]"}}, {}),
    "Verdict": answered(
        "The whole verdict on a shadow, with every finding; null before there is one",
        {"shadow": TEXT, "verdict": nullable(_VERDICT)},
        {"period": {"type": ["object", "null"], "description": "Since when, and which routes' answers are noise"}},
    ),
    "Ramp": answered(
        "Steps of percentage and time; each is left with PASS only, or after so many times INCONCLUSIVE",
        {"state": {"type": "string", "enum": ["none", "running", "paused", "done", "aborted", "failed"]}},
        {
            "steps": listed(_STEP),
            "step": {**COUNT, "description": "The present one, from 1; 0 before there is one"},
            "percentage": nullable(NUMBER),
            "held_s": NUMBER,
            "hold_left_s": NUMBER,
            "inconclusive": COUNT,
            "reason": TEXT,
        },
    ),
    "RampStart": sent(
        {"steps": {"type": "array", "items": _STEP, "minItems": 1, "maxItems": STEPS_LIMIT}},
        {"inconclusive": {"type": "integer", "minimum": 0, "maximum": INCONCLUSIVE_LIMIT}},
    ),
    "RampSteer": sent({"action": {"type": "string", "enum": list(RAMP_ACTIONS)}}, {}),
    "History": answered(
        "The newest first; `next_before` asks for the next page, null on the last",
        {"versions": listed(_VERSION), "next_before": nullable(VERSION)},
    ),
    "Version": {"allOf": [_VERSION, answered("", {"config": {"type": "object"}})]},
    "RollbackOrder": sent({}, {"version": nullable(VERSION), "reason": REASON}),
    "Rollback": answered(
        "The version that is in force now, which has the content of `restored`",
        {"version": VERSION, "restored": VERSION, "diff": listed(TEXT)},
    ),
    "Audit": answered(
        "The newest first",
        {
            "entries": listed(
                answered(
                    "",
                    {"id": VERSION, "at": nullable(TIME), "author": TEXT, "action": TEXT},
                    {"at_ns": UNIX_NS, "shadow": nullable(TEXT), "reason": TEXT, "detail": {}},
                )
            )
        },
    ),
    "Alert": answered(
        "An alert that is active",
        {"name": TEXT, "severity": {"type": "string", "enum": ["critical", "warning", "info"]}, "summary": TEXT},
        {"shadow": TEXT, "started": nullable(TIME), "started_ns": UNIX_NS, "evidence": {"type": "object"}},
    ),
    "Alerts": answered("", {"alerts": listed(reference("Alert"))}),
    "Document": answered("An OpenAPI document", {"openapi": TEXT}),
}
