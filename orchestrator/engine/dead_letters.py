"""Replay and discard. A replay continues the job from what failed: every finished checkpoint is kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.errors import Conflict, InvalidInput, NotFound
from orchestrator.domain.ids import ROOT, StepPath, child, parent_of
from orchestrator.domain.plan import JobRow, Kind, Plan, StepRow
from orchestrator.domain.reopening import Reopening
from orchestrator.domain.saga import is_undoing
from orchestrator.domain.stale import NOTHING, Stale, begin_again, stale_from, take_out
from orchestrator.domain.states import JOB_TERMINAL, STEP_DONE, JobState, StepState
from orchestrator.engine import audit, edits, queries, undoing
from orchestrator.engine.context import Engine
from orchestrator.engine.edits import Edit
from orchestrator.store import desk, history, jobs, payloads, steps, webhooks
from orchestrator.store.changes import Changes, write
from orchestrator.store.history import CounterKey
from orchestrator.store.rows import job_values
from orchestrator.store.session import Session


def get(engine: Engine, letter_id: str, tenant: str | None = None) -> dict[str, Any]:
    """A dead letter with its attempts, what they cost, and the call they made: its input, and its prompt if it has one.

    Raises ``NotFound``.
    """

    def work(session: Session) -> dict[str, Any]:
        letter = _own(desk.letter(session, letter_id), letter_id, tenant)
        job_id, path = letter["job_id"], letter["path"]
        row = next(iter(steps.load(session, job_id, [path])), None)
        call = edits.call_of(engine, session, jobs.get_many(session, [job_id])[job_id], row)
        return {**letter, **call, "attempts": queries.attempts(session, job_id, path)}

    return engine.db.run(work, readonly=True)


def discard(
    engine: Engine, letter_id: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Closes a letter without replay; the job stays failed. Raises ``NotFound``, ``Conflict``."""

    def work(session: Session) -> dict[str, Any]:
        letter = _own(desk.letter(session, letter_id, lock=True), letter_id, tenant)
        _still_open(letter)
        desk.close_letter(session, letter_id, "discarded", by, note)
        audit.note(engine, session, "dead_letter.discarded", letter_id, tenant=letter["tenant"], by=by, why=note)
        return {**letter, "state": "discarded"}

    return engine.db.run(work)


