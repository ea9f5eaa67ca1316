"""The parent of a worker's pool process.

It starts the child under an incarnation of its choosing. When the child dies, whatever killed it (SIGKILL, the kernel's
memory killer, a segfault), the parent releases what that incarnation held, at once, and starts a new one. It needs the
database only then. Should the parent itself be killed, the kernel sends the child SIGTERM: it drains and exits.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from types import FrameType

from orchestrator import bootstrap
from orchestrator.clock import Clock
from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.ids import Incarnation
from orchestrator.engine import presence
from orchestrator.engine.context import Engine
from orchestrator.local.family import die_with_parent
from orchestrator.settings import PREFIX, Settings
from orchestrator.telemetry.logs import configure_from

log = logging.getLogger("orchestrator.parent")

#: A child that lives less than this, in seconds, counts to the crash loop.
SHORT_LIFE = 10.0
#: Longest pause between two children, in seconds.
LONGEST_PAUSE = 30.0
#: Between two tries to bury a child while the database is away, in seconds.
BURY_RETRY = 0.5
#: How long a stopping parent goes on trying to bury, in seconds; then the leases end by themselves.
LAST_RITES = 10.0
#: The child said that a new one would fare no better: usage, configuration.
HOPELESS = {2, 78}
UNREACHABLE = 69


class Parent:
    """``run`` once, on the main thread (the child's death signal is tied to it)."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._stop = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        # Made now, though they connect to nothing: a death is no time to load Celery and the drivers.
        self._app = bootstrap.build_app(settings)
        self._db = bootstrap.open_database(settings, application="orchestrator-parent")

    def run(self) -> int:
        """Keeps a child alive until SIGTERM or SIGINT; answers the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._told)
        configure_from(self._settings)
        short_lives, first = 0, True
        while not self._stop.is_set():
            incarnation = Incarnation(f"worker-{socket.gethostname()}-{self._clock.new_id()[-12:]}")
            began = self._clock.monotonic()
            code = self._raise_child(incarnation)
            lived = self._clock.monotonic() - began
            if code in HOPELESS or (first and code == UNREACHABLE):
                return code
            first = False
            if code != 0:
                log.error("worker.died", extra={"worker": incarnation, "exit": code, "lived": round(lived, 1)})
                self._bury(incarnation)
            if self._stop.is_set():
                return 0 if code == 0 else 1
            short_lives = short_lives + 1 if lived < SHORT_LIFE else 0
            self._stop.wait(pause(short_lives))
        return 0

    def _raise_child(self, incarnation: Incarnation) -> int:
        """Starts a child and waits for its end; answers its exit code."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "worker", "--child", incarnation],
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # Celery says some words on stdout, which is for data
            start_new_session=True,  # Ctrl-C in a terminal is ours to hand on
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  one thread here; nothing else survives SIGKILL
        )
        if self._stop.is_set():  # told between the check and the start
            self._child.send_signal(signal.SIGTERM)
        return self._child.wait()

    def _environment(self) -> dict[str, str]:
        """What the command's own options changed."""
        return {
            f"{PREFIX}WORKER_QUEUES": ",".join(self._settings.worker_queues),
            f"{PREFIX}WORKER_CONCURRENCY": str(self._settings.worker_concurrency),
        }

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        again = self._stop.is_set()
        self._stop.set()
        child = self._child
        if child is not None and child.returncode is None:
            child.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def _bury(self, incarnation: Incarnation) -> None:
        """Releases the dead child's steps; tries again while the database is away."""
        until: float | None = None
        while True:
            try:
                engine = self._engine()
                try:
                    released = presence.bury(engine, incarnation)
                finally:
                    bootstrap.close_engine(engine)
            except OrchestratorError as error:
                log.warning("worker.bury_failed", extra={"worker": incarnation, "error": str(error)})
                if self._stop.is_set():
                    until = until or self._clock.monotonic() + LAST_RITES
                    if self._clock.monotonic() > until:
                        return
                self._clock.sleep(BURY_RETRY)
            else:
                log.warning("worker.buried", extra={"worker": incarnation, "released": released})
                return

    def _engine(self) -> Engine:
        return bootstrap.build_engine(self._settings, "parent", app=self._app, db=self._db)


def pause(short_lives: int) -> float:
    """Seconds before the next child: none after the first early death, then 1, 2, 4 … to 30."""
    return 0.0 if short_lives < 2 else min(LONGEST_PAUSE, 2.0 ** (short_lives - 2))
