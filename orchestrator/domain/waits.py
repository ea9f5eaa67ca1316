"""What a person is asked, and what may be answered. Pure: the rows are ``store/waits``'s."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from orchestrator.domain.ids import JobId, StepPath


class WaitKind(StrEnum):
    DECISION = "decision"


class Reason(StrEnum):
    """Why a decision is asked for."""

    #: A call may have taken effect, and nobody knows.
    IN_DOUBT = "in_doubt"
    #: The step gave up, and its ``on_failure`` names people.
    ESCALATE = "escalate"


class Decision(StrEnum):
    """A person's word. Those with an output end the step with it."""

    #: The call took effect: the step succeeds with the output.
    HAPPENED = "happened"
    #: It did not: the step runs again, under a new key.
    NOT_HAPPENED = "not_happened"
    #: The step succeeds with the person's output.
    ANSWER = "answer"
    #: The step runs again, from its own agent on.
    RETRY = "retry"
    #: The step fails for good: its job goes to the dead letters, unless a join tolerates it.
    FAIL = "fail"


DECISIONS: Final[dict[Reason, tuple[Decision, ...]]] = {
    Reason.IN_DOUBT: (Decision.HAPPENED, Decision.NOT_HAPPENED, Decision.FAIL),
    Reason.ESCALATE: (Decision.ANSWER, Decision.RETRY, Decision.FAIL),
}
WITH_OUTPUT: Final = frozenset({Decision.HAPPENED, Decision.ANSWER})


@dataclass(frozen=True, slots=True)
class Wait:
    """An open question about a step. ``question``: the failure, the agent, its key and how often it was called."""

    id: str
    job_id: JobId
    tenant: str
    workflow: str
    path: StepPath
    kind: WaitKind
    reason: Reason
    created_at: float
    #: The groups whose inbox it belongs in; empty: anybody's.
    assignees: tuple[str, ...] = ()
    question: dict[str, Any] = field(default_factory=dict)


def wait_id(job_id: JobId, number: int) -> str:
    """``number``: of the event that tells of it, so that a repeated transaction asks the same question."""
    return f"{job_id}-{number}"
