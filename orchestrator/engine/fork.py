"""Fork: a new job that begins in the middle of an old one, with the finished checkpoints before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.domain.errors import Conflict, InvalidInput, NotFound
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.forking import Drift, drift, rewired, settled, taken_over, with_inputs
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.json_values import digest
from orchestrator.domain.plan import JobRow, Kind, Plan, StepRow
from orchestrator.domain.stale import Stale, stale_from
from orchestrator.domain.states import STEP_DONE, JobState, StepState
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import audit, edits
from orchestrator.engine.context import Engine
from orchestrator.engine.dead_letters import set_going
from orchestrator.engine.gather import gather
from orchestrator.engine.submit import Accepted, check_key, same
from orchestrator.store import history, jobs, payloads, steps, workflows
from orchestrator.store.session import Session


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for. ``changes``: ``input`` and ``agent`` of the step, ``workflow`` (``name@version``)."""

    job_id: JobId
    from_step: StepPath
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: Steps that changed with the version and keep their results.
    reuse: Sequence[str] = ()
    key: str | None = None
    by: str = ""
    note: str | None = None
    #: The caller's; None: an admin of all.
    tenant: str | None = None

    def body_hash(self) -> str:
        return digest(["fork", self.job_id, self.from_step, dict(self.changes), sorted(self.reuse)])


class _DryRun(Exception):
    """Carries what a fork would do out of its transaction, which is undone."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__()
        self.found = found


def preview(engine: Engine, wanted: Wanted) -> dict[str, Any]:
    """What ``fork`` would do: steps done ``again``, how many are ``kept``, and the ``drift``. Writes nothing."""
    try:
        engine.db.run(lambda session: _fork(engine, session, wanted, [], dry=True))
    except _DryRun as end:
        return end.found
    raise AssertionError("a dry run ends in the middle")


def fork(engine: Engine, wanted: Wanted) -> Accepted:
    """A new job, ``origin`` the old one: what ``from_step`` does not reach is taken over, the rest is done.

    Same key and wish: the same job. Raises ``NotFound``; ``Conflict`` (the step has not ended, the job is compensated);
    ``InvalidInput`` (the changes); ``IdempotencyMismatch``.
    """
    ready: list[StepRow] = []
    accepted = engine.db.run(lambda session: _fork(engine, session, wanted, ready))
    engine.feed.committed([], ready)
    return accepted


def _fork(engine: Engine, session: Session, wanted: Wanted, ready: list[StepRow], *, dry: bool = False) -> Accepted:
    ready.clear()
    source = jobs.lock(session, [wanted.job_id]).get(wanted.job_id)
    if source is None or (wanted.tenant is not None and source.tenant != wanted.tenant):
        raise NotFound(f"no job {wanted.job_id}.")
    if wanted.key is not None:
        check_key(wanted.key)
        existing = jobs.by_key(session, source.tenant, wanted.key)
        if existing is not None and not dry:
            same(existing, wanted.body_hash())
            return Accepted(existing, created=False)
    rows = {row.path: row for row in steps.load_all(session, source.id)}
    _may_fork(source, rows, wanted.from_step)
    version, plan, old, new = _versions(engine, session, source, wanted.changes.get("workflow"))
    job = _new_job(engine, session, source, wanted, version, new)
    if not jobs.insert(session, job):
        raise Conflict("another fork with this idempotency key was made at the same moment.", mend="Send it again.")
    drifted = drift(old, new, rows, wanted.reuse)
    if version != source.version:
        others = _other_inputs(engine, session, source, plan, rows, taken_over(plan, job, rows, drifted), drifted)
        drifted = with_inputs(drifted, others, rows, wanted.reuse)
    _known(wanted, drifted)
    fresh = taken_over(plan, job, rows, drifted)
    stale = stale_from(plan, fresh, _starts(wanted.from_step, drifted))
    changes = {name: value for name, value in wanted.changes.items() if name != "workflow"}
    edit = edits.examine(engine, session, job, fresh[wanted.from_step], changes, by=wanted.by, known=fresh)
    now = session.now()
    going, heads = set_going(plan, fresh, stale, edit, now)
    settled(fresh.values(), frozenset(going))
    if dry:
        raise _DryRun(_shown(new, version, stale, fresh, going, drifted))
    _write(engine, session, job, fresh, edit, wanted)
    ready.extend(heads)
    return Accepted(job, created=True)


def _shown(
    new: Workflow,
    version: str,
    stale: Stale,
    fresh: dict[StepPath, StepRow],
    going: Sequence[StepPath],
    drifted: Sequence[Drift],
) -> dict[str, Any]:
    again = sorted(path for path in going if path and path not in stale.around)
    return {
        "dry_run": True,
        "workflow": new.name,
        "version": version,
        "again": again,
        "kept": len(fresh) - len(going),
        "drift": [asdict(one) for one in drifted],
    }


def _may_fork(source: JobRow, rows: Mapping[StepPath, StepRow], path: StepPath) -> None:
    if source.state is JobState.COMPENSATING:
        raise Conflict(f"job {source.id} is compensating; it is forked afterwards.", mend="Wait for its end.")
    row = rows.get(path) if path else None
    if row is None:
        raise NotFound(f"job {source.id} has no step {path!r}.", mend=f"See them: orchestrator jobs steps {source.id}")
    if row.state not in STEP_DONE and row.state is not StepState.FAILED:
        raise Conflict(
            f"step {path} is {row.state.value}; a job is forked from a step that has ended.",
            mend="Wait for its end, or fork from a step before it.",
        )


def _versions(
    engine: Engine, session: Session, source: JobRow, wanted: str | None
) -> tuple[str, Plan, Workflow, Workflow]:
    same_plan, old = engine.plans.both(session, source.version)
    if wanted is None:
        return source.version, same_plan, old, old
    name, _, version = wanted.partition("@")
    if name != source.workflow:
        raise InvalidInput(
            f"changes.workflow: the job is of {source.workflow!r}; a fork is of another version of the same workflow.",
            mend="Submit a new job.",
        )
    found = workflows.newest(session, name, version or None)
    if found is None:
        raise NotFound(f"no workflow {wanted!r} is registered.", mend=f"orchestrator workflows show {name}")
    plan, new = engine.plans.both(session, found)
    return found, plan, old, new


def _other_inputs(
    engine: Engine,
    session: Session,
    source: JobRow,
    plan: Plan,
    rows: Mapping[StepPath, StepRow],
    fresh: Mapping[StepPath, StepRow],
    drifted: Sequence[Drift],
) -> set[str]:
    """Steps of the job's list that would be taken over, while the input of a call in them comes to something else."""
    moved = rewired(engine.plans.get(session, source.version), plan, fresh.values(), drifted)
    before = gather(engine, session, [rows[row.path] for row in moved])
    after = gather(engine, session, moved, {row.job_id: fresh for row in moved})
    return {
        row.path.partition("/")[0]
        for row in moved
        if digest(edits.input_or_none(before[source.id, row.path]))
        != digest(edits.input_or_none(after[row.job_id, row.path]))
    }


