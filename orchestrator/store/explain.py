"""What the answer to "why does this job not move?" is made of: five statements, whatever the job's size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.domain.outcome import Failure
from orchestrator.domain.plan import JobRow
from orchestrator.domain.states import STEP_TERMINAL
from orchestrator.store.rows import JOB_SELECT, failure_of, job_row
from orchestrator.store.session import Session

_ENDED = ",".join(f"'{state.value}'" for state in sorted(STEP_TERMINAL))
#: What makes two steps wait for the same thing.
_ALIKE = "state, queue, agent, lease_owner, held, CASE WHEN held THEN parent END, CASE WHEN {rung} THEN 1 ELSE 0 END"
_RUNG = "dispatched_at IS NOT NULL"
_SHOWN = (
    "path, ref, kind, parent, state, queue, agent, limited, held, priority, tries, attempt, lease_owner, lease_until,"
    " not_before, ready_at, started_at, dispatched_at, mark, redispatches, failure, stopping"
)


@dataclass(frozen=True, slots=True)
class Alike:
    """Steps of a job that wait for the same thing: how many, and the one that waits longest."""

    count: int
    path: str
    ref: str
    kind: str
    parent: str | None
    state: str
    queue: str
    agent: str | None
    limited: bool
    held: bool
    priority: int
    tries: int
    attempt: int
    lease_owner: str | None
    lease_until: float | None
    not_before: float | None
    ready_at: float | None
    started_at: float | None
    dispatched_at: float | None
    mark: int | None
    redispatches: int
    failure: Failure | None
    stopping: str | None


def job_and_now(session: Session, job_id: JobId) -> tuple[JobRow, float] | None:
    row = session.one(f"SELECT {JOB_SELECT}, {{now}} AS now FROM jobs j WHERE id = :id", {"id": job_id})
    return None if row is None else (job_row(row), float(row["now"]))


def letter_of(session: Session, job_id: JobId) -> dict[str, Any] | None:
    """The newest dead letter of a job."""
    return session.one("SELECT * FROM dead_letters WHERE job_id = :job ORDER BY run DESC LIMIT 1", {"job": job_id})


def unfinished(session: Session, job_id: JobId) -> list[Alike]:
    """The job's steps that have not ended, alike ones as one; steps that wait for others of the job are left out."""
    alike = _ALIKE.replace("{rung}", _RUNG)
    rows = session.rows(
        f"SELECT * FROM (SELECT {_SHOWN}, count(*) OVER (PARTITION BY {alike}) AS n, row_number() OVER"
        f" (PARTITION BY {alike} ORDER BY coalesce(not_before, started_at, ready_at), path) AS nth FROM steps"
        f" WHERE job_id = :job AND state NOT IN ({_ENDED}) AND (state <> 'waiting' OR kind = 'agent')"
        " AND (state <> 'pending' OR held)) s"
        " WHERE nth = 1 ORDER BY n DESC, path LIMIT 200",
        {"job": job_id},
    )
    return [
        Alike(
            **{
                **{name: row[name] for name in Alike.__dataclass_fields__ if name != "count"},
                "count": row["n"],
                "limited": bool(row["limited"]),
                "held": bool(row["held"]),
                "failure": failure_of(row["failure"]),
            }
        )
        for row in rows
    ]


def processes(session: Session) -> list[dict[str, Any]]:
    """Every process with a row, its ``age`` being the seconds since its last heartbeat."""
    rows = session.rows("SELECT *, {now} - heartbeat_at AS age FROM workers ORDER BY incarnation")
    return [{**row, "queues": json.loads(row["queues"])} for row in rows]


def queues(session: Session, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Per queue: ready and rung steps of everybody, the oldest's time, and its markers."""
    rows = session.rows(
        "SELECT s.queue, count(*) AS ready, sum(CASE WHEN s.dispatched_at IS NOT NULL THEN 1 ELSE 0 END) AS rung,"
        " min(s.ready_at) AS oldest, max(q.marker) AS marker, max(q.seen) AS seen, max(q.seen_at) AS seen_at"
        " FROM steps s LEFT JOIN queues q ON q.queue = s.queue WHERE s.state = 'ready'"
        f" AND {session.dialect.any_of('s.queue', 'names')} GROUP BY s.queue",
        {"names": json.dumps(sorted(set(names)))},
    )
    return {row["queue"]: row for row in rows}


def limits(session: Session, tenant: str, agents: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Per limited, paused or watched agent: its row, once for each job that uses it, the greatest user first.

    ``running``, ``rung``: the job's use of it. ``name``, ``until``, ``opened_at``, ``trip``: of the breaker that holds
    the agent back, if one does.
    """
    rows = session.rows(
        "SELECT l.agent, l.concurrency, l.rate, l.tokens, l.refilled_at, l.paused_until, u.job_id, u.running, u.rung,"
        " b.name, b.until, b.opened_at, b.trip FROM agent_limits l"
        " LEFT JOIN breakers b ON l.breaker AND b.until IS NOT NULL AND b.tenant = l.tenant"
        " AND (b.name = l.agent OR b.name = l.provider)"
        " LEFT JOIN (SELECT agent, job_id, sum(CASE WHEN state = 'running' THEN 1 ELSE 0 END) AS"
        " running, sum(CASE WHEN state = 'ready' THEN 1 ELSE 0 END) AS rung FROM steps WHERE limited AND state IN"
        " ('ready','running') AND (state = 'running' OR dispatched_at IS NOT NULL) AND tenant = :tenant"
        " GROUP BY agent, job_id) u ON u.agent = l.agent"
        f" WHERE l.tenant = :tenant AND {session.dialect.any_of('l.agent', 'agents')}"
        " ORDER BY l.agent, coalesce(b.until, 0) DESC, coalesce(u.running, 0) + coalesce(u.rung, 0) DESC",
        {"tenant": tenant, "agents": json.dumps(sorted(set(agents)))},
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["agent"], []).append(row)
    return found
