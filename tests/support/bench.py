"""The real engine and runner over a list for a broker: for tests of decisions, not of messages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from orchestrator.clock import Clock
from orchestrator.domain.ids import Incarnation, JobId, StepRef
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import presence, queries
from orchestrator.engine.context import Engine
from orchestrator.engine.feed import Feed
from orchestrator.engine.reroute import reroute
from orchestrator.engine.submit import Submission, submit
from orchestrator.engine.verify import verify
from orchestrator.store import feed as feed_sql
from orchestrator.store import migrations
from orchestrator.store.database import Database
from orchestrator.testing import CountedSlots, ListDispatcher, SilentMeters
from workers.agents import AgentCalls, Egress
from workers.attempt import Attempt
from workers.isolation import IsolatedCalls
from workers.runner import InPlace, Runner
from workers.watchdog import Watchdog


class Bench:
    """``drive`` runs published steps until nothing is left; ``rng`` shuffles them when given."""

    def __init__(
        self,
        url: str,
        *,
        process: str = "bench-1",
        seed: int | None = None,
        in_place: int = 50,
        clock: Clock | None = None,
        slots: int = 0,
    ) -> None:
        self.clock = clock or Clock()
        self.db = Database(url)
        migrations.upgrade(self.db)
        self.engine = Engine(self.db, self.clock, Incarnation(process))
        self.dispatcher = ListDispatcher()
        self.engine.feed = Feed(self.db, self.dispatcher, self.clock)
        self.engine.feed.on_held = partial(reroute, self.engine)
        self.calls = AgentCalls(agent_packages=("tests",), egress=Egress(unrestricted=True))
        self.attempt = Attempt(
            self.engine, self.calls, IsolatedCalls({"agent_packages": ["tests"]}), Watchdog(self.clock)
        )
        self.meters = SilentMeters()
        self.runner = Runner(
            self.engine, self.attempt, frozenset({"default"}), self.meters, InPlace(in_place), self.calls.light
        )
        #: For what runs beside the messages.
        self.slots = CountedSlots(slots)
        self.runner.lend(self.slots)
        self.runner.writer.start()
        self.who = presence.Registration(Incarnation(process), "bench", "worker", ("default",), 1000, "test")
        presence.join(self.engine, self.who)
        self.rng = random.Random(seed) if seed is not None else None

    def close(self) -> None:
        self.attempt.watchdog.close()
        self.runner.writer.close()
        self.db.close()

    def check(self) -> None:
        """Every invariant holds."""
        found = verify(self.engine)
        assert not found, "\n".join(map(str, found))

    def submit(self, workflow: Workflow | dict[str, Any], input: Any = None, **more: Any) -> JobId:
        definition = workflow if isinstance(workflow, Workflow) else Workflow.model_validate(workflow)
        return submit(self.engine, Submission(definition, input, **more)).job.id

    def pump(self) -> None:
        presence.beat(self.engine, self.who, busy=0, lost_slots=0, draining=False)
        self.engine.db.run(feed_sql.due_timers)
        for queue in self.engine.db.run(feed_sql.queues_with_backlog, readonly=True):
            self.engine.feed.pump(queue)

    def drive(self, limit: int = 100_000) -> int:
        """Runs everything that is published until nothing is; answers how many messages it took."""
        return asyncio.run(self._drive(limit))

    async def _drive(self, limit: int) -> int:
        count = 0
        while count < limit:
            self.pump()
            if not self.dispatcher.refs:
                return count
            batch = [self.take() for _ in range(min(16, len(self.dispatcher.refs)))]
            count += len(batch)
            await asyncio.gather(*map(self.run, batch))
            await self.runner.drained()
        return count

    async def run(self, ref: StepRef) -> None:
        """One message, as the pool treats it: the body of a join that its settle decided is sent afterwards."""
        verdict = await self.runner.run(ref, lambda: None)
        if verdict.body is not None:
            self.dispatcher.publish([verdict.body])

    def take(self) -> StepRef:
        refs = self.dispatcher.refs
        return refs.pop(self.rng.randrange(len(refs)) if self.rng else 0)

    def job(self, job_id: JobId) -> dict[str, Any]:
        return queries.show_job(self.engine, job_id)

    def steps(self, job_id: JobId) -> dict[str, dict[str, Any]]:
        return {step["path"]: step for step in queries.list_steps(self.engine, job_id, limit=100_000)[0]}

    def events(self, job_id: JobId) -> list[dict[str, Any]]:
        return queries.list_events(self.engine, job_id, limit=100_000)[0]


@contextmanager
def bench(url: str, **more: Any) -> Iterator[Bench]:
    it = Bench(url, **more)
    try:
        yield it
    finally:
        it.close()
