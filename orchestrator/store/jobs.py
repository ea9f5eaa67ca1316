"""Jobs: insert, lock, write, list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.domain.plan import JobRow
from orchestrator.domain.states import JobState
from orchestrator.store import changes, tables
from orchestrator.store.rows import JOB_SELECT, job_row, job_values
from orchestrator.store.session import Session, Statement

#: What becomes of a new job whose idempotency key another job of the tenant has.
TWIN = "ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"


def insert(session: Session, job: JobRow) -> bool:
    """Writes a new job; False when another job of the tenant has its idempotency key.

    On PostgreSQL this waits for a twin that is not committed yet.
    """
    return changes.insert(session, tables.jobs, [job_values(job)], TWIN) == 1


def lock(session: Session, ids: Iterable[JobId]) -> dict[JobId, JobRow]:
    """Locks the jobs in order of their ids: the one lock that orders settle, cancel, join and event numbers."""
    return lock_at(session, ids)[0]


def lock_at(session: Session, ids: Iterable[JobId]) -> tuple[dict[JobId, JobRow], float]:
    """Locks the jobs as ``lock`` does; with the database's time."""
    [rows] = session.together(locking(session, ids))
    return locked(rows)


def locking(session: Session, ids: Iterable[JobId]) -> Statement:
    """What ``lock_at`` asks; ``locked`` reads the answer."""
    sql = f"SELECT {JOB_SELECT}, {{now}} AS now FROM jobs j WHERE {session.dialect.any_of('j.id', 'ids')} ORDER BY j.id"
    return sql + " {for_update}", {"ids": json.dumps(sorted(set(ids)))}


def locked(rows: list[dict[str, Any]]) -> tuple[dict[JobId, JobRow], float]:
    now = max((float(row["now"]) for row in rows), default=0.0)
    return {JobId(row["id"]): job_row(row) for row in rows}, now


def get(session: Session, job_id: JobId) -> JobRow | None:
    row = session.one(f"SELECT {JOB_SELECT} FROM jobs j WHERE id = :id", {"id": job_id})
    return None if row is None else job_row(row)


def get_many(session: Session, ids: Iterable[JobId]) -> dict[JobId, JobRow]:
    [rows] = session.together(getting(session, ids))
    return {JobId(row["id"]): job_row(row) for row in rows}


def getting(session: Session, ids: Iterable[JobId]) -> Statement:
    """What ``get_many`` asks; each row of the answer is a ``job_row``."""
    sql = f"SELECT {JOB_SELECT} FROM jobs j WHERE {session.dialect.any_of('j.id', 'ids')}"
    return sql, {"ids": json.dumps(sorted(set(ids)))}


def versions(session: Session, ids: Iterable[JobId]) -> dict[JobId, str]:
    """Which version each of the jobs runs; it never changes."""
    rows = session.rows(
        f"SELECT id, version FROM jobs j WHERE {session.dialect.any_of('j.id', 'ids')}",
        {"ids": json.dumps(sorted(set(ids)))},
    )
    return {JobId(row["id"]): row["version"] for row in rows}


def by_key(session: Session, tenant: str, key: str) -> JobRow | None:
    row = session.one(
        f"SELECT {JOB_SELECT} FROM jobs j WHERE tenant = :tenant AND idempotency_key = :key",
        {"tenant": tenant, "key": key},
    )
    return None if row is None else job_row(row)


def by_keys(session: Session, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], JobRow]:
    """The jobs with these idempotency keys, each with its tenant."""
    wanted = sorted(names)
    source, values = session.dialect.table(owner=[owner for owner, _ in wanted], key=[key for _, key in wanted])
    rows = session.rows(
        f"SELECT {JOB_SELECT} FROM {source} JOIN jobs j ON j.tenant = v.owner AND j.idempotency_key = v.key", values
    )
    return {(row["tenant"], row["idempotency_key"]): job_row(row) for row in rows}


def write(session: Session, jobs: Sequence[JobRow]) -> None:
    """Writes what may change of jobs this transaction has locked."""
    changes.write(session, changes.Changes(jobs=[job_values(job) for job in jobs]))


def listing(
    session: Session,
    *,
    tenant: str | None,
    states: Sequence[JobState] = (),
    workflow: str | None = None,
    tag: tuple[str, str] | None = None,
    created_after: float | None = None,
    created_before: float | None = None,
    before: JobId | None = None,
    limit: int = 50,
) -> list[JobRow]:
    """Newest first; ``before`` is the cursor: the last id of the page before."""
    where: list[str] = []
    values: dict[str, Any] = {"limit": limit}
    if tenant is not None:
        where.append("tenant = :tenant")
        values["tenant"] = tenant
    if states:
        where.append(session.dialect.any_of("state", "states"))
        values["states"] = json.dumps([state.value for state in states])
    if workflow is not None:
        where.append("workflow = :workflow")
        values["workflow"] = workflow
    if tag is not None:
        where.append(
            "CAST(tags AS jsonb)->>:tag = :tag_value"
            if session.postgres
            else "tags->>('$.\"' || :tag || '\"') = :tag_value"
        )
        values["tag"], values["tag_value"] = tag
    if created_after is not None:
        where.append("created_at >= :created_after")
        values["created_after"] = created_after
    if created_before is not None:
        where.append("created_at < :created_before")
        values["created_before"] = created_before
    if before is not None:
        where.append("id < :before")
        values["before"] = before
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    rows = session.rows(f"SELECT {JOB_SELECT} FROM jobs j {clause} ORDER BY id DESC LIMIT :limit", values)
    return [job_row(row) for row in rows]


def overdue(session: Session, limit: int = 100) -> list[JobId]:
    rows = session.rows(
        "SELECT id FROM jobs WHERE state IN ('queued','running','waiting') AND waits = 0 AND deadline_at <= {now}"
        " ORDER BY deadline_at LIMIT :limit",
        {"limit": limit},
    )
    return [JobId(row["id"]) for row in rows]


def counts(session: Session) -> dict[tuple[str, str], int]:
    """Jobs by (state, workflow)."""
    rows = session.rows("SELECT state, workflow, count(*) AS n FROM jobs GROUP BY state, workflow")
    return {(row["state"], row["workflow"]): row["n"] for row in rows}
