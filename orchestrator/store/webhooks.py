"""Webhooks: who is owed which events. Every write after a claim names the claim's fence; losing is normal.

A settle that writes an event moves ``upto`` and makes the row due (``changes.py``). A sender claims due rows for some
seconds, sends in order of the events, and moves ``position``. If it dies in between, the row falls due again by itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.events import Event
from orchestrator.domain.ids import JobId
from orchestrator.domain.plan import JobRow
from orchestrator.domain.webhook import Webhook
from orchestrator.store import history
from orchestrator.store.changes import Row
from orchestrator.store.session import Session

#: Events sent under one claim at most; then the others have their turn.
PAGE = 20


@dataclass(frozen=True, slots=True)
class Claim:
    """A webhook that is ours to send to until its claim runs out, with the first of the events it is owed."""

    job_id: JobId
    url: str
    host: str
    secret: str = field(repr=False)
    fence: int
    #: The newest event it is owed.
    upto: int
    failures: int
    #: Seconds.
    failing_for: float
    events: list[Event]


def insert(session: Session, job: JobRow, webhook: Webhook, host: str, secret: str) -> None:
    """Of a job that has its first event."""
    owed = bool(owing(job, [1], ["job.submitted"]))
    session.execute(
        "INSERT INTO webhooks (job_id, url, host, secret, position, upto, state, fence, failures, due_at)"
        f" VALUES (:job, :url, :host, :secret, 0, :upto, 'active', 0, 0, {'{now}' if owed else 'NULL'})",
        {"job": job.id, "url": webhook.url, "host": host, "secret": secret, "upto": 1 if owed else 0},
    )


def owed(job: JobRow, events: Sequence[Event]) -> list[Row]:
    """For ``Changes.webhooks``: that the job's webhook is to be told of some of ``events``."""
    return owing(job, [event.number for event in events], [event.type.value for event in events])


def owing(job: JobRow, numbers: Sequence[int], types: Sequence[str]) -> list[Row]:
    if job.webhook is None:
        return []
    wanted = job.webhook.split()
    newest = max((number for number, kind in zip(numbers, types, strict=True) if kind in wanted), default=None)
    return [] if newest is None else [{"job_id": job.id, "upto": newest}]


def due(session: Session, full: Collection[str], limit: int) -> list[tuple[JobId, str]]:
    """Webhooks to be sent to now, with their hosts, the longest due first; none of the hosts in ``full``."""
    rows = session.rows(
        f"SELECT job_id, host FROM webhooks WHERE due_at <= {{now}} AND NOT {session.dialect.any_of('host', 'full')}"
        " ORDER BY due_at LIMIT :limit",
        {"full": json.dumps(sorted(full)), "limit": limit},
    )
    return [(JobId(row["job_id"]), row["host"]) for row in rows]


def claim(session: Session, ids: Collection[JobId], seconds: float) -> list[Claim]:
    """Takes those of ``ids`` that are still due; what another sender holds is passed over."""
    chosen = f"SELECT job_id FROM webhooks WHERE {session.dialect.any_of('job_id', 'ids')} AND due_at <= {{now}}"
    rows = session.rows(
        "UPDATE webhooks SET fence = fence + 1, due_at = {now} + :seconds"
        f" WHERE job_id IN ({chosen} AND state = 'active' {{skip_locked}}) RETURNING *, {{now}} AS now",
        {"ids": json.dumps(sorted(ids)), "seconds": seconds},
    )
    return [_claim(session, row) for row in rows]


def _claim(session: Session, row: Mapping[str, Any]) -> Claim:
    wanted = session.value("SELECT webhook FROM jobs WHERE id = :job", {"job": row["job_id"]}).split()
    failing_since = row["failing_since"]
    return Claim(
        JobId(row["job_id"]),
        row["url"],
        row["host"],
        row["secret"],
        row["fence"],
        row["upto"],
        row["failures"],
        0.0 if failing_since is None else row["now"] - failing_since,
        history.events_between(session, row["job_id"], row["position"], row["upto"], wanted, PAGE),
    )


def delivered(session: Session, mine: Claim, number: int, *, keep: float | None) -> bool:
    """Moves the position to event ``number``. ``keep``: the claim goes on for so many seconds; else what it is owed by
    now is due at once. False: the claim is lost, send no more."""
    return _write(
        session,
        mine,
        "position = :number, failures = 0, failing_since = NULL, error = NULL, delivered_at = {now},"
        " due_at = CASE WHEN :kept = 1 THEN {now} + :keep WHEN upto > :number THEN {now} END",
        {"number": number, "keep": keep or 0.0, "kept": int(keep is not None)},
        "position < :number",
    )


def failed(session: Session, mine: Claim, delay: float, error: str) -> bool:
    """Tries again ``delay`` seconds from now."""
    return _write(
        session,
        mine,
        "failures = failures + 1, failing_since = coalesce(failing_since, {now}), error = :error,"
        " due_at = {now} + :delay",
        {"delay": delay, "error": error},
    )


def stop(session: Session, mine: Claim, error: str) -> bool:
    """Sends no more until somebody resumes it."""
    return _write(
        session, mine, "state = 'stopped', failures = failures + 1, error = :error, due_at = NULL", {"error": error}
    )


def _write(session: Session, mine: Claim, sets: str, values: Mapping[str, Any], more: str = "state = 'active'") -> bool:
    where = f"job_id = :job AND fence = :fence AND {more}"
    found = session.execute(
        f"UPDATE webhooks SET {sets} WHERE {where}", {**values, "job": mine.job_id, "fence": mine.fence}
    )
    return found.rowcount == 1


def get(session: Session, job_id: JobId) -> dict[str, Any] | None:
    return session.one("SELECT * FROM webhooks WHERE job_id = :job", {"job": job_id})


def resume(session: Session, job_id: JobId) -> bool:
    """Tries again at once what was stopped or waits for its next try; False when neither is so."""
    return (
        session.execute(
            "UPDATE webhooks SET state = 'active', failures = 0, failing_since = NULL, fence = fence + 1,"
            " due_at = CASE WHEN upto > position THEN {now} END"
            " WHERE job_id = :job AND (state = 'stopped' OR failures > 0)",
            {"job": job_id},
        ).rowcount
        == 1
    )
