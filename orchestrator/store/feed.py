"""What to publish next: the backlog lives here, in SQL, and brokers stay shallow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.store import breakers, tables
from orchestrator.store.changes import STATE
from orchestrator.store.dialect import Dialect
from orchestrator.store.session import Session, Statement

_BACKLOG = "queue = :queue AND state = 'ready' AND dispatched_at IS NULL"
#: The same, for ix_steps_oldest.
_BACKLOG_BY_AGE = f"queue = :queue AND state = 'ready' AND {tables.UNRUNG}"
#: More than any queue holds.
UNLIMITED = 1_000_000
_REF = "job_id, path, epoch, queue, parent, kind, agent, limited"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A ready step that has not been rung for."""

    ref: StepRef
    tenant: str
    agent: str | None
    limited: bool


def _ref(row: Mapping[str, Any]) -> StepRef:
    group = StepPath(row["parent"]) if row["kind"] == "agent" and row["parent"] is not None else None
    return StepRef(JobId(row["job_id"]), StepPath(row["path"]), row["epoch"], QueueName(row["queue"]), group)


Markers = Mapping[QueueName, int]

#: Asks for the newest marker of each queue, the stamp of what is dispatched now; ``markers`` reads the answer.
ASKING_FOR_MARKERS: Statement = ("SELECT queue, marker FROM queues", {})


def markers(rows: Iterable[Mapping[str, Any]]) -> Markers:
    return {QueueName(row["queue"]): row["marker"] for row in rows}


def asking_outstanding(queue: QueueName) -> Statement:
    """How many are published and not yet claimed: one row's ``n``."""
    sql = "SELECT count(*) AS n FROM steps WHERE queue = :queue AND state = 'ready' AND dispatched_at IS NOT NULL"
    return sql, {"queue": queue}


def asking_for_backlog(queue: QueueName) -> Statement:
    """One row if ``queue`` has a backlog, else none."""
    return f"SELECT 1 AS one FROM steps WHERE {_BACKLOG} LIMIT 1", {"queue": queue}


def asking_for_tenants(queue: QueueName) -> Statement:
    """The tenants with a backlog, by skipping from one to the next in the index: each row's ``tenant``."""
    first = f"SELECT tenant FROM steps WHERE {_BACKLOG} ORDER BY tenant LIMIT 1"
    after = f"SELECT tenant FROM steps WHERE {_BACKLOG} AND tenant > t.tenant ORDER BY tenant LIMIT 1"
    sql = (
        f"WITH RECURSIVE t(tenant) AS (SELECT * FROM ({first}) f UNION ALL SELECT ({after}) FROM t"
        " WHERE t.tenant IS NOT NULL) SELECT tenant FROM t WHERE tenant IS NOT NULL"
    )
    return sql, {"queue": queue}


def asking_for_candidates(
    dialect: Dialect,
    queue: QueueName,
    tenant: str,
    limit: int,
    blocked: Iterable[str] = (),
    *,
    oldest: bool = False,
) -> Statement:
    """The tenant's next steps, by priority and then age (``oldest``: by age alone, so that nothing starves).

    ``candidates`` reads the answer.
    """
    backlog, order = (_BACKLOG_BY_AGE, "ready_at") if oldest else (_BACKLOG, "priority DESC, ready_at")
    sql = (
        f"SELECT {_REF}, tenant FROM steps WHERE {backlog} AND tenant = :tenant"
        f" AND (agent IS NULL OR NOT {dialect.any_of('agent', 'blocked')})"
        f" ORDER BY {order} LIMIT :limit " + "{skip_locked}"
    )
    return sql, {"queue": queue, "tenant": tenant, "limit": limit, "blocked": json.dumps(sorted(blocked))}


def candidates(rows: Iterable[Mapping[str, Any]]) -> list[Candidate]:
    return [Candidate(_ref(row), row["tenant"], row["agent"], bool(row["limited"])) for row in rows]


def ring(session: Session, refs: Sequence[StepRef], *, last: bool) -> None:
    """Marks steps dispatched, stamped with their queue's newest marker. Publish after the commit.

    ``last``: the transaction ends with it.
    """
    marked = "dispatched_at = {now}, mark = coalesce((SELECT marker FROM queues q WHERE q.queue = steps.queue), 0)"
    if refs:
        session.together(_updating_ready(session, refs, marked, "AND dispatched_at IS NULL"), last=last)


def unring(session: Session, refs: Sequence[StepRef]) -> None:
    """The publish failed: back to the backlog."""
    if refs:
        session.execute(*_updating_ready(session, refs, "dispatched_at = NULL, mark = NULL"))


def _updating_ready(session: Session, refs: Sequence[StepRef], what: str, where: str = "") -> Statement:
    """Sets ``what`` on those of ``refs`` that are still ready."""
    ordered = sorted(refs, key=lambda ref: (ref.job_id, ref.path))
    source, values = session.dialect.table(
        job=[ref.job_id for ref in ordered], path=[ref.path for ref in ordered], epoch=[ref.epoch for ref in ordered]
    )
    sql = (
        f"UPDATE steps SET {what} FROM {source} WHERE steps.job_id = v.job AND steps.path = v.path"
        f" AND steps.epoch = v.epoch AND steps.{STATE} = 'ready' {where}"
    )
    return sql, values


