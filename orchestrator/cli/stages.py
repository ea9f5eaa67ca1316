"""A plan as the stages it runs in, each as the Celery signature it becomes: for ``compile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.cli.printing import json_text
from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.domain.plan import Node, Plan
    from orchestrator.domain.workflow import Workflow

#: A fan-out's width is known when it opens; it is shown with so many members.
SHOWN_WIDTH = 2
JOB = "<job>"


def stages(workflow: Workflow) -> list[dict[str, Any]]:
    """What is published together, in order: ``{"step", "kind", "form", "members", "body", "signature"}`` each."""
    from orchestrator.domain.planner import compile_plan

    return list(_sequence(compile_plan(workflow, "0" * 32, {}), "", ""))


def whole(workflow: Workflow) -> dict[str, Any]:
    """The plan as one Celery canvas. Raises ``UsageError`` for a plan that no canvas can say."""
    from orchestrator.canvas.compile import canvas
    from orchestrator.domain.ids import JobId
    from orchestrator.domain.planner import compile_plan

    try:
        return dict(canvas(compile_plan(workflow, "0" * 32, {}), JobId(JOB)))
    except ValueError as error:
        raise UsageError(f"{error}.", mend="Use --target durable.") from None


def summary(found: list[dict[str, Any]], *, signatures: bool) -> str:
    """A line for each stage; with ``signatures`` the Celery signature below it."""
    lines = []
    for stage in found:
        members = ", ".join(stage["members"])
        lines.append(f"{stage['form']:<6} {members}" + (f" → {stage['body']}" if stage["body"] is not None else ""))
        if signatures:
            lines.append(json_text(stage["signature"]))
    return "\n".join(lines)


def _sequence(plan: Plan, ref: str, path: str) -> Iterator[dict[str, Any]]:
    """The steps of a list in the order they stand; those that wait for nothing go together."""
    node = plan.nodes[ref]
    pairs = list(zip(node.names, node.body, strict=True))
    waves: list[list[tuple[str, str]]] = []
    done: set[str] = set()
    while pairs:
        wave = [(name, kid) for name, kid in pairs if done.issuperset(plan.nodes[kid].needs)]
        waves.append(wave)
        done.update(name for name, _ in wave)
        pairs = [pair for pair in pairs if pair not in wave]
    for wave in waves:
        yield _stage(plan, node, [(_join(path, name), kid) for name, kid in wave], None)
        for name, kid in wave:
            yield from _below(plan, kid, _join(path, name))


def _below(plan: Plan, ref: str, path: str) -> Iterator[dict[str, Any]]:
    """The stages a composite opens."""
    from orchestrator.domain.plan import Kind

    node = plan.nodes[ref]
    match node.kind:
        case Kind.AGENT | Kind.UNDO:  # what is undone, and in which order, only a run can tell
            return
        case Kind.SEQUENCE:
            yield from _sequence(plan, ref, path)
        case Kind.SUPERVISE:
            yield from _sequence(plan, node.body[0], _join(path, "round-1"))
        case Kind.PARALLEL:
            members = [(_join(path, name), kid) for name, kid in zip(node.names, node.body, strict=True)]
            yield _stage(plan, node, members, path)
            for member, kid in members:
                yield from _below(plan, kid, member)
        case Kind.FOR_EACH | Kind.DELEGATE:
            members = [(_join(path, str(number)), node.body[0]) for number in range(SHOWN_WIDTH)]
            yield _stage(plan, node, members, path)
            yield from _below(plan, node.body[0], _join(path, "0"))


def _stage(plan: Plan, node: Node, members: list[tuple[str, str]], body: str | None) -> dict[str, Any]:
    from orchestrator.canvas.compile import stage
    from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef

    group = StepPath(body) if body is not None else None

    def reference(path: str, ref: str) -> StepRef:
        agent = plan.agents.get(plan.nodes[ref].agent or "")
        return StepRef(JobId(JOB), StepPath(path), 1, QueueName(agent.queue if agent else "default"), group)

    refs = [reference(path, ref) for path, ref in members]
    end = StepRef(JobId(JOB), StepPath(body), 1) if body is not None else None
    form = "chord" if body is not None else ("group" if len(refs) > 1 else "chain")
    return {
        "step": node.ref,
        "kind": node.kind.value,
        "form": form,
        "members": [path for path, _ in members],
        "body": body,
        "signature": dict(stage(refs, end)),
    }


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
