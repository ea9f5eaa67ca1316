"""A worker whose every decision comes in the same order each time, so that its cost can be counted exactly.

The messages of a round run side by side until all wait for the writer; then it writes what they handed over, as one
batch, as it does in a worker that is busy. The feed is pumped between rounds. Time stands still.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.domain.ids import QueueName, StepRef
from orchestrator.engine.writer import Writer
from orchestrator.store.session import Session
from tests.support.bench import Bench
from tests.support.tally import CountedDispatcher, Tally

#: Turns of the loop after which whoever can go on has done so: all that may be awaited is the writer.
TURNS = 50
#: More than any message of ours needs.
BATCHES = 200


@dataclass(slots=True)
class StillClock(Clock):
    """Nothing falls due by itself: no look at others' backlog, no credit runs out, no batch is wary."""

    def monotonic(self) -> float:
        return 1e6


class Lockstep:
    def __init__(self, url: str, *, in_place: int = 50, slots: int = 0) -> None:
        self.bench = Bench(url, in_place=in_place, clock=StillClock(), slots=slots)
        self._feed = self.bench.engine.feed
        self.dispatcher = CountedDispatcher()
        self.bench.dispatcher = self._feed.dispatcher = self.dispatcher
        runner = self.bench.runner
        runner.writer.close()
        runner.writer = self._writer = Writer(self.bench.engine, runner._own, light=lambda _: True)
        runner.lend(self.bench.slots)
        self.bench.db.run(_live_for_ever)
        self._feed.pump(QueueName("default"))  # from here on there is credit
        self.tally = Tally(self.bench.db, self.dispatcher)

    def close(self) -> None:
        self.bench.close()

    def run(self, at_once: int = 1) -> None:
        """Everything that is published, and what follows from it, ``at_once`` messages in a round."""
        asyncio.run(self._run(at_once))

    async def _run(self, at_once: int) -> None:
        while refs := self._next(at_once):
            tasks = [asyncio.ensure_future(self.bench.run(ref)) for ref in refs]
            for _ in range(BATCHES):
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                if all(task.done() for task in tasks) and not self.bench.runner._aside:
                    break
                self._write()
            for task in tasks:
                assert task.done(), "it waits for something else than the writer"
                task.result()

    def _next(self, at_once: int) -> list[StepRef]:
        wanted, self._feed._wanted = self._feed._wanted, set()
        for queue in sorted(wanted):
            self._feed.pump(queue)
        refs = self.dispatcher.refs
        taken, refs[:] = refs[:at_once], refs[at_once:]
        return taken

    def _write(self) -> None:
        """What the writer's thread does, until it has nothing left to do."""
        self._writer._queue.put(None)
        self._writer._run()


def _live_for_ever(session: Session) -> None:
    """A machine that halts for a minute must not make a dead worker of this one."""
    session.execute("UPDATE workers SET heartbeat_at = heartbeat_at + 1e9")
