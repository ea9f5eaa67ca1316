"""Follows jobs for whoever waits for them: one query for all of them each ``INTERVAL``, however many clients there are.

A follower has a position: the number of the last event it has. The poller keeps the newest events of each followed job
in memory; a follower that is further behind reads its own pages. So a stream is gap-free by construction.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.threads import Threads
from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.ids import JobId
from orchestrator.domain.states import JOB_TERMINAL
from orchestrator.engine import queries
from orchestrator.engine.context import Engine
from orchestrator.store import history, jobs
from orchestrator.store.session import Session

log = logging.getLogger("orchestrator.api")

#: Seconds between two looks.
INTERVAL = 0.25
#: Events of a job kept in memory, and the size of a page.
RECENT = 500

View = dict[str, Any]


@dataclass(slots=True)
class _Job:
    """What the poller knows of one job. ``newest`` is None before its first look."""

    newest: int | None = None
    ended: bool = False
    followers: int = 0
    readers: int = 0
    #: The events up to ``newest``, without a gap, as far back as they go.
    recent: deque[View] = field(default_factory=lambda: deque(maxlen=RECENT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, position: int) -> list[View] | None:
        """The events after ``position``; None when they are not all in memory."""
        if self.newest is None or position < self.newest - len(self.recent):
            return None
        return [view for view in self.recent if view["number"] > position]


class Watch:
    """Lives on one event loop. ``close`` ends every stream."""

    def __init__(self, engine: Engine, threads: Threads) -> None:
        self._engine = engine
        self._threads = threads
        self._jobs: dict[JobId, _Job] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    async def ended(self, job_id: JobId, seconds: float) -> bool:
        """Waits until the job has ended, at most ``seconds``; whether it has."""
        with self._followed(job_id, reads=False) as job:
            try:
                async with asyncio.timeout(seconds):
                    while not (job.ended or self._closed):
                        await job.changed.wait()
            except TimeoutError:
                pass
            return job.ended

    async def follow(self, job_id: JobId, after: int, heartbeat: float) -> AsyncIterator[list[View]]:
        """The events after number ``after`` in pages, as they come; an empty page after ``heartbeat`` silent seconds.

        Ends once the job has ended and its last event was given. Raises ``OrchestratorError`` if the first read fails;
        later ones are tried again.
        """
        position = after
        with self._followed(job_id, reads=True) as job:
            while not self._closed:
                changed = job.changed  # taken before the read, so that no change falls between
                page, complete = await self._read(job, job_id, position)
                if page:
                    position = page[-1]["number"]
                    yield page
                if complete:
                    return
                if not page and not await _within(changed, heartbeat):
                    yield []

    async def _read(self, job: _Job, job_id: JobId, position: int) -> tuple[list[View], bool]:
        page = job.after(position)
        if page is None:
            return await self._threads.run(queries.list_events, self._engine, job_id, after=position, limit=RECENT)
        last = page[-1]["number"] if page else position
        return page, job.ended and last == job.newest

    @contextmanager
    def _followed(self, job_id: JobId, *, reads: bool) -> Iterator[_Job]:
        job = self._jobs.setdefault(job_id, _Job())
        job.followers += 1
        job.readers += reads
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="orchestrator-watch")
        try:
            yield job
        finally:
            job.followers -= 1
            job.readers -= reads
            if job.followers == 0:
                self._jobs.pop(job_id, None)

    async def _poll(self) -> None:
        failing = False
        while self._jobs and not self._closed:
            try:
                await self._look()
                failing = False
            except OrchestratorError as error:  # followers keep waiting: the database may come back
                if not failing:
                    log.warning("watch.failed", extra={"error": str(error)})
                failing = True
            await asyncio.sleep(INTERVAL)

    async def _look(self) -> None:
        known = {job_id: (job.newest, job.readers > 0) for job_id, job in self._jobs.items()}
        found = await self._threads.run(self._engine.db.run, lambda s: _changes(s, known), readonly=True)
        for job_id, (newest, ended, events) in found.items():
            job = self._jobs.get(job_id)
            if job is None or (job.newest, job.ended) == (newest, ended):
                continue
            if job.newest is None or (events and events[0]["number"] != job.newest + 1) or not events:
                job.recent.clear()  # nothing that would follow on what is there
            job.recent.extend(events)
            job.newest, job.ended = newest, ended
            job.tell()

    async def close(self) -> None:
        self._closed = True
        for job in self._jobs.values():
            job.tell()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)


def _changes(
    session: Session, known: dict[JobId, tuple[int | None, bool]]
) -> dict[JobId, tuple[int, bool, list[View]]]:
    """For each job: its newest event's number, whether it has ended, and the events since the last look, if all fit."""
    out: dict[JobId, tuple[int, bool, list[View]]] = {}
    for job_id, job in jobs.get_many(session, known).items():
        newest, reads = known[job_id]
        events: list[View] = []
        if reads and newest is not None and newest < job.events <= newest + RECENT:
            found = history.events_after(session, job_id, newest, RECENT)
            events = [queries.event_view(event) for event in found if event.number <= job.events]
        out[job_id] = (job.events, job.state in JOB_TERMINAL, events)
    return out


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
