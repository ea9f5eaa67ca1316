"""The dead-letter desk, the quarantine, and API keys: small tables that people look at."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import Failure
from orchestrator.domain.plan import JobRow
from orchestrator.store.operations import LetterFilter
from orchestrator.store.rows import failure_text
from orchestrator.store.session import Session

_VARYING = re.compile(r"[0-9a-f]{8,}|\d+")


def fingerprint(failure: Failure, agent: str | None) -> str:
    """What makes two failures the same: class, agent, and the message without its numbers and ids."""
    normal = _VARYING.sub("#", failure.message.lower())[:500]
    return hashlib.sha256(f"{failure.kind.value}|{agent or ''}|{normal}".encode()).hexdigest()[:16]


def park(session: Session, letter_id: str, job: JobRow, path: StepPath, failure: Failure, agent: str | None) -> None:
    """Writes the open dead letter of a job that failed."""
    session.execute(
        "INSERT INTO dead_letters (id, job_id, path, run, tenant, workflow, state, reason, message, fingerprint,"
        " failure, created_at) VALUES (:id, :job_id, :path, :run, :tenant, :workflow, 'open', :reason, :message,"
        " :fingerprint, :failure, {now})",
        {
            "id": letter_id,
            "job_id": job.id,
            "path": path,
            "run": job.run,
            "tenant": job.tenant,
            "workflow": job.workflow,
            "reason": failure.kind.value,
            "message": failure.message,
            "fingerprint": fingerprint(failure, agent),
            "failure": failure_text(failure),
        },
    )


def _letter(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "failure": json.loads(row["failure"])}


def letter(session: Session, letter_id: str, *, lock: bool = False) -> dict[str, Any] | None:
    row = session.one(
        "SELECT * FROM dead_letters WHERE id = :id " + ("{for_update}" if lock else ""), {"id": letter_id}
    )
    return None if row is None else _letter(row)


def letters(
    session: Session,
    *,
    tenant: str | None,
    state: str | None = "open",
    workflow: str | None = None,
    reason: str | None = None,
    fingerprint: str | None = None,
    created_after: float | None = None,
    created_before: float | None = None,
    job_id: JobId | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Newest first; ``before`` is the cursor."""
    wanted = LetterFilter(workflow, reason, fingerprint, created_after, created_before)
    own = {"tenant": tenant, "state": state, "job_id": job_id}
    where = [f"{name} = :{name}" for name, value in own.items() if value is not None] + wanted.where()
    if before is not None:
        where.append("id < :before")
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    values = {name: value for name, value in own.items() if value is not None} | wanted.given()
    if before is not None:
        values["before"] = before
    rows = session.rows(
        f"SELECT * FROM dead_letters {clause} ORDER BY id DESC LIMIT :limit", {**values, "limit": limit}
    )
    return [_letter(row) for row in rows]


def close_letter(session: Session, letter_id: str, state: str, by: str, note: str | None = None) -> bool:
    """open → replayed or discarded; False when it is not open any more."""
    return (
        session.execute(
            "UPDATE dead_letters SET state = :state, closed_at = {now}, closed_by = :by, note = :note"
            " WHERE id = :id AND state = 'open'",
            {"id": letter_id, "state": state, "by": by, "note": note},
        ).rowcount
        == 1
    )


def close_beside(session: Session, job_id: JobId, under: str) -> None:
    """Letters that begin with ``under`` go with the replay of their job."""
    session.execute(
        "UPDATE dead_letters SET state = 'replayed', closed_at = {now}, closed_by = 'replay of the job'"
        " WHERE job_id = :job AND state = 'open' AND substr(path, 1, :length) = :under",
        {"job": job_id, "under": under, "length": len(under)},
    )


def reopen_letter(session: Session, letter_id: str) -> bool:
    """discarded → open; False when it is not discarded."""
    return (
        session.execute(
            "UPDATE dead_letters SET state = 'open', closed_at = NULL, closed_by = NULL, note = NULL"
            " WHERE id = :id AND state = 'discarded'",
            {"id": letter_id},
        ).rowcount
        == 1
    )


def open_letters(session: Session) -> dict[str, int]:
    rows = session.rows("SELECT workflow, count(*) AS n FROM dead_letters WHERE state = 'open' GROUP BY workflow")
    return {row["workflow"]: row["n"] for row in rows}


# ---------------------------------------------------------------------------------------------------------------
# quarantine


def quarantine(session: Session, row_id: str, queue: str, reason: str, raw: bytes) -> None:
    """Keeps the raw bytes (at most 1 MiB) of a message that cannot be read."""
    session.execute(
        "INSERT INTO quarantine (id, queue, reason, raw, at) VALUES (:id, :queue, :reason, :raw, {now})",
        {"id": row_id, "queue": queue, "reason": reason, "raw": raw[: 1024 * 1024]},
    )


def quarantined(session: Session, limit: int = 50, before: str | None = None) -> list[dict[str, Any]]:
    """Newest first, without the bytes; ``before`` is the cursor."""
    return session.rows(
        "SELECT id, queue, reason, length(raw) AS size, at FROM quarantine"
        f" {'WHERE id < :before' if before is not None else ''} ORDER BY id DESC LIMIT :limit",
        {"limit": limit} | ({"before": before} if before is not None else {}),
    )


def quarantined_message(session: Session, message_id: str) -> dict[str, Any] | None:
    return session.one("SELECT id, queue, reason, at, raw FROM quarantine WHERE id = :id", {"id": message_id})


def drop_quarantined(session: Session, message_id: str) -> bool:
    """False when somebody was quicker."""
    return session.execute("DELETE FROM quarantine WHERE id = :id", {"id": message_id}).rowcount == 1


# ---------------------------------------------------------------------------------------------------------------
# API keys


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a key stands for."""

    key_id: str
    name: str
    tenant: str
    role: str


def hash_secret(secret: str) -> str:
    """Keys are 192 random bits, so one SHA-256 is enough: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).hexdigest()


def add_key(session: Session, caller: Caller, secret: str) -> None:
    session.execute(
        "INSERT INTO api_keys (id, hash, name, tenant, role, created_at)"
        " VALUES (:id, :hash, :name, :tenant, :role, {now})",
        {
            "id": caller.key_id,
            "hash": hash_secret(secret),
            "name": caller.name,
            "tenant": caller.tenant,
            "role": caller.role,
        },
    )


def caller_of(session: Session, secret: str) -> Caller | None:
    row = session.one(
        "SELECT id, name, tenant, role FROM api_keys WHERE hash = :hash AND revoked_at IS NULL",
        {"hash": hash_secret(secret)},
    )
    return None if row is None else Caller(row["id"], row["name"], row["tenant"], row["role"])


def keys(session: Session) -> list[dict[str, Any]]:
    return session.rows("SELECT id, name, tenant, role, created_at, revoked_at FROM api_keys ORDER BY id")


def revoke_key(session: Session, key_id: str) -> bool:
    return (
        session.execute(
            "UPDATE api_keys SET revoked_at = {now} WHERE id = :id AND revoked_at IS NULL", {"id": key_id}
        ).rowcount
        == 1
    )
