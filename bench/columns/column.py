"""What a workload may ask of a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bench.children import Child
from bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers of a column. Ours: ``workers`` commands of ``slots`` each. Celery: ``prefork`` is one command with
    ``workers`` pool processes; ``threads`` is ``workers`` commands of ``slots`` threads each.
    """

    workers: int = 2
    slots: int = 100
    pool: Literal["prefork", "threads"] = "prefork"
    #: Celery: acknowledge after the work, and redeliver after so many seconds. None: before, its default.
    redeliver_after: int | None = None


class Column(Protocol):
    """Started by the runner, which stops it whatever happens."""

    name: str
    workers: list[Child]

    def start(self, fleet: Fleet) -> None:
        """Returns when the workers are ready; with no workers, when jobs can be submitted."""
        ...

    def stop(self) -> None: ...

    def submit(self, shape: Shape, inputs: Sequence[dict[str, Any]]) -> None:
        """Hands over one job for each input, in the column's quickest documented way for so many."""
        ...

    def settled(self) -> bool:
        """Whether every job handed over so far has ended as far as the column keeps count. Raises if one failed."""
        ...

    def check(self) -> None:
        """Raises when some job is known to have failed, so that waiting for it is vain."""
        ...

    def cpu(self) -> float:
        """Processor seconds of its workers so far, without the servers."""
        ...


@dataclass(slots=True)
class Batch:
    """What came of some jobs."""

    seconds: float
    steps: int
    rings: list[dict[str, Any]] = field(default_factory=list)
    #: Processor seconds by part: workers, postgres, redis.
    cpu: dict[str, float] = field(default_factory=dict)
    #: Seconds from the first submit at which each job's ring was heard, in order.
    heard: list[float] = field(default_factory=list)