def queues_with_backlog(session: Session, older_than: float = 0.0) -> list[QueueName]:
    """Queues with ready, unrung steps older than so many seconds."""
    first = "SELECT queue FROM steps WHERE state = 'ready' AND dispatched_at IS NULL ORDER BY queue LIMIT 1"
    after = (
        "SELECT queue FROM steps WHERE state = 'ready' AND dispatched_at IS NULL AND queue > q.queue"
        " ORDER BY queue LIMIT 1"
    )
    rows = session.rows(
        f"WITH RECURSIVE q(queue) AS (SELECT * FROM ({first}) f UNION ALL SELECT ({after}) FROM q"
        " WHERE q.queue IS NOT NULL) SELECT queue FROM q WHERE queue IS NOT NULL AND EXISTS (SELECT 1 FROM steps s"
        " WHERE s.queue = q.queue AND s.state = 'ready' AND s.dispatched_at IS NULL AND s.ready_at <= {now} - :age)",
        {"age": older_than},
    )
    return [QueueName(row["queue"]) for row in rows]


def due_timers(session: Session, limit: int = 1000) -> list[QueueName]:
    """Retries whose time has come are ready again; answers the queues they wait in."""
    due = (
        "SELECT job_id, path FROM steps WHERE state = 'retrying' AND not_before <= {now}"
        " ORDER BY not_before LIMIT :limit {skip_locked}"
    )
    rows = session.rows(
        "UPDATE steps SET state = 'ready', ready_at = {now}, not_before = NULL, dispatched_at = NULL, mark = NULL"
        f" WHERE state = 'retrying' AND (job_id, path) IN ({due}) RETURNING queue",
        {"limit": limit},
    )
    return sorted({QueueName(row["queue"]) for row in rows})


# ---------------------------------------------------------------------------------------------------------------
# limits of agents


#: A tenant and one of its agents.
Limited = tuple[str, str]


@dataclass(slots=True)
class Allowance:
    """How many more steps may be published. Agents that share a half-open breaker share one."""

    left: int


@dataclass(slots=True)
class Allowances:
    """What each limited, paused or watched agent may still be given, over all workers. No entry: any number."""

    of: dict[Limited, list[Allowance]] = field(default_factory=dict)
    #: Agents with a breaker that is not closed.
    watched: set[Limited] = field(default_factory=set)

    def spent(self, key: Limited) -> bool:
        return any(allowance.left <= 0 for allowance in self.of.get(key, ()))

    def take(self, key: Limited) -> None:
        for allowance in self.of.get(key, ()):
            allowance.left -= 1

    def held(self) -> set[Limited]:
        """Agents that are given nothing more because of a breaker."""
        return {key for key in self.watched if self.spent(key)}


#: One row if any agent is metered, else none.
ASKING_WHETHER_LIMITED: Statement = ("SELECT 1 AS one FROM agent_limits LIMIT 1", {})
#: Locks the agents it asks for, so that no two feeds give out the same; ``allowances`` reads the answer.
ASKING_FOR_LIMITS: Statement = ("SELECT *, {now} AS now FROM agent_limits ORDER BY tenant, agent {for_update}", {})


def allowances(session: Session, limits: Sequence[Mapping[str, Any]]) -> Allowances:
    """What the feed that has locked ``limits`` may give out."""
    if not limits:
        return Allowances()
    busy = {
        (row["tenant"], row["agent"]): int(row["n"])
        for row in session.rows(
            "SELECT tenant, agent, count(*) AS n FROM steps WHERE limited AND state IN ('ready','running')"
            " AND (state = 'running' OR dispatched_at IS NOT NULL) GROUP BY tenant, agent"
        )
    }
    out = Allowances()
    for row in limits:
        key = (row["tenant"], row["agent"])
        left = UNLIMITED
        if row["concurrency"] is not None:
            left = max(0, row["concurrency"] - busy.get(key, 0))
        if row["rate"] is not None:
            left = min(left, int(_tokens(row)))
        if row["paused_until"] is not None and row["paused_until"] > row["now"]:
            left = 0
        if left < UNLIMITED:
            out.of[key] = [Allowance(left)]
    watched = [row for row in limits if row["breaker"]]
    if watched:
        _hold_back(out, watched, breakers.not_closed(session), busy)
    return out


def _hold_back(
    out: Allowances, watched: Sequence[Mapping[str, Any]], until: Mapping[Limited, float], busy: Mapping[Limited, int]
) -> None:
    """Nothing for an agent whose breaker is open; half-open, one call at a time, whichever agent's."""
    shared: dict[Limited, Allowance] = {}
    for row in watched:
        key = (row["tenant"], row["agent"])
        for name in {row["agent"], row["provider"]} - {None}:
            of = (row["tenant"], name)
            if of in until:
                one = shared.setdefault(of, Allowance(1 if until[of] <= row["now"] else 0))
                one.left -= busy.get(key, 0)
                out.of.setdefault(key, []).append(one)
                out.watched.add(key)


