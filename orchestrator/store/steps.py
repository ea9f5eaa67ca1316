"""Steps: claim, load, write. Every UPDATE names the state and fence it expects and reports whether it won."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.ids import Incarnation, JobId, QueueName, StepPath, StepRef
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import StepRow
from orchestrator.domain.states import JOB_CLAIMABLE, STEP_TERMINAL, StepState
from orchestrator.store import changes, tables
from orchestrator.store.dialect import Dialect
from orchestrator.store.rows import STEP_SELECT, step_row, step_values, stored
from orchestrator.store.session import Session, Statement

_MOVING = ",".join(f"'{state.value}'" for state in sorted(JOB_CLAIMABLE))
_ENDED = ",".join(f"'{state.value}'" for state in sorted(STEP_TERMINAL))
_CLAIM_SET = (
    "state = 'running', attempt = s.attempt + 1, fence = s.fence + 1, begun = false, lease_owner = :owner,"
    " lease_until = {now} + :lease, started_at = {now}, first_started_at = coalesce(s.first_started_at, {now})"
)

_RUNG = "(NOT s.limited OR s.dispatched_at IS NOT NULL)"


def claim(
    session: Session, refs: Sequence[StepRef], owner: Incarnation, lease: float, ahead: int, *beside: Statement
) -> tuple[list[StepRow], list[StepRow], list[list[dict[str, Any]]]]:
    """Takes those of ``refs`` that are ready in the named epoch, in jobs that move; each gets a new fence and a lease.

    Answers them; all steps of the jobs that begin with it, as they were before, where they are no more than ``ahead``;
    and the rows of what is asked ``beside``. On PostgreSQL the transaction ends with it.

    A step of a metered agent is taken only while it is rung: what was called back (its breaker opened) stays.

    The attempt is counted here, so a step that kills its worker is counted too. Lock order: jobs, then steps.
    """
    ordered = sorted(set(refs), key=lambda r: (r.job_id, r.path))
    sql = "UPDATE jobs SET state = 'running', started_at = coalesce(started_at, {now}) WHERE state = 'queued'"
    names = json.dumps(sorted({ref.job_id for ref in ordered}))
    start = f"{sql} AND {session.dialect.any_of('id', 'jobs')} RETURNING id, steps", {"jobs": names}
    all_of = f"SELECT {STEP_SELECT} FROM steps s JOIN begun b ON s.job_id = b.id WHERE b.steps <= :ahead"
    if session.postgres:
        taking = _claim_postgres(session.dialect, ordered, owner, lease)
        beginning = f"WITH begun AS ({start[0]}) {all_of}", {**start[1], "ahead": ahead}
        begun, won, *answers = session.together(beginning, taking, *beside, last=True)
        return [step_row(row) for row in won], [step_row(row) for row in begun], answers
    short = [job["id"] for job in session.rows(*start) if job["steps"] <= ahead]
    sql = f"SELECT {STEP_SELECT} FROM steps s WHERE {session.dialect.any_of('s.job_id', 'jobs')}"
    begun = session.rows(sql, {"jobs": json.dumps(short)}) if short else []
    won = []
    for ref in ordered:
        won += session.rows(
            f"UPDATE steps AS s SET {_CLAIM_SET} WHERE job_id = :job AND path = :path AND epoch = :epoch"
            f" AND {changes.STATE} = 'ready' AND {_RUNG}"
            f" AND EXISTS (SELECT 1 FROM jobs j WHERE j.id = :job AND j.state IN ({_MOVING}))"
            " RETURNING *",
            {"job": ref.job_id, "path": ref.path, "epoch": ref.epoch, "owner": owner, "lease": lease},
        )
    return [step_row(row) for row in won], [step_row(row) for row in begun], session.together(*beside)


def _claim_postgres(dialect: Dialect, refs: Sequence[StepRef], owner: Incarnation, lease: float) -> Statement:
    source, values = dialect.table(
        job=[ref.job_id for ref in refs], path=[ref.path for ref in refs], epoch=[ref.epoch for ref in refs]
    )
    sql = (
        f"UPDATE steps AS s SET {_CLAIM_SET} FROM {source},"
        f" jobs j WHERE s.job_id = v.job AND s.path = v.path AND s.epoch = v.epoch AND s.{changes.STATE} = 'ready'"
        f" AND {_RUNG} AND j.id = v.job AND j.state IN ({_MOVING}) RETURNING {STEP_SELECT}"
    )
    return sql, {**values, "owner": owner, "lease": lease}


def unlocked(session: Session, keys: Iterable[tuple[JobId, StepPath]]) -> set[tuple[JobId, StepPath]]:
    """Those of ``keys`` whose job's row, and whose own, nobody else has locked at this moment (PostgreSQL)."""
    wanted = sorted(set(keys))
    found = session.rows(
        f"SELECT id FROM jobs WHERE {session.dialect.any_of('id', 'ids')} ORDER BY id " + "{skip_locked}",
        {"ids": json.dumps(sorted({job_id for job_id, _ in wanted}))},
    )
    free = {JobId(row["id"]) for row in found}
    rows = session.rows(
        "SELECT job_id, path FROM steps WHERE (job_id, path) IN"
        " (SELECT v.value->>0, v.value->>1 FROM jsonb_array_elements(CAST(:keys AS jsonb)) AS v(value))"
        " ORDER BY job_id, path {skip_locked}",
        {"keys": json.dumps([list(key) for key in wanted if key[0] in free])},
    )
    return {(JobId(row["job_id"]), StepPath(row["path"])) for row in rows}


