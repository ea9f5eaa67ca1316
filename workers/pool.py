"""A Celery worker pool for calls that wait: steps run as coroutines on one event loop.

Celery sends each message of the consumer here (``on_apply``), on the consumer's thread. A step goes to the runner, not
through Celery's tracer; any other task goes through the tracer, in one of a few threads. What must happen on the
consumer's thread (acks, freeing the slot) is posted back to it.

A slot is taken when a message is handed over and freed when its run ends. The consumer fetches only while one is free.
The runner takes slots too, for what it goes on with beside a message's own step; messages that were fetched meanwhile
wait here, unacked, until one is free again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery.app.task import Context
from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import Reject
from celery.states import SUCCESS

from orchestrator.canvas.credit import Gate, OpenGate
from orchestrator.canvas.messages import STEP, read_step
from orchestrator.canvas.runtime import RuntimeSlot, runtime_of
from orchestrator.clock import Clock
from orchestrator.domain.ids import StepRef

log = logging.getLogger("workers.pool")

#: Threads for markers and for a user's own tasks.
OTHER_THREADS: Final = 4
#: Seconds between two looks at the time while the pool stops.
STOP_TICK: Final = 0.1


class _Job:
    """One message in the pool. ``accept`` and ``done`` are Celery's callbacks, for the consumer's thread only."""

    __slots__ = ("accept", "accepted", "claimed", "connection", "done", "receipt")

    def __init__(
        self,
        accept: Callable[..., None] | None,
        done: Callable[..., None] | None,
        connection: int,
        receipt: int,
    ) -> None:
        self.accept = accept
        self.done = done
        #: Which connection it came by: a later one cannot ack it.
        self.connection = connection
        self.receipt = receipt
        self.claimed = threading.Event()
        self.accepted = False


class AsyncioPool(BasePool):
    """``worker_pool`` of the app. ``limit``: how many messages run at once."""

    signal_safe = False
    task_join_will_block = True
    limit: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = Clock()
        self._lock = threading.RLock()
        #: Slots in use, and messages that wait for one.
        self._taken = 0
        self._waiting: deque[Callable[[], object]] = deque()
        self._gate: Gate = OpenGate()
        self._connection = 0
        self._consumer: Any = None
        self._posted: deque[Callable[[], None]] = deque()
        self._something = threading.Event()
        self._stopping = False

    # What the consumer asks

    def serve(self, consumer: Any) -> None:
        """``consumer.post(work)`` runs ``work`` on the consumer's thread."""
        self._consumer = consumer

    def use_gate(self, gate: Gate) -> None:
        """A new connection begins, with ``gate`` to decide when to ack."""
        with self._lock:
            self._connection += 1
            self._gate = gate

    def free_slots(self) -> int:
        return 0 if self._stopping else max(self.limit - self._taken, 0)

    def connection_lost(self) -> None:
        """What came by the connection before cannot be acked any more; its steps run on."""
        self.use_gate(OpenGate())

    def close_gate(self) -> None:
        """Nothing more is consumed by this connection: no ack need be kept back."""
        with self._lock:
            self._gate.close()

    # What the runner asks, from any thread

    def take(self) -> int:
        with self._lock:
            count = max(0, self.free_slots() - self._gate.promised()) // 2
            self._taken += count
            return count

    def give_back(self, count: int) -> None:
        if count:
            with self._lock:
                wanted = self.free_slots() == 0 or self._gate.wants()
                self._let_go(count)
            if wanted:
                self._post(self._say_freed)

    # What Celery asks

    def on_start(self) -> None:
        self._slot: RuntimeSlot = runtime_of(self.app)
        self._runner = self._slot.runtime.runner
        self._runner.lend(self)
        self._loop = self._slot.loop
        self._threads = ThreadPoolExecutor(OTHER_THREADS, "orchestrator-tasks", initializer=self.app.set_current)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        callback: Callable[..., None] | None = None,
        accept_callback: Callable[..., None] | None = None,
        **_: Any,
    ) -> None:
        """Takes a slot, or waits for one, and returns at once."""
        task, _id, request = args[:3]
        with self._lock:
            self._taken += 1
            job = _Job(accept_callback, callback, self._connection, self._gate.delivered())
            if task == STEP:
                ref = read_step(request["args"], request)
                self._begin(lambda: self._loop.submit(self._run_step(job, ref, request)))
            else:
                self._begin(lambda: self._threads.submit(self._run_other, job, target, args, kwargs))

    def on_stop(self) -> None:
        """Begins nothing more, gives what runs ``worker_soft_shutdown_timeout`` seconds, then cuts it."""
        self._end(float(self.app.conf.worker_soft_shutdown_timeout))

    def on_terminate(self) -> None:
        self._end(0.0)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "running": self._taken}

    # A step

    async def _run_step(self, job: _Job, ref: StepRef, request: dict[str, Any]) -> None:
        started = self._clock.monotonic()
        try:
            verdict = await self._runner.run(ref, lambda: self._claimed(job))
            if verdict is not None and verdict.body is not None:
                self.app.backend.on_chord_part_return(Context(request), SUCCESS, verdict)
        except Exception:
            log.exception("step.runner_raised", extra={"job": ref.job_id, "path": ref.path, "epoch": ref.epoch})
        finally:
            seconds = self._clock.monotonic() - started
            self._post(lambda: self._finish_step(job, seconds))

    def _claimed(self, job: _Job) -> None:
        if not job.claimed.is_set():
            job.claimed.set()
            self._post(lambda: self._pass_gate(job))

    def _finish_step(self, job: _Job, seconds: float) -> None:
        if job.claimed.is_set() or not self._stopping:
            # Unclaimed: the database is away, or a bug. SQL still knows the step; a requeue would spin.
            self._claimed(job)
            self._free(job, (0, None, seconds))
        else:
            self._free(job, (1, as_failure(Reject("the worker stops", requeue=True)), seconds))

    # Any other task

    def _run_other(self, job: _Job, target: Callable[..., Any], args: Any, kwargs: Any) -> None:
        def done(result: Any) -> None:
            self._post(lambda: self._free(job, result))

        try:
            apply_target(target, args, kwargs, callback=done, accept_callback=lambda *_: self._claimed(job))
        except Exception as error:
            log.exception("task.tracer_raised", extra={"task": args[0]})
            done((1, as_failure(error), 0.0))

    # Slots, under the lock

    def _begin(self, start: Callable[[], object]) -> None:
        if self._taken > self.limit and not self._stopping:
            self._waiting.append(start)
        else:
            start()

    def _let_go(self, count: int) -> None:
        self._taken -= count
        while self._waiting and (self._stopping or self._taken - len(self._waiting) < self.limit):
            self._waiting.popleft()()

    # On the consumer's thread

    def _say_freed(self) -> None:
        with self._lock:
            self._gate.freed()

    def _pass_gate(self, job: _Job) -> None:
        with self._lock:
            if job.connection == self._connection:
                self._gate.claimed(job.receipt, lambda: self._accept(job))

    def _accept(self, job: _Job) -> None:
        if not job.accepted and job.connection == self._connection:
            job.accepted = True
            if job.accept is not None:
                job.accept(os.getpid(), self._clock.monotonic())

    def _free(self, job: _Job, result: tuple[int, Any, float]) -> None:
        """Frees the slot, then tells Celery. It reads ``result`` as (failed, value, seconds)."""
        with self._lock:
            self._let_go(1)
            if job.connection == self._connection:
                self._gate.freed()
        if job.done is not None:
            job.done(result)

    def _post(self, work: Callable[[], None]) -> None:
        self._posted.append(work)
        self._something.set()
        if self._consumer is not None:
            self._consumer.post(self._work_off)

    def _work_off(self) -> None:
        """Does what was posted, in order. The consumer's thread calls it, and the one that stops the pool."""
        while True:
            with self._lock:
                if not self._posted:
                    return
                work = self._posted.popleft()
                try:
                    work()
                except Exception:
                    log.exception("pool.callback_failed")

    # The end

    def _end(self, seconds: float) -> None:
        if self._stopping:
            return
        self._stopping = True
        deadline = self._clock.monotonic() + seconds
        drained = self._loop.submit(self._runner.drain())
        with self._lock:
            self._let_go(0)  # what waits is refused, and goes back to its queue
        self._wait(drained, deadline)
        if not drained.done():
            log.warning("pool.cut", extra={"running": self._taken})
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._slot.stop()
        self._work_off()

    def _wait(self, drained: Future[None], deadline: float) -> None:
        while self._clock.monotonic() < deadline and not (drained.done() and self._taken == 0):
            self._something.wait(STOP_TICK)
            self._something.clear()
            self._work_off()


def as_failure(error: Exception) -> ExceptionInfo:
    """``error`` as Celery's pools report one."""
    try:
        raise error  # noqa: TRY301 - billiard wants a traceback
    except Exception:  # noqa: BLE001 - the one just raised
        return ExceptionInfo()
