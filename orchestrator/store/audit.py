"""What people did: who, when, what, to which thing, why. Written in the transaction that did it, never changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.store.session import Session


def record(
    session: Session,
    row_id: str,
    *,
    tenant: str,
    who: str,
    what: str,
    subject: str,
    why: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Adds a row. ``subject`` is the id of a job, a dead letter or an operation."""
    session.execute(
        "INSERT INTO audit (id, at, tenant, who, what, subject, why, data)"
        " VALUES (:id, {now}, :tenant, :who, :what, :subject, :why, :data)",
        {
            "id": row_id,
            "tenant": tenant,
            "who": who,
            "what": what,
            "subject": subject,
            "why": why,
            "data": json.dumps(dict(data or {}), ensure_ascii=False),
        },
    )


def entries(
    session: Session, *, tenant: str | None, subject: str | None = None, before: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Newest first; ``before`` is the cursor."""
    wanted = {"tenant = :tenant": tenant, "subject = :subject": subject, "id < :before": before}
    where = " AND ".join(clause for clause, value in wanted.items() if value is not None)
    values = {clause.rpartition(":")[2]: value for clause, value in wanted.items() if value is not None}
    rows = session.rows(
        f"SELECT * FROM audit {'WHERE ' + where if where else ''} ORDER BY id DESC LIMIT :limit",
        {**values, "limit": limit},
    )
    return [{**row, "data": json.loads(row["data"])} for row in rows]
