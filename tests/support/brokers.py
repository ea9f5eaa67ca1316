"""Workers and dispatchers on a broker, with a fake runtime, let go of at the end of the test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.canvas.app import make_app
from orchestrator.canvas.dispatch import KombuDispatcher
from orchestrator.canvas.runtime import attach_runtime
from orchestrator.canvas.worker import WorkerThread
from orchestrator.domain.ids import JobId, StepPath, StepRef
from tests.support.fake_runtime import Behaviour, FakeRuntime, claim_only


def refs(count: int, *, job: str = "job") -> list[StepRef]:
    return [StepRef(JobId(job), StepPath(f"s{number}"), 1) for number in range(count)]


@dataclass
class Scene:
    """A worker that consumes, and a dispatcher to feed it."""

    app: Any
    runtime: FakeRuntime
    worker: WorkerThread
    dispatcher: KombuDispatcher
    lost: list[StepRef]
    broker: list[bool]

    def publish(self, steps: Sequence[StepRef]) -> None:
        self.dispatcher.publish(steps)

    def ran(self, count: int, seconds: float = 30.0) -> None:
        """Waits until ``count`` steps have ended."""
        self.runtime.wait(lambda: len(self.runtime.runner.ran) >= count, seconds)


@contextmanager
def scene(url: str, behaviour: Behaviour = claim_only, *, concurrency: int = 10, soft: float = 5.0) -> Iterator[Scene]:
    app = make_app(url, concurrency=concurrency, soft_shutdown_seconds=soft)
    runtime = FakeRuntime(behaviour)
    attach_runtime(app, lambda: runtime)
    worker = WorkerThread(app)
    lost: list[StepRef] = []
    broker: list[bool] = []

    def on_broker(up: bool) -> None:
        with runtime.changed:
            broker.append(up)
            runtime.changed.notify_all()

    def on_lost(found: Sequence[StepRef]) -> None:
        with runtime.changed:
            lost.extend(found)
            runtime.changed.notify_all()

    worker.start()
    dispatcher = KombuDispatcher(app, on_lost, on_broker)
    try:
        yield Scene(app, runtime, worker, dispatcher, lost, broker)
    finally:
        dispatcher.close()
        worker.stop()


class _Listener(logging.Handler):
    def __init__(self, text: str) -> None:
        super().__init__(logging.DEBUG)
        self._text = text
        self.heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.heard.set()


@contextmanager
def log_line(logger: str, text: str, seconds: float = 30.0) -> Iterator[None]:
    """Waits at its end until ``logger`` has logged a line with ``text`` since its beginning."""
    listener = _Listener(text)
    logging.getLogger(logger).addHandler(listener)
    try:
        yield
        assert listener.heard.wait(seconds), f"{logger} did not log {text!r} within {seconds:g} s"
    finally:
        logging.getLogger(logger).removeHandler(listener)
