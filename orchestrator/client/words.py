"""What a client is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.domain.outcome import Failure
from orchestrator.domain.states import JOB_TERMINAL, JobState


@dataclass(frozen=True, slots=True)
class NewJob:
    """One job of a batch. ``workflow`` is ``name``, ``name@version`` or a definition; ``deadline`` in seconds.

    ``webhook``: a URL that is told of the job's end, or ``{"url", "events"?, "secret"?}``.
    """

    workflow: str | Mapping[str, Any]
    input: Any = None
    key: str | None = None
    priority: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    webhook: str | Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when asked. Times are seconds since the epoch.

    ``input`` and ``output`` are there where one job was asked for, and None in lists; so is ``webhook``, if it has one.
    The answer to a submit holds ``webhook["secret"]`` if the server made it: only there, and only the first time.
    """

    id: str
    workflow: str
    version: str
    state: JobState
    run: int
    tenant: str
    priority: int
    tags: dict[str, str]
    created_at: float | None
    started_at: float | None
    finished_at: float | None
    deadline_at: float | None
    steps: int
    cost_usd: float
    input_tokens: int
    output_tokens: int
    failure: Failure | None
    #: The job it was forked of.
    origin: str | None = None
    input: Any = None
    output: Any = None
    webhook: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.state in JOB_TERMINAL

    @classmethod
    def read(cls, view: Mapping[str, Any]) -> Self:
        """From the API's JSON; fields that a newer server adds are let pass."""
        known = {name: view[name] for name in cls.__dataclass_fields__ if name in view}
        known["state"] = JobState(known["state"])
        known["failure"] = Failure.from_dict(known["failure"]) if known["failure"] else None
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history; ``number`` has no gaps in its job. A newer server may know more types."""

    job: str
    number: int
    run: int
    type: str
    path: str | None
    at: float
    data: dict[str, Any]

    @classmethod
    def read(cls, view: Mapping[str, Any]) -> Self:
        return cls(**{name: view[name] for name in cls.__dataclass_fields__})
