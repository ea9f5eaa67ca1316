"""The process's one writer thread: coroutines hand it intents and await their futures.

Group commit, adaptive: what is waiting when the writer is free goes into one transaction, so a lone step is never kept
waiting and a thousand concurrent ones share commits. A batch that fails for its data is split until the guilty intent
stands alone; its neighbours commit. So do those of an intent whose job somebody keeps locked: it is waited for
once, then refused whenever it is tried again. A batch wakes the loop once, not once for each that waits.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from asyncio import AbstractEventLoop, Future
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.crashpoints import CrashPointReached
from orchestrator.domain.errors import Locked, Unavailable
from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.domain.plan import StepRow
from orchestrator.domain.workflow import Agent
from orchestrator.engine.context import Engine
from orchestrator.engine.gather import Claimed
from orchestrator.engine.settle import Room, Settle, Settled, claim, settle, unlocked
from orchestrator.ports import Slots
from orchestrator.store import steps

log = logging.getLogger("orchestrator.writer")

#: Intents a transaction holds at most.
BATCH = 64
#: Seconds for which locks are looked for before each batch, since the last one was met.
WARY = 10.0


@dataclass(frozen=True, slots=True)
class _Claim:
    ref: StepRef
    future: Future[Claimed | None]

    @property
    def key(self) -> tuple[JobId, StepPath]:
        return self.ref.job_id, self.ref.path


@dataclass(frozen=True, slots=True)
class _Settle:
    intent: Settle
    future: Future[Settled]

    @property
    def key(self) -> tuple[JobId, StepPath]:
        return self.intent.job_id, self.intent.path


_T = TypeVar("_T", _Claim, _Settle)
#: A future, and its result or its exception.
_Answer = tuple[Future[Any], Any, Exception | None]


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], Any]
    future: Future[Any]


class Writer:
    """``claimed`` is told of every claim before its caller is, ``batched`` of each batch's size; on its thread.

    What it answers with are futures of the loop that asks.
    """

    def __init__(
        self,
        engine: Engine,
        claimed: Callable[[Claimed], None] = lambda _: None,
        batched: Callable[[int], None] = lambda _: None,
        light: Callable[[Agent], bool] = lambda _: False,
    ) -> None:
        self._engine = engine
        self._claimed = claimed
        self._batched = batched
        self._light = light
        #: What may run beside the steps that came by message; None: nothing.
        self.slots: Slots | None = None
        self._queue: queue.SimpleQueue[_Claim | _Settle | _Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._wary_until = 0.0
        self._answers: list[_Answer] = []

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="orchestrator-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finishes what was handed over, then ends the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=30)

    def claim(self, ref: StepRef) -> Future[Claimed | None]:
        """The claimed step, or None when it was someone else's."""
        future: Future[Claimed | None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Claim(ref, future))
        return future

    def settle(self, intent: Settle) -> Future[Settled]:
        future: Future[Settled] = asyncio.get_running_loop().create_future()
        self._queue.put(_Settle(intent, future))
        return future

    def begun(self, row: StepRow) -> Future[bool]:
        """Records that a call is about to be made; False: the lease is lost, do not call."""
        return self.call(lambda: self._engine.db.run(lambda session: steps.mark_begun(session, row)))

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Runs ``work`` on the writer's thread, between batches."""
        future: Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put(_Call(work, future))
        return future

    # -- the thread

    def _run(self) -> None:
        closing = False
        while not closing:
            batch = [self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            closing = None in batch
            self._batched(len(batch))
            self._claims([item for item in batch if isinstance(item, _Claim)])
            self._tell()
            self._settles([item for item in batch if isinstance(item, _Settle)])
            self._tell()
            for item in batch:
                if isinstance(item, _Call):
                    self._do(item)
                    self._tell()

    def _claims(self, items: list[_Claim]) -> None:
        try:
            items = self._free(items)
            if not items:
                return
            won = claim(self._engine, [item.ref for item in items])
        except Exception as error:  # noqa: BLE001 - handed to the callers, who wait for it
            self._split(items, error, self._claims)
            return
        given: set[StepRef] = set()
        for item in items:  # a message may have come twice in one batch: one of the two owns the claim
            mine = won.get(item.ref) if item.ref not in given else None
            given.add(item.ref)
            if mine is not None:
                self._claimed(mine)
            self._answers.append((item.future, mine, None))

    def _settles(self, items: list[_Settle]) -> None:
        try:
            items = self._free(items)
            if not items:
                return
            done = self._settled([item.intent for item in items])
        except Exception as error:  # noqa: BLE001 - handed to the callers, who wait for it
            self._split(items, error, self._settles)
            return
        for item, settled in zip(items, done, strict=True):
            for mine in ([settled.next] if settled.next is not None else []) + settled.beside:
                self._claimed(mine)
            self._answers.append((item.future, settled, None))

    def _settled(self, intents: list[Settle]) -> list[Settled]:
        """With slots for what may follow; those that are not needed are given back."""
        if self.slots is None:
            return settle(self._engine, intents)
        spare, used = self.slots.take(), 0
        try:
            done = settle(self._engine, intents, Room(spare, self._light))
            used = sum(len(settled.beside) for settled in done)
        finally:
            self.slots.give_back(spare - used)
        return done

    def _free(self, items: list[_T]) -> list[_T]:
        """While locks are about: those of ``items`` that are free; the others are refused."""
        if not items or self._engine.clock.monotonic() > self._wary_until:
            return items
        free = unlocked(self._engine, [item.key for item in items])
        held = [item for item in items if item.key not in free]
        if held:
            self._wary_until = self._engine.clock.monotonic() + WARY
        for item in held:
            self._answers.append((item.future, None, Locked("the step's job is locked by another transaction.")))
        return [item for item in items if item.key in free]

    def _split(self, items: list[Any], error: Exception, again: Callable[[list[Any]], None]) -> None:
        if isinstance(error, Locked) and self._engine.clock.monotonic() > self._wary_until:
            self._wary_until = self._engine.clock.monotonic() + WARY
            log.warning("writer.locked", extra={"size": len(items), "error": str(error)})
            again(items)
            return
        whole = isinstance(error, (Unavailable, CrashPointReached)) or len(items) == 1
        if whole:
            self._answers += ((item.future, None, error) for item in items)
            return
        log.warning("writer.split", extra={"size": len(items), "error": str(error)})
        half = len(items) // 2
        again(items[:half])
        again(items[half:])

    def _do(self, item: _Call) -> None:
        try:
            self._answers.append((item.future, item.work(), None))
        except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it
            self._answers.append((item.future, None, error))

    def _tell(self) -> None:
        """Answers all who have one, with one call of each loop."""
        answers, self._answers = self._answers, []
        by_loop: dict[AbstractEventLoop, list[_Answer]] = defaultdict(list)
        for answer in answers:
            by_loop[answer[0].get_loop()].append(answer)
        for loop, mine in by_loop.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, mine)


def _resolve(answers: Iterable[_Answer]) -> None:
    for future, result, error in answers:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
