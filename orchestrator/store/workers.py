"""Who is alive: incarnations, their heartbeats, and the leases they hold."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.ids import Incarnation, JobId, QueueName, StepPath
from orchestrator.domain.plan import StepRow
from orchestrator.store.rows import STEP_SELECT, step_row
from orchestrator.store.session import Session, Statement


@dataclass(frozen=True, slots=True)
class Registration:
    """One life of a process. ``lock`` is the advisory lock it holds while it lives (PostgreSQL)."""

    incarnation: Incarnation
    name: str
    role: str
    queues: tuple[str, ...]
    slots: int
    version: str
    lock: int | None = None


def lock_number(incarnation: str) -> int:
    """The advisory lock of an incarnation: 63 bits of its hash."""
    return int.from_bytes(hashlib.sha256(incarnation.encode()).digest()[:8], "big") >> 1


def register(session: Session, who: Registration) -> None:
    session.execute(
        "INSERT INTO workers (incarnation, name, role, queues, slots, lost_slots, busy, draining, version, lock,"
        " started_at, heartbeat_at) VALUES (:incarnation, :name, :role, :queues, :slots, 0, 0, false, :version, :lock,"
        " {now}, {now}) ON CONFLICT (incarnation) DO NOTHING",
        {
            "incarnation": who.incarnation,
            "name": who.name,
            "role": who.role,
            "queues": json.dumps(who.queues),
            "slots": who.slots,
            "version": who.version,
            "lock": who.lock,
        },
    )


def heartbeat(session: Session, who: Incarnation, *, busy: int, lost_slots: int, draining: bool) -> bool:
    """Says "alive"; False when the row is gone (it was declared dead, or the database is another one)."""
    return (
        session.execute(
            "UPDATE workers SET heartbeat_at = {now}, busy = :busy, lost_slots = :lost, draining = :draining"
            " WHERE incarnation = :who",
            {"who": who, "busy": busy, "lost": lost_slots, "draining": draining},
        ).rowcount
        == 1
    )


def leave(session: Session, who: Incarnation) -> None:
    session.execute("DELETE FROM workers WHERE incarnation = :who", {"who": who})


def live(session: Session, within: float = 10.0) -> list[dict[str, Any]]:
    """Processes heard of within so many seconds."""
    [rows] = session.together(asking_live(within))
    return live_of(rows)


def asking_live(within: float = 10.0) -> Statement:
    """What ``live`` asks; ``live_of`` reads the answer."""
    return "SELECT * FROM workers WHERE heartbeat_at > {now} - :within ORDER BY incarnation", {"within": within}


def live_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for row in rows:
        row["queues"] = json.loads(row["queues"])
    return rows


def serving(alive: Iterable[Mapping[str, Any]]) -> Counter[QueueName]:
    """How many of the processes take work from each queue."""
    return Counter(QueueName(queue) for row in alive if row["slots"] and not row["draining"] for queue in row["queues"])


def slots(session: Session, queue: QueueName, within: float = 10.0) -> int:
    return sum(
        max(0, row["slots"] - row["lost_slots"])
        for row in live(session, within)
        if queue in row["queues"] and not row["draining"]
    )


def silent(session: Session, after: float) -> list[dict[str, Any]]:
    """Processes not heard of for ``after`` seconds."""
    return session.rows("SELECT * FROM workers WHERE heartbeat_at <= {now} - :after", {"after": after})


def lock_is_free(session: Session, number: int) -> bool:
    """Whether nobody holds the advisory lock (PostgreSQL only); the try is given back with the transaction."""
    return bool(session.value("SELECT pg_try_advisory_xact_lock(:number)", {"number": number}))


# ---------------------------------------------------------------------------------------------------------------
# leases


def renew(session: Session, who: Incarnation, lease: float) -> list[tuple[JobId, StepPath, int]]:
    """Extends every lease of ``who``; answers what it owns: (job, path, fence).

    A row that somebody has locked is passed over: the others' leases must not end with its.
    """
    mine = "lease_owner = :who AND state = 'running'"
    if session.postgres:
        sql = (
            f"WITH free AS (SELECT job_id, path FROM steps WHERE {mine} {{skip_locked}}), renewed AS (UPDATE steps s"
            " SET lease_until = {now} + :lease FROM free WHERE s.job_id = free.job_id AND s.path = free.path)"
            f" SELECT job_id, path, fence FROM steps WHERE {mine}"
        )
    else:
        sql = f"UPDATE steps SET lease_until = {{now}} + :lease WHERE {mine} RETURNING job_id, path, fence"
    rows = session.rows(sql, {"who": who, "lease": lease})
    return [(JobId(r["job_id"]), StepPath(r["path"]), r["fence"]) for r in rows]


def asked_to_stop(session: Session, who: Incarnation) -> list[tuple[JobId, StepPath, int]]:
    """Running steps of ``who`` that somebody wants stopped: (job, path, fence)."""
    rows = session.rows(
        "SELECT job_id, path, fence FROM steps WHERE lease_owner = :who AND state = 'running' AND stopping IS NOT NULL",
        {"who": who},
    )
    return [(JobId(r["job_id"]), StepPath(r["path"]), r["fence"]) for r in rows]


def held_by(session: Session, who: Incarnation) -> list[StepRow]:
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE lease_owner = :who AND state = 'running'", {"who": who}
    )
    return [step_row(row) for row in rows]


def expired(session: Session, limit: int) -> list[StepRow]:
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE state = 'running' AND lease_until <= {{now}} ORDER BY lease_until"
        " LIMIT :limit",
        {"limit": limit},
    )
    return [step_row(row) for row in rows]


# ---------------------------------------------------------------------------------------------------------------
# duties


def hold_duty(session: Session, name: str, holder: str, seconds: float) -> bool:
    """Takes or keeps the lease of a scheduler duty: leadership saves work, correctness never rests on it."""
    return (
        session.execute(
            "INSERT INTO duties (name, holder, until) VALUES (:name, :holder, {now} + :seconds)"
            " ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until"
            " WHERE duties.until <= {now} OR duties.holder = excluded.holder",
            {"name": name, "holder": holder, "seconds": seconds},
        ).rowcount
        == 1
    )


def drop_duties(session: Session, holder: str) -> None:
    session.execute("UPDATE duties SET until = 0 WHERE holder = :holder", {"holder": holder})


def note(session: Session, name: str) -> str | None:
    """A small fact that the schedulers share, such as the broker's epoch."""
    found = session.value("SELECT value FROM duties WHERE name = :name", {"name": name})
    return None if found is None else str(found)


def write_note(session: Session, name: str, value: str) -> None:
    session.execute(
        "INSERT INTO duties (name, until, value) VALUES (:name, 0, :value)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        {"name": name, "value": value},
    )
