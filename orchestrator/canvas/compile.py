"""A stage of a plan as real Celery signatures: what `orchestrator compile --show` prints and what a worker executes.

Only the head of a chain and the members of a chord are ever published. The tail and the body are rows, and the settle
that reaches them publishes them (docs/decisions/0007-what-celery-executes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Signature, chain, chord, group

from orchestrator.canvas.messages import STEP, group_id, step_id
from orchestrator.domain.ids import DEFAULT_QUEUE, ROOT, JobId, QueueName, StepPath, StepRef, child
from orchestrator.domain.plan import Kind, Plan


def step(ref: StepRef, *, app: Any = None) -> Signature:
    """``ref`` as ``orchestrator.step``; takes no result of the one before."""
    options: dict[str, Any] = {"task_id": step_id(ref), "queue": ref.queue, "ignore_result": True}
    if ref.group is not None:
        options["group_id"] = group_id(ref)
    return Signature(STEP, args=(ref.job_id, ref.path, ref.epoch), options=options, immutable=True, app=app)


def stage(members: Sequence[StepRef], body: StepRef | None, *, app: Any = None) -> Signature:
    """What becomes ready together: one step, a ``group``, or with ``body`` a ``chord`` that it joins.

    A single step without a body is the head of a chain whose tail is in SQL. Raises ValueError when there is none.
    """
    if not members:
        raise ValueError("A stage has at least one step.")
    steps = [step(ref, app=app) for ref in members]
    if body is None and len(steps) == 1:
        return steps[0]
    header = group(steps, app=app)
    if members[0].group is not None:
        header.options["task_id"] = group_id(members[0])
    return header if body is None else chord(header, step(body, app=app), app=app)


def canvas(plan: Plan, job_id: JobId, *, app: Any = None) -> Signature:
    """A whole plan as one Celery canvas, for inspection and for a stock worker: the other compile target.

    The same task for each step, in Celery's own order: a list is a ``chain``, a parallel its opening step and a
    ``chord`` that meets in it. What unfolds from data (for_each, supervise) is a single step here: its members are
    published by the settle that opens it. Raises ValueError for a list ordered by ``needs``, which no canvas can say.
    """
    return _list(plan, job_id, "", ROOT, app)


def _list(plan: Plan, job_id: JobId, ref: str, path: StepPath, app: Any) -> Signature:
    node = plan.nodes[ref]
    for before, name in zip(("", *node.names), node.names, strict=False):
        kid = plan.nodes[node.body[node.names.index(name)]]
        if kid.needs != ((before,) if before else ()):
            raise ValueError(f"the list at {path or 'the top'!r} is ordered by needs, which a Celery canvas cannot say")
    parts = [_part(plan, job_id, kid, child(path, name), app) for name, kid in zip(node.names, node.body, strict=True)]
    return parts[0] if len(parts) == 1 else chain(*parts, app=app)


def _part(plan: Plan, job_id: JobId, ref: str, path: StepPath, app: Any) -> Signature:
    node = plan.nodes[ref]
    if node.kind is Kind.SEQUENCE:
        return _list(plan, job_id, ref, path, app)
    agent = plan.agents.get(node.agent or "")
    queue = QueueName(agent.queue) if agent is not None else DEFAULT_QUEUE
    this = StepRef(job_id, path, 1, queue)
    if node.kind is not Kind.PARALLEL:
        return step(this, app=app)
    header = group(
        [_part(plan, job_id, kid, child(path, name), app) for name, kid in zip(node.names, node.body, strict=True)],
        app=app,
    )
    opening = step(this, app=app).set(task_id=f"{step_id(this)}:open")
    return chain(opening, chord(header, step(this, app=app), app=app), app=app)
