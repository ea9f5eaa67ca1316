"""Gives lost steps back to work: known deaths, expired leases, drains. The same settle, with another author."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from orchestrator.domain.errors import Locked
from orchestrator.domain.fallback import after_giving_up
from orchestrator.domain.ids import Incarnation
from orchestrator.domain.plan import Kind, Plan, StepRow
from orchestrator.domain.result import Doubted, Released, Result, Unreconciled
from orchestrator.domain.retry import Again, GiveUp, InDoubt, after_loss
from orchestrator.engine.context import Engine
from orchestrator.engine.settle import Settle, Settled, settle, unlocked
from orchestrator.store import jobs, workers
from orchestrator.store.session import Session

log = logging.getLogger("orchestrator.release")


def release_lost(engine: Engine, rows: Sequence[StepRow], *, alone: bool = False) -> int:
    """Takes steps from a worker that is gone; answers how many were still its own."""
    if not rows:
        return 0

    def plans_of(session: Session) -> dict[str, Plan]:
        found = jobs.get_many(session, (row.job_id for row in rows))
        return {job_id: engine.plans.get(session, job.version) for job_id, job in found.items()}

    plans = engine.db.run(plans_of, readonly=True)
    intents = [
        Settle(
            row.job_id,
            row.path,
            row.ref,
            row.fence,
            after(row, plans[row.job_id], alone=alone),
            worker=row.lease_owner,
            undoes=row.undoes,
        )
        for row in rows
        if row.job_id in plans
    ]
    won = 0
    for start in range(0, len(intents), 200):
        won += sum(done.won for done in _settle_what_is_free(engine, intents[start : start + 200]))
    return won


def _settle_what_is_free(engine: Engine, intents: Sequence[Settle]) -> list[Settled]:
    """One job that somebody keeps locked must not keep the others waiting: it is left for the next time."""
    try:
        return settle(engine, intents)
    except Locked as error:
        free = unlocked(engine, [(intent.job_id, intent.path) for intent in intents])
        left = [intent for intent in intents if (intent.job_id, intent.path) in free]
        log.warning("release.locked", extra={"count": len(intents) - len(left), "error": str(error)})
        return settle(engine, left) if left else []


def after(row: StepRow, plan: Plan, *, alone: bool) -> Result:
    """What becomes of a step whose worker is gone."""
    if row.kind is not Kind.AGENT or row.agent is None:
        return Released(lost=True, alone=alone)
    agent = plan.agents[row.agent]
    decision = after_loss(
        begun=row.begun and row.doubt is None,  # whoever asks what became of a call only reads
        alone=row.losses_alone + (1 if alone else 0),
        effect=plan.nodes[row.ref].effect_of(agent),
        honours_key=agent.honours_key,
    )
    match decision:
        case Again():
            return Released(lost=True, alone=alone)
        case InDoubt(failure, was):
            return Doubted(failure, was, lost=True, alone=alone)
        case GiveUp(failure) if row.doubt is not None:
            return Unreconciled(failure)
        case GiveUp(failure):
            return after_giving_up(plan.nodes[row.ref], row, failure)


def bury(engine: Engine, incarnation: Incarnation) -> int:
    """Releases all that a dead process held and forgets the process."""
    rows = engine.db.run(lambda session: workers.held_by(session, incarnation), readonly=True)
    released = release_lost(engine, rows)
    engine.db.run(lambda session: workers.leave(session, incarnation))
    return released


def expire_leases(engine: Engine, limit: int = 500) -> int:
    """Releases what nobody renewed in time."""
    return release_lost(engine, engine.db.run(lambda session: workers.expired(session, limit), readonly=True))
