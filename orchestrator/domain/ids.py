"""Names of things, as types, so that one kind of id cannot be passed for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

JobId = NewType("JobId", str)
#: A step's stable place in its job: ``redraft/round-2/redliner``. The job's own root step is ``""``.
StepPath = NewType("StepPath", str)
#: One life of a worker process; never a host name or a pid, which come back.
Incarnation = NewType("Incarnation", str)
QueueName = NewType("QueueName", str)
#: The content hash of an immutable workflow version (its agents included).
Version = NewType("Version", str)

ROOT = StepPath("")
DEFAULT_QUEUE = QueueName("default")


def child(parent: StepPath, segment: str) -> StepPath:
    """The path of ``segment`` below ``parent``."""
    return StepPath(f"{parent}/{segment}" if parent else segment)


def parent_of(path: StepPath) -> StepPath | None:
    """The path that encloses ``path``; ``None`` for the root."""
    if not path:
        return None
    head, _, _ = path.rpartition("/")
    return StepPath(head)


def ancestor(path: StepPath, hops: int) -> StepPath:
    """``path`` with its last ``hops`` segments taken off."""
    segments = path.split("/") if path else []
    return StepPath("/".join(segments[: len(segments) - hops]))


def call_key(job_id: JobId, path: StepPath, version: str, generation: int) -> str:
    """(job, step, version, generation): repeats while an earlier attempt's outcome is unknown."""
    return f"{job_id}:{path}:{version[:12]}:{generation}"


@dataclass(frozen=True, slots=True)
class StepRef:
    """All that a message ever carries: which step, in which generation of its work."""

    job_id: JobId
    path: StepPath
    epoch: int
    queue: QueueName = DEFAULT_QUEUE
    #: The fan-out this step is a member of, if its stage was compiled to a group or chord.
    group: StepPath | None = None
