"""Submit: validate, deduplicate, plan, commit; then ring.

The job, its steps and its first event are one transaction. The same idempotency key with the same body is the same
job; with another body it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from orchestrator.domain.ids import JobId, QueueName, StepRef
from orchestrator.domain.json_values import NotJson, digest, dumps
from orchestrator.domain.lint import check_workflow
from orchestrator.domain.plan import JobRow, StepRow
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.states import JobState
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Agent, Workflow
from orchestrator.engine import webhooks
from orchestrator.engine.context import Compiled, Engine
from orchestrator.engine.feed import step_ref
from orchestrator.store import jobs, opening, payloads, workflows
from orchestrator.store.opening import NewJob, Opening
from orchestrator.store.session import Moved, Session, Statement

#: Characters allowed nowhere in a key: it is shown in logs and headers.
KEY_LIMIT = 255
#: Seconds for which a submit waits for a twin that has not committed.
TWIN = 2.0
#: How often a submit is tried before it is said that others are in its way.
TRIES = 5


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
        return _inline(engine, session, workflow, tenant).plan.version

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
        if isinstance(workflow, Workflow) and engine.plans.known(_version(workflow)) is None:
            check(workflow)
    crashpoint("submit.before_insert")
    going = Going()
    accepted = _accepted(engine, submissions, going)
    crashpoint("submit.after_commit")
    engine.feed.going(going.published, going.left)
    return accepted


def enlist(engine: Engine, submission: Submission) -> Accepted:
    """Writes one job in the transaction that ``engine``'s database is; its steps are left to the safety net."""
    return _accepted(engine, [submission], None)[0]


@dataclass(slots=True)
class Going:
    """What a submit sets going: what this process publishes after the commit, and the queues that hold the rest."""

    published: list[StepRef] = field(default_factory=list)
    left: set[QueueName] = field(default_factory=set)


@dataclass(slots=True)
class _Draft:
    """A job that is not written yet. Its times are to come."""

    submission: Submission
    job: JobRow
    opening: Opening
    #: Seconds after its submit.
    deadline: float
    #: The opening's ready steps: those for which a message goes out, and the others.
    rung: list[StepRow] = field(default_factory=list)
    left: list[StepRow] = field(default_factory=list)

    @property
    def name(self) -> tuple[str, str] | None:
        """What a twin of it has too."""
        return None if self.job.idempotency_key is None else (self.job.tenant, self.job.idempotency_key)


def _accepted(engine: Engine, submissions: Sequence[Submission], going: Going | None) -> list[Accepted]:
    """Writes the jobs in one transaction, those with a key of an earlier one excepted.

    The first try goes by what this process knows, and looks for no twin; it refuses itself where that was wrong.
    """
    for again in range(TRIES):
        try:
            return engine.db.run(lambda session: _accept(engine, session, submissions, going, look=again > 0))  # noqa: B023
        except Moved:
            engine.plans.forget_newest()
        except Locked as error:
            if all(one.key is None for one in submissions):
                raise
            raise SubmitInProgress(
                "another submit with this idempotency key has not committed yet.", mend="Try again in a moment."
            ) from error
    raise SubmitInProgress(
        "each time another submit with one of its keys, or a new version, came between.", mend="Try again in a moment."
    )


def _accept(
    engine: Engine, session: Session, submissions: Sequence[Submission], going: Going | None, *, look: bool
) -> list[Accepted]:
    newest, before, drafts = _drafts(engine, session, submissions)
    named = {draft.name: draft.job for draft in reversed(drafts) if draft.name is not None}
    known = jobs.by_keys(session, named) if look else {}
    named |= known
    for draft in drafts:
        if draft.name is not None:
            same(named[draft.name], draft.job.body_hash or "")
    fresh = [draft for draft in drafts if draft.name is None or named[draft.name] is draft.job]
    heard = [draft for draft in fresh if draft.submission.webhook is not None]
    made: set[JobId] = set()
    if fresh:
        if going is not None:
            _ring(engine, fresh)
        payloads.write(session, [draft.job.input for draft in fresh], engine.sizes.compress_bytes)
        crashpoint("submit.before_commit")
        new = [NewJob(one.job, one.opening, one.deadline, {row.path for row in one.rung}) for one in fresh]
        made = opening.write(session, engine.process, new, newest, before, patience=TWIN, last=not heard)
    ours = [draft for draft in fresh if draft.job.id in made]
    if going is not None:
        going.published = [step_ref(row, draft.job.id) for draft in ours for row in draft.rung]
        going.left = {row.queue for draft in ours for row in draft.left}
    if len(ours) < len(fresh):
        named |= jobs.by_keys(session, [one.name for one in fresh if one.name and one.job.id not in made])
    secrets = {
        draft.job.id: webhooks.add(engine, session, draft.job, draft.submission.webhook)
        for draft in heard
        if draft.job.id in made
    }
    answers = []
    for draft in drafts:
        job = draft.job if draft.name is None else named[draft.name]
        answers.append(Accepted(job, job.id in made and job is draft.job, secrets.get(job.id)))
    return answers


