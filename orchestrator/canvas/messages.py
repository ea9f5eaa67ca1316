"""What travels through a broker: two kinds of Celery task message, both a few hundred bytes.

``orchestrator.step``    args ``[job_id, path, epoch]``: run this step, if it is still this generation's turn
``orchestrator.marker``  args ``[queue, number]``: all that was published to ``queue`` before me has been seen

A step's queue is the one it arrives by, its group is a header. Both are Celery's protocol 2, so that any worker of the
app can execute them; headers are built here because Celery's own builder costs ten times as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef

STEP: Final = "orchestrator.step"
MARKER: Final = "orchestrator.marker"
#: Where RabbitMQ puts what reached its delivery limit; schedulers take it into quarantine (``dead_messages.py``).
DEAD_QUEUE: Final = "orchestrator.dead"

#: Longest texts we accept in a message's arguments, in characters.
MAX_JOB_ID: Final = 200
MAX_PATH: Final = 4096
MAX_QUEUE: Final = 255
#: Epochs and marker numbers are bigints in SQL.
MAX_NUMBER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message ready to be published; ``ref`` is None for a marker."""

    queue: QueueName
    id: str
    headers: dict[str, Any]
    body: bytes
    ref: StepRef | None = None


def step_id(ref: StepRef) -> str:
    """The Celery task id: names the work, so a duplicate has the same."""
    return f"{ref.job_id}:{ref.path}:{ref.epoch}"


def group_id(ref: StepRef) -> str | None:
    """The Celery group id of a fan-out's members."""
    return None if ref.group is None else f"{ref.job_id}:{ref.group}"


def body_reference(ref: StepRef) -> dict[str, Any] | None:
    """Which step joins the group of ``ref``. Only a reference: the settle that decides the join knows its epoch."""
    if ref.group is None:
        return None
    return {
        "task": STEP,
        "args": [ref.job_id, ref.group],
        "kwargs": {},
        "options": {"task_id": group_id(ref)},
        "subtask_type": None,
        "immutable": True,
    }


def step_message(ref: StepRef) -> Outgoing:
    args = [ref.job_id, ref.path, ref.epoch]
    headers = _headers(STEP, step_id(ref), args, group=group_id(ref))
    return Outgoing(ref.queue, step_id(ref), headers, _body(args, chord=body_reference(ref)), ref)


def marker_message(queue: QueueName, number: int) -> Outgoing:
    identity = f"marker:{queue}:{number}"
    return Outgoing(queue, identity, _headers(MARKER, identity, [queue, number]), _body([queue, number]))


def read_step(args: Sequence[Any], request: Mapping[str, Any]) -> StepRef:
    """The step that a Celery request names. ``args`` have passed the guard (``step_problem``)."""
    job_id, path, epoch = args
    delivery = request.get("delivery_info") or {}
    group = request.get("group")
    prefix = f"{job_id}:"
    return StepRef(
        JobId(job_id),
        StepPath(path),
        epoch,
        queue=QueueName(str(delivery.get("routing_key") or "")),
        group=StepPath(group[len(prefix) :]) if isinstance(group, str) and group.startswith(prefix) else None,
    )


def step_problem(args: Sequence[Any]) -> str | None:
    """What is wrong with a step's arguments; None when they are right."""
    if len(args) != 3:
        return f"a step has 3 arguments (job, path, epoch), not {len(args)}"
    job_id, path, epoch = args
    if not _is_text(job_id, MAX_JOB_ID) or not job_id:
        return f"a step's job is a text of 1 to {MAX_JOB_ID} characters without NUL"
    if not _is_text(path, MAX_PATH):
        return f"a step's path is a text of at most {MAX_PATH} characters without NUL"
    return None if _is_number(epoch) else "a step's epoch is a whole number from 0"


def marker_problem(args: Sequence[Any]) -> str | None:
    """What is wrong with a marker's arguments; None when they are right."""
    if len(args) != 2:
        return f"a marker has 2 arguments (queue, number), not {len(args)}"
    if not _is_text(args[0], MAX_QUEUE) or not args[0]:
        return f"a marker's queue is a text of 1 to {MAX_QUEUE} characters without NUL"
    return None if _is_number(args[1]) else "a marker's number is a whole number from 0"


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest and "\0" not in value


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER


def _headers(task: str, identity: str, args: list[Any], *, group: str | None = None) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": task,
        "id": identity,
        "root_id": identity,
        "parent_id": None,
        "group": group,
        "group_index": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": str(args),
        "kwargsrepr": "{}",
        "origin": "orchestrator",
        "ignore_result": True,
    }


def _body(args: list[Any], *, chord: dict[str, Any] | None = None) -> bytes:
    return orjson.dumps([args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": chord}])