def load(session: Session, job_id: JobId, paths: Iterable[StepPath]) -> list[StepRow]:
    return load_many(session, [(job_id, path) for path in paths])


def load_many(session: Session, keys: Iterable[tuple[JobId, StepPath]]) -> list[StepRow]:
    """The rows at ``keys``; those that do not exist are left out."""
    [rows] = session.together(loading(session, keys))
    return [step_row(row) for row in rows]


def loading(session: Session, keys: Iterable[tuple[JobId, StepPath]]) -> Statement:
    """What ``load_many`` asks; each row of the answer is a ``step_row``."""
    wanted = sorted(set(keys))
    source, values = session.dialect.table(job=[job_id for job_id, _ in wanted], path=[path for _, path in wanted])
    return f"SELECT {STEP_SELECT} FROM {source} JOIN steps s ON s.job_id = v.job AND s.path = v.path", values


def load_held(session: Session, job_id: JobId, parent: StepPath, limit: int) -> list[StepRow]:
    """The next members in line behind ``max_concurrency``."""
    [rows] = session.together(loading_held(job_id, parent, limit))
    return [step_row(row) for row in rows]


def loading_held(job_id: JobId, parent: StepPath, limit: int) -> Statement:
    """What ``load_held`` asks."""
    sql = f"SELECT {STEP_SELECT} FROM steps s WHERE job_id = :job AND parent = :parent AND held AND state = 'pending'"
    return f"{sql} ORDER BY seq LIMIT :limit", {"job": job_id, "parent": parent, "limit": limit}


def load_open_below(session: Session, job_id: JobId, top: StepPath) -> dict[StepPath, StepRow]:
    """Every step below ``top`` that has not ended, locked against claims (in path order)."""
    prefix = f"{top}/" if top else ""
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE job_id = :job AND path <> :top"
        f" AND substr(path, 1, :length) = :prefix AND state NOT IN ({_ENDED}) ORDER BY path " + "{for_update}",
        {"job": job_id, "top": top, "prefix": prefix, "length": len(prefix)},
    )
    return {StepPath(row["path"]): step_row(row) for row in rows}


def load_all(session: Session, job_id: JobId) -> list[StepRow]:
    """All of the job's work: every step but those that undo."""
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE job_id = :job AND kind <> 'undo' AND undoes IS NULL ORDER BY path "
        "{for_update}",
        {"job": job_id},
    )
    return [step_row(row) for row in rows]


def insert(session: Session, rows: Sequence[StepRow]) -> None:
    """Writes new rows; one that a crashed twin wrote before is left as it is."""
    changes.insert(session, tables.steps, [step_values(row) for row in rows], "ON CONFLICT (job_id, path) DO NOTHING")