def _ring(engine: Engine, drafts: Sequence[_Draft]) -> None:
    """Marks for which ready steps messages go out: as many as this process holds credits for."""
    granted = iter(engine.feed.granted(row for draft in drafts for row in draft.opening.ready))
    for draft in drafts:
        for row in draft.opening.ready:
            (draft.rung if next(granted) else draft.left).append(row)


def _drafts(
    engine: Engine, session: Session, submissions: Sequence[Submission]
) -> tuple[dict[str, str], list[Statement], list[_Draft]]:
    """Everything that can be wrong with a submission is said here, before anything is written.

    Answers which versions were taken for the newest of their names, what is to be written before the jobs, and them.
    """
    given = {id(one.workflow): one.workflow for one in submissions}.values()
    inline = {_version(workflow): workflow for workflow in given if isinstance(workflow, Workflow)}
    before = [workflows.putting(inline[version].name, version, inline[version].canonical) for version in sorted(inline)]
    newest: dict[str, str] = {}
    versions = _found(engine, session, {one.workflow for one in submissions if isinstance(one.workflow, str)}, newest)
    resolved: dict[tuple[str, int | str], Compiled] = {}
    drafts = []
    for one in submissions:
        which = one.tenant, one.workflow if isinstance(one.workflow, str) else id(one.workflow)
        if which not in resolved:
            resolved[which] = _resolve(engine, session, one, versions)
        drafts.append(_draft(engine, one, resolved[which]))
    return newest, before, drafts


def _found(engine: Engine, session: Session, names: Collection[str], newest: dict[str, str]) -> dict[str, str | None]:
    """The version that each name stands for; of a bare one what this process knows, if it does."""
    versions: dict[str, str | None] = {name: engine.plans.newest(name) for name in names}
    asked = sorted(name for name in names if versions[name] is None)
    if asked:
        answers = session.together(*(workflows.finding(*_wanted(name)) for name in asked))
        versions |= zip(asked, map(workflows.found, answers), strict=True)
    for name, version in versions.items():
        if version is not None and "@" not in name:
            engine.plans.keep_newest(name, version)
            newest[name] = version
    return versions


def _draft(engine: Engine, one: Submission, compiled: Compiled) -> _Draft:
    workflow = compiled.workflow
    version = compiled.plan.version
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
    job.steps = compiled.opening.count
    own = workflow.deadline if "deadline" in workflow.model_fields_set else engine.caps.deadline
    return _Draft(one, job, compiled.opening, one.deadline or own)


def _version(workflow: Workflow) -> str:
    return digest(workflow.canonical)[: workflows.HASH_LENGTH]


def _wanted(workflow: str) -> tuple[str, str | None]:
    name, _, version = workflow.partition("@")
    return name, version or None


def _resolve(engine: Engine, session: Session, submission: Submission, versions: Mapping[str, str | None]) -> Compiled:
    """``versions``: what was found of each name."""
    if isinstance(submission.workflow, Workflow):
        return _inline(engine, session, submission.workflow, submission.tenant)
    found = versions[submission.workflow]
    if found is None:
        known = sorted({str(row["name"]) for row in workflows.names(session)})
        raise NotFound(
            f"no workflow {submission.workflow!r} is registered.",
            mend=f"Registered: {', '.join(known[:10])}." if known else "Register one, or send a definition.",
        )
    compiled = engine.plans.compiled(session, found)
    metered = _metered(compiled.workflow)
    if metered and not metered.keys() <= workflows.limited_agents(session, submission.tenant):
        workflows.put_limits(session, submission.tenant, metered, replace=False)
    return compiled


def _inline(engine: Engine, session: Session, workflow: Workflow, tenant: str) -> Compiled:
    version = _version(workflow)
    workflows.put_limits(session, tenant, _metered(workflow))
    return engine.plans.known(version) or engine.plans.add(version, workflow, {})


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


def same(existing: JobRow, body_hash: str) -> None:
    """Raises ``IdempotencyMismatch`` if the job that a key made before was for another body."""
    if existing.body_hash != body_hash:
        raise IdempotencyMismatch(
            f"the idempotency key {existing.idempotency_key!r} was used for another body, by job {existing.id}.",
            mend="Use a new key for a new job.",
        )