def undiscard(
    engine: Engine, letter_id: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Opens a discarded letter again. Raises ``NotFound``, ``Conflict`` (it is not discarded, or its job moved on)."""

    def work(session: Session) -> dict[str, Any]:
        seen = _own(desk.letter(session, letter_id), letter_id, tenant)
        job = _locked(session, seen)
        if job.state is not JobState.FAILED or job.run != seen["run"]:
            raise Conflict(
                f"job {job.id} is {job.state.value} in run {job.run}; the letter is of a failed run {seen['run']}."
            )
        if not desk.reopen_letter(session, letter_id):
            raise Conflict(f"dead letter {letter_id} is {seen['state']}, not discarded.")
        audit.note(engine, session, "dead_letter.undiscarded", letter_id, tenant=seen["tenant"], by=by, why=note)
        return _own(desk.letter(session, letter_id), letter_id, tenant)

    return engine.db.run(work)


def replay(
    engine: Engine,
    letter_id: str,
    *,
    by: str,
    note: str | None = None,
    tenant: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> JobRow:
    """failed → running, with a new run number; what failed or was cancelled is done again, what finished is kept.

    ``changes`` to the failed step: ``{"input": …}`` in place of its ``with``, ``{"agent": name}`` of the job's plan, or
    ``{"output": …}``, which ends it. Raises ``NotFound``, ``Conflict`` (the letter is closed, or the job is not
    failed), ``InvalidInput``, ``PayloadTooLarge`` (the changes; then nothing is written).
    """
    ready: list[StepRow] = []

    def work(session: Session) -> JobRow:
        ready.clear()
        seen = _own(desk.letter(session, letter_id), letter_id, tenant)
        job = _locked(session, seen)
        _still_open(_own(desk.letter(session, letter_id, lock=True), letter_id, tenant))
        if not may_replay(job, seen["path"]):
            raise Conflict(f"job {job.id} is {job.state.value}; only a failed job is replayed.")
        row = next(iter(steps.load(session, job.id, [StepPath(seen["path"])])), None)
        edit = edits.examine(engine, session, job, row, changes or {}, by=by)
        crashpoint("dead_letter.replay")
        desk.close_letter(session, letter_id, "replayed", by, note)
        data = {"path": edit.path, "changes": edit.difference} if edit is not None else None
        audit.note(engine, session, "dead_letter.replayed", letter_id, tenant=job.tenant, by=by, why=note, data=data)
        ready.extend(reopen(engine, session, job, edit, at=seen["path"]))
        return job

    job = engine.db.run(work)
    engine.feed.committed([], ready)
    return job


def may_replay(job: JobRow, path: StepPath) -> bool:
    """Whether the letter of ``path`` can be replayed as its job is now."""
    if is_undoing(path):  # it is stuck beside a job that has ended
        return job.state in JOB_TERMINAL
    return job.state is JobState.FAILED


def reopen(
    engine: Engine,
    session: Session,
    job: JobRow,
    edit: Edit | None = None,
    *,
    at: StepPath = ROOT,
    stale: Stale = NOTHING,
    data: Mapping[str, Any] | None = None,
    replayed: bool = True,
) -> list[StepRow]:
    """Reopens the steps of a job that ended: the unfinished, and what is ``stale``; answers those that are ready.

    Each gets a new epoch. ``at``: where its letter stands, and a stuck undoing is reopened alone. What was undone
    counts as not done, with all that depends on it. ``data`` goes into the history, ``replayed``: a dead letter is.
    """
    if is_undoing(at):
        return undoing.reopen(engine, session, job, at)
    plan = engine.plans.get(session, job.version)
    advance = Reopening(plan, job, steps.load_all(session, job.id), session.now(), engine.caps.steps)
    rows = advance.rows
    failed = job.state is JobState.FAILED  # else only branches that failed, and stay so, were undone
    undone = [path for path, row in rows.items() if failed and row.state is StepState.COMPENSATED]
    if undone:
        stale = stale_from(plan, rows, undone).and_also(stale)
        _fits_what_was_undone(edit, stale)
    undoing.owe_again(session, job.id)
    if stale.again:
        history.keep_outputs(session, job.id, stale.again | stale.gone)
        steps.delete(session, job.id, stale.gone)
        job.steps -= len(stale.gone)
    reopened, ready = set_going(plan, rows, stale, edit, advance.now)
    said: dict[str, Any] = {"steps": len(reopened), **(data or {})}
    if edit is not None:
        said |= {"path": edit.path, "changes": edit.difference, "by": edit.by}
    advance.reopen_job([rows[path] for path in reopened], said, history.run_began(session, job))
    if edit is not None and edit.output is not None:
        advance.give(rows[edit.path], edit.output, edit.by)
    crashpoint("epoch.change")
    _write(engine, session, advance)
    if replayed:
        counts: Counter[CounterKey] = Counter({("dead_letters_replayed_total", (("workflow", job.workflow),)): 1})
        history.add_counts(session, engine.process, counts)
    return [row for row in (*ready, *advance.ready) if row.state is StepState.READY]


def _fits_what_was_undone(edit: Edit | None, stale: Stale) -> None:
    """What a step depends on is done again first, and may open other steps or answer otherwise."""
    if edit is not None and (edit.path in stale.gone or (edit.path in stale.again and edit.output is not None)):
        raise InvalidInput(
            f"what {edit.path} depends on was undone and is done again first, so this change may not fit it any more.",
            mend="Replay it as it is, or fork the job from a step before it.",
        )


def _write(engine: Engine, session: Session, advance: Reopening) -> None:
    """All of it, or ``Conflict``."""
    job, changed = advance.job, list(advance.changed.values())
    payloads.write(session, (v for row in changed for v in (row.output, row.given)), engine.sizes.compress_bytes)
    written = write(
        session,
        Changes(
            moved=steps.moved(changed, advance.before),
            attempts=history.attempt_rows(job.id, advance.attempts, advance.now),
            events=history.event_rows(advance.events),
            jobs=[job_values(job)],
            counts=history.count_rows(engine.process, advance.counts),
            webhooks=webhooks.owed(job, advance.events),
        ),
    )
    if not written:
        raise Conflict(f"job {job.id} moved while it was being replayed.", mend="Try again.")


def set_going(
    plan: Plan, rows: dict[StepPath, StepRow], stale: Stale, edit: Edit | None, now: float
) -> tuple[list[StepPath], list[StepRow]]:
    """Sets the unfinished and the stale of all ``rows`` of a job to where they begin: their paths, and those ready."""
    take_out(rows, stale)
    reopened = _reopened(rows, stale)
    for path in reopened:
        if path in stale.again:
            begin_again(rows[path])
        _reset(plan, rows[path], edit if edit is not None and edit.path == path else None)
    _recount(plan, rows, reopened)
    first = [edit.path] if edit is not None and edit.output is not None else []  # it is over at once: never held
    ready = _let_go(plan, rows, [*first, *(path for path in reopened if path not in first)], now)
    return reopened, ready


def _reopened(rows: dict[StepPath, StepRow], stale: Stale) -> list[StepPath]:
    """What failed or was cancelled, below nothing but what is itself reopened, and what is stale; outermost first."""
    out: list[StepPath] = []
    chosen: set[StepPath] = set()
    for path in sorted(rows, key=lambda p: (p.count("/") if p else -1, p)):
        parent = parent_of(path)
        if rows[path].state not in STEP_DONE and (parent is None or parent in chosen):
            chosen.add(path)
        if path in chosen or path in stale.again or path in stale.around:
            out.append(path)
    return out


def _reset(plan: Plan, row: StepRow, edit: Edit | None = None) -> None:
    if edit is not None and edit.output is None:
        row.given, row.chosen = edit.given or row.given, edit.agent or row.chosen
    own = row.chosen or plan.nodes[row.ref].agent
    other = own is not None and own != row.agent
    if own is not None and other:
        row.agent, row.queue = own, plan.queue_of(row.ref, own)
        row.limited = plan.agents[own].metered
    row.fallback, row.degraded = 0, False
    row.epoch += 1
    row.fence += 1
    known = row.doubt is None and row.failure is not None and row.failure.outcome_known
    if other or (edit is not None and edit.given is not None):
        row.generation += 1  # it is another call now, whatever became of the last
        row.doubt = None
    elif known:
        row.generation += 1  # the last call's outcome is known: the next one acts anew
    row.tries = row.losses = row.losses_alone = row.redispatches = 0
    row.begun = row.held = False
    row.lease_owner = row.lease_until = row.not_before = row.dispatched_at = row.mark = row.finished_at = None
    row.first_started_at = None
    row.stopping = row.failure = row.failed_at = None
    row.state = StepState.PENDING


def _recount(plan: Plan, rows: dict[StepPath, StepRow], reopened: list[StepPath]) -> None:
    """Joins and dependencies as the finished checkpoints make them."""
    children: dict[StepPath, list[StepRow]] = defaultdict(list)
    for row in rows.values():
        if row.parent is not None:
            children[row.parent].append(row)
    for path in reopened:
        row = rows[path]
        if row.width is not None:
            if row.kind is Kind.SUPERVISE:  # later rounds may have been taken out
                row.width = row.round = len(children[path])
            row.succeeded = sum(kid.state in STEP_DONE for kid in children[path])
            row.failed = sum(kid.state is StepState.FAILED for kid in children[path])
            row.cancelled = sum(kid.state is StepState.CANCELLED for kid in children[path])
        scope = row.parent
        needs = plan.nodes[row.ref].needs
        row.deps_left = sum(rows[child(scope or StepPath(""), name)].state not in STEP_DONE for name in needs)


def _let_go(plan: Plan, rows: dict[StepPath, StepRow], reopened: list[StepPath], now: float) -> list[StepRow]:
    """Sets each reopened row waiting, ready or pending; members beyond ``max_concurrency`` are held.

    A member that had begun keeps its place: what is in it may be ready, so it cannot be held.
    """
    ready: list[StepRow] = []
    running: Counter[StepPath | None] = Counter()
    begun = [rows[path] for path in reopened if rows[path].width is not None and rows[path].live > 0]
    for row in begun:
        row.state = StepState.WAITING
        running[row.parent] += 1
    for row in (rows[path] for path in reopened):
        if row.state is StepState.WAITING or row.deps_left:
            continue
        cap = plan.nodes[rows[row.parent].ref].max_concurrency if row.parent is not None else None
        running[row.parent] += 1
        if cap is not None and running[row.parent] > cap:
            row.held = True
            continue
        row.state, row.ready_at = StepState.READY, now
        ready.append(row)
    return ready


def _own(letter: dict[str, Any] | None, letter_id: str, tenant: str | None) -> dict[str, Any]:
    if letter is None or (tenant is not None and letter["tenant"] != tenant):
        raise NotFound(f"no dead letter {letter_id}.")
    return letter


def _locked(session: Session, letter: dict[str, Any]) -> JobRow:
    """Its job, locked first: the lock order. Retention may have been quicker."""
    job = jobs.lock(session, [letter["job_id"]]).get(letter["job_id"])
    if job is None:
        raise NotFound(f"no dead letter {letter['id']}.")
    return job


def _still_open(letter: dict[str, Any]) -> None:
    if letter["state"] != "open":
        raise Conflict(f"dead letter {letter['id']} is {letter['state']} by {letter['closed_by']}.")
