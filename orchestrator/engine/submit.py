"""Submit: validate, deduplicate, plan, commit; then ring.

The job, its steps and its first event are one transaction. The same idempotency key with the same body is the same
job; with another body it is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from orchestrator.domain.json_values import NotJson, digest, dumps
from orchestrator.domain.lint import check_workflow
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.planner import first_rows
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.states import JobState, StepState
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Agent, Workflow
from orchestrator.engine import webhooks
from orchestrator.engine.context import Engine
from orchestrator.store import changes, feed, history, jobs, payloads, workflows
from orchestrator.store.rows import job_values, step_values
from orchestrator.store.session import Session

#: Characters allowed nowhere in a key: it is shown in logs and headers.
KEY_LIMIT = 255
#: Seconds for which a submit waits for a twin that has not committed.
TWIN = 2.0


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
        workflows.put_listed(session, workflow.name, _version(workflow), workflow.canonical)
        version, _ = _inline(engine, session, workflow, tenant)
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
    for workflow in {id(one.workflow): one.workflow for one in submissions}.values():
        if isinstance(workflow, Workflow):
            check(workflow)
    crashpoint("submit.before_insert")
    going = Going()

    def work(session: Session) -> list[Accepted]:
        going.clear()
        return accept(engine, session, submissions, going, last=True)

    accepted = engine.db.run(work)
    crashpoint("submit.after_commit")
    engine.feed.committed(going.published, going.ready)
    return accepted


@dataclass(slots=True)
class Going:
    """What a submit sets going: all that is ready, and what of it this process publishes after the commit."""

    ready: list[StepRow] = field(default_factory=list)
    published: list[StepRef] = field(default_factory=list)

    def clear(self) -> None:
        self.ready.clear()
        self.published.clear()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A job that is not written yet, with its first steps."""

    submission: Submission
    job: JobRow
    rows: list[StepRow]

    @property
    def name(self) -> tuple[str, str] | None:
        """What a twin of it has too."""
        return None if self.job.idempotency_key is None else (self.job.tenant, self.job.idempotency_key)


def accept(
    engine: Engine,
    session: Session,
    submissions: Sequence[Submission],
    going: Going | None = None,
    *,
    last: bool = False,
) -> list[Accepted]:
    """Writes the jobs in the caller's transaction, all in one statement; those with a key in one before it.

    Without ``going`` their steps are left to the safety net. ``last``: the transaction ends with it.
    """
    now, marks, drafts = _drafts(engine, session, submissions)
    named = _insert_named(engine, session, drafts)
    won = [draft.job if draft.name is None else named[draft.name] for draft in drafts]
    made = [draft for draft, job in zip(drafts, won, strict=True) if job is draft.job]
    if going is not None:
        going.ready.extend(row for draft in made for row in draft.rows if row.state is StepState.READY)
        going.published.extend(engine.feed.take(session, going.ready, now, marks=marks))
    heard = [draft for draft in made if draft.submission.webhook is not None]
    if made:
        payloads.write(session, [draft.job.input for draft in made if draft.name is None], engine.sizes.compress_bytes)
        crashpoint("submit.before_commit")
        _write(engine, session, made, last=last and not heard)
    secrets = {draft.job.id: webhooks.add(engine, session, draft.job, draft.submission.webhook) for draft in heard}
    return [
        Accepted(job, True, secrets.get(job.id))
        if job is draft.job
        else same(job, draft.job.body_hash or "", job.idempotency_key or "")
        for draft, job in zip(drafts, won, strict=True)
    ]