def _known(wanted: Wanted, drifted: Sequence[Drift]) -> None:
    if "output" in wanted.changes:
        raise InvalidInput("changes.output: a fork does its step.", mend="Give input or agent.")
    changed = {one.step: one for one in drifted if one.why in ("changed", "input")}
    for name in wanted.reuse:
        if name not in changed or changed[name].choice != "reuse":
            raise InvalidInput(
                f"reuse: {name!r} is no finished step that changed, or whose input did, with the version.",
                mend=f"Changed: {', '.join(sorted(changed)) or 'none'}.",
            )
    top = wanted.from_step.partition("/")[0]
    inside = top != wanted.from_step
    if any(
        one.step == top and (one.why == "removed" or (inside and (one.why, one.choice) != ("input", "reuse")))
        for one in drifted
    ):
        raise Conflict(
            f"step {top} is not the same in the other version, so the job cannot be forked from {wanted.from_step}.",
            mend=f"Fork from {top}, if the version has it, or from a step before it.",
        )


def _starts(path: StepPath, drifted: Sequence[Drift]) -> list[StepPath]:
    return [path, *(StepPath(one.step) for one in drifted if one.choice == "rerun" and one.step != path)]


def _new_job(
    engine: Engine, session: Session, source: JobRow, wanted: Wanted, version: str, workflow: Workflow
) -> JobRow:
    job = JobRow(JobId(engine.clock.new_id()), source.tenant, source.workflow, version, JobState.QUEUED, events=1)
    job.priority, job.tags, job.input, job.origin = source.priority, dict(source.tags), source.input, source.id
    job.idempotency_key, job.body_hash = wanted.key, wanted.body_hash()
    job.created_at = session.now()
    own = workflow.deadline if "deadline" in workflow.model_fields_set else engine.caps.deadline
    job.deadline_at = job.created_at + own
    return job


def _write(
    engine: Engine,
    session: Session,
    job: JobRow,
    rows: dict[StepPath, StepRow],
    edit: edits.Edit | None,
    wanted: Wanted,
) -> None:
    job.steps = len(rows)
    jobs.write(session, [job])
    payloads.write(session, (row.given for row in rows.values()), engine.sizes.compress_bytes)
    steps.insert(session, sorted(rows.values(), key=lambda row: row.path))
    taken = sum(row.kind is Kind.AGENT and row.epoch == 0 for row in rows.values())
    data: dict[str, Any] = {"workflow": job.workflow, "version": job.version, "steps": len(rows), "by": wanted.by}
    data |= {"forked_from": wanted.job_id, "from_step": wanted.from_step, "taken_over": taken}
    if edit is not None:
        data["changes"] = edit.difference
    history.append_events(session, [Event(job.id, 1, EventType.JOB_SUBMITTED, None, data, 1, job.created_at)])
    submitted = ("jobs_submitted_total", (("workflow", job.workflow),))
    history.add_counts(session, engine.process, Counter({submitted: 1}))
    said: dict[str, Any] = {"job": job.id, "from_step": wanted.from_step, "version": job.version}
    said |= {"changes": edit.difference} if edit is not None else {}
    audit.note(
        engine, session, "job.forked", wanted.job_id, tenant=job.tenant, by=wanted.by, why=wanted.note, data=said
    )
