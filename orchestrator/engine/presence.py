"""Processes come, beat, renew and leave; a parent that saw its child die says so."""

from __future__ import annotations

from orchestrator.domain.ids import Incarnation, JobId, QueueName, StepPath
from orchestrator.domain.result import Released
from orchestrator.engine import release
from orchestrator.engine.context import Engine
from orchestrator.engine.settle import Settle, settle
from orchestrator.store import workers
from orchestrator.store.life import LifeLock
from orchestrator.store.workers import Registration, lock_number

#: A COMMIT that was sent before its sender was killed takes effect within so many seconds, or not at all.
LATE_COMMIT = 0.25

__all__ = [
    "LifeLock",
    "Registration",
    "asked_to_stop",
    "beat",
    "bury",
    "give_back",
    "join",
    "leave",
    "lock_number",
    "renew",
]


def join(engine: Engine, who: Registration) -> None:
    engine.db.run(lambda session: workers.register(session, who))
    engine.feed.wake(QueueName(queue) for queue in who.queues)


def beat(engine: Engine, who: Registration, *, busy: int, lost_slots: int, draining: bool) -> bool:
    """False when the process's row is gone: somebody declared it dead."""
    return engine.db.run(
        lambda session: workers.heartbeat(session, who.incarnation, busy=busy, lost_slots=lost_slots, draining=draining)
    )


def asked_to_stop(engine: Engine, who: Registration) -> list[tuple[JobId, StepPath, int]]:
    """Live calls of ``who`` that a cancel, a failed join or a deadline wants stopped: (job, path, fence)."""
    return engine.db.run(lambda session: workers.asked_to_stop(session, who.incarnation), readonly=True)


def renew(engine: Engine, who: Incarnation) -> list[tuple[JobId, StepPath, int]]:
    """Extends all leases of ``who``; answers what it owns: (job, path, fence). The feed is told who else works."""
    owned, alive = engine.db.run(lambda session: (workers.renew(session, who, engine.lease), workers.live(session)))
    engine.feed.serve(workers.serving(alive))
    return owned


def give_back(engine: Engine, who: Incarnation, key: tuple[JobId, StepPath, int]) -> None:
    """Releases a step that ``who`` owns in SQL but does not know of: its claim committed, the reply was lost.

    What nobody knew of was not begun, so it is no loss.
    """
    rows = engine.db.run(lambda session: workers.held_by(session, who), readonly=True)
    settle(
        engine,
        [
            Settle(row.job_id, row.path, row.ref, row.fence, Released(lost=False), worker=who, undoes=row.undoes)
            for row in rows
            if (row.job_id, row.path, row.fence) == key
        ],
    )


def bury(engine: Engine, incarnation: Incarnation) -> int:
    """Releases all that a process held which was seen to die; answers how many steps.

    Looks twice, ``LATE_COMMIT`` apart: a claim that the process had sent may commit after the first look.
    """
    released = release.bury(engine, incarnation)
    engine.clock.sleep(LATE_COMMIT)
    return released + release.bury(engine, incarnation)


def leave(engine: Engine, who: Registration) -> None:
    """Goes in order: what it still holds is released, its row is removed."""
    release.bury(engine, who.incarnation)
