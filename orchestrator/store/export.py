"""A job and all that hangs on it as one line of JSON, read in pages: a wide job is never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Boolean, Table

from orchestrator.domain.ids import JobId
from orchestrator.domain.outcome import Stored
from orchestrator.store import payloads, tables
from orchestrator.store.session import Session

#: The form of a line; grows when a reader would have to change.
VERSION: Final = 1
PAGE: Final = 100
#: Columns that hold JSON text.
_JSON: Final = frozenset({"input", "output", "vars", "failure", "data", "tags"})
#: Columns that SQLite keeps as numbers.
_BOOLEAN: Final = frozenset(
    column.name
    for table in tables.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, Boolean)
)
#: Every table that hangs on a job, as its removal takes them along; but what holds a secret stays here.
PARTS: Final = tuple(
    table
    for table in tables.metadata.sorted_tables
    if "job_id" in table.c and table.c["job_id"].foreign_keys and "secret" not in table.c
)


def line(session: Session, job_id: JobId) -> Iterator[str]:
    """``{"v": 1, "job": {…}, "steps": […], …}`` and a line's end, in pieces; nothing when there is no such job.

    Values are written out wherever they are stored; times are seconds since the epoch.
    """
    job = session.rows("SELECT * FROM jobs WHERE id = :job", {"job": job_id})
    if not job:
        return
    yield f'{{"v":{VERSION},"job":{_texts(session, job)[0]}'
    for table in PARTS:
        yield f',"{table.name}":['
        comma = ""
        for page in _pages(session, table, job_id):
            for text in _texts(session, page):
                yield comma + text
                comma = ","
        yield "]"
    yield "}\n"


def _pages(session: Session, table: Table, job_id: JobId) -> Iterator[list[dict[str, Any]]]:
    """The job's rows in order of their key."""
    key = [column.name for column in table.primary_key if column.name != "job_id"]
    order = ", ".join(key)
    beyond = f"AND ({order}) > ({', '.join(f':{name}' for name in key)})"
    last: dict[str, Any] | None = None
    while True:
        page = session.rows(
            f"SELECT * FROM {table.name} WHERE job_id = :job {beyond if last else ''} ORDER BY {order} LIMIT {PAGE}",
            {"job": job_id, **({name: last[name] for name in key} if last else {})},
        )
        yield page
        if len(page) < PAGE:
            return
        last = page[-1]


def _texts(session: Session, rows: Sequence[dict[str, Any]]) -> list[str]:
    found = payloads.read(
        session, (Stored(None, row[name]) for row in rows for name in row if name.endswith("_ref") and row[name])
    )
    return [json.dumps(_plain(row, found), ensure_ascii=False, separators=(",", ":")) for row in rows]


def _plain(row: dict[str, Any], found: dict[str, str]) -> dict[str, Any]:
    """Without references: each value stands where a small one would. One whose payload is lost is named as such."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        hash_ = row.get(f"{name}_ref")
        text = value if hash_ is None else found.get(hash_)
        if name.endswith("_ref"):
            continue
        if hash_ is not None and text is None:
            out[f"{name}_missing"] = hash_
        if name in _JSON and text is not None:
            out[name] = json.loads(text)
        else:
            out[name] = bool(text) if name in _BOOLEAN else text
    return out
