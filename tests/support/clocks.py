"""Clocks that tests turn by hand."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.clock import Clock


@dataclass(slots=True)
class HandClock(Clock):
    """Its monotonic time is ``at`` until somebody changes it."""

    at: float = 1e6

    def monotonic(self) -> float:
        return self.at