def moved(rows: Iterable[StepRow], before: Mapping[StepPath, tuple[StepState, int]]) -> list[changes.Row]:
    """Changed rows of one job as ``changes.write`` takes them: each with the state and fence it was loaded with."""
    out = []
    for row in rows:
        state, fence = before[row.path]
        values = step_values(row)
        for name in changes.STEP_FIXED:
            del values[name]
        out.append({**values, "was_state": state.value, "was_fence": fence})
    return out


def make_ready(session: Session, job_id: JobId, parent: StepPath, limit: int) -> set[QueueName]:
    """Lets the first ``limit`` prepared members of a fan-out go; answers their queues."""
    rows = session.rows(
        "UPDATE steps SET state = 'ready', ready_at = {now} WHERE job_id = :job AND parent = :parent"
        " AND seq < :limit AND state = 'pending' AND NOT held RETURNING queue",
        {"job": job_id, "parent": parent, "limit": limit},
    )
    return {QueueName(row["queue"]) for row in rows}


def prepare(session: Session, opener: StepRow, rows: Sequence[StepRow]) -> bool:
    """Writes a chunk of a fan-out that is being opened; False when the opener's lease is lost."""
    held = session.value(
        "SELECT 1 FROM steps WHERE job_id = :job AND path = :path AND fence = :fence AND state = 'running'"
        " {for_update}",
        {"job": opener.job_id, "path": opener.path, "fence": opener.fence},
    )
    if held is not None:
        insert(session, rows)
    return held is not None


def mark_begun(session: Session, row: StepRow) -> bool:
    """Records that the call is about to be made; False when the lease is lost."""
    return (
        session.execute(
            "UPDATE steps SET begun = true WHERE job_id = :job AND path = :path AND fence = :fence"
            " AND state = 'running'",
            {"job": row.job_id, "path": row.path, "fence": row.fence},
        ).rowcount
        == 1
    )


def outputs(session: Session, keys: Iterable[tuple[JobId, StepPath]]) -> dict[tuple[JobId, StepPath], StepRow]:
    return {(row.job_id, row.path): row for row in load_many(session, keys)}


@dataclass(frozen=True, slots=True)
class Member:
    """What a join reads of a step below it."""

    path: StepPath
    seq: int
    state: StepState
    agent: str | None
    output: Stored | None

    @staticmethod
    def of(row: StepRow) -> Member:
        return Member(row.path, row.seq, row.state, row.agent, row.output)


def members(session: Session, job_id: JobId, parent: StepPath) -> list[Member]:
    """The steps directly below ``parent``, in any order."""
    rows = session.rows(
        "SELECT path, seq, state, agent, output, output_ref FROM steps WHERE job_id = :job AND parent = :parent",
        {"job": job_id, "parent": parent},
    )
    return [
        Member(
            StepPath(row["path"]),
            row["seq"],
            StepState(row["state"]),
            row["agent"],
            stored(row["output"], row["output_ref"]),
        )
        for row in rows
    ]


def gaps(session: Session, job_id: JobId, limit: int) -> list[StepRow]:
    """Calls that failed without failing the job, or ended with a default; by path."""
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE job_id = :job AND kind = 'agent' AND (state = 'failed' OR degraded)"
        " ORDER BY path LIMIT :limit",
        {"job": job_id, "limit": limit},
    )
    return [step_row(row) for row in rows]


def page(session: Session, job_id: JobId, after: StepPath | None, limit: int) -> list[StepRow]:
    rows = session.rows(
        f"SELECT {STEP_SELECT} FROM steps s WHERE job_id = :job AND path > :after ORDER BY path LIMIT :limit",
        {"job": job_id, "after": after if after is not None else "", "limit": limit},
    )
    return [step_row(row) for row in rows]


def delete(session: Session, job_id: JobId, paths: Iterable[StepPath]) -> None:
    """Takes steps out of a job that has ended: what opened them will be done again."""
    session.execute(
        f"DELETE FROM steps WHERE job_id = :job AND {session.dialect.any_of('path', 'paths')}",
        {"job": job_id, "paths": json.dumps(sorted(paths))},
    )
