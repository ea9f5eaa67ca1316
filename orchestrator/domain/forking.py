"""A new job from an old one's checkpoints: which steps are taken over, and what drifted between two versions. Pure.

A step of the job's own list is the unit of drift: its definition with everything in it, the agents it names, and what
its input comes to. What is unchanged is taken over with all it had opened; what changed is done again unless somebody
says to reuse its result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from orchestrator.domain.ids import ROOT, StepPath
from orchestrator.domain.json_values import digest
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.planner import first_rows
from orchestrator.domain.states import STEP_DONE
from orchestrator.domain.workflow import AgentStep, Body, ForEachStep, ParallelStep, Step, SuperviseStep, Workflow


@dataclass(frozen=True, slots=True)
class Drift:
    """``why``: changed, input, new or removed; ``choice``: rerun, reuse or dropped."""

    step: str
    why: str
    choice: str


def drift(old: Workflow, new: Workflow, rows: Mapping[StepPath, StepRow], reuse: Collection[str]) -> list[Drift]:
    """How the steps of two versions differ, in the order of the new one."""
    before, after = _definitions(old), _definitions(new)
    found = []
    for name, definition in after.items():
        if name not in before:
            found.append(Drift(name, "new", "rerun"))
        elif definition != before[name]:
            found.append(_changed(name, "changed", rows, reuse))
    return [*found, *(Drift(name, "removed", "dropped") for name in before if name not in after)]


def with_inputs(
    drifted: list[Drift], names: Collection[str], rows: Mapping[StepPath, StepRow], reuse: Collection[str]
) -> list[Drift]:
    """``drifted``, and the steps ``names``, whose definition stayed but whose input comes to something else."""
    return [*drifted, *(_changed(name, "input", rows, reuse) for name in sorted(names))]


def rewired(old: Plan, new: Plan, rows: Iterable[StepRow], drifted: Iterable[Drift]) -> list[StepRow]:
    """Those of ``rows`` that have a result and whose input is taken from elsewhere, though their definition stayed.

    The input of a step without ``with`` is what the step before it answered: another one, if that was taken out.
    """
    others = {"", *(one.step for one in drifted)}
    kept = (row for row in rows if row.state in STEP_DONE and row.path.partition("/")[0] not in others)
    return [row for row in kept if _moved(old, new, row.ref)]


def _moved(old: Plan, new: Plan, ref: str) -> bool:
    before, after = old.nodes[ref], new.nodes[ref]
    return (before.input, before.reads) != (after.input, after.reads)


def _changed(name: str, why: str, rows: Mapping[StepPath, StepRow], reuse: Collection[str]) -> Drift:
    row = rows.get(StepPath(name))
    kept = name in reuse and row is not None and row.state in STEP_DONE
    return Drift(name, why, "reuse" if kept else "rerun")


def taken_over(
    plan: Plan, job: JobRow, rows: Mapping[StepPath, StepRow], drifted: Iterable[Drift]
) -> dict[StepPath, StepRow]:
    """The new job's rows, as far as they can be known: those of the old job, or fresh ones where it has none."""
    by_name = {one.step: one for one in drifted}
    out = {row.path: row for row in first_rows(plan, job.id, job.tenant, job.priority)}
    for path, row in rows.items():
        name = path.partition("/")[0]
        one = by_name.get(name)
        if path == ROOT or (one is not None and not _keeps(one, path)):
            continue
        out[path] = _copied(row, job, out[StepPath(name)].seq if path == name else row.seq)
    return out


def _keeps(one: Drift, path: StepPath) -> bool:
    """Of a reused step whose definition changed only its own row fits; what it had opened is of the other version."""
    return one.choice == "reuse" and (one.why == "input" or path == one.step)


def settled(rows: Iterable[StepRow], going: Collection[StepPath]) -> None:
    """Gives each row the numbers of a new job: 1 where it is to be done, 0 where its result was taken over."""
    for row in rows:
        row.epoch, row.fence, row.attempt, row.generation = int(row.path in going), 0, 0, 1


def _copied(row: StepRow, job: JobRow, seq: int) -> StepRow:
    return replace(
        row,
        job_id=job.id,
        tenant=job.tenant,
        priority=job.priority,
        seq=seq,
        lease_owner=None,
        lease_until=None,
        not_before=None,
        dispatched_at=None,
        mark=None,
        begun=False,
    )


def _definitions(workflow: Workflow) -> dict[str, str]:
    """Each step of the job's list with what its definition comes to."""
    return {step.id or str(i): _definition(workflow, step) for i, step in enumerate(workflow.steps)}


def _definition(workflow: Workflow, step: Step) -> str:
    agents = {name: workflow.agents[name] for name in sorted(set(_agents(step))) if name in workflow.agents}
    dumped = {name: agent.model_dump(mode="json", by_alias=True) for name, agent in agents.items()}
    return digest([step.model_dump(mode="json", by_alias=True), dumped])


def _agents(body: Body) -> Iterator[str]:
    match body:
        case tuple():
            for step in body:
                yield from _agents(step)
        case AgentStep():
            yield body.agent
            yield from (entry.agent for entry in body.on_failure if entry.agent is not None)
        case SuperviseStep():
            rule = body.supervise
            yield from (rule.supervisor, *rule.workers, *([rule.reviewer] if rule.reviewer else []))
        case ForEachStep():
            yield from _agents(body.do)
        case ParallelStep():
            for branch in body.parallel.values():
                yield from _agents(branch)
