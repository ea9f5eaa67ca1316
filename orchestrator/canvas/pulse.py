"""The worker's pulse: when its broker connection last proved that it hears."""

from __future__ import annotations

from orchestrator.clock import Clock


class Pulse:
    """``last_poll``: monotonic seconds at which the broker last answered, or at which we chose not to ask it.

    A worker that is full asks nothing and is not deaf; one whose connection hangs is. ``app.orchestrator_pulse``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last_poll = clock.monotonic()

    def beat(self) -> None:
        self.last_poll = self._clock.monotonic()

    def silent_for(self) -> float:
        """Seconds since ``last_poll``."""
        return self._clock.monotonic() - self.last_poll
