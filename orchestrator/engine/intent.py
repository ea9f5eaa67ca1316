"""What a settle is asked to write, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.domain.outcome import Usage
from orchestrator.domain.result import Result
from orchestrator.domain.states import JobState
from orchestrator.domain.workflow import Agent
from orchestrator.engine.gather import Claimed


@dataclass(frozen=True, slots=True)
class Settle:
    """An attempt's result, under the fence it was made with."""

    job_id: JobId
    path: StepPath
    ref: str
    fence: int
    result: Result
    usage: Usage = Usage()
    worker: str | None = None
    #: What becomes ready on one of these queues is claimed for this worker at once: one step, and its share of more.
    continue_on: frozenset[str] = frozenset()
    #: The caller publishes the body of a join this settle decides (the chord backend does), unless it continues there.
    sends_body: bool = False
    #: The debt that the step pays, of an undoing step.
    undoes: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a process can run beside the step that a settle goes on with."""

    slots: int
    #: Whether an agent's calls mostly wait, so that one process runs several as well as many do.
    light: Callable[[Agent], bool]


NO_ROOM = Room(0, lambda _: False)


@dataclass(slots=True)
class Settled:
    won: bool
    next: Claimed | None = None
    #: Further calls that were claimed for this worker, a slot for each.
    beside: list[Claimed] = field(default_factory=list)
    #: Steps that became ready and were left to others.
    ready: int = 0
    job_state: JobState | None = None
    #: Seconds from submit to end, when this settle ended the job.
    job_seconds: float | None = None
    #: The body of the join this settle decided, for the caller to publish.
    body: StepRef | None = None
