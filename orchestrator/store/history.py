"""What happened: events (gap-free per job), attempts (append-only), and the counters derived from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import JobRow
from orchestrator.domain.result import AttemptRecord
from orchestrator.store import changes, tables
from orchestrator.store.rows import failure_text, inline, ref
from orchestrator.store.session import Session

#: A series and its labels, sorted.
CounterKey = tuple[str, tuple[tuple[str, str], ...]]
Counts = Mapping[CounterKey, float]


def event_rows(events: Sequence[Event]) -> list[changes.Row]:
    return [
        {
            "job_id": event.job_id,
            "number": event.number,
            "run": event.run,
            "type": event.type.value,
            "path": event.path,
            "at": event.at,
            "data": json.dumps(event.data, ensure_ascii=False),
        }
        for event in events
    ]


def append_events(session: Session, events: Sequence[Event]) -> None:
    changes.insert(session, tables.events, event_rows(events))


def events_after(session: Session, job_id: JobId, number: int, limit: int) -> list[Event]:
    rows = session.rows(
        "SELECT number, run, type, path, at, data FROM events WHERE job_id = :job AND number > :number"
        " ORDER BY number LIMIT :limit",
        {"job": job_id, "number": number, "limit": limit},
    )
    return [_event(job_id, row) for row in rows]


def events_between(
    session: Session, job_id: JobId, after: int, upto: int, types: Collection[str], limit: int
) -> list[Event]:
    """The first events of these types with numbers above ``after``, up to and with ``upto``."""
    rows = session.rows(
        "SELECT number, run, type, path, at, data FROM events WHERE job_id = :job AND number > :after"
        f" AND number <= :upto AND {session.dialect.any_of('type', 'types')} ORDER BY number LIMIT :limit",
        {"job": job_id, "after": after, "upto": upto, "types": json.dumps(sorted(types)), "limit": limit},
    )
    return [_event(job_id, row) for row in rows]


def _event(job_id: JobId, row: Mapping[str, Any]) -> Event:
    return Event(
        job_id,
        row["number"],
        EventType(row["type"]),
        None if row["path"] is None else StepPath(row["path"]),
        json.loads(row["data"]),
        row["run"],
        row["at"],
    )


def attempt_rows(job_id: JobId, records: Sequence[AttemptRecord], now: float) -> list[changes.Row]:
    return [
        {
            "job_id": job_id,
            "path": record.path,
            "epoch": record.epoch,
            "attempt": record.attempt,
            "agent": record.agent,
            "generation": record.generation,
            "worker": record.worker,
            "started_at": record.started_at,
            "ended_at": now,
            "outcome": record.outcome,
            "failure": failure_text(record.failure),
            "output": inline(record.output),
            "output_ref": ref(record.output),
            "model": record.usage.model,
            "input_tokens": record.usage.input_tokens,
            "output_tokens": record.usage.output_tokens,
            "cost_usd": record.usage.cost_usd,
            "changed": json.dumps(record.changed, ensure_ascii=False) if record.changed else None,
        }
        for record in records
    ]


def attempts_of(session: Session, job_id: JobId, path: StepPath | None = None) -> list[dict[str, Any]]:
    clause = "" if path is None else " AND path = :path"
    rows = session.rows(
        f"SELECT * FROM attempts WHERE job_id = :job{clause} ORDER BY path, epoch, attempt",
        {"job": job_id, "path": path} if path is not None else {"job": job_id},
    )
    for row in rows:
        row["failure"] = json.loads(row["failure"]) if row["failure"] else None
        row["changed"] = json.loads(row["changed"]) if row["changed"] else None
    return rows


def keep_outputs(session: Session, job_id: JobId, paths: Iterable[StepPath]) -> None:
    """Copies the results of ``paths`` to the attempts that made them, before the steps are done again."""
    session.execute(
        "UPDATE attempts SET output = s.output, output_ref = s.output_ref FROM steps s WHERE attempts.job_id = :job"
        " AND attempts.outcome = 'succeeded' AND s.job_id = :job AND s.path = attempts.path"
        f" AND s.epoch = attempts.epoch AND {session.dialect.any_of('s.path', 'paths')}",
        {"job": job_id, "paths": json.dumps(sorted(paths))},
    )


def count_rows(process: str, counts: Counts) -> list[changes.Row]:
    """This process's own counter rows, to be added to: no other writer touches them."""
    return [
        {"process": process, "series": series, "labels": json.dumps(dict(labels)), "value": float(value)}
        for (series, labels), value in sorted(counts.items())
        if value
    ]


def add_counts(session: Session, process: str, counts: Counts) -> None:
    changes.write(session, changes.Changes(counts=count_rows(process, counts)))


def totals(session: Session) -> list[tuple[str, dict[str, str], float]]:
    """Every counter, summed over processes, those that are gone included: it never falls."""
    rows = session.rows("SELECT series, labels, sum(value) AS value FROM rollups GROUP BY series, labels")
    return [(row["series"], json.loads(row["labels"]), float(row["value"])) for row in rows]


def run_began(session: Session, job: JobRow) -> float | None:
    """When the job's present run began: its last reopening, or the submit."""
    reopened = session.value(
        "SELECT max(at) FROM events WHERE job_id = :job AND type = :type",
        {"job": job.id, "type": EventType.JOB_REOPENED.value},
    )
    return job.created_at if reopened is None else float(reopened)
