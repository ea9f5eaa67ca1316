"""Claim and settle: the two writes every attempt makes, in batches (a batch of one is the common case).

A settle locks its jobs in order, loads what it may move, lets ``domain/advance`` decide, and writes the checkpoint, the
successors, the attempt, the events and the counters in one transaction. Composites that become ready are evaluated with
it (``evaluate.py``); of the calls that follow the first is claimed with it and handed back (*continuation in place*),
and this process's share of the others, as far as it has slots. Zero rows means someone else owns the step.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.crashpoints import CrashPointReached, crashpoint
from orchestrator.domain.advance import Advance
from orchestrator.domain.errors import OrchestratorError, Unavailable
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.domain.plan import JobRow, Kind, Plan, StepRow
from orchestrator.domain.result import Retrying
from orchestrator.domain.states import StepState
from orchestrator.engine.context import Engine
from orchestrator.engine.evaluate import Became, evaluate, known_rows, take_over
from orchestrator.engine.feed import step_ref
from orchestrator.engine.gather import Claimed, Key, gather, learn, plans_of, reads_what_is_owed
from orchestrator.engine.intent import NO_ROOM, Room, Settle, Settled
from orchestrator.engine.load import AHEAD, is_alone, line, load
from orchestrator.engine.write import Batch, publish, run_stops, write
from orchestrator.store import feed, jobs, payloads, steps
from orchestrator.store.rows import job_row
from orchestrator.store.session import Moved, Session

__all__ = ["Room", "Settle", "Settled", "claim", "prepare", "settle", "unlocked"]

log = logging.getLogger("orchestrator.settle")


def claim(engine: Engine, refs: Sequence[StepRef]) -> dict[StepRef, Claimed]:
    """Claims what is still ready of ``refs``. What is missing from the answer belongs to someone else, or to no one."""

    def work(session: Session) -> tuple[dict[Key, Claimed], list[QueueName], dict[JobId, JobRow], list[StepRow]]:
        unknown = engine.facts.missing(ref.job_id for ref in refs)
        beside = [feed.asking_for_backlog(queue) for queue in asked]
        beside += [jobs.getting(session, unknown)] if unknown else []
        rows, begun, answers = steps.claim(session, refs, engine.process, engine.lease, AHEAD, *beside)
        if rows:  # at once: what follows may take its time
            engine.recent.learn(rows[0].started_at or 0.0, engine.clock.monotonic())
        found = {JobId(row["id"]): job_row(row) for row in answers.pop()} if unknown else {}
        claimed = _readable(engine, session, rows, found)
        return claimed, [queue for queue, some in zip(asked, answers, strict=True) if some], found, begun

    asked = engine.feed.unsure({ref.queue for ref in refs})
    found, behind, job_rows, begun = engine.db.run(work)
    crashpoint("claim.after_commit")
    _remember(engine, found, job_rows, begun)
    engine.feed.behind(behind)
    for ref in refs:
        engine.feed.claimed(ref.queue)
    return {ref: found[ref.job_id, ref.path] for ref in refs if (ref.job_id, ref.path) in found}


def _readable(
    engine: Engine, session: Session, rows: Sequence[StepRow], found: dict[JobId, JobRow]
) -> dict[Key, Claimed]:
    """What the claimed ``rows`` read. The claims are committed: one that cannot be read must not cost its neighbours.

    It is nobody's then, and the heartbeat gives it back.
    """
    try:
        return gather(engine, session, rows, learned=learn(engine, session, found))
    except Unavailable:
        raise
    except Exception:
        if len(rows) <= 1:
            raise
        claimed: dict[Key, Claimed] = {}
        for row in rows:
            try:
                claimed |= gather(engine, session, [row])
            except Exception:
                log.exception("claim.unreadable", extra={"job": row.job_id, "step": row.path})
        return claimed


def _remember(
    engine: Engine, found: Mapping[Key, Claimed], job_rows: Mapping[JobId, JobRow], begun: Iterable[StepRow]
) -> None:
    """Of jobs that begin here and run in line: their first settle need not read them either."""
    rows: dict[JobId, dict[StepPath, StepRow]] = defaultdict(dict)
    for row in begun:
        rows[row.job_id][row.path] = row
    at = engine.clock.monotonic()
    for (job_id, path), claimed in found.items():
        if job_id not in rows or job_id not in job_rows or line(claimed.plan, path, claimed.row.ref) is None:
            continue
        rows[job_id][path] = claimed.row
        engine.recent.keep(job_rows[job_id], rows[job_id].values(), at)


def settle(engine: Engine, intents: Sequence[Settle], room: Room = NO_ROOM) -> list[Settled]:
    """Writes ``intents`` (of any jobs) in one transaction, then publishes what became ready.

    ``room``: what the caller can run beside the step that each intent may go on with.
    """
    settled, batch = _written(engine, intents, room)
    at = engine.clock.monotonic()
    for advance in batch.going_on:
        engine.recent.keep(advance.job, advance.rows.values(), at)
    if any(intent.undoes is not None for intent in intents):
        crashpoint("compensation.after_commit")
    else:
        crashpoint("settle.after_commit")
    publish(engine, batch)
    return settled


def _written(engine: Engine, intents: Sequence[Settle], room: Room) -> tuple[list[Settled], Batch]:
    """Again when a job moved meanwhile. What follows from a result must not keep that result from being written."""
    evaluates = True

    def work(session: Session) -> tuple[list[Settled], Batch]:
        return settle_in(engine, session, intents, room, evaluates=evaluates)

    for _ in range(4):
        try:
            return engine.db.run(work)
        except Moved:
            pass
        except (OrchestratorError, CrashPointReached):
            raise
        except Exception:
            if len(intents) > 1 or not evaluates:
                raise
            log.exception("settle.alone", extra={"job": intents[0].job_id, "step": intents[0].path})
            evaluates = False
    return engine.db.run(work)


def unlocked(engine: Engine, keys: Iterable[tuple[JobId, StepPath]]) -> set[tuple[JobId, StepPath]]:
    """Those of ``keys`` that a settle or claim would not have to wait for now."""
    return engine.db.run(lambda session: steps.unlocked(session, keys))


def prepare(engine: Engine, claimed: Claimed, rows: Sequence[StepRow]) -> bool:
    """Writes a chunk of a wide fan-out before the settle that lets it go; False when the lease is lost."""

    def work(session: Session) -> bool:
        payloads.write(session, (row.vars for row in rows), engine.sizes.compress_bytes)
        return steps.prepare(session, claimed.row, rows)

    return engine.db.run(work)


def settle_in(
    engine: Engine, session: Session, intents: Sequence[Settle], room: Room = NO_ROOM, *, evaluates: bool = True
) -> tuple[list[Settled], Batch]:
    """The transaction's work. ``evaluates``: composites that become ready are, at once."""
    batch = Batch()
    by_job: dict[JobId, list[int]] = defaultdict(list)
    for index, intent in enumerate(intents):
        by_job[intent.job_id].append(index)
    # What never changes of a job is known before its lock, so all that the lock guards is asked for together with it.
    plans = plans_of(engine, session, set(by_job))
    advances = load(engine, session, plans, intents, batch)
    now = max((advance.now for advance in advances), default=0.0)
    results = [Settled(won=False) for _ in intents]
    became: dict[int, Became] = {}
    for advance in advances:
        for index in by_job[advance.job.id]:
            made_ready = _apply(session, advance, intents[index], batch)
            if made_ready is not None:
                became[index] = Became(advance, made_ready)
    if evaluates:
        evaluate(engine, session, list(became.values()))
    follow: list[tuple[int, StepRow]] = []
    for index, one in became.items():
        rows = _answer(engine, one, intents[index], results[index], batch, room)
        room = replace(room, slots=room.slots - len(rows[1:]))
        follow += [(index, row) for row in rows]
    # All that can be read before the write is: then nothing need follow it.
    known = known_rows(advances)
    now_known = [row for _, row in follow if not reads_what_is_owed(row)]
    gathered = gather(engine, session, now_known, known)
    crashpoint("settle.before_commit")
    write(engine, session, advances, batch, now, last=len(now_known) == len(follow))
    gathered |= gather(engine, session, [row for _, row in follow if reads_what_is_owed(row)], known)
    mine: dict[JobId, list[StepRow]] = defaultdict(list)
    for index, row in follow:
        mine[row.job_id].append(row)
        _hand_over(results[index], gathered[row.job_id, row.path])
    batch.going_on = [advance for advance in advances if is_alone(advance, mine[advance.job.id])]
    return results, batch


