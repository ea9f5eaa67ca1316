"""Submit: validate, deduplicate, plan, commit; then ring.

The job, its steps and its first event are one transaction. The same idempotency key with the same body is the same
job; with another body it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain import failure_paths
from orchestrator.domain.errors import (
    DefinitionError,
    IdempotencyMismatch,
    InvalidInput,
    Locked,
    NotFound,
    PayloadTooLarge,
    SubmitInProgress,
)
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import JobId, StepRef
from orchestrator.domain.json_values import NotJson, canonical, digest, dumps
from orchestrator.domain.lint import check_workflow
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.planner import first_rows
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.states import JobState, StepState
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Agent, Workflow
from orchestrator.engine import webhooks
from orchestrator.engine.context import Engine, parse_definition
from orchestrator.store import history, jobs, payloads, steps, workflows
from orchestrator.store.database import Session

#: Characters allowed nowhere in a key: it is shown in logs and headers.
KEY_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Submission:
    """One job to be accepted. ``workflow`` is ``name``, ``name@version`` or a definition."""

    workflow: str | Workflow
    input: Any = None
    tenant: str = "default"
    key: str | None = None
    priority: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    #: Seconds from now; None: the workflow's own.
    deadline: float | None = None
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    job: JobRow
    #: False: an earlier submit with this key had made it.
    created: bool
    #: The webhook's secret where it was made here; nobody is told it again.
    secret: str | None = None


def register(engine: Engine, workflow: Workflow, tenant: str = "default", *, strict: bool = False) -> str:
    """Makes ``workflow`` the newest version of its name; answers the version. An unchanged one keeps its version.

    ``strict`` refuses steps that leave it to the default what happens when they fail. Raises ``DefinitionError``.
    """
    check(workflow)
    if strict:
        failure_paths.require(workflow)

    def work(session: Session) -> str:
        version, _ = _store(engine, session, workflow, tenant)
        workflows.put(session, workflow.name, version, _definition(workflow), listed=True)
        return version

    return engine.db.run(work)


def check(workflow: Workflow) -> None:
    """Raises ``DefinitionError`` naming everything that would keep ``workflow`` from running."""
    problems = check_workflow(workflow)
    if problems:
        raise DefinitionError(problems)


def submit(engine: Engine, submission: Submission) -> Accepted:
    """Accepts one job. Returns after its row is committed, whether or not the broker is up.

    Raises ``DefinitionError``, ``NotFound``, ``InvalidInput``, ``PayloadTooLarge``, ``IdempotencyMismatch``,
    ``SubmitInProgress`` (a twin with this key has not committed within 2 s), ``Unavailable``.
    """
    return submit_many(engine, [submission])[0]


def submit_many(engine: Engine, submissions: Sequence[Submission]) -> list[Accepted]:
    """Accepts up to 1,000 jobs in one transaction: all, or none."""
    if len(submissions) > 1000:
        raise InvalidInput("a batch holds at most 1,000 jobs.", mend="Split it.")
    for submission in submissions:
        if isinstance(submission.workflow, Workflow):
            check(submission.workflow)
    crashpoint("submit.before_insert")
    ready: list[StepRow] = []
    published: list[StepRef] = []

    def work(session: Session) -> list[Accepted]:
        ready.clear()
        published.clear()
        accepted = [accept(engine, session, submission, ready) for submission in submissions]
        published.extend(ring(engine, session, ready))
        crashpoint("submit.after_insert")
        return accepted

    try:
        accepted = engine.db.run(work)
    except Locked as error:
        if jobs.is_insert(error.context["statement"]):
            raise SubmitInProgress(
                "another submit with this idempotency key has not committed yet.", mend="Try again in a moment."
            ) from error
        raise
    crashpoint("submit.after_commit")
    engine.feed.committed(published, ready)
    return accepted


def ring(engine: Engine, session: Session, ready: Sequence[StepRow]) -> list[StepRef]:
    """Marks what this process holds credits for, in the submit's own transaction."""
    refs = engine.feed.take(session, ready, session.now()) if ready else []
    marked = [row for row in ready if row.dispatched_at is not None]
    session.many(
        "UPDATE steps SET dispatched_at = :at, mark = :mark WHERE job_id = :job AND path = :path",
        [{"at": row.dispatched_at, "mark": row.mark, "job": row.job_id, "path": row.path} for row in marked],
    )
    return refs


