"""Whether old jobs in the tables slow new ones."""

from __future__ import annotations

from bench.columns.column import Fleet
from bench.columns.ours import Ours
from bench.drive import drive
from bench.figures import Metric, Target
from bench.workloads.sequence import TEN
from bench.workloads.workload import Figures, Turn, Workload

#: Jobs copied in one statement: it must end within the statement timeout.
CHUNK = 2_000
#: Rows of one finished job, copied ``n`` times under other ids; ids of old jobs sort before new ones.
_COLUMNS = (
    "SELECT string_agg(quote_ident(column_name), ',') AS names FROM information_schema.columns"
    " WHERE table_schema = 'public' AND table_name = :table AND column_name <> :id AND column_name <> 'idempotency_key'"
)
_TABLES = {"jobs": "id", "steps": "job_id", "attempts": "job_id", "events": "job_id"}


def history(turn: Turn) -> Figures:
    empty = _rate(turn, 0)
    full = _rate(turn, turn.size["old"])
    return {"empty": empty, "with history": full, "with to without": full / empty}


def _rate(turn: Turn, old: int) -> float:
    column = Ours(turn.lab)
    try:
        column.start(Fleet())
        drive(turn.lab, column, TEN, 20, 10)
        if old:
            fill(column, old)
        batch = drive(turn.lab, column, TEN, turn.size["jobs"], turn.size["in_flight"])
    finally:
        column.stop()
    return batch.steps / batch.seconds


def fill(column: Ours, count: int) -> None:
    """Copies a finished job ``count`` times, with its steps, attempts and events, then analyses."""
    job = column.rows("SELECT id FROM jobs WHERE state = 'succeeded' LIMIT 1")[0]["id"]
    for table, key in _TABLES.items():
        names = column.rows(_COLUMNS, table=table, id=key)[0]["names"]
        for start in range(0, count, CHUNK):
            column.execute(
                f"INSERT INTO {table} ({key}, {names}) SELECT '00' || lpad(to_hex(n), 30, '0'), {names}"
                f" FROM {table}, generate_series(CAST(:low AS int), CAST(:high AS int)) AS n WHERE {key} = :job",
                job=job,
                low=start,
                high=min(start + CHUNK, count) - 1,
            )
        column.execute(f"ANALYZE {table}")


HISTORY = Workload(
    "history",
    "Sequences with 100,000 finished jobs in the tables, against none",
    (
        Metric("empty", "steps/s", "more"),
        Metric("with history", "steps/s", "more"),
        Metric("with to without", "×", "more", (Target(0.9),)),
    ),
    {"ours": history},
    {"jobs": 300, "in_flight": 100, "old": 100_000},
    {"jobs": 20, "in_flight": 10, "old": 200},
    started=False,
    pairs=3,
)
