"""What a settle writes, all of it in one statement on PostgreSQL.

The rows travel as one JSON document a table, so a batch of sixty settles costs one round trip, not three hundred. On
SQLite, where a statement is a function call, each table is written by itself in the same transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson
from sqlalchemy import BigInteger, Boolean, Double, Integer, Table

from orchestrator.store import tables
from orchestrator.store.session import MOVED, Session

Row = dict[str, Any]

#: Columns of a step that no settle changes: what it is and where it stands never moves.
STEP_FIXED = ("ref", "kind", "parent", "seq", "tenant", "vars", "vars_ref", "undoes")
STEP_MUTABLE = tuple(
    column.name for column in tables.steps.columns if column.name not in {"job_id", "path", *STEP_FIXED}
)
JOB_MUTABLE = tuple(
    "state run events steps output output_ref failure deadline_at started_at finished_at cost_usd input_tokens"
    " output_tokens waits waiting_since".split()
)
#: A row is found by its key. Were the state a plain comparison, PostgreSQL could choose a partial index that was empty
#: when it was last analysed, and scan a backlog of thousands for every claim.
STATE = "state || ''"


@dataclass(slots=True)
class Changes:
    """Rows of one transaction. ``moved`` holds whole step rows, with ``was_state`` and ``was_fence`` beside them; a row
    of ``jobs`` may hold ``was_events``: how many events the job must still have.
    """

    moved: list[Row] = field(default_factory=list)
    created: list[Row] = field(default_factory=list)
    attempts: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    counts: list[Row] = field(default_factory=list)
    #: What breakers count.
    calls: list[Row] = field(default_factory=list)
    #: Webhooks that are owed an event: ``job_id`` and its number.
    webhooks: list[Row] = field(default_factory=list)


def write(session: Session, changes: Changes, *, last: bool = False) -> bool:
    """Writes them all; False when a step or job moved since it was loaded (roll back and begin again).

    ``last``: the transaction ends with it. PostgreSQL refuses such a statement whole, and one that names a job's
    events: ``Moved`` is raised.
    """
    changes.moved.sort(key=lambda row: (row["job_id"], row["path"]))
    changes.jobs.sort(key=lambda row: str(row["id"]))
    if session.postgres:
        return _write_postgres(session, changes, last=last)
    updated = session.many(_update_job(), [{"was_events": None, **row} for row in changes.jobs])
    if updated < len(changes.jobs) or session.many(_update_step(), changes.moved) < len(changes.moved):
        return False
    insert(session, tables.steps, changes.created, "ON CONFLICT (job_id, path) DO NOTHING")
    insert(session, tables.attempts, changes.attempts)
    insert(session, tables.events, changes.events)
    insert(session, tables.rollups, changes.counts, COUNT)
    insert(session, tables.breaker_calls, changes.calls, _CALLS)
    session.many(f"UPDATE webhooks SET {_OWE.format(upto=':upto')} WHERE job_id = :job_id", changes.webhooks)
    return True


def insert(session: Session, table: Table, rows: Sequence[Row], conflict: str = "") -> int:
    """Writes new rows of ``table``, each with all its columns; answers how many were written."""
    if not rows:
        return 0
    if session.postgres:
        return session.execute(_insert_set(table.name, "rows", conflict), {"rows": document(table, rows)}).rowcount
    return session.many(_insert_row(table, conflict), rows)


@cache
def _insert_row(table: Table, conflict: str = "") -> str:
    names = [column.name for column in table.columns]
    marks = ", ".join(f":{name}" for name in names)
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks}) {conflict}"


#: One that is being sent to, or waits for its next try, keeps its time; one that was stopped stays so.
_OWE = "upto = {upto}, due_at = CASE WHEN state = 'active' THEN coalesce(due_at, {{now}}) END"
COUNT = "ON CONFLICT (process, series, labels) DO UPDATE SET value = rollups.value + excluded.value"
#: A span of time that comes round again begins at nothing.
_CALLS = "ON CONFLICT (tenant, name, process, slot) DO UPDATE SET at = excluded.at, " + ", ".join(
    f"{name} = excluded.{name} + CASE WHEN breaker_calls.at = excluded.at THEN breaker_calls.{name} ELSE 0 END"
    for name in ("calls", "failed", "usd")
)


def _write_postgres(session: Session, changes: Changes, *, last: bool) -> bool:
    parts = {
        "jobs": (tables.jobs, changes.jobs),
        "moved": (tables.steps, changes.moved),
        "created": (tables.steps, changes.created),
        "attempts": (tables.attempts, changes.attempts),
        "events": (tables.events, changes.events),
        "counts": (tables.rollups, changes.counts),
        "calls": (tables.breaker_calls, changes.calls),
        "webhooks": (tables.webhooks, changes.webhooks),
    }
    present = tuple(name for name, (_, rows) in parts.items() if rows)
    if not present:
        return True
    values: Row = {name: document(*parts[name]) for name in present}
    expected = len(changes.moved) + len(changes.jobs)
    if last or any("was_events" in row for row in changes.jobs):
        send = session.alone if last else session.value
        return send(_statement(present, guarded=True), {**values, "expected": expected}) is not None
    return bool(session.value(_statement(present), values) == expected)


@cache
def _statement(present: tuple[str, ...], *, guarded: bool = False) -> str:
    clauses = {
        "moved": _update_steps_set(after_jobs="jobs" in present),
        "created": _insert_set("steps", "created", "ON CONFLICT (job_id, path) DO NOTHING"),
        "attempts": _insert_set("attempts", "attempts"),
        "events": _insert_set("events", "events"),
        "jobs": _update_jobs_set(),
        "counts": _insert_set("rollups", "counts", COUNT),
        "calls": _insert_set("breaker_calls", "calls", _CALLS),
        "webhooks": _owe_set(),
    }
    counts = [f"(SELECT count(*) FROM w_{name})" for name in ("jobs", "moved") if name in present]
    inner = ", ".join(f"w_{name} AS ({clauses[name]} RETURNING 1)" for name in present)
    count = " + ".join(counts) or "0"
    if guarded:
        count = f"CAST(CASE WHEN {count} = :expected THEN '1' ELSE '{MOVED}' END AS integer)"
    return f"WITH {inner} SELECT {count}"


def document(table: Table, rows: Sequence[Row]) -> str:
    """What is not there is NULL, or nothing: half of what PostgreSQL would have to read are zeros."""
    counts = _counts(table)
    return orjson.dumps(
        [
            {name: value for name, value in row.items() if value or (value is not None and name not in counts)}
            for row in rows
        ]
    ).decode()


@cache
def _counts(table: Table) -> frozenset[str]:
    """The columns that are never NULL and may be zero, or false."""
    return frozenset(c.name for c in table.columns if not c.nullable and isinstance(c.type, Boolean | Integer | Double))


def value(table: Table, name: str) -> str:
    """A column of what travelled, as it is to be written."""
    if name not in _counts(table):
        return f"v.{name}"
    return f"coalesce(v.{name}, {'false' if isinstance(table.columns[name].type, Boolean) else 0})"


def _type(table: Table, name: str) -> str:
    match table.columns[name].type:
        case Boolean():
            return "boolean"
        case BigInteger():
            return "bigint"
        case Integer():
            return "integer"
        case Double():
            return "double precision"
        case _:
            return "text"


def typed(table: Table, names: Sequence[str]) -> str:
    """Columns of ``table`` as a recordset declares them."""
    return ", ".join(f"{name} {_type(table, name)}" for name in names)


def _recordset(table: Table, parameter: str, names: Sequence[str], more: str = "") -> str:
    return f"jsonb_to_recordset(CAST(:{parameter} AS jsonb)) AS v({typed(table, names)}{more})"


@cache
def _insert_set(table_name: str, parameter: str, conflict: str = "") -> str:
    table = tables.metadata.tables[table_name]
    names = [column.name for column in table.columns]
    listed = ", ".join(names)
    values = ", ".join(value(table, name) for name in names)
    return f"INSERT INTO {table_name} ({listed}) SELECT {values} FROM {_recordset(table, parameter, names)} {conflict}"


@cache
def _update_steps_set(*, after_jobs: bool) -> str:
    """``after_jobs``: the jobs' rows are locked before their steps', as everywhere."""
    sets = ", ".join(f"{name} = {value(tables.steps, name)}" for name in STEP_MUTABLE)
    source = _recordset(tables.steps, "moved", ("job_id", "path", *STEP_MUTABLE), ", was_state text, was_fence integer")
    return (
        f"UPDATE steps SET {sets} FROM {source} WHERE steps.job_id = v.job_id AND steps.path = v.path"
        f" AND steps.{STATE} = v.was_state AND steps.fence = v.was_fence"
        f"{' AND (SELECT count(*) FROM w_jobs) >= 0' if after_jobs else ''}"
    )


@cache
def _update_jobs_set() -> str:
    sets = ", ".join(f"{name} = {value(tables.jobs, name)}" for name in JOB_MUTABLE)
    source = _recordset(tables.jobs, "jobs", ("id", *JOB_MUTABLE), ", was_events integer")
    where = "jobs.id = v.id AND jobs.events = coalesce(v.was_events, jobs.events)"
    return f"UPDATE jobs SET {sets} FROM {source} WHERE {where}"


@cache
def _owe_set() -> str:
    source = _recordset(tables.webhooks, "webhooks", ("job_id", "upto"))
    return f"UPDATE webhooks SET {_OWE.format(upto='v.upto')} FROM {source} WHERE webhooks.job_id = v.job_id"


@cache
def _update_step() -> str:
    sets = ", ".join(f"{name} = :{name}" for name in STEP_MUTABLE)
    where = f"job_id = :job_id AND path = :path AND {STATE} = :was_state AND fence = :was_fence"
    return f"UPDATE steps SET {sets} WHERE {where}"


@cache
def _update_job() -> str:
    sets = ", ".join(f"{name} = :{name}" for name in JOB_MUTABLE)
    return f"UPDATE jobs SET {sets} WHERE id = :id AND events = coalesce(:was_events, events)"
