"""The published JSON Schema of events: what SSE frames, pages, and the ``data`` of webhook messages look like.

Fields may be added in the same version; one is never taken away or given another meaning. A type that is not here yet
has any ``data``, so a reader that is older than its server goes on.
"""

from __future__ import annotations

from typing import Any

from orchestrator.domain.events import ENVELOPE_VERSION, EventType
from orchestrator.domain.outcome import FailureClass
from orchestrator.domain.webhook import VERSION

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_SECONDS = {"type": ["number", "null"]}

FAILURE: dict[str, Any] = {
    "type": "object",
    "required": ["class", "message", "outcome_known", "answered", "retry_after", "detail"],
    "properties": {
        "class": {"enum": [kind.value for kind in FailureClass]},
        "message": _TEXT,
        "outcome_known": {"type": "boolean"},
        "answered": {"type": "boolean"},
        "retry_after": _SECONDS,
        "detail": {"type": "object"},
    },
}
_ENDED = {"attempt": _COUNT, "seconds": _SECONDS}
_UNDONE = {"by": _TEXT, "outcome": {"enum": ["known", "unknown"]}}
_JOIN = {"width": _COUNT, "succeeded": _COUNT, "failed": _COUNT}

#: The fields of ``data`` that every event of a type has.
DATA: dict[EventType, dict[str, Any]] = {
    EventType.JOB_SUBMITTED: {"workflow": _TEXT, "version": _TEXT, "steps": _COUNT},
    EventType.JOB_SUCCEEDED: {},
    EventType.JOB_FAILED: {"failure": FAILURE},
    EventType.JOB_COMPENSATING: {},
    EventType.JOB_CANCELLING: {},
    EventType.JOB_CANCELLED: {},
    EventType.JOB_REOPENED: {"steps": _COUNT},
    EventType.STEP_SUCCEEDED: _ENDED,
    EventType.STEP_SKIPPED: _ENDED,
    EventType.STEP_FAILED: {**_ENDED, "failure": FAILURE},
    EventType.STEP_RETRYING: {"attempt": _COUNT, "delay": {"type": "number", "minimum": 0}, "failure": FAILURE},
    EventType.STEP_CANCELLED: _ENDED,
    EventType.STEP_FELL_BACK: {"from": _TEXT, "to": _TEXT, "failure": FAILURE},
    EventType.STEP_HELD_BACK: {"reason": _TEXT, "agent": _TEXT, "breaker": _TEXT, "until": _SECONDS},
    EventType.STEP_COMPENSATED: _UNDONE,
    EventType.STEP_IN_DOUBT: {"attempt": _COUNT, "failure": FAILURE, "key": _TEXT, "reconcile": {"type": "boolean"}},
    EventType.STEP_RECONCILED: {"happened": {"type": ["boolean", "null"]}, "key": _TEXT},
    EventType.STEP_LOST: {"attempt": _COUNT, "losses": _COUNT},
    EventType.STEP_OPENED: {"width": _COUNT},
    EventType.JOIN_DECIDED: {"decision": _TEXT, **_JOIN},
    EventType.ROUND_REVIEWED: {"round": _COUNT, "met": {"type": "boolean"}, "width": _COUNT},
    EventType.COMPENSATION_STUCK: {**_UNDONE, "failure": FAILURE},
    EventType.WAIT_OPENED: {"wait": _TEXT, "kind": _TEXT, "reason": _TEXT, "assignees": {"type": "array"}},
    EventType.WAIT_DECIDED: {"wait": _TEXT, "decision": _TEXT, "by": _TEXT, "note": {"type": ["string", "null"]}},
    EventType.DEAD_LETTER_CREATED: {"reason": _TEXT},
}


def event_schema() -> dict[str, Any]:
    """Of one event, wherever it is met."""
    return {
        "$schema": _DRAFT,
        "$id": f"urn:orchestrator:schema:event:{ENVELOPE_VERSION}",
        "title": "Orchestrator event",
        "type": "object",
        "required": ["v", "job", "number", "run", "type", "path", "at", "data"],
        "properties": {
            "v": {"const": ENVELOPE_VERSION, "description": "Version of this form."},
            "job": {"type": "string", "minLength": 1},
            "number": {"type": "integer", "minimum": 1, "description": "Without gaps in its job."},
            "run": {"type": "integer", "minimum": 1, "description": "Rises when the job is replayed."},
            "type": {"type": "string", "examples": [kind.value for kind in EventType]},
            "path": {"type": ["string", "null"], "description": "The step; null: the job."},
            "at": {"type": "number", "description": "Seconds since the epoch, on the database's clock."},
            "data": {"type": "object"},
        },
        "allOf": by_type(),
    }


def by_type() -> list[dict[str, Any]]:
    """What the ``data`` of each type holds."""
    return [
        {
            "if": {"properties": {"type": {"const": kind.value}}, "required": ["type"]},
            "then": {"properties": {"data": {"required": sorted(fields), "properties": fields}}},
        }
        for kind, fields in DATA.items()
        if fields
    ]


def message_schema() -> dict[str, Any]:
    """Of the body of a webhook message."""
    event = {name: value for name, value in event_schema().items() if name != "$schema"}
    return {
        "$schema": _DRAFT,
        "$id": f"urn:orchestrator:schema:webhook:{VERSION}",
        "title": "Orchestrator webhook message",
        "type": "object",
        "required": ["type", "version", "timestamp", "data"],
        "properties": {
            "type": {"type": "string", "description": "The event's."},
            "version": {"const": VERSION},
            "timestamp": {"type": "string", "description": "When it happened: RFC 3339, UTC."},
            "data": event,
        },
    }
