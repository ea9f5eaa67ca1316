"""Which steps leave it to the default what happens when they fail: the job is parked. Pure.

That is allowed; ``workflows apply --strict`` asks for a word on it, be it ``on_failure: []``, which says "fail".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from orchestrator.domain.errors import DefinitionError, Problem
from orchestrator.domain.schemas import place_text
from orchestrator.domain.workflow import AgentStep, Body, ForEachStep, ParallelStep, Step, SuperviseStep, Workflow

Path = tuple[str | int, ...]


class LeftToDefault(DefinitionError):
    """A strict registration of a workflow with steps whose failure path is left to the default."""

    code = "left_to_default"


def left_to_default(workflow: Workflow) -> list[Problem]:
    """A line for each such step, with its place."""
    return [problem for i, step in enumerate(workflow.steps) for problem in _step(step, ("steps", i))]


def require(workflow: Workflow) -> None:
    """Raises ``LeftToDefault`` naming every such step."""
    if problems := left_to_default(workflow):
        raise LeftToDefault(problems)


def _step(step: Step, path: Path) -> Iterator[Problem]:
    match step:
        case AgentStep():
            if "on_failure" not in step.model_fields_set:
                mend = "on_failure (an agent, a value or skip), or on_failure: [] to fail"
                yield _problem(step, path, "on_failure", mend)
        case SuperviseStep():
            if "otherwise" not in step.supervise.model_fields_set:
                yield _problem(step, (*path, "supervise"), "otherwise", "otherwise: accept or otherwise: fail")
        case ForEachStep():
            yield from _body(step.do, (*path, "do"))
        case ParallelStep():
            for name, branch in step.parallel.items():
                yield from _body(branch, (*path, "parallel", name))
        case _:
            assert_never(step)


def _body(body: Body, path: Path) -> Iterator[Problem]:
    if isinstance(body, tuple):
        for i, step in enumerate(body):
            yield from _step(step, (*path, i))
    else:
        yield from _step(body, path)


def _problem(step: Step, path: Path, field: str, mend: str) -> Problem:
    name = f"the step {step.id!r}" if step.id is not None else "the step"
    return Problem(f"{name} leaves to the default what happens when it fails; write {mend}", place_text((*path, field)))