def _tokens(row: Mapping[str, Any]) -> float:
    """A token bucket that holds one second's worth, at least one."""
    full = max(1.0, row["rate"])
    return float(min(full, row["tokens"] + (row["now"] - row["refilled_at"]) * row["rate"]))


def spend_tokens(session: Session, used: Mapping[Limited, int]) -> None:
    least = "least" if session.postgres else "min"
    greatest = "greatest" if session.postgres else "max"
    session.many(
        f"UPDATE agent_limits SET tokens = {least}({greatest}(1.0, rate),"
        " tokens + ({now} - refilled_at) * rate) - :n,"
        " refilled_at = {now} WHERE tenant = :tenant AND agent = :agent AND rate IS NOT NULL",
        [{"tenant": tenant, "agent": agent, "n": n} for (tenant, agent), n in sorted(used.items())],
    )


def pause_agent(session: Session, tenant: str, agent: str, seconds: float) -> None:
    """No step of the tenant's ``agent`` is dispatched for ``seconds`` (it said 429)."""
    session.execute(
        "INSERT INTO agent_limits (tenant, agent, tokens, refilled_at, paused_until)"
        " VALUES (:tenant, :agent, 1, {now}, {now} + :seconds)"
        " ON CONFLICT (tenant, agent) DO UPDATE SET paused_until = excluded.paused_until"
        " WHERE coalesce(agent_limits.paused_until, 0) < excluded.paused_until",
        {"tenant": tenant, "agent": agent, "seconds": seconds},
    )


# ---------------------------------------------------------------------------------------------------------------
# markers and lost messages


def next_marker(session: Session, queue: QueueName) -> int:
    """Numbers the next marker of ``queue``. What is dispatched from now on bears it; send it after the commit."""
    return int(
        session.value(
            "INSERT INTO queues (queue, marker, seen, sent_at) VALUES (:queue, 1, 0, {now})"
            " ON CONFLICT (queue) DO UPDATE SET marker = queues.marker + 1, sent_at = {now} RETURNING marker",
            {"queue": queue},
        )
    )


def marker_seen(session: Session, queue: QueueName, number: int) -> None:
    session.execute(
        "UPDATE queues SET seen = :number, seen_at = {now} WHERE queue = :queue AND seen < :number",
        {"queue": queue, "number": number},
    )


def queues_rung(session: Session) -> list[QueueName]:
    """Queues with steps published and unclaimed: only these need markers."""
    rows = session.rows("SELECT DISTINCT queue FROM steps WHERE state = 'ready' AND dispatched_at IS NOT NULL")
    return [QueueName(row["queue"]) for row in rows]


def markers_seen(session: Session) -> dict[QueueName, int]:
    """The greatest marker that has come out of each queue."""
    return {QueueName(row["queue"]): row["seen"] for row in session.rows("SELECT queue, seen FROM queues")}


def forget_lost(session: Session, queue: QueueName, seen: int, grace: float, limit: int) -> int:
    """Back to the backlog: ready steps of ``queue`` stamped below a marker that was seen ``grace`` seconds ago.

    A step stamped m was published before marker m + 1 was; the queue is a FIFO, so a seen marker above m means the
    step's message was taken before it, and what was taken is claimed or lost. Each repeat doubles its own wait.
    """
    lost = (
        "SELECT s.job_id, s.path FROM steps s WHERE s.queue = :queue AND s.state = 'ready'"
        " AND s.dispatched_at IS NOT NULL AND s.mark < :seen"
        " AND s.dispatched_at <= {now} - :grace * (1 << CASE WHEN s.redispatches > 10 THEN 10 ELSE s.redispatches END)"
        " LIMIT :limit"
    )
    return session.execute(
        "UPDATE steps SET dispatched_at = NULL, mark = NULL, redispatches = redispatches + 1"
        f" WHERE state = 'ready' AND dispatched_at IS NOT NULL AND (job_id, path) IN ({lost})",
        {"queue": queue, "seen": seen, "grace": grace, "limit": limit},
    ).rowcount


def forget_all(session: Session) -> list[QueueName]:
    """The broker lost its data: every published, unclaimed step is in the backlog again."""
    rows = session.rows(
        "UPDATE steps SET dispatched_at = NULL, mark = NULL, redispatches = redispatches + 1"
        " WHERE state = 'ready' AND dispatched_at IS NOT NULL RETURNING queue"
    )
    return [QueueName(row["queue"]) for row in rows]


def gauges(session: Session) -> list[dict[str, Any]]:
    """Per queue: ready, running, and the age of the oldest ready step in seconds."""
    return session.rows(
        "SELECT queue, sum(CASE WHEN state = 'ready' THEN 1 ELSE 0 END) AS ready,"
        " sum(CASE WHEN state = 'running' THEN 1 ELSE 0 END) AS running,"
        " max(CASE WHEN state = 'ready' THEN {now} - ready_at END) AS oldest"
        " FROM steps WHERE state IN ('ready', 'running') GROUP BY queue"
    )
