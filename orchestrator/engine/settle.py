"""Claim and settle: the two writes every attempt makes, in batches (a batch of one is the common case).

A settle locks its jobs in order, loads what it may move, lets ``domain/advance`` decide, and writes the checkpoint, the
successors, the attempt, the events and the counters in one transaction. If the step that follows is the only one, it is
claimed in that same transaction and handed back (*continuation in place*). Zero rows means someone else owns the step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.advance import Advance
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.domain.outcome import Usage
from orchestrator.domain.plan import Kind, Plan, StepRow
from orchestrator.domain.result import Result, Retrying, Succeeded
from orchestrator.domain.saga import Debt
from orchestrator.domain.states import JobState, StepState
from orchestrator.engine.context import Engine
from orchestrator.engine.feed import step_ref
from orchestrator.engine.gather import Claimed, gather, learn, plans_of, reads_the_latest
from orchestrator.engine.write import Batch, publish, run_stops, tell_one, write
from orchestrator.store import compensations, feed, jobs, payloads, steps
from orchestrator.store.rows import job_row, step_row
from orchestrator.store.session import Moved, Session

#: So many of the steps that come after one are read with it.
AHEAD = 64


@dataclass(frozen=True, slots=True)
class Settle:
    """An attempt's result, under the fence it was made with."""

    job_id: JobId
    path: StepPath
    ref: str
    fence: int
    result: Result
    usage: Usage = Usage()
    worker: str | None = None
    #: Whether a sole successor is claimed for this worker at once, if it is on one of these queues.
    continue_on: frozenset[str] = frozenset()
    #: The caller publishes the body of a join this settle decides (the chord backend does), unless it continues there.
    sends_body: bool = False
    #: The debt that the step pays, of an undoing step.
    undoes: int | None = None


@dataclass(slots=True)
class Settled:
    won: bool
    next: Claimed | None = None
    #: Steps that became ready and were left to others.
    ready: int = 0
    job_state: JobState | None = None
    #: Seconds from submit to end, when this settle ended the job.
    job_seconds: float | None = None
    #: The body of the join this settle decided, for the caller to publish.
    body: StepRef | None = None


def claim(engine: Engine, refs: Sequence[StepRef]) -> dict[StepRef, Claimed]:
    """Claims what is still ready of ``refs``. What is missing from the answer belongs to someone else, or to no one."""

    def work(session: Session) -> tuple[dict[tuple[JobId, StepPath], Claimed], list[QueueName]]:
        unknown = engine.facts.missing(ref.job_id for ref in refs)
        beside = [feed.asking_for_backlog(queue) for queue in asked]
        beside += [jobs.getting(session, unknown)] if unknown else []
        rows, answers = steps.claim(session, refs, engine.process, engine.lease, *beside)
        found = answers.pop() if unknown else []
        learned = learn(engine, session, {JobId(row["id"]): job_row(row) for row in found})
        claimed = gather(engine, session, rows, learned=learned)
        return claimed, [queue for queue, some in zip(asked, answers, strict=True) if some]

    asked = engine.feed.unsure({ref.queue for ref in refs})
    found, behind = engine.db.run(work)
    crashpoint("claim.after_commit")
    engine.feed.behind(behind)
    for ref in refs:
        engine.feed.claimed(ref.queue)
    return {ref: found[ref.job_id, ref.path] for ref in refs if (ref.job_id, ref.path) in found}


def settle(engine: Engine, intents: Sequence[Settle]) -> list[Settled]:
    """Writes ``intents`` (of any jobs) in one transaction, then publishes what became ready."""
    for attempt in range(5):
        batch = Batch()
        try:
            settled = engine.db.run(lambda session: settle_in(engine, session, intents, batch))  # noqa: B023
            break
        except Moved:
            if attempt == 4:
                raise
    at = engine.clock.monotonic()
    for advance in batch.going_on:
        engine.recent.keep(advance.job, advance.rows.values(), at)
    if any(intent.undoes is not None for intent in intents):
        crashpoint("compensation.after_commit")
    else:
        crashpoint("settle.after_commit")
    publish(engine, batch)
    return settled


def unlocked(engine: Engine, keys: Iterable[tuple[JobId, StepPath]]) -> set[tuple[JobId, StepPath]]:
    """Those of ``keys`` that a settle or claim would not have to wait for now."""
    return engine.db.run(lambda session: steps.unlocked(session, keys))


