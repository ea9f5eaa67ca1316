"""What one failure costs in calls and tokens: counts, so the machine does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.columns.column import Fleet
from bench.drive import PATIENCE, heard_by, until_settled
from bench.figures import Metric, Target
from bench.shapes import Shape
from bench.work import TOKENS
from bench.workloads.workload import Figures, Turn, Workload

FOUR = Shape("failing", 4)


def retried(turn: Turn) -> Figures:
    """The failed step is tried again by its own policy."""
    return _figures(turn, lambda _inputs: None)


def sent_again(turn: Turn) -> Figures:
    """A chain keeps nothing: whoever sent it sends the whole of it again."""
    return _figures(turn, lambda inputs: turn.column.submit(FOUR, [{**one, "again": True} for one in inputs]))


def _figures(turn: Turn, on_failure: Callable[[list[dict[str, Any]]], None]) -> Figures:
    run, jobs = turn.lab.bell.next_run(), turn.size["jobs"]
    inputs = [FOUR.input(run, number, 0.0) for number in range(jobs)]
    turn.column.submit(FOUR, inputs)
    rings: list[dict[str, Any]] = []
    while sum(ring["ended"] for ring in rings) < jobs:
        heard = heard_by(turn.lab, turn.column, PATIENCE)
        rings += heard
        if failed := [inputs[ring["job"]] for ring in heard if ring["failed"]]:
            on_failure(failed)
    until_settled(turn.lab, turn.column)
    clean = jobs * FOUR.size
    return {"calls": len(rings) / clean, "tokens": sum(ring["tokens"] for ring in rings) / (clean * TOKENS)}


AMPLIFICATION = Workload(
    "amplification",
    "Four steps, each job with one failure, at every step in turn; to the same without a failure",
    (
        Metric("calls", "× a clean run", "less", (Target(1.25),)),
        Metric("tokens", "× a clean run", "less", (Target(1.25),)),
    ),
    {"ours": retried, "celery": sent_again},
    {"jobs": 100},
    {"jobs": 8},
    fleet=Fleet(workers=1, slots=10),
    pairs=1,
    note="Celery: a chain in which a task failed is sent again from its start by its caller.",
)
