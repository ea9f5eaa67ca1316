"""Starting over after a process that held everything was killed: for ``run`` and ``dev``."""

from __future__ import annotations

from orchestrator.domain.ids import Incarnation
from orchestrator.engine.context import Engine
from orchestrator.engine.release import bury
from orchestrator.store import feed, life, migrations, workers
from orchestrator.store.database import Database


def migrate(db: Database) -> None:
    """Brings an embedded database to this version's schema."""
    migrations.upgrade(db)


def start_over(engine: Engine) -> int:
    """Buries the processes of this database that are provably dead, and forgets what the lost broker held.

    Answers how many steps were released. Only for an in-process broker, whose messages died with their process.
    """
    released = 0
    for row in engine.db.run(lambda session: workers.silent(session, 0.0), readonly=True):
        if life.is_dead(engine.db, row["incarnation"]):
            released += bury(engine, Incarnation(row["incarnation"]))
    engine.feed.wake(set(engine.db.run(feed.forget_all)) | set(engine.db.run(feed.queues_with_backlog)))
    return released
