"""Says "alive", and renews every lease of the process, outside user code.

One row a second says the process lives; every few seconds one statement extends all its leases and learns what SQL says
it owns: a step it lost is cancelled here, one it was asked to stop is stopped, and one that it does not know of (its
claim committed, the reply was lost) is given back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from orchestrator.clock import Clock
from orchestrator.crashpoints import CrashPointReached, crashpoint
from orchestrator.domain.errors import OrchestratorError
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.engine import presence
from orchestrator.engine.context import Engine

log = logging.getLogger("workers.heartbeat")

Key = tuple[JobId, StepPath, int]


class Owner(Protocol):
    """What the heartbeat asks of the runner."""

    def executing(self) -> set[Key]: ...

    def stop(self, key: Key, *, lost: bool) -> None:
        """Cancels a live call: its lease is ``lost``, or somebody asked it to stop."""

    def lost_slots(self) -> int: ...

    def healthy(self) -> bool:
        """False when the event loop has been stuck so long that its leases should end."""

    def take_alarm(self) -> bool:
        """True once after a write whose reply was lost: what SQL says is owned should be compared now."""

    @property
    def draining(self) -> bool: ...


class Heartbeat:
    def __init__(
        self,
        engine: Engine,
        who: presence.Registration,
        owner: Owner,
        *,
        beat_seconds: float = 1.0,
        renew_seconds: float = 5.0,
        on_buried: Callable[[], None] = lambda: None,
        on_sick: Callable[[], None] = lambda: None,
        deaf: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine = engine
        self._who = who
        self._owner = owner
        self._beat = beat_seconds
        self._renew = renew_seconds
        self._on_buried = on_buried
        self._on_sick = on_sick
        self._deaf = deaf
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unknown: set[Key] = set()
        self._clock: Clock = engine.clock
        self._lock = presence.LifeLock(engine.db, who.incarnation)

    def start(self) -> None:
        self._lock.hold()
        presence.join(self._engine, self._who)
        self._thread = threading.Thread(target=self._run, name="orchestrator-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        try:
            presence.leave(self._engine, self._who)
        except OrchestratorError as error:
            log.warning("heartbeat.leave_failed", extra={"error": str(error)})
        self._lock.drop()

    def _run(self) -> None:
        next_renewal = self._clock.monotonic() + self._renew
        while not self._stop.wait(self._beat):
            try:
                self.beat()
                due = self._clock.monotonic() >= next_renewal or bool(self._unknown) or self._owner.take_alarm()
                if due and self._owner.healthy():
                    next_renewal = self._clock.monotonic() + self._renew
                    self.renew()
            except (OrchestratorError, CrashPointReached) as error:
                log.warning("heartbeat.failed", extra={"error": str(error)})
            except Exception:  # without a heartbeat the process loses its work: never let one failure end it
                log.exception("heartbeat.bug")

    def beat(self) -> None:
        """One row. A process that was declared dead by mistake says so again, as itself."""
        live = self._owner.executing()
        alive = presence.beat(
            self._engine, self._who, busy=len(live), lost_slots=self._owner.lost_slots(), draining=self._owner.draining
        )
        if not alive:
            log.warning("heartbeat.was_buried")
            presence.join(self._engine, self._who)
            self._on_buried()
        if live:
            for key in presence.asked_to_stop(self._engine, self._who):
                self._owner.stop(key, lost=False)
        if self._owner.lost_slots() * 4 >= max(1, self._who.slots) or self._deaf():
            self._on_sick()

    def renew(self) -> None:
        self._lock.hold()
        before = self._owner.executing()
        crashpoint("lease.renew")
        owned = presence.renew(self._engine, self._who.incarnation)
        now = self._owner.executing()
        in_sql = set(owned)
        for key in before & now - in_sql:
            self._owner.stop(key, lost=True)
        unknown = in_sql - now - before
        for key in unknown & self._unknown:  # seen twice: no claim is still on its way to memory
            presence.give_back(self._engine, self._who.incarnation, key)
        self._unknown = unknown
