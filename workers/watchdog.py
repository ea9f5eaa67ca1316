"""Sees an event loop that is stuck: logs where, and after a minute stops vouching for the process's leases."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback

from orchestrator.clock import Clock

log = logging.getLogger("workers.watchdog")


class Watchdog:
    """``stuck`` and ``give_up`` in seconds."""

    def __init__(self, clock: Clock, *, stuck: float = 5.0, give_up: float = 60.0) -> None:
        self._clock = clock
        self._stuck = stuck
        self._give_up = give_up
        self._seen = clock.monotonic()
        self._loop_thread: int | None = None
        self._stop = threading.Event()
        self._reported = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(self._tick, loop)
        threading.Thread(target=self._run, name="orchestrator-watchdog", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def lag(self) -> float:
        """Seconds since the loop last turned."""
        return self._clock.monotonic() - self._seen

    def healthy(self) -> bool:
        return self._loop_thread is None or self.lag() < self._give_up

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seen = self._clock.monotonic()
        self._loop_thread = threading.get_ident()
        self._reported = False
        if not self._stop.is_set():
            loop.call_later(1.0, self._tick, loop)

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            if self.lag() > self._stuck and not self._reported and self._loop_thread is not None:
                self._reported = True
                frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way
                stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
                log.error("loop.stuck", extra={"seconds": round(self.lag(), 1), "stack": stack[-4000:]})
