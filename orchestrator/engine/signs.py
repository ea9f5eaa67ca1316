"""What workers see on the wire and write down: markers that came through, messages that cannot be taken."""

from __future__ import annotations

from orchestrator.domain.ids import QueueName
from orchestrator.engine.context import Engine
from orchestrator.store import desk, feed


def marker_seen(engine: Engine, queue: QueueName, number: int) -> None:
    """Everything published to ``queue`` before marker ``number`` has been taken from it."""
    engine.db.run(lambda session: feed.marker_seen(session, queue, number))


def quarantine(engine: Engine, queue: str, reason: str, raw: bytes) -> None:
    """Keeps what could not be read, or what the broker gave up on, for people to look at."""
    engine.db.run(lambda session: desk.quarantine(session, engine.clock.new_id(), queue, reason, raw))