def prepare(engine: Engine, claimed: Claimed, rows: Sequence[StepRow]) -> bool:
    """Writes a chunk of a wide fan-out before the settle that lets it go; False when the lease is lost."""

    def work(session: Session) -> bool:
        payloads.write(session, (row.vars for row in rows), engine.sizes.compress_bytes)
        return steps.prepare(session, claimed.row, rows)

    return engine.db.run(work)


def settle_in(engine: Engine, session: Session, intents: Sequence[Settle], batch: Batch) -> list[Settled]:
    """The transaction's work."""
    by_job: dict[JobId, list[int]] = defaultdict(list)
    for index, intent in enumerate(intents):
        by_job[intent.job_id].append(index)
    # What never changes of a job is known before its lock, so all that the lock guards is asked for together with it.
    plans = plans_of(engine, session, set(by_job))
    advances = _recalled(engine, plans, intents, by_job)
    remembered = {advance.job.id for advance in advances}
    if left := [intent for intent in intents if intent.job_id not in remembered]:
        advances += _loaded(engine, session, plans, left)
    now = max((advance.now for advance in advances), default=0.0)
    results = [Settled(won=False) for _ in intents]
    follow: list[tuple[int, StepRow]] = []
    for advance in advances:
        for index in by_job[advance.job.id]:
            _apply(engine, session, advance, intents[index], index, results, follow, batch)
    # All that can be read before the write is: then nothing need follow it.
    now_known = [row for _, row in follow if not reads_the_latest(row)]
    rows_here = [advance.rows.values() for advance in advances]
    gathered = gather(engine, session, now_known, rows_here)
    crashpoint("settle.before_commit")
    write(engine, session, advances, batch, now, last=len(now_known) == len(follow))
    gathered |= gather(engine, session, [row for _, row in follow if reads_the_latest(row)], rows_here)
    for index, row in follow:
        results[index].next = gathered[row.job_id, row.path]
    going_on = {row.job_id for _, row in follow if _line(plans[row.job_id], row.path, row.ref) is not None}
    batch.going_on = [advance for advance in advances if advance.job.id in going_on]
    return results


def _recalled(
    engine: Engine, plans: Mapping[JobId, Plan], intents: Sequence[Settle], by_job: Mapping[JobId, Sequence[int]]
) -> list[Advance]:
    """The jobs that this process remembers, from memory alone. The write finds out whether it is true."""
    at = engine.clock.monotonic()
    found = {job_id: engine.recent.take(job_id, at) for job_id in by_job}
    out = []
    for intent in intents:
        plan, recent = plans.get(intent.job_id), found[intent.job_id]
        if plan is None or recent is None or len(by_job[intent.job_id]) > 1 or not isinstance(intent.result, Succeeded):
            continue
        if not recent.rows.keys() >= set(plan.touched(intent.path, intent.ref)):
            continue
        advance = Advance(plan, recent.job, recent.rows.values(), engine.recent.now(at), engine.caps.steps)
        advance.recalled = True
        out.append(advance)
    return out


def _loaded(engine: Engine, session: Session, plans: Mapping[JobId, Plan], intents: Sequence[Settle]) -> list[Advance]:
    """Under the jobs' locks."""
    known = [intent for intent in intents if intent.job_id in plans]
    debts = _debts(session, known)
    keys = [(one.job_id, path) for one in known for path in _concerned(plans[one.job_id], one)]
    keys += [(job_id, debt.path) for job_id, found in debts.items() for debt in found.values()]
    held = _held(plans, known)
    owers = [job_id for job_id, plan in plans.items() if plan.compensates]
    jobs_found, steps_found, *more = session.together(
        jobs.locking(session, {intent.job_id for intent in intents}),
        steps.loading(session, keys),
        *(steps.loading_held(job_id, path, count) for (job_id, path), count in held.items()),
        *([compensations.asking_who_owes(session, owers)] if owers else []),
    )
    locked, now = jobs.locked(jobs_found)
    rows: dict[JobId, dict[StepPath, StepRow]] = defaultdict(dict)
    for row in map(step_row, chain(steps_found, *more[: len(held)])):
        rows[row.job_id].setdefault(row.path, row)
    owing = {JobId(row["id"]) for row in more[-1]} if owers else set()
    advances = [
        Advance(plans[job_id], job, rows[job_id].values(), now, engine.caps.steps)
        for job_id, job in locked.items()
        if job_id in plans
    ]
    if advances:
        engine.recent.learn(now, engine.clock.monotonic())
    for advance in advances:
        advance.debts = debts.get(advance.job.id, {})
        tell_one(session, advance, owing)
    return advances


