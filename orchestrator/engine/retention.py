"""Removes jobs that ended long ago, whole, in small batches; exports each before, if asked to.

Every statement is guarded, so two schedulers do no harm. The order is: look, export and fsync, remove and commit. What
dies in between leaves a job that is there and exported; it is exported again and then removed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.engine import export
from orchestrator.engine.context import Engine
from orchestrator.store import history, payloads
from orchestrator.store import retention as sql
from orchestrator.store.history import Counts
from orchestrator.store.session import Session

log = logging.getLogger("orchestrator.retention")


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds."""

    #: How long a job is kept after its end.
    keep: float
    #: The directory that jobs are exported to before they go; None: they just go.
    export: Path | None = None
    #: Between two passes over what is old, and after a failure.
    pause: float = 60.0
    #: Of one tick of the scheduler, which has other duties.
    budget: float = 0.25
    #: A transaction removes so many jobs, and, but for a wider job by itself, so many steps.
    most_jobs: int = 100
    most_steps: int = 2000
    #: Payloads looked at after each pass: what a replay left behind is found by going round.
    most_payloads: int = 500
    payload_old: float = payloads.OLD


class Retention:
    """``due`` costs nothing; ``work`` is one tick's share of a pass."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine = engine
        self._policy = policy
        self._next = float("-inf")
        self._place = sql.BEGINNING
        self._hash = ""

    def due(self) -> bool:
        return self._engine.clock.monotonic() >= self._next

    def work(self) -> int:
        """Removes what it can within the budget; answers how many jobs that were. Raises ``ConfigError`` when the
        export cannot be written."""
        clock, removed = self._engine.clock, 0
        until = clock.monotonic() + self._policy.budget
        self._next = clock.monotonic() + self._policy.pause
        before = self._engine.db.run(lambda session: session.now(), readonly=True) - self._policy.keep
        while rows := self._look(before):
            for batch in self._batches(rows):
                removed += self._remove(batch, before)
                self._place = (batch[-1]["finished_at"], batch[-1]["id"])
                if clock.monotonic() > until:
                    self._next = clock.monotonic()  # go on in the next tick
                    return removed
        self._place = sql.BEGINNING
        self._sweep()
        return removed

    def _look(self, before: float) -> list[dict[str, Any]]:
        work = lambda session: sql.unneeded(session, before, self._place, self._policy.most_jobs)  # noqa: E731
        return self._engine.db.run(work, readonly=True)

    def _batches(self, rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        for row in rows:
            if batch and sum(one["steps"] for one in batch) + row["steps"] > self._policy.most_steps:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _remove(self, batch: list[dict[str, Any]], before: float) -> int:
        seen: Mapping[JobId, int] = {JobId(row["id"]): row["events"] for row in batch}
        if self._policy.export is not None:
            export.write(self._engine, self._policy.export, seen)

        def work(session: Session) -> int:
            gone = Counter(sql.remove(session, seen, before, self._policy.payload_old))
            counts: Counts = {("jobs_removed_total", (("workflow", name),)): n for name, n in gone.items()}
            history.add_counts(session, self._engine.process, counts)
            return gone.total()

        count = self._engine.db.run(work)
        log.info("jobs.removed", extra={"count": count, "exported": self._policy.export is not None})
        return count

    def _sweep(self) -> None:
        def work(session: Session) -> str:
            hashes = payloads.beyond(session, self._hash, self._policy.most_payloads)
            if hashes:
                payloads.drop_unread(session, hashes, self._policy.payload_old)
            return hashes[-1] if len(hashes) == self._policy.most_payloads else ""

        self._hash = self._engine.db.run(work)
