"""What an attempt was settled with, as a closed union; and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.events import EventType
from orchestrator.domain.ids import StepPath
from orchestrator.domain.outcome import Failure, Stored, Usage
from orchestrator.domain.plan import StepRow
from orchestrator.domain.states import StepState


@dataclass(frozen=True, slots=True)
class Succeeded:
    """``owes``: the compensator's input, of a step that has one."""

    output: Stored
    data: dict[str, Any] = field(default_factory=dict)
    owes: Stored | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Its ``when`` was false: counts as succeeded, with output null."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """``delay`` seconds from the settle; ``new_key``: the failed call's outcome is known, the next may act anew."""

    failure: Failure
    delay: float
    new_key: bool
    charged: bool = True


@dataclass(frozen=True, slots=True)
class GaveUp:
    failure: Failure


@dataclass(frozen=True, slots=True)
class FellBack:
    """The agent is given up; entry ``number`` of on_failure names another one for the same step."""

    failure: Failure
    agent: str
    number: int


@dataclass(frozen=True, slots=True)
class Defaulted:
    """The agent is given up; the step ends all the same, with a default output or skipped."""

    failure: Failure
    state: StepState
    output: Stored


@dataclass(frozen=True, slots=True)
class Escalated:
    """The agent is given up; entry ``number`` of on_failure asks a person of ``group``."""

    failure: Failure
    group: str
    number: int


@dataclass(frozen=True, slots=True)
class Doubted:
    """The call may have taken effect (``was`` is how it failed): its reconcile is asked, else a person.

    ``lost``: its worker was; that is charged to no policy.
    """

    failure: Failure
    was: Failure
    lost: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Unreconciled:
    """Reconcile could not tell (``failure``: or not answer): a person is asked."""

    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class NotHappened:
    """Reconcile knows that the doubtful call had no effect: what follows from that, under a new key."""

    then: Retrying | FellBack | Defaulted | Escalated | GaveUp | Released


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The worker stopped the call because it was asked to."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A composite unfolded. ``row`` carries its new width and round; ``children`` are written with it.

    ``prepared``: of a wide fan-out, how many children were written before this settle, in chunks; the first
    ``let_go`` of them are made ready by it.
    """

    row: StepRow
    children: tuple[StepRow, ...]
    prepared: int = 0
    let_go: int = 0
    event: EventType = EventType.STEP_OPENED
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """Handed back unbegun (drain), or its worker is lost: ready again under a new fence."""

    lost: bool
    alone: bool = False


Result = (
    Succeeded
    | Skipped
    | Retrying
    | GaveUp
    | FellBack
    | Defaulted
    | Escalated
    | Doubted
    | Unreconciled
    | NotHappened
    | Cancelled
    | Opened
    | Released
)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """A finished attempt, append-only."""

    path: StepPath
    epoch: int
    attempt: int
    outcome: str
    agent: str | None = None
    generation: int = 1
    worker: str | None = None
    started_at: float | None = None
    failure: Failure | None = None
    usage: Usage = Usage()
    #: What a failed or superseded attempt answered, kept for the desk.
    output: Stored | None = None
    #: How its input differed from the attempt before.
    changed: dict[str, Any] = field(default_factory=dict)
