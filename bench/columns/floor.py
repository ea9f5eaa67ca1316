"""The raw-SQL floor: one fused claim-and-settle statement a step, in a loop, over the tables ours writes.

It writes the same rows (step, attempt, event) with fence and lease, commits each, and does nothing else: no broker, no
plan, no validation, no job row. Each loop is a process; the jobs are there before the clock starts.
"""

from __future__ import annotations

import json

from bench.columns.column import Fleet
from bench.columns.ours import Ours, workflow_of
from bench.lab import Lab
from bench.shapes import Shape
from orchestrator.engine.submit import Submission, submit_many


class Floor(Ours):
    """The same tables, submitted to by the same engine; nobody but the loops works on them."""

    name = "sql"

    def start(self, fleet: Fleet) -> None:
        """No workers."""


def run_floor(lab: Lab, column: Ours, shape: Shape, jobs: int, loops: int) -> float:
    """Steps a second over ``jobs`` shared by ``loops`` processes."""
    inputs = [shape.input(0, number, 0.0) for number in range(jobs)]
    accepted = []
    for start in range(0, jobs, 100):
        batch = [Submission(workflow_of(shape), one) for one in inputs[start : start + 100]]
        accepted += submit_many(column.engine, batch)
    ids = [one.job.id for one in accepted]
    dsn = column.database.replace("+psycopg", "")
    children = [lab.child("floor", "bench.floor_loop", dsn, talks=True) for _ in range(loops)]
    try:
        for number, child in enumerate(children):
            child.say(json.dumps(ids[number::loops]))
            assert child.read() == "ready", child.tail()
        for child in children:
            child.say("go")
        answers = [json.loads(child.read() or f'"{child.tail()}"') for child in children]
    finally:
        for child in children:
            child.stop()
    done = int(sum(answer["steps"] for answer in answers))
    assert done == jobs * shape.steps, (done, jobs * shape.steps)
    seconds = float(max(answer["end"] for answer in answers) - min(answer["start"] for answer in answers))
    return done / seconds
