"""Runs a step: claim, call, settle, and on to its sole successor. Reads like the life of an attempt.

Nothing raises out of here: whatever happens becomes an outcome, or the lease is lost and the work belongs to another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from orchestrator.canvas.runtime import Verdict
from orchestrator.crashpoints import CrashPointReached, crashpoint
from orchestrator.domain.errors import Unavailable
from orchestrator.domain.expressions import ExpressionFailed
from orchestrator.domain.fallback import after_giving_up
from orchestrator.domain.ids import StepRef
from orchestrator.domain.json_values import NotJson
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.planner import CHUNK, at_once
from orchestrator.domain.result import Cancelled, GaveUp, Opened, Released, Result, Skipped, Succeeded, Unreconciled
from orchestrator.domain.retry import SUSPECT_AFTER
from orchestrator.domain.states import JobState
from orchestrator.domain.workflow import Agent
from orchestrator.engine import composites
from orchestrator.engine.context import Engine
from orchestrator.engine.gather import Claimed
from orchestrator.engine.settle import Settle, Settled, prepare
from orchestrator.engine.writer import Writer
from orchestrator.ports import Slots
from workers.attempt import Attempt, Bill, Done, after_reconcile, decide
from workers.heartbeat import Key

log = logging.getLogger("workers.runner")
T = TypeVar("T")

#: Between two tries of a write while the database is away, in seconds: the lease outlives several.
WRITE_RETRY = 0.5


class Meters(Protocol):
    """What the runner counts."""

    def step_finished(self, agent: str, seconds: float) -> None: ...
    def step_waited(self, queue: str, seconds: float) -> None: ...
    def handoff(self, seconds: float) -> None: ...
    def fenced(self) -> None: ...
    def batch_written(self, size: int) -> None: ...
    def job_finished(self, workflow: str, seconds: float) -> None: ...


@dataclass(slots=True)
class _Live:
    """A step this process executes now."""

    claimed: Claimed
    task: asyncio.Task[tuple[Result, Usage]] | None = None
    bill: Bill = field(default_factory=Bill)
    stopped: bool = False
    lost: bool = False


@dataclass(slots=True)
class InPlace:
    """How long one message may keep its slot by continuing."""

    steps: int = 50
    seconds: float = 1.0


@dataclass(slots=True)
class Runner:
    engine: Engine
    attempt: Attempt
    queues: frozenset[str]
    meters: Meters
    in_place: InPlace = field(default_factory=InPlace)
    #: Whether an agent's calls mostly wait.
    light: Callable[[Agent], bool] = lambda _: False
    draining: bool = False
    writer: Writer = field(init=False)
    _live: dict[Key, _Live] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _idle: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _alarm: bool = False
    #: Steps beside those that came by message: a loop knows its tasks by weak references only.
    _aside: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.writer = Writer(self.engine, self._own, self.meters.batch_written, self.light)

    # -- what the pool calls

    async def run(self, ref: StepRef, claimed: Callable[[], None]) -> Verdict:
        """Executes ``ref`` and what follows in place. ``claimed`` is called when the claim is committed or refused.

        While draining nothing is claimed, and the message goes back to its queue.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self.attempt.watchdog.start(self._loop)
        crashpoint("worker.after_receive")
        if self.draining:
            return Verdict(None)
        mine: Claimed | None = None
        try:
            try:
                mine = await self._write(lambda: self.writer.claim(ref))
            finally:
                crashpoint("worker.before_ack")
                claimed()
        except BaseException:
            self._disown(mine)
            raise
        if mine is None:
            return Verdict(None)
        waited = max(0.0, (mine.row.started_at or 0.0) - (mine.row.ready_at or 0.0))
        self.meters.step_waited(ref.queue, waited)
        self.meters.handoff(waited)
        return Verdict(await self._go_on(mine, self.engine.clock.monotonic()))

    def lend(self, slots: Slots) -> None:
        self.writer.slots = slots

    async def drain(self) -> None:
        """Takes no more work; returns when nothing is executing."""
        self.draining = True
        await self.drained()

    async def drained(self) -> None:
        """Returns when nothing is executing."""
        while self.executing() or self._aside:  # noqa: ASYNC110 - claims are registered on the writer's thread, which has no loop
            await asyncio.sleep(0.05)

    # -- what the heartbeat asks

    def executing(self) -> set[Key]:
        with self._lock:
            return set(self._live)

    def stop(self, key: Key, *, lost: bool) -> None:
        with self._lock:
            live = self._live.get(key)
        if live is None or self._loop is None:
            return
        live.lost = live.lost or lost
        live.stopped = True
        self._loop.call_soon_threadsafe(_cancel, live)

    def lost_slots(self) -> int:
        return self.attempt.lost_slots()

    def take_alarm(self) -> bool:
        alarm, self._alarm = self._alarm, False
        return alarm

    def healthy(self) -> bool:
        return self.attempt.watchdog.healthy()

    # -- one step after the other

    async def _go_on(self, mine: Claimed, started: float, count: int = 0, *, aside: bool = False) -> StepRef | None:
        """Executes ``mine`` and what follows in place; answers the join's body that is left to publish.

        ``aside``: no message brought it, so nobody is there to publish one.
        """
        while True:
            count += 1
            spent = self.engine.clock.monotonic() - started
            go_on = count < self.in_place.steps and spent < self.in_place.seconds and not self.draining
            settled = await self._step(mine, self.queues if go_on else frozenset(), sends_body=not aside)
            if settled is None:
                return None
            for one in settled.beside:
                task = asyncio.ensure_future(self._beside(one, started, count))
                self._aside.add(task)
                task.add_done_callback(self._aside.discard)
            if settled.next is None:
                return settled.body
            mine = settled.next

    async def _beside(self, mine: Claimed, started: float, count: int) -> None:
        """A step that became ready together with another, in a slot of its own, within the same bounds."""
        try:
            await self._go_on(mine, started, count, aside=True)
        except Exception:
            log.exception("step.runner_raised", extra={"job": mine.row.job_id, "path": mine.row.path})
        finally:
            assert self.writer.slots is not None
            self.writer.slots.give_back(1)

    # -- one step

    def _own(self, claimed: Claimed) -> None:
        row = claimed.row
        with self._lock:
            self._live[row.job_id, row.path, row.fence] = _Live(claimed)

    def _disown(self, claimed: Claimed | None) -> None:
        """Nobody will execute it: unknown here, it is given back by the heartbeat instead of renewed for ever."""
        self._alarm = True
        if claimed is not None:
            row = claimed.row
            with self._lock:
                self._live.pop((row.job_id, row.path, row.fence), None)

    async def _step(self, claimed: Claimed, continue_on: frozenset[str], *, sends_body: bool = True) -> Settled | None:
        """Executes and settles one claimed step; None when it was lost on the way."""
        row = claimed.row
        key = (row.job_id, row.path, row.fence)
        live = self._live[key]
        begun_at = self.engine.clock.monotonic()
        try:
            result, usage = await self._execute(live)
            if live.lost:
                self.meters.fenced()
                log.warning("lease.lost", extra={"job": row.job_id, "step": row.path, "fence": row.fence})
                return None
            answered_at = self.engine.clock.monotonic()
            settled = await self._settle(claimed, result, usage, continue_on, sends_body=sends_body)
        except CrashPointReached:
            self._alarm = True
            raise
        finally:
            with self._lock:
                self._live.pop(key, None)
        if not settled.won:
            self.meters.fenced()
            log.warning("settle.fenced", extra={"job": row.job_id, "step": row.path, "fence": row.fence})
            return None
        if row.agent is not None:
            self.meters.step_finished(row.agent, answered_at - begun_at)
        for _ in range((settled.next is not None) + len(settled.beside)):
            self.meters.handoff(self.engine.clock.monotonic() - answered_at)
        if settled.job_seconds is not None:
            self.meters.job_finished(claimed.facts.workflow, settled.job_seconds)
        return settled

    async def _execute(self, live: _Live) -> tuple[Result, Usage]:
        claimed = live.claimed
        if claimed.node.composite:
            made = composites.result(claimed, self.engine.sizes, self.engine.caps)
            return await self._in_chunks(claimed, made), Usage()
        live.task = asyncio.ensure_future(self._call(claimed, live.bill))
        if live.stopped:
            _cancel(live)
        try:
            result, usage = await live.task
            if isinstance(result, GaveUp):
                return after_giving_up(claimed.node, claimed.row, result.failure), usage
            return result, usage
        except asyncio.CancelledError:
            if not live.stopped:  # the process is ending: the lease says so, not a result
                raise
            return Cancelled(), live.bill.usage

    async def _in_chunks(self, claimed: Claimed, result: Result) -> Result:
        """Writes a wide fan-out ahead of its settle, so that no transaction holds the job for long."""
        if not isinstance(result, Opened) or len(result.children) <= CHUNK:
            return result
        for start in range(0, len(result.children), CHUNK):
            rows = result.children[start : start + CHUNK]
            if not await self._write(partial(self.writer.call, partial(prepare, self.engine, claimed, rows))):
                break  # the settle will find the same and say so
        let_go = at_once(claimed.plan, result.row)
        return replace(result, children=(), prepared=len(result.children), let_go=let_go)

    async def _call(self, claimed: Claimed, bill: Bill) -> tuple[Result, Usage]:
        doubtful = claimed.row.doubt is not None
        try:
            if not doubtful and composites.skipped(claimed):
                return Skipped(), Usage()
            value = self.attempt.input(claimed)
        except (ExpressionFailed, NotJson) as error:
            failure = Failure(FailureClass.PERMANENT, str(error), detail={"step": claimed.row.path})
            return (Unreconciled(failure) if doubtful else GaveUp(failure)), Usage()
        if doubtful:
            return await self._reconcile(claimed, value, bill)
        agent = self.attempt.agent(claimed)
        effect = claimed.node.effect_of(agent)
        if (effect != "read" or not agent.honours_key) and not await self._write(
            lambda: self.writer.begun(claimed.row)
        ):
            return Released(lost=False), Usage()
        undoing = claimed.row.undoes is not None
        if undoing:
            crashpoint("compensation.before_call")
        else:
            crashpoint("call.before")
        alone = claimed.row.losses >= SUSPECT_AFTER
        done = await self.attempt.call(claimed, agent, value, bill, alone=alone)
        if undoing:
            crashpoint("compensation.after_call")
        else:
            crashpoint("call.after_answer")
        if isinstance(done.outcome, Failure):
            if alone and done.outcome.kind is FailureClass.WORKER_LOST:
                return self.attempt.lost_alone(claimed), done.usage
            return decide(claimed, agent, effect, done.outcome, self.engine.clock.uniform()), done.usage
        return self._with_debt(claimed, Succeeded(self.engine.sizes.prepare(done.outcome))), done.usage

    def _with_debt(self, claimed: Claimed, result: Succeeded) -> Succeeded | GaveUp:
        """``result`` with what its compensator would be called with, if it has one."""
        try:
            owes = self.attempt.owes(claimed, result.output.text or "null")
        except (ExpressionFailed, NotJson) as error:
            message = f"it is done, but what would undo it cannot be told: {error}"
            return GaveUp(Failure(FailureClass.PERMANENT, message, answered=True))
        return result if owes is None else replace(result, owes=self.engine.sizes.prepare(owes))

    async def _reconcile(self, claimed: Claimed, value: Any, bill: Bill) -> tuple[Result, Usage]:
        """Asks what became of the step's last call, instead of making it again."""
        alone = claimed.row.losses >= SUSPECT_AFTER
        said = await self.attempt.reconcile(claimed, value, bill, alone=alone)
        usage = said.usage if isinstance(said, Done) else Usage()
        failure = said.outcome if isinstance(said, Done) else None
        if alone and isinstance(failure, Failure) and failure.kind is FailureClass.WORKER_LOST:
            return self.attempt.lost_alone(claimed), usage
        result = after_reconcile(claimed, said, self.engine.sizes, self.engine.clock.uniform())
        return (self._with_debt(claimed, result) if isinstance(result, Succeeded) else result), usage

    # -- writing

    async def _settle(
        self, claimed: Claimed, result: Result, usage: Usage, continue_on: frozenset[str], *, sends_body: bool
    ) -> Settled:
        row = claimed.row
        intent = Settle(
            row.job_id,
            row.path,
            row.ref,
            row.fence,
            result,
            usage,
            self.engine.process,
            continue_on,
            sends_body=sends_body,
            undoes=row.undoes,
        )
        settled = await self._write(lambda: self.writer.settle(intent))
        if row.limited or settled.job_state is not JobState.RUNNING:
            self.engine.feed.ended(row.queue, limited=row.limited)
        return settled

    async def _write(self, send: Callable[[], Awaitable[T]]) -> T:
        """Waits for a write; while the database is away it is tried again, for the lease is what bounds it.

        Repeating is safe: a claim or settle that had committed finds its fence or state moved on and loses.
        """
        while True:
            try:
                return await send()
            except Unavailable as error:
                self._alarm = True
                log.warning("write.waiting", extra={"error": str(error)})
                await asyncio.sleep(WRITE_RETRY)


def _cancel(live: _Live) -> None:
    if live.task is not None:
        live.task.cancel()
