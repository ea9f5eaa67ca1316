"""Everything in one process: engine, in-process broker, worker, reconciler. The same engine as in production.

Killed at any instant it loses nothing: the broker's memory is a doorbell, the next start rings again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator import bootstrap
from orchestrator.canvas.runtime import attach_runtime
from orchestrator.canvas.worker import WorkerThread
from orchestrator.domain.ids import JobId
from orchestrator.domain.states import JOB_TERMINAL, JobState
from orchestrator.engine import queries, recover
from orchestrator.engine.context import Engine
from orchestrator.settings import Settings
from orchestrator.telemetry.metrics import Meters
from workers.runtime import WorkerRuntime


class Embedded:
    """``with Embedded(settings) as it: submit(it.engine, …); it.wait(job)``. Migrates its database first."""

    def __init__(self, settings: Settings, *, search_path: Sequence[Path] = ()) -> None:
        self.settings = settings.replace(broker_url="memory://")
        self._search_path = search_path
        self.meters = Meters()
        self.engine: Engine
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self._app: Any = bootstrap.build_app(self.settings)
        db = bootstrap.open_database(self.settings)
        recover.migrate(db)
        self.engine = bootstrap.build_engine(self.settings, "embedded", app=self._app, db=db, meters=self.meters)
        recover.start_over(self.engine)
        self.runtime = WorkerRuntime(
            self.settings,
            self.engine,
            self.meters,
            queues=self.settings.worker_queues,
            concurrency=self.settings.worker_concurrency,
            search_path=self._search_path,
            trusted=True,
        )
        attach_runtime(self._app, lambda: self.runtime)
        self._worker = WorkerThread(self._app)
        self._worker.start()
        self._reconciler = bootstrap.build_reconciler(self.settings, self.engine, self.meters, trusted=True)
        self._reconciler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reconciler.close()
        self._worker.stop()

    def wait(self, job_id: JobId, timeout: float | None = None) -> dict[str, Any]:
        """The job once it has ended. Raises ``TimeoutError``."""
        clock = self.engine.clock
        end = clock.monotonic() + timeout if timeout is not None else None
        while True:
            job = queries.show_job(self.engine, job_id)
            if JobState(job["state"]) in JOB_TERMINAL:
                return job
            if end is not None and clock.monotonic() > end:
                raise TimeoutError(f"job {job_id} is still {job['state']} after {timeout:g} s")
            clock.sleep(0.05)
