"""Whether old jobs in the tables slow new ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg

from bench.columns.column import Fleet
from bench.columns.ours import Ours
from bench.drive import drive
from bench.figures import Metric, Target
from bench.lab import OTHER_BROKERS, Lab
from bench.shapes import Shape
from bench.workloads.sequence import TEN
from bench.workloads.workload import Figures, Turn, Workload

#: What the old jobs were: two steps and the sequence around them, two attempts, the events of all.
OLD = Shape("sequence", 2)
#: Days over which the old jobs ended: within what retention keeps.
DAYS = 28
#: Tables, indexes and the log of their writing.
GIGABYTES = 8
#: Jobs copied in one statement.
CHUNK = 50_000
TABLES = {"jobs": "id", "steps": "job_id", "attempts": "job_id", "events": "job_id"}
NAMES = (
    "SELECT column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = 'public' AND table_name = %s AND column_name <> %s"
)


@contextmanager
def databases(lab: Lab, size: Mapping[str, int]) -> Iterator[list[Ours]]:
    """One with no old jobs, some, many; each with workers of its own, all there at once."""
    with ExitStack() as stack:
        made: list[Ours] = []
        for broker, old in enumerate((0, size["some"], size["many"]), OTHER_BROKERS):
            column = Ours(lab, broker)
            stack.callback(column.stop)
            column.start(Fleet())
            drive(lab, column, OLD, 20, 10)
            drive(lab, column, TEN, 20, 10)
            fill(column, old)
            made.append(column)
        yield made


def missing() -> str | None:
    free = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if free >= GIGABYTES:
        return None
    return f"a million old jobs need {GIGABYTES} GB of the temporary directory, which has {free:.1f}: set TMPDIR"


def fill(column: Ours, count: int) -> None:
    """Copies a finished job ``count`` times, with its steps, attempts and events, then tidies as autovacuum would."""
    job = column.rows("SELECT id FROM jobs WHERE state = 'succeeded' ORDER BY created_at LIMIT 1")[0]["id"]
    with psycopg.connect(column.database.replace("+psycopg", ""), autocommit=True) as connection:
        # What is copied was checked when it was made, and who loses it fills again.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        for table, key in TABLES.items():
            columns = connection.execute(NAMES, [table, key]).fetchall()
            names, copied = ", ".join(name for name, _ in columns), ", ".join(_then(*one) for one in columns)
            sql = (
                f"INSERT INTO {table} ({key}, {names}) SELECT '00' || lpad(to_hex(n), 30, '0'), {copied}"
                f" FROM {table}, generate_series(%(low)s::int, %(high)s::int) AS n WHERE {key} = %(job)s"
            )
            for low in range(0, count, CHUNK):
                high = min(low + CHUNK, count) - 1
                connection.execute(sql, {"job": job, "low": low, "high": high, "count": count})
            connection.execute(f"VACUUM (ANALYZE) {table}")
        connection.execute("CHECKPOINT")


def _then(name: str, kind: str) -> str:
    """The old jobs came one after the other: the first of them the longest ago."""
    if kind == "double precision" and (name == "at" or name.endswith("_at")):
        return f"{name} - {DAYS * 86_400} * (1 - n / %(count)s::float8)"
    return name


def history(turn: Turn) -> Figures:
    empty, some, many = (_rate(turn, column) for column in turn.prepared)
    return {
        "no old jobs": empty,
        "some": some,
        "many": many,
        "some to none": some / empty,
        "many to none": many / empty,
    }


def _rate(turn: Turn, column: Any) -> float:
    batch = drive(turn.lab, column, TEN, turn.size["jobs"], turn.size["in_flight"])
    return batch.steps / batch.seconds


HISTORY = Workload(
    "history",
    "Sequences with 100,000 (some) and 1,000,000 (many) finished jobs in the tables, against none",
    (
        Metric("no old jobs", "steps/s", "more"),
        Metric("some", "steps/s", "more"),
        Metric("many", "steps/s", "more"),
        Metric("some to none", "×", "more", (Target(0.9),)),
        Metric("many to none", "×", "more", (Target(0.9),)),
    ),
    {"ours": history},
    {"jobs": 300, "in_flight": 100, "some": 100_000, "many": 1_000_000},
    {"jobs": 20, "in_flight": 10, "some": 200, "many": 2_000},
    started=False,
    prepare=databases,
    missing=missing,
    seconds=15,
    prepare_seconds=240,
    note=(
        "An old job: two steps, two attempts, their events, copied under ids that sort before new ones, over 28 days;"
        " vacuumed and analysed. The three databases are filled once; their workers take turns."
    ),
)