def _hand_over(settled: Settled, claimed: Claimed) -> None:
    if settled.next is None:
        settled.next = claimed
    else:
        settled.beside.append(claimed)


def _apply(session: Session, advance: Advance, intent: Settle, batch: Batch) -> list[StepRow] | None:
    """What became ready; None when somebody else owns the step."""
    row = advance.rows.get(intent.path)
    if row is None or row.state is not StepState.RUNNING or row.fence != intent.fence:
        return None
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
    if limited:
        batch.wake.add(queue)
    return advance.ready[before:]


def _answer(
    engine: Engine, became: Became, intent: Settle, settled: Settled, batch: Batch, room: Room
) -> list[StepRow]:
    """Fills in what the caller is told; answers the steps that it goes on with."""
    job = became.advance.job
    settled.won = True
    settled.job_state = job.state
    if job.finished_at is not None and job.created_at is not None:
        settled.job_seconds = job.finished_at - job.created_at
    ready = [row for row in became.ready if row.state is StepState.READY]
    rows = [row for row in ready if _may_continue(row, intent.continue_on)]
    mine = _mine(engine, became.advance.plan, rows, room)
    settled.ready = len(ready) - len(mine)
    for row in mine:
        take_over(engine, row, became.advance.now)
    body = next((row for row in ready if row.kind is not Kind.AGENT and row.width is not None), None)
    if body is not None and intent.sends_body and not mine:
        settled.body = step_ref(body)
        batch.bodies.append(body)
    return mine


def _mine(engine: Engine, plan: Plan, rows: Sequence[StepRow], room: Room) -> list[StepRow]:
    """The first of ``rows``, and of each agent's calls as many as fall to this process, while it has room."""
    mine, kept = [*rows[:1]], Counter(row.agent for row in rows[:1])
    if len(rows) == 1 or not room.slots:
        return mine
    count = Counter(row.agent for row in rows)
    for row in rows[1:]:
        if row.agent is None or len(mine) > room.slots:
            continue
        light = room.light(plan.agents[row.agent])
        if kept[row.agent] < engine.feed.share(row.queue, count[row.agent], light=light):
            kept[row.agent] += 1
            mine.append(row)
    return mine


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