def _concerned(plan: Plan, intent: Settle) -> list[StepPath]:
    """What the settle may move; and all that comes after it in its line, if this process is likely to go on with it."""
    paths = plan.touched(intent.path, intent.ref)
    if intent.continue_on and isinstance(intent.result, Succeeded):
        paths += (_line(plan, intent.path, intent.ref) or [])[:AHEAD]
    return paths


def _line(plan: Plan, path: StepPath, ref: str) -> list[StepPath] | None:
    """What comes after a step that its job may be remembered with; a job that can owe is read each time."""
    return None if plan.compensates else plan.line(path, ref)


def _debts(session: Session, intents: Sequence[Settle]) -> dict[JobId, dict[int, Debt]]:
    """What the undoing steps among ``intents`` pay."""
    numbers: dict[JobId, list[int]] = defaultdict(list)
    for intent in intents:
        if intent.undoes is not None:
            numbers[intent.job_id].append(intent.undoes)
    return {job_id: compensations.by_number(session, job_id, wanted) for job_id, wanted in numbers.items()}


def _apply(
    engine: Engine,
    session: Session,
    advance: Advance,
    intent: Settle,
    index: int,
    results: list[Settled],
    follow: list[tuple[int, StepRow]],
    batch: Batch,
) -> None:
    row = advance.rows.get(intent.path)
    if row is None or row.state is not StepState.RUNNING or row.fence != intent.fence:
        return
    before = len(advance.ready)
    limited, queue = row.limited, row.queue
    last_child = _closes_join(advance, row)
    if last_child:
        crashpoint("join.before_last_child")
    advance.settle(row, intent.result, intent.usage, intent.worker)
    run_stops(session, advance)
    if last_child:
        crashpoint("join.after_last_child")
    if isinstance(intent.result, Retrying):
        _after_retry(row, intent.result, batch)
    mine = advance.ready[before:]
    settled = results[index]
    settled.won = True
    settled.job_state = advance.job.state
    if advance.job.finished_at is not None and advance.job.created_at is not None:
        settled.job_seconds = advance.job.finished_at - advance.job.created_at
    if len(mine) == 1 and _may_continue(mine[0], intent.continue_on):
        advance.ready.pop()
        follow.append((index, _take_over(engine, mine[0], advance.now)))
    else:
        settled.ready = len(mine)
        body = next((r for r in mine if r.kind is not Kind.AGENT and r.width is not None), None)
        if body is not None and intent.sends_body:
            settled.body = step_ref(body)
            batch.bodies.append(body)
    if limited:
        batch.wake.add(queue)


def _closes_join(advance: Advance, row: StepRow) -> bool:
    if row.parent is None:
        return False
    parent = advance.rows[row.parent]
    return parent.live == 1 and advance.plan.nodes[parent.ref].has_body


def _after_retry(row: StepRow, result: Retrying, batch: Batch) -> None:
    if row.state is StepState.RETRYING:
        batch.timers.append(result.delay)
    if row.agent is not None and not result.charged:  # it said 429 and how long: nobody calls it till then
        key = (row.tenant, row.agent)
        batch.pauses[key] = max(result.delay, batch.pauses.get(key, 0.0))


def _may_continue(row: StepRow, queues: frozenset[str]) -> bool:
    """Composites run anywhere: they only evaluate. A limited agent's step goes through the feed, which counts."""
    if not queues or row.limited or row.losses:
        return False
    return row.kind is not Kind.AGENT or row.queue in queues


def _take_over(engine: Engine, row: StepRow, now: float) -> StepRow:
    row.state = StepState.RUNNING
    row.attempt += 1
    row.fence += 1
    row.begun = False
    row.lease_owner, row.lease_until = engine.process, now + engine.lease
    row.started_at = now
    row.first_started_at = row.first_started_at or now
    return row


def _held(plans: Mapping[JobId, Plan], intents: Iterable[Settle]) -> Counter[tuple[JobId, StepPath]]:
    """How many of the members in line behind each ``max_concurrency`` this batch may let go."""
    wanted: Counter[tuple[JobId, StepPath]] = Counter()
    for intent in intents:
        plan = plans[intent.job_id]
        for path, ref in plan.chain(intent.path, intent.ref)[1:]:
            if plan.nodes[ref].max_concurrency is not None:
                wanted[intent.job_id, path] += 1
    return wanted
