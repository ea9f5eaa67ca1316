"""A finished step's result no longer holds: it and its transitive dependents are done again, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.domain.errors import Conflict, InvalidInput, NotFound
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import JobRow, Kind, Plan, StepRow
from orchestrator.domain.stale import Stale, stale_from
from orchestrator.domain.states import STEP_DONE, JobState, StepState
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.engine.dead_letters import reopen
from orchestrator.store import desk, jobs, steps
from orchestrator.store.session import Session

#: Steps named in a message.
SHOWN = 5


def preview(engine: Engine, job_id: JobId, path: StepPath, *, tenant: str | None = None) -> dict[str, Any]:
    """What ``invalidate`` would do: ``again``, ``around``, ``gone`` and ``effects``, as paths. Writes nothing.

    Raises as ``invalidate`` does, but for effects, which it only names.
    """

    def work(session: Session) -> dict[str, Any]:
        job = _own(jobs.get(session, job_id), job_id, tenant)
        plan = engine.plans.get(session, job.version)
        rows = {row.path: row for row in steps.load_all(session, job.id)}
        stale = _stale(plan, job, rows, path)
        parts = {
            "again": stale.again,
            "around": stale.around,
            "gone": stale.gone,
            "effects": effects(plan, rows, stale),
        }
        return {"dry_run": True, **{name: sorted(found) for name, found in parts.items()}}

    return engine.db.run(work)


def invalidate(
    engine: Engine,
    job_id: JobId,
    path: StepPath,
    *,
    by: str,
    note: str | None = None,
    repeat_effects: bool = False,
    tenant: str | None = None,
) -> JobRow:
    """succeeded or failed → running, with a new run number: ``path`` and what depends on it is done again.

    Their epochs are raised, their old results stay in ``attempts``, their calls have new keys. Of a failed job what
    had not finished is taken up too, and its open letter closed as replayed. Raises ``NotFound``; ``Conflict`` when
    the job has not ended, the step has not finished, or steps with an effect would act again unless ``repeat_effects``.
    """
    ready: list[StepRow] = []

    def work(session: Session) -> JobRow:
        ready.clear()
        job = _own(jobs.lock(session, [job_id]).get(job_id), job_id, tenant)
        plan = engine.plans.get(session, job.version)
        rows = {row.path: row for row in steps.load_all(session, job.id)}
        stale = _stale(plan, job, rows, path)
        again = effects(plan, rows, stale)
        if again and not repeat_effects:
            raise Conflict(
                f"{_listed(again)} acted outside and would act again.",
                mend="If that is meant, say repeat_effects (--repeat-effects); or invalidate a later step.",
            )
        replayed = False
        for letter in desk.letters(session, tenant=None, state="open", job_id=job.id):
            replayed = desk.close_letter(session, letter["id"], "replayed", by, note)
        data = {"invalidated": path, "by": by}
        audit.note(engine, session, "step.invalidated", job.id, tenant=job.tenant, by=by, why=note, data={"path": path})
        ready.extend(reopen(engine, session, job, stale=stale, data=data, replayed=replayed))
        return job

    job = engine.db.run(work)
    engine.feed.committed([], ready)
    return job


def effects(plan: Plan, rows: dict[StepPath, StepRow], stale: Stale) -> list[StepPath]:
    """The steps that would be done again and had an effect outside."""
    return sorted(path for path in stale.again | stale.gone if _acted(plan, rows[path]))


def _acted(plan: Plan, row: StepRow) -> bool:
    if row.kind is not Kind.AGENT or row.agent is None or row.state is not StepState.SUCCEEDED:
        return False
    return plan.nodes[row.ref].effect_of(plan.agents[row.agent]) != "read"


def _stale(plan: Plan, job: JobRow, rows: dict[StepPath, StepRow], path: StepPath) -> Stale:
    if not path:
        raise InvalidInput("the whole job is no step of its own.", mend="Name a step, or submit the job again.")
    row = rows.get(path)
    if row is None:
        raise NotFound(f"job {job.id} has no step {path!r}.", mend=f"See them: orchestrator jobs steps {job.id}")
    if job.state not in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(
            f"job {job.id} is {job.state.value}; a step is invalidated once its job has succeeded or failed.",
            mend="Wait for its end." if job.finished_at is None else "Submit it again.",
        )
    if row.state not in STEP_DONE:
        raise Conflict(
            f"step {path} is {row.state.value}, so it has no result that could be invalid.",
            mend="Replay the job's dead letter instead.",
        )
    return stale_from(plan, rows, [path])


def _own(job: JobRow | None, job_id: JobId, tenant: str | None) -> JobRow:
    if job is None or (tenant is not None and job.tenant != tenant):
        raise NotFound(f"no job {job_id}.")
    return job


def _listed(paths: Iterable[StepPath]) -> str:
    names = list(paths)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
