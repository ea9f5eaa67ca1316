"""Writes what ``domain/advance`` decided: for settle, cancel, decisions and whatever else moves a job's steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.advance import Advance
from orchestrator.domain.ids import JobId, QueueName, StepRef
from orchestrator.domain.plan import StepRow
from orchestrator.domain.states import STEP_MOVES_BY_ITSELF, JobState, StepState
from orchestrator.engine import breakers
from orchestrator.engine.context import Engine, PayloadSizes
from orchestrator.store import changes, compensations, desk, feed, history, payloads, steps, waits, webhooks
from orchestrator.store.changes import Changes
from orchestrator.store.rows import job_values, step_values
from orchestrator.store.session import Moved, Session


@dataclass(slots=True)
class Batch:
    """What one transaction publishes once it is committed."""

    ready: list[StepRow] = field(default_factory=list)
    published: list[StepRef] = field(default_factory=list)
    #: Ready rows that their settle's caller publishes.
    bodies: list[StepRow] = field(default_factory=list)
    #: Agents that said 429 and how long: (tenant, agent): seconds.
    pauses: dict[tuple[str, str], float] = field(default_factory=dict)
    timers: list[float] = field(default_factory=list)
    wake: set[QueueName] = field(default_factory=set)
    #: The queues' markers, if they were asked for.
    marks: feed.Markers | None = None
    #: Jobs that go on here in place.
    going_on: list[Advance] = field(default_factory=list)


def publish(engine: Engine, batch: Batch) -> None:
    engine.feed.committed(batch.published, batch.ready)
    for delay in batch.timers:
        engine.feed.wake_at(delay)
    if batch.wake:
        engine.feed.wake(batch.wake)


def tell_of_debts(session: Session, advances: Sequence[Advance]) -> None:
    """Whether their jobs owe anything: asked only where a step can be undone at all."""
    owers = [advance.job.id for advance in advances if advance.plan.compensates]
    owing = compensations.owing(session, owers) if owers else set()
    for advance in advances:
        tell_one(session, advance, owing)


def tell_one(session: Session, advance: Advance, owing: Collection[JobId]) -> None:
    if advance.job.id in owing:
        advance.owing = True
        advance.branches_owe = partial(compensations.branches_owe, session, advance.job.id)


def run_stops(session: Session, advance: Advance) -> None:
    """Cancels the subtrees that were decided against, until no further one follows."""
    while advance.stops:
        top, live_too = advance.stops.pop(0)
        advance.stop(top, live_too, steps.load_open_below(session, advance.job.id, top))


def write(
    engine: Engine, session: Session, advances: Sequence[Advance], batch: Batch, now: float, *, last: bool = False
) -> None:
    """Writes what ``advances`` decided. ``last``: the caller asks nothing more of this transaction."""
    counts: Counter[Any] = Counter()
    for advance in advances:
        for row in advance.ready:
            if row.path not in advance.changed and row.path in advance.before:
                advance.changed[row.path] = row
    calls = breakers.judge(engine, session, advances, now)
    for (tenant, paused), seconds in sorted(batch.pauses.items()):
        feed.pause_agent(session, tenant, paused, seconds)
    ready = [row for advance in advances for row in advance.ready if row.state is StepState.READY]
    batch.published.extend(engine.feed.take(session, ready, now, batch.bodies, batch.marks))
    batch.ready.extend(ready)
    for advance in advances:
        _job_waits_or_runs(session, advance)
    rows = Changes(jobs=[_job_row(advance) for advance in advances], calls=calls)
    for advance in advances:
        written = [*advance.changed.values(), *advance.created]
        payloads.write(
            session, (value for row in written for value in (row.output, row.vars)), engine.sizes.compress_bytes
        )
        rows.moved += steps.moved(advance.changed.values(), advance.before)
        rows.created += map(step_values, advance.created)
        rows.attempts += history.attempt_rows(advance.job.id, advance.attempts, now)
        rows.events += history.event_rows(advance.events)
        rows.webhooks += webhooks.owed(advance.job, advance.events)
        counts.update(advance.counts)
    rows.counts = history.count_rows(engine.process, counts)
    last = last and not any(advance.more_to_write for advance in advances)
    if not changes.write(session, rows, last=last):
        raise Moved
    for advance in advances:
        for parent, limit in advance.prepared:
            batch.wake |= steps.make_ready(session, advance.job.id, parent, limit)
        _write_undoing(session, advance, engine.sizes)
        _write_for_people(engine, session, advance)


def _job_row(advance: Advance) -> changes.Row:
    """What of the job may change; what was recalled is written only if nothing has happened to the job since."""
    values = job_values(advance.job)
    del values["input"], values["tags"]
    return {**values, "was_events": advance.had_events} if advance.recalled else values


def _write_for_people(engine: Engine, session: Session, advance: Advance) -> None:
    waits.open_all(session, advance.asked)
    waits.cancel_open(session, advance.job.id, advance.answered)  # also one that this very batch has asked
    for path, failure in advance.letters:
        crashpoint("dead_letter.move")
        agent = advance.rows[path].agent if path in advance.rows else None
        desk.park(session, engine.clock.new_id(), advance.job, path, failure, agent)


def _job_waits_or_runs(session: Session, advance: Advance) -> None:
    """A job that asks people is waiting while nothing else of it moves. All moves but claims are under its lock."""
    job = advance.job
    if job.state not in (JobState.RUNNING, JobState.WAITING) or not (job.waits or job.state is JobState.WAITING):
        return
    moves = (
        job.waits == 0
        or bool(advance.prepared)
        or any(row.state in STEP_MOVES_BY_ITSELF for row in advance.rows.values())
        or waits.another_step_moves(session, job.id, advance.rows)
    )
    job.state = JobState.RUNNING if moves else JobState.WAITING


def _write_undoing(session: Session, advance: Advance, sizes: PayloadSizes) -> None:
    job_id = advance.job.id
    if advance.owed:
        payloads.write(session, (debt.input for debt in advance.owed), sizes.compress_bytes)
        compensations.note(session, job_id, advance.owed)
    if advance.paid:
        compensations.pay(session, job_id, advance.paid)
    for opened in advance.undoing:
        compensations.begin(session, job_id, opened)