def _drafts(
    engine: Engine, session: Session, submissions: Sequence[Submission]
) -> tuple[float, feed.Markers, list[_Draft]]:
    """Everything that can be wrong with a submission is said here, before anything is written but its definition.

    Answers the time and the queues' markers with them.
    """
    names = sorted({one.workflow for one in submissions if isinstance(one.workflow, str)})
    given = {id(one.workflow): one.workflow for one in submissions}.values()
    inline = {_version(workflow): workflow for workflow in given if isinstance(workflow, Workflow)}
    [clock], marks, *answers = session.together(
        ("SELECT {now} AS now", {}),
        feed.ASKING_FOR_MARKERS,
        *(workflows.finding(*_wanted(name)) for name in names),
        *(workflows.putting(inline[version].name, version, inline[version].canonical) for version in sorted(inline)),
    )
    now = float(clock["now"])
    versions = {name: workflows.found(rows) for name, rows in zip(names, answers, strict=False)}
    resolved: dict[tuple[str, int | str], tuple[str, Plan, Workflow]] = {}
    drafts = []
    for one in submissions:
        which = one.tenant, one.workflow if isinstance(one.workflow, str) else id(one.workflow)
        if which not in resolved:
            resolved[which] = _resolve(engine, session, one, versions)
        version, plan, workflow = resolved[which]
        text = _input_text(engine, workflow, one.input)
        body = [version, text, one.priority, one.tags, one.deadline]
        if one.key is not None:
            check_key(one.key)
        job = JobRow(JobId(engine.clock.new_id()), one.tenant, workflow.name, version, JobState.QUEUED, events=1)
        job.priority, job.tags = one.priority, one.tags
        job.idempotency_key = one.key
        job.body_hash = digest(body if one.webhook is None else [*body, one.webhook.as_given()])
        job.webhook = webhooks.wanted(one.webhook)
        job.input = engine.sizes.prepare(text)
        job.created_at = now
        own = workflow.deadline if "deadline" in workflow.model_fields_set else engine.caps.deadline
        job.deadline_at = now + (one.deadline or own)
        rows = first_rows(plan, job.id, job.tenant, job.priority)
        job.steps = len(rows)
        for row in rows:
            row.ready_at = now if row.state is StepState.READY else None
        drafts.append(_Draft(one, job, rows))
    return now, feed.markers(marks), drafts


def _version(workflow: Workflow) -> str:
    return digest(workflow.canonical)[: workflows.HASH_LENGTH]


def _wanted(workflow: str) -> tuple[str, str | None]:
    name, _, version = workflow.partition("@")
    return name, version or None


def _insert_named(engine: Engine, session: Session, drafts: Sequence[_Draft]) -> dict[tuple[str, str], JobRow]:
    """Writes the jobs that have a key; answers the one job of each key, be it of this submit or an earlier one."""
    named = {name: draft.job for draft in reversed(drafts) if (name := draft.name) is not None}
    if not named:
        return {}
    known = jobs.by_keys(session, named)
    fresh = [job for name, job in named.items() if name not in known]
    if not fresh:
        return known
    payloads.write(session, [job.input for job in fresh], engine.sizes.compress_bytes)
    try:
        with session.patience(TWIN):
            inserted = jobs.insert_many(session, fresh)
    except Locked as error:
        raise SubmitInProgress(
            "another submit with this idempotency key has not committed yet.", mend="Try again in a moment."
        ) from error
    late = [name for name, job in named.items() if name not in known and job.id not in inserted]
    others = jobs.by_keys(session, late) if late else {}
    if len(others) < len(late):
        raise SubmitInProgress("a submit with this idempotency key was just rolled back.", mend="Try again.")
    return {**named, **known, **others}


def _write(engine: Engine, session: Session, made: Sequence[_Draft], *, last: bool) -> None:
    written = changes.Changes()
    counts: Counter[Any] = Counter()
    for draft in made:
        job = draft.job
        if draft.name is None:
            written.new_jobs.append(job_values(job))
        written.created += map(step_values, draft.rows)
        data = {"workflow": job.workflow, "version": job.version, "steps": job.steps}
        written.events += history.event_rows(
            [Event(job.id, 1, EventType.JOB_SUBMITTED, None, data, 1, job.created_at or 0.0)]
        )
        counts["jobs_submitted_total", (("workflow", job.workflow),)] += 1
    written.counts = history.count_rows(engine.process, counts)
    changes.write(session, written, last=last)


def _resolve(
    engine: Engine, session: Session, submission: Submission, versions: Mapping[str, str | None]
) -> tuple[str, Plan, Workflow]:
    """``versions``: what was found of each name."""
    if isinstance(submission.workflow, Workflow):
        version, plan = _inline(engine, session, submission.workflow, submission.tenant)
        return version, plan, submission.workflow
    found = versions[submission.workflow]
    if found is None:
        known = sorted({str(row["name"]) for row in workflows.names(session)})
        raise NotFound(
            f"no workflow {submission.workflow!r} is registered.",
            mend=f"Registered: {', '.join(known[:10])}." if known else "Register one, or send a definition.",
        )
    plan, chosen = engine.plans.both(session, found)
    metered = _metered(chosen)
    if metered and not metered.keys() <= workflows.limited_agents(session, submission.tenant):
        workflows.put_limits(session, submission.tenant, metered, replace=False)
    return found, plan, chosen


def _inline(engine: Engine, session: Session, workflow: Workflow, tenant: str) -> tuple[str, Plan]:
    version = _version(workflow)
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
