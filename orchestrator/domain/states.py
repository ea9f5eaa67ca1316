"""The states of jobs and steps, and every legal move between them.

This table is the only one: the store's guards, the diagram in the docs and the property tests are read from it.
Beside each move stands who makes it, so that "what if nobody does?" has an answer: the reconciler watches every
state that is neither terminal nor held by a timer, a wait or a lease.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPENSATING = "compensating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    IN_DOUBT = "in_doubt"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


JOB_TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
#: States in which the job's work goes on: it can be cancelled, and its deadline runs.
JOB_MOVING: Final = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.WAITING})
#: States in which steps of the job may be claimed and moved; while compensating, those are the undoing ones.
JOB_CLAIMABLE: Final = JOB_MOVING | {JobState.COMPENSATING}
STEP_DONE: Final = frozenset({StepState.SUCCEEDED, StepState.SKIPPED})
STEP_TERMINAL: Final = frozenset(
    {StepState.SUCCEEDED, StepState.SKIPPED, StepState.FAILED, StepState.CANCELLED, StepState.COMPENSATED}
)
#: Not begun: a cancel may take these at once, nothing has been paid for.
STEP_NOT_BEGUN: Final = frozenset({StepState.PENDING, StepState.READY, StepState.RETRYING})
#: Something is about to happen to it, or is happening, without anybody's decision.
STEP_MOVES_BY_ITSELF: Final = frozenset({StepState.READY, StepState.RUNNING, StepState.RETRYING})

#: (from, to): who moves it.
JOB_MOVES: Final[dict[tuple[JobState, JobState], str]] = {
    (JobState.QUEUED, JobState.RUNNING): "first claim",
    (JobState.QUEUED, JobState.CANCELLED): "cancel, nothing live",
    (JobState.QUEUED, JobState.FAILED): "deadline",
    (JobState.RUNNING, JobState.SUCCEEDED): "settle of the last step",
    (JobState.RUNNING, JobState.FAILED): "settle that gave up, or deadline",
    (JobState.RUNNING, JobState.CANCELLING): "cancel, calls still live",
    (JobState.RUNNING, JobState.CANCELLED): "cancel, nothing live",
    (JobState.RUNNING, JobState.WAITING): "settle that asked a person, nothing else moves",
    (JobState.WAITING, JobState.RUNNING): "decision",
    (JobState.WAITING, JobState.SUCCEEDED): "decision that ended the last step",
    (JobState.WAITING, JobState.FAILED): "decision to give up",
    (JobState.WAITING, JobState.CANCELLED): "cancel",
    (JobState.CANCELLING, JobState.CANCELLED): "settle or expiry of the last live call",
    (JobState.CANCELLING, JobState.COMPENSATING): "settle or expiry of the last live call, with on_cancel: compensate",
    (JobState.COMPENSATING, JobState.FAILED): "settle of the last undoing step",
    (JobState.COMPENSATING, JobState.CANCELLED): "settle of the last undoing step of a cancelled job",
    (
        JobState.RUNNING,
        JobState.COMPENSATING,
    ): "settle that gave up or lost branches, or deadline: something is owed",
    (JobState.COMPENSATING, JobState.SUCCEEDED): "settle of the last undoing step of branches that failed",
    (JobState.SUCCEEDED, JobState.COMPENSATING): "replay of a stuck compensation",
    (JobState.FAILED, JobState.RUNNING): "replay of its dead letter, or invalidation of a step",
    (JobState.SUCCEEDED, JobState.RUNNING): "invalidation of a step",
    (JobState.FAILED, JobState.COMPENSATING): "replay of a stuck compensation",
    (JobState.CANCELLED, JobState.COMPENSATING): "replay of a stuck compensation",
}

STEP_MOVES: Final[dict[tuple[StepState, StepState], str]] = {
    (StepState.PENDING, StepState.READY): "settle of its last predecessor",
    (StepState.PENDING, StepState.CANCELLED): "cancel, or a failed scope",
    (StepState.READY, StepState.RUNNING): "claim",
    (StepState.READY, StepState.SUCCEEDED): "its agent's breaker is open: a default",
    (StepState.READY, StepState.SKIPPED): "its agent's breaker is open: a skip",
    (StepState.READY, StepState.CANCELLED): "cancel, or a failed scope",
    (StepState.READY, StepState.FAILED): "deadline, before the job's output was put together",
    (StepState.RUNNING, StepState.SUCCEEDED): "settle",
    (StepState.RUNNING, StepState.SKIPPED): "settle (when was false)",
    (StepState.RUNNING, StepState.FAILED): "settle that gave up",
    (StepState.RUNNING, StepState.RETRYING): "settle (retry policy)",
    (StepState.RUNNING, StepState.WAITING): "settle of a composite that opened, or of an agent step that escalated",
    (StepState.RUNNING, StepState.READY): "release: worker lost or draining; another agent; reconcile is to be asked",
    (StepState.RUNNING, StepState.IN_DOUBT): "settle or release: may have taken effect, a person is asked",
    (StepState.RUNNING, StepState.CANCELLED): "settle or release in a cancelled scope",
    (StepState.RETRYING, StepState.READY): "timer",
    (StepState.RETRYING, StepState.CANCELLED): "cancel, or a failed scope",
    (StepState.WAITING, StepState.READY): "settle that decided its join, or decision to try again",
    (StepState.WAITING, StepState.SUCCEEDED): "settle of a sequence's last step, or decision with an answer",
    (StepState.WAITING, StepState.FAILED): "settle of a failed scope's last live step, or decision to give up",
    (StepState.WAITING, StepState.CANCELLED): "settle or cancel of a cancelled scope",
    (StepState.SUCCEEDED, StepState.COMPENSATING): "settle that opened its undoing",
    (StepState.COMPENSATING, StepState.COMPENSATED): "settle of its undoing step",
    (StepState.COMPENSATING, StepState.SUCCEEDED): "settle of its undoing step, which is stuck: it stands as it was",
    (StepState.COMPENSATED, StepState.READY): "replay",
    (StepState.COMPENSATED, StepState.PENDING): "replay",
    (StepState.IN_DOUBT, StepState.READY): "decision: it had not happened",
    (StepState.IN_DOUBT, StepState.SUCCEEDED): "decision: it had happened",
    (StepState.IN_DOUBT, StepState.FAILED): "decision to give up",
    (StepState.IN_DOUBT, StepState.CANCELLED): "cancel, or a failed scope",
    (StepState.FAILED, StepState.READY): "replay",
    (StepState.FAILED, StepState.PENDING): "replay",
    (StepState.FAILED, StepState.WAITING): "replay",
    (StepState.FAILED, StepState.SUCCEEDED): "replay with a result given by hand",
    (StepState.SUCCEEDED, StepState.READY): "invalidation",
    (StepState.SUCCEEDED, StepState.PENDING): "invalidation, or replay, of what it depends on",
    (StepState.SUCCEEDED, StepState.WAITING): "invalidation of a step in it",
    (StepState.SKIPPED, StepState.READY): "invalidation",
    (StepState.SKIPPED, StepState.PENDING): "invalidation of what it depends on",
    (StepState.CANCELLED, StepState.READY): "replay",
    (StepState.CANCELLED, StepState.PENDING): "replay",
    (StepState.CANCELLED, StepState.WAITING): "replay",
}
