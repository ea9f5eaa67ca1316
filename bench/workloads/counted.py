"""Instructions of a step: a figure that a busy machine does not change."""

from __future__ import annotations

from bench.columns.column import Fleet
from bench.columns.embedded import Embedded
from bench.drive import drive
from bench.figures import Metric
from bench.instructions import Counter, find_counter
from bench.workloads.sequence import TEN
from bench.workloads.workload import Figures, Turn, Workload


def instructions(turn: Turn) -> Figures:
    """Two runs that differ only in their number of jobs: start and end cancel out."""
    counter = find_counter()
    assert counter is not None, "the workload said that it can run here"
    few, many = turn.size["few"], turn.size["many"]
    spent = {jobs: _spent(turn, counter, jobs) for jobs in (few, many)}
    return {"instructions per step": (spent[many] - spent[few]) / ((many - few) * TEN.steps) / 1e6}


def _spent(turn: Turn, counter: Counter, jobs: int) -> int:
    log = turn.lab.directory / "instructions.log"
    column = Embedded(turn.lab, counter.words(log))
    try:
        column.start(Fleet())
        drive(turn.lab, column, TEN, jobs, 1)
    finally:
        column.stop()
    return counter.read(log)


def missing() -> str | None:
    return (
        None if find_counter() else "not available here: perf may not count (perf stat true), and no valgrind is found"
    )


INSTRUCTIONS = Workload(
    "instructions",
    "Sequences in one process on SQLite, one job at a time: instructions of a step, its submit included",
    (Metric("instructions per step", "million", "less"),),
    {"ours": instructions},
    {"few": 5, "many": 55},
    {"few": 1, "many": 3},
    started=False,
    pairs=2,
    seconds=80,
    missing=missing,
    note="Counted by perf, or by valgrind where perf may not; user space only, with all of the process's threads.",
)
