"""Keeps a number of jobs in flight until all are done."""

from __future__ import annotations

import itertools
from typing import Any

from bench.columns.column import Batch, Column
from bench.lab import Lab
from bench.shapes import Shape
from orchestrator.domain.errors import Unavailable

#: Seconds without a ring after which a run is given up; a job that failed is noticed at once.
PATIENCE = 600.0
#: Between two checks that nothing has failed, in seconds.
LISTEN = 5.0
#: Between two looks whether what rang has been written too, in seconds.
LOOK = 0.001


def drive(lab: Lab, column: Column, shape: Shape, jobs: int, in_flight: int, patience: float = PATIENCE) -> Batch:
    """``jobs`` of ``shape``, ``in_flight`` at once. A job counts when the column says so, not when its last step rings.

    With one in flight the next is submitted only then; else when the ring is heard.
    """
    numbers = itertools.count()
    run = lab.bell.next_run()

    def submit(count: int) -> None:
        inputs = [shape.input(run, next(numbers), lab.clock.monotonic()) for _ in range(count)]
        column.submit(shape, inputs)

    before = _cpu(lab, column)
    batch = Batch(0.0, jobs * shape.steps)
    started = lab.clock.monotonic()
    left = jobs - min(jobs, in_flight)
    submit(min(jobs, in_flight))
    while len(batch.rings) < jobs:
        heard = heard_by(lab, column, patience)
        batch.rings += heard
        batch.heard += [lab.clock.monotonic() - started] * len(heard)
        if in_flight == 1:
            until_settled(lab, column)
        if left:
            more = min(left, len(heard))
            left -= more
            submit(more)
    until_settled(lab, column)
    batch.seconds = lab.clock.monotonic() - started
    batch.cpu = {part: spent - before[part] for part, spent in _cpu(lab, column).items()}
    return batch


def heard_by(lab: Lab, column: Column, patience: float) -> list[dict[str, Any]]:
    """The next rings. Raises ``Unavailable`` when a job failed, or none rings for ``patience`` seconds."""
    until = lab.clock.monotonic() + patience
    while lab.clock.monotonic() < until:
        if heard := lab.bell.wait(min(LISTEN, patience)):
            return heard
        column.check()
    logs = "\n".join(f"--- {child.name}\n{child.tail()}" for child in column.workers[:2])
    raise Unavailable(
        f"{column.name}: no job finished within {patience:g} s. Its workers' logs end:\n{logs}",
        mend="Run it again with --logs DIR to keep them whole.",
    )


def until_settled(lab: Lab, column: Column) -> None:
    until = lab.clock.monotonic() + PATIENCE
    while not column.settled():
        if lab.clock.monotonic() > until:
            raise TimeoutError(f"{column.name}: jobs rang but are not recorded as ended after {PATIENCE:g} s")
        lab.clock.sleep(LOOK)


def _cpu(lab: Lab, column: Column) -> dict[str, float]:
    return {"workers": column.cpu(), **lab.servers_cpu()}


def gaps(batch: Batch) -> list[float]:
    """Seconds from one step's end to the next one's start; the first of each job, from its submit, is left out."""
    return [gap for ring in batch.rings for gap in ring["gaps"][1:]]


def starts(batch: Batch) -> list[float]:
    """Seconds from submit to the first step's start."""
    return [ring["gaps"][0] for ring in batch.rings]


def joins(batch: Batch) -> list[float]:
    """Seconds from the last branch's end to the join body's start."""
    return [ring["join"] for ring in batch.rings]
