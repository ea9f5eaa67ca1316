"""Ten thousand dead letters without ten thousand failures: one job that failed for real, copied row by row."""

from __future__ import annotations

from orchestrator.domain.ids import JobId
from orchestrator.store import tables
from orchestrator.store.session import Session

#: Tables with a job's rows, in the order in which their keys allow.
_OF_A_JOB = ("steps", "attempts", "events", "dead_letters")


def copy_failed(session: Session, job: JobId, count: int, *, kinds: int = 1) -> None:
    """Adds ``count`` copies of a failed job; their letters have ``kinds`` fingerprints in turn."""
    numbers = (
        f"generate_series(1, {count}) AS n(n)"
        if session.postgres
        else f"(WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {count}) SELECT n FROM r) AS n"
    )
    text = "lpad(n.n::text, 8, '0')" if session.postgres else "printf('%08d', n.n)"
    for name in ("jobs", *_OF_A_JOB):
        columns = [column.name for column in tables.metadata.tables[name].columns]
        key = "id" if name == "jobs" else "job_id"
        own = {key: f"t.{key} || '-' || {text}"}
        if name == "dead_letters":
            own |= {"id": f"t.id || '-' || {text}", "fingerprint": f"'kind-' || (n.n % {kinds})"}
        chosen = ", ".join(own.get(column, f"t.{column}") for column in columns)
        session.execute(
            f"INSERT INTO {name} ({', '.join(columns)}) SELECT {chosen} FROM {name} t, {numbers} WHERE t.{key} = :job",
            {"job": job},
        )
    if session.postgres:
        session.execute("ANALYZE")
