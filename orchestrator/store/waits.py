"""What people are asked: written by the settle that asks, closed by the decision or by whatever ended the step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.waits import Decision, Wait
from orchestrator.store.session import Session


def open_all(session: Session, waits: Sequence[Wait]) -> None:
    session.many(
        "INSERT INTO waits (id, job_id, path, tenant, workflow, kind, reason, assignees, question, state, created_at)"
        " VALUES (:id, :job_id, :path, :tenant, :workflow, :kind, :reason, :assignees, :question, 'open', :created_at)",
        [
            {
                "id": wait.id,
                "job_id": wait.job_id,
                "path": wait.path,
                "tenant": wait.tenant,
                "workflow": wait.workflow,
                "kind": wait.kind.value,
                "reason": wait.reason.value,
                "assignees": json.dumps(wait.assignees),
                "question": json.dumps(wait.question, ensure_ascii=False),
                "created_at": wait.created_at,
            }
            for wait in waits
        ],
    )


def close_decided(session: Session, wait_id: str, decision: Decision, by: str, note: str | None) -> bool:
    """open → decided; False when it is not open any more."""
    return (
        session.execute(
            "UPDATE waits SET state = 'decided', closed_at = {now}, decided_by = :by, decision = :decision,"
            " note = :note WHERE id = :id AND state = 'open'",
            {"id": wait_id, "by": by, "decision": decision.value, "note": note},
        ).rowcount
        == 1
    )


def cancel_open(session: Session, job_id: JobId, paths: Iterable[StepPath]) -> None:
    """open → cancelled, for steps that ended without a decision; one that was decided stays so."""
    session.many(
        "UPDATE waits SET state = 'cancelled', closed_at = {now} WHERE job_id = :job AND path = :path"
        " AND state = 'open'",
        [{"job": job_id, "path": path} for path in sorted(paths)],
    )


def get(session: Session, wait_id: str) -> dict[str, Any] | None:
    row = session.one("SELECT * FROM waits WHERE id = :id", {"id": wait_id})
    return None if row is None else _read(row)


def listing(
    session: Session,
    *,
    tenant: str | None,
    state: str | None = "open",
    job_id: JobId | None = None,
    before: tuple[float, str] | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Newest first; ``before``: time and id of the last one of the page before."""
    own = {"tenant": tenant, "state": state, "job_id": job_id}
    values: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    where = [f"{name} = :{name}" for name in values]
    if before is not None:
        where.append("(created_at < :at OR (created_at = :at AND id < :id))")
        values["at"], values["id"] = before
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    rows = session.rows(
        f"SELECT * FROM waits {clause} ORDER BY created_at DESC, id DESC LIMIT :limit", {**values, "limit": limit}
    )
    return [_read(row) for row in rows]


def count_open(session: Session) -> int:
    return int(session.value("SELECT count(*) FROM waits WHERE state = 'open'"))


def old(session: Session, seconds: float) -> list[dict[str, Any]]:
    """Open for longer than ``seconds``, with their ``age``; the oldest 50."""
    rows = session.rows(
        "SELECT *, {now} - created_at AS age FROM waits WHERE state = 'open' AND created_at < {now} - :seconds"
        " ORDER BY created_at LIMIT 50",
        {"seconds": seconds},
    )
    return [_read(row) for row in rows]


def another_step_moves(session: Session, job_id: JobId, known: Iterable[StepPath]) -> bool:
    """Whether a step of the job beside ``known`` is ready, running or due."""
    named = session.dialect.any_of("path", "known")
    found = session.value(
        "SELECT 1 FROM steps WHERE job_id = :job AND state IN ('ready','running','retrying')"
        f" AND NOT ({named}) LIMIT 1",
        {"job": job_id, "known": json.dumps(sorted(known))},
    )
    return found is not None


def _read(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "assignees": json.loads(row["assignees"]), "question": json.loads(row["question"])}
