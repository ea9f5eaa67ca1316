"""What a worker process runs on: engine, runner, heartbeat, agents, wired together from settings."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator import bootstrap
from orchestrator.crashpoints import CrashPointReached
from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.ids import QueueName
from orchestrator.engine import presence, signs
from orchestrator.engine.context import Engine
from orchestrator.ports import Dispatcher
from orchestrator.settings import Settings
from orchestrator.telemetry.metrics import Meters
from workers.agents import AgentCalls, Egress
from workers.attempt import Attempt
from workers.heartbeat import Heartbeat
from workers.isolation import IsolatedCalls
from workers.runner import InPlace, Runner
from workers.watchdog import Watchdog

log = logging.getLogger("workers.runtime")


def _polls_itself(app: Any) -> bool:
    """A prefork child gets its messages from its parent."""
    return str(app.conf.worker_pool) != "prefork"


class WorkerRuntime:
    """One process's. ``start`` and ``stop`` once each; the pool runs ``runner`` on its loop."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        meters: Meters,
        *,
        queues: Sequence[str],
        concurrency: int,
        search_path: Sequence[Path] = (),
        trusted: bool = False,
        on_sick: Callable[[], None] = lambda: None,
        deaf: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.meters = meters
        self._watchdog = Watchdog(engine.clock)
        egress = Egress(settings.egress, unrestricted=trusted)
        packages = (*settings.agent_packages,)
        self.calls = AgentCalls(
            agent_packages=packages,
            search_path=search_path,
            egress=egress,
            concurrency=concurrency,
            chat_base_url=settings.chat_base_url,
            chat_model=settings.chat_model,
            max_output_bytes=settings.max_output_bytes,
            clock=engine.clock,
            allow_exit=trusted or "tests" in packages,
        )
        alone = IsolatedCalls(
            {
                "agent_packages": list(packages),
                "search_path": [str(path) for path in search_path],
                "egress": {"patterns": list(settings.egress), "unrestricted": trusted},
                "chat_base_url": settings.chat_base_url,
                "chat_model": settings.chat_model,
                "max_output_bytes": settings.max_output_bytes,
                "allow_exit": trusted or "tests" in packages,
            }
        )
        self._runner = Runner(
            engine,
            Attempt(engine, self.calls, alone, self._watchdog),
            frozenset(queues),
            meters,
            InPlace(settings.in_place_steps, settings.in_place_seconds),
            self.calls.light,
        )
        self.who = presence.Registration(
            engine.process,
            engine.process,
            "worker",
            tuple(queues),
            concurrency,
            orchestrator.__version__,
            presence.lock_number(engine.process),
        )
        self.heartbeat = Heartbeat(
            engine,
            self.who,
            self._runner,
            beat_seconds=settings.heartbeat_seconds,
            renew_seconds=settings.lease_renew_seconds,
            on_sick=self._retire,
            deaf=deaf,
        )
        self._on_sick = on_sick
        self._deaf = deaf
        self._signs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._signs_thread = threading.Thread(target=self._run_signs, name="orchestrator-signs", daemon=True)

    @classmethod
    def build(cls, settings: Settings, app: Any) -> WorkerRuntime:
        """From settings, for ``celery -A workers.app worker`` and ``orchestrator worker``."""
        meters = Meters()
        engine = bootstrap.build_engine(settings, "worker", app=app, meters=meters)
        return cls(
            settings,
            engine,
            meters,
            queues=settings.worker_queues,
            concurrency=int(app.conf.worker_concurrency or settings.worker_concurrency),
            on_sick=lambda: os.kill(os.getpid(), signal.SIGTERM),
            deaf=lambda: _polls_itself(app) and app.orchestrator_pulse.silent_for() > settings.deaf_seconds,
        )

    @property
    def runner(self) -> Runner:
        return self._runner

    @property
    def dispatcher(self) -> Dispatcher:
        return self.engine.feed.dispatcher

    def on_marker(self, queue_name: str, number: int) -> None:
        self._signs.put(lambda: signs.marker_seen(self.engine, QueueName(queue_name), number))

    def on_quarantine(self, raw: bytes, queue_name: str, reason: str) -> None:
        self.meters.quarantined()
        self._signs.put(lambda: signs.quarantine(self.engine, queue_name, reason, raw))

    def start(self) -> None:
        self._runner.writer.start()
        self.heartbeat.start()
        self._signs_thread.start()

    def stop(self) -> None:
        """Lets go: what is still held is released by name, not left to its lease."""
        self._runner.draining = True
        self._watchdog.close()
        self._signs.put(None)
        self._signs_thread.join(timeout=5)
        self._runner.writer.close()
        self.heartbeat.close()
        bootstrap.close_engine(self.engine)

    def _retire(self) -> None:
        """A quarter of the slots hangs in code that cannot be killed, or the broker is not heard: drain and end.

        The parent, or whatever runs us, starts a new one.
        """
        if not self._runner.draining:
            log.error("worker.sick", extra={"lost_slots": self.calls.lost_slots, "deaf": self._deaf()})
            self._on_sick()

    def _run_signs(self) -> None:
        """Small writes that must not keep the consumer waiting."""
        while (write := self._signs.get()) is not None:
            try:
                write()
            except (OrchestratorError, CrashPointReached) as error:
                log.warning("sign.failed", extra={"error": str(error)})
            except Exception:  # one bad sign must not silence the rest
                log.exception("sign.bug")
