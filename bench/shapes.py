"""The shapes of work, by name; each column builds them in its own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench.work import ROUNDS, WORKERS

Kind = Literal["sequence", "fan_out", "supervisor", "nested", "calls", "http_calls", "failing"]


@dataclass(frozen=True, slots=True)
class Shape:
    """``size``: steps of a sequence, branches of a fan-out, chains of a nest, calls of a chain of calls.

    ``failing`` is a sequence in which one call fails once: the one of step ``job % size``.
    """

    kind: Kind
    size: int = 0
    #: For calls: where, and how long one takes.
    port: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Agent steps of one job."""
        match self.kind:
            case "fan_out":
                return self.size + 2
            case "supervisor":
                return ROUNDS * (WORKERS + 2)
            case "nested":
                return self.size * 3 + 1
            case _:
                return self.size

    def input(self, run: int, job: int, at: float) -> dict[str, Any]:
        """What job number ``job`` of measurement ``run`` begins with, submitted ``at``."""
        value: dict[str, Any] = {"run": run, "job": job}
        match self.kind:
            case "sequence":
                value["at"] = at
            case "fan_out":
                value["width"] = self.size
            case "nested":
                value["items"] = list(range(self.size))
            case "failing":
                value |= {"fails": job % self.size, "size": self.size}
            case "calls" | "http_calls":
                value |= {"port": self.port, "seconds": self.seconds}
            case _:
                pass
        return value
