"""The names of everything that is written into a job's history. A name never changes; a sentence may."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.domain.ids import JobId, StepPath


class EventType(StrEnum):
    JOB_SUBMITTED = "job.submitted"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_COMPENSATING = "job.compensating"
    JOB_CANCELLING = "job.cancelling"
    JOB_CANCELLED = "job.cancelled"
    JOB_REOPENED = "job.reopened"
    STEP_SUCCEEDED = "step.succeeded"
    STEP_SKIPPED = "step.skipped"
    STEP_FAILED = "step.failed"
    STEP_RETRYING = "step.retrying"
    STEP_CANCELLED = "step.cancelled"
    STEP_COMPENSATED = "step.compensated"
    STEP_FELL_BACK = "step.fell_back"
    STEP_HELD_BACK = "step.held_back"
    STEP_LOST = "step.lost"
    STEP_IN_DOUBT = "step.in_doubt"
    STEP_RECONCILED = "step.reconciled"
    STEP_OPENED = "step.opened"
    JOIN_DECIDED = "join.decided"
    ROUND_REVIEWED = "round.reviewed"
    COMPENSATION_STUCK = "compensation.stuck"
    WAIT_OPENED = "wait.opened"
    WAIT_DECIDED = "wait.decided"
    DEAD_LETTER_CREATED = "dead_letter.created"


#: Version of the form in which events leave the house (SSE, pages, webhooks); ``event_schema.py`` describes it.
ENVELOPE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """One line of history; ``number`` is gap-free per job and given under the job's lock."""

    job_id: JobId
    number: int
    type: EventType
    path: StepPath | None = None
    data: dict[str, Any] = field(default_factory=dict)
    run: int = 1
    at: float | None = None
