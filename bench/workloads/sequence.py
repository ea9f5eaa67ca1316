"""Sequences of ten steps: throughput, handoff, what a step costs."""

from __future__ import annotations

from typing import cast

from bench.columns.column import Batch, Fleet
from bench.columns.floor import run_floor
from bench.columns.ours import Ours
from bench.columns.registry import COLUMNS
from bench.drive import drive, gaps, starts
from bench.figures import Metric, Target, percentile
from bench.shapes import Shape
from bench.workloads.workload import Figures, Turn, Workload

TEN = Shape("sequence", 10)
COST = (
    Metric("worker CPU per step", "ms", "less"),
    Metric("PostgreSQL CPU per step", "ms", "less"),
    Metric("Redis CPU per step", "ms", "less"),
)


def cost(batch: Batch) -> Figures:
    return {
        "worker CPU per step": batch.cpu["workers"] / batch.steps * 1e3,
        "PostgreSQL CPU per step": batch.cpu["postgres"] / batch.steps * 1e3,
        "Redis CPU per step": batch.cpu["redis"] / batch.steps * 1e3,
    }


def sequence(turn: Turn) -> Figures:
    batch = drive(turn.lab, turn.column, TEN, turn.size["jobs"], turn.size["in_flight"])
    between = gaps(batch)
    return {
        "steps": batch.steps / batch.seconds,
        "handoff p50": percentile(between, 0.5) * 1e3,
        "handoff p99": percentile(between, 0.99) * 1e3,
        "start p95": percentile(starts(batch), 0.95) * 1e3,
        **cost(batch),
    }


def floor(turn: Turn) -> Figures:
    loops = 1 if turn.size["in_flight"] == 1 else 2
    return {"steps": run_floor(turn.lab, cast("Ours", turn.column), TEN, turn.size["jobs"], loops)}


LOADED = Workload(
    "sequence-100",
    "300 jobs of 10 steps, 100 in flight",
    (
        Metric("steps", "steps/s", "more", (Target(2.5, "celery", 4.0), Target(0.5, "sql", 0.7))),
        Metric("handoff p50", "ms", "less"),
        Metric("handoff p99", "ms", "less"),
        Metric("start p95", "ms", "less"),
        *COST,
    ),
    {"ours": sequence, "celery": sequence, "dbos": sequence, "sql": floor},
    {"jobs": 300, "in_flight": 100},
    {"jobs": 20, "in_flight": 10},
    note="sql: two loops, one for each worker process; its jobs are submitted before its clock starts.",
)

ALONE = Workload(
    "sequence-1",
    "150 jobs of 10 steps, one at a time",
    (
        Metric("steps", "steps/s", "more", (Target(2.5, "celery"),)),
        Metric("handoff p50", "ms", "less", (Target(10.0), Target(0.5, "celery"))),
        Metric("handoff p99", "ms", "less", (Target(0.6, "celery"),)),
        Metric("start p95", "ms", "less", (Target(20.0),)),
        *COST,
    ),
    {"ours": sequence, "celery": sequence, "dbos": sequence, "sql": floor},
    {"jobs": 150, "in_flight": 1},
    {"jobs": 5, "in_flight": 1},
    seconds=35,
    note="One at a time means that the next job is submitted when the one before is recorded as ended. sql: one loop.",
)


def scaling(turn: Turn) -> Figures:
    """The same work by one worker process, then by two."""
    found = {number: _with_workers(turn, number) for number in (1, 2)}
    return {"one worker": found[1], "two workers": found[2], "two to one": found[2] / found[1]}


def _with_workers(turn: Turn, workers: int) -> float:
    column = COLUMNS[turn.column.name](turn.lab)
    try:
        column.start(Fleet(workers=workers))
        drive(turn.lab, column, TEN, min(20, turn.size["jobs"]), 10)
        batch = drive(turn.lab, column, TEN, turn.size["jobs"], turn.size["in_flight"])
    finally:
        column.stop()
    return batch.steps / batch.seconds


SCALING = Workload(
    "workers",
    "One worker process against two",
    (
        Metric("one worker", "steps/s", "more"),
        Metric("two workers", "steps/s", "more"),
        Metric("two to one", "×", "more"),
    ),
    {"ours": scaling, "celery": scaling},
    {"jobs": 300, "in_flight": 100},
    {"jobs": 10, "in_flight": 5},
    started=False,
    seconds=38,
)