def accept(engine: Engine, session: Session, submission: Submission, ready: list[StepRow]) -> Accepted:
    """Writes one job in the caller's transaction; what became ready is appended to ``ready``."""
    version, plan, workflow = _resolve(engine, session, submission)
    text = _input_text(engine, workflow, submission.input)
    body = [version, text, submission.priority, submission.tags, submission.deadline]
    body_hash = digest(body if submission.webhook is None else [*body, submission.webhook.as_given()])
    if submission.key is not None:
        check_key(submission.key)
        existing = jobs.by_key(session, submission.tenant, submission.key)
        if existing is not None:
            return same(existing, body_hash, submission.key)
        if session.postgres:
            session.execute("SET LOCAL lock_timeout = '2s'")
    job = JobRow(JobId(engine.clock.new_id()), submission.tenant, workflow.name, version, JobState.QUEUED, events=1)
    job.priority, job.tags = submission.priority, submission.tags
    job.idempotency_key, job.body_hash = submission.key, body_hash
    job.webhook = webhooks.wanted(submission.webhook)
    job.input = engine.sizes.prepare(text)
    job.created_at = session.now()
    own = workflow.deadline if "deadline" in workflow.model_fields_set else engine.caps.deadline
    job.deadline_at = job.created_at + (submission.deadline or own)
    rows = first_rows(plan, job.id, job.tenant, job.priority)
    job.steps = len(rows)
    payloads.write(session, [job.input], engine.sizes.compress_bytes)
    if not jobs.insert(session, job):
        twin = jobs.by_key(session, submission.tenant, submission.key or "")
        if twin is None:
            raise SubmitInProgress("a submit with this idempotency key was just rolled back.", mend="Try again.")
        return same(twin, body_hash, submission.key or "")
    heads = [row for row in rows if row.state is StepState.READY]
    for row in heads:
        row.ready_at = job.created_at
    steps.insert(session, rows)
    data = {"workflow": workflow.name, "version": version, "steps": len(rows)}
    history.append_events(session, [Event(job.id, 1, EventType.JOB_SUBMITTED, None, data, 1, job.created_at)])
    history.add_counts(session, engine.process, Counter({("jobs_submitted_total", (("workflow", workflow.name),)): 1}))
    ready.extend(heads)
    return Accepted(job, True, webhooks.add(engine, session, job, submission.webhook))


def _resolve(engine: Engine, session: Session, submission: Submission) -> tuple[str, Plan, Workflow]:
    if isinstance(submission.workflow, Workflow):
        version, plan = _store(engine, session, submission.workflow, submission.tenant)
        return version, plan, submission.workflow
    name, _, wanted = submission.workflow.partition("@")
    found = workflows.newest(session, name, wanted or None)
    if found is None:
        known = sorted({str(row["name"]) for row in workflows.names(session)})
        raise NotFound(
            f"no workflow {submission.workflow!r} is registered.",
            mend=f"Registered: {', '.join(known[:10])}." if known else "Register one, or send a definition.",
        )
    version, definition = found
    chosen = parse_definition(definition)[0]
    metered = _metered(chosen)
    if metered and not metered.keys() <= workflows.limited_agents(session, submission.tenant):
        workflows.put_limits(session, submission.tenant, metered, replace=False)
    return version, engine.plans.get(session, version), chosen


def _definition(workflow: Workflow) -> str:
    return canonical(workflow.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _store(engine: Engine, session: Session, workflow: Workflow, tenant: str) -> tuple[str, Plan]:
    definition = _definition(workflow)
    version = digest(definition)[: workflows.HASH_LENGTH]
    workflows.put(session, workflow.name, version, definition, listed=False)
    workflows.put_limits(session, tenant, _metered(workflow))
    return version, engine.plans.known(version) or engine.plans.add(version, workflow, {})


def _metered(workflow: Workflow) -> dict[str, Agent]:
    return {name: agent for name, agent in workflow.agents.items() if agent.metered}


def _input_text(engine: Engine, workflow: Workflow, value: Any) -> str:
    try:
        text = dumps(value, max_bytes=engine.caps.body_bytes)
    except NotJson as error:
        if error.too_large:
            raise PayloadTooLarge(
                f"the input has {error}.", mend="Send a reference, or raise ORCHESTRATOR_MAX_BODY_BYTES."
            ) from error
        raise InvalidInput(f"the input is not JSON: {error}", mend="Send RFC 8259 JSON: no NaN, no NUL.") from error
    if workflow.input_schema is not None:
        problems = compile_schema(workflow.input_schema, "input_schema").problems(value)
        if problems:
            raise InvalidInput(f"the input of {workflow.name!r} misses its schema: {'; '.join(problems)}")
    return text


def check_key(key: str) -> None:
    """Raises ``InvalidInput`` for what cannot be an idempotency key."""
    if not 0 < len(key) <= KEY_LIMIT or not key.isprintable():
        raise InvalidInput(f"an idempotency key has 1 to {KEY_LIMIT} printable characters.")


def same(existing: JobRow, body_hash: str, key: str) -> Accepted:
    """The job that a key made before. Raises ``IdempotencyMismatch`` if that was for another body."""
    if existing.body_hash != body_hash:
        raise IdempotencyMismatch(
            f"the idempotency key {key!r} was used for another body, by job {existing.id}.",
            mend="Use a new key for a new job.",
        )
    return Accepted(existing, created=False)
