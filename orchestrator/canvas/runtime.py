"""What a worker's Celery side asks of the engine's side, and how it finds it: ``runtime_of(app)``.

The real runtime is built by ``orchestrator.bootstrap``; tests attach a fake. One per process: a child forked by the
prefork pool builds its own, for threads and connections do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.canvas.loop import LoopThread
from orchestrator.domain.errors import ConfigError
from orchestrator.domain.ids import StepRef
from orchestrator.ports import Dispatcher, Slots


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step's last settle decided. ``body``: it decided this join and chose to publish it."""

    body: StepRef | None = None


class Runner(Protocol):
    async def run(self, ref: StepRef, claimed: Callable[[], None]) -> Verdict | None:
        """Executes the step. Calls ``claimed`` once its claim is committed or refused: the message is acked then.

        ``claimed`` may be called from any thread, once or more. A run that ends without it is acked too, except while
        the worker stops: then its message goes back to the broker. Raising is a bug; it is logged.
        """

    def lend(self, slots: Slots) -> None:
        """What the runner goes on with beside ``run`` takes ``slots``. Without them it runs nothing beside."""

    async def drain(self) -> None:
        """Begin nothing new, hand back what is not begun; returns when nothing is executing."""


class Runtime(Protocol):
    """Its methods are called on the consumer's or a pool's thread and must not wait for the network: hand it on."""

    @property
    def runner(self) -> Runner: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    def on_marker(self, queue: str, number: int) -> None:
        """Marker ``number`` came out of ``queue``."""

    def on_quarantine(self, raw: bytes, queue: str, reason: str) -> None:
        """``raw`` came out of ``queue`` and is not a message of ours (at most its first MiB); it is acked."""

    def start(self) -> None: ...
    def stop(self) -> None:
        """Let go of everything. Called after ``runner.drain``, or without it in a prefork child."""


@dataclass(frozen=True, slots=True)
class _Life:
    """A started runtime and the event loop its runner lives on, of process ``pid``."""

    pid: int
    runtime: Runtime
    loop: LoopThread


class RuntimeSlot:
    """This process's runtime, made and started at first use."""

    def __init__(self, factory: Callable[[], Runtime]) -> None:
        self._factory = factory
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._life: _Life | None = None

    def _get(self) -> _Life:
        if self._pid != os.getpid():
            # Forked: whoever held the lock does not exist here. A prefork child asks from one thread.
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            if self._life is None or self._life.pid != os.getpid():
                runtime = self._factory()
                loop = LoopThread("orchestrator-steps")
                runtime.start()
                loop.start()
                self._life = _Life(os.getpid(), runtime, loop)
            return self._life

    @property
    def runtime(self) -> Runtime:
        return self._get().runtime

    @property
    def loop(self) -> LoopThread:
        """The thread whose loop runs ``runtime.runner``."""
        return self._get().loop

    def stop(self) -> None:
        """Cancels what runs on the loop and stops the runtime; the next use makes a new one."""
        with self._lock:
            life, self._life = self._life, None
        if life is not None and life.pid == os.getpid():
            life.loop.stop()
            life.runtime.stop()


def attach_runtime(app: Any, factory: Callable[[], Runtime]) -> RuntimeSlot:
    """Makes ``factory`` the source of ``app``'s runtime, in this process and in those forked from it."""
    slot = RuntimeSlot(factory)
    app.orchestrator_runtime = slot
    return slot


def runtime_of(app: Any) -> RuntimeSlot:
    """The slot that ``attach_runtime`` filled; raises ``ConfigError`` when nobody did."""
    slot = getattr(app, "orchestrator_runtime", None)
    if not isinstance(slot, RuntimeSlot):
        raise ConfigError(
            "This Celery app has no orchestrator runtime.",
            mend="Start workers with `orchestrator worker` or `celery -A workers.app worker`.",
        )
    return slot
