"""A Celery worker in a thread of this process, for ``run``, ``dev`` and tests. The app needs a runtime first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from celery.worker import WorkController

from orchestrator.domain.errors import Unavailable

START_SECONDS: Final = 30.0
#: Beside the soft shutdown, for letting go of connections.
STOP_SECONDS: Final = 15.0


class WorkerThread:
    """Celery's own worker, without its signal handlers, logging and process titles."""

    def __init__(self, app: Any, *, queues: Sequence[str] | None = None, concurrency: int | None = None) -> None:
        """``queues`` and ``concurrency``: the app's own when None."""
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self.worker = WorkController(
            app=app,
            queues=None if queues is None else list(queues),
            concurrency=concurrency,
            ready_callback=lambda _: self._ready.set(),
        )
        self._thread = threading.Thread(target=self._run, name="orchestrator-consumer", daemon=True)

    def start(self, timeout: float = START_SECONDS) -> None:
        """Returns when it consumes; raises ``Unavailable`` when it does not within ``timeout`` seconds."""
        self._thread.start()
        self._ready.wait(timeout)
        if not self._ready.is_set() or self._ended.is_set():
            why = f": {self._error}" if self._error else ""
            raise Unavailable(f"The worker did not start within {timeout:g} s{why}.", mend="See its log.")

    def stop(self) -> None:
        """Lets live calls end as the app's ``worker_soft_shutdown_timeout`` says. Returns when all is let go."""
        self.worker.consumer.leave()
        soft = float(self.worker.app.conf.worker_soft_shutdown_timeout)
        self._thread.join(soft + STOP_SECONDS)

    def _run(self) -> None:
        try:
            self.worker.start()
        except BaseException as error:  # noqa: BLE001 - reported by ``start``
            self._error = error
        finally:
            self._ended.set()
            self._ready.set()
