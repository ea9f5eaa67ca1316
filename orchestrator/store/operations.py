"""Dead letters in bulk: filters, groups, and the rows of the bulk replays that run over them.

A replay's candidates are found by state (open, matching, older than the operation, not yet dealt with by it), never by
a cursor or a list: whatever dies, what is left is what is still open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.domain.ids import JobId, StepPath

if TYPE_CHECKING:  # the filter is also the shell's, which over HTTP needs no SQL
    from orchestrator.store.session import Session

#: The tenant of an operation over all of them.
EVERYONE: Final = "*"
#: Seconds of work the token bucket holds at most: what a scheduler that was away may catch up on at once.
BURST_SECONDS: Final = 5.0
#: Groups answered at once.
MOST_GROUPS: Final = 1000


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters; None is any. Times are seconds since the epoch, from (inclusive) and until (exclusive)."""

    workflow: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    created_after: float | None = None
    created_before: float | None = None

    @property
    def empty(self) -> bool:
        return not self.given()

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def where(self) -> list[str]:
        """Conditions on ``dead_letters``; bind ``given()``."""
        signs = {"created_after": "created_at >=", "created_before": "created_at <"}
        return [f"{signs.get(name, f'{name} =')} :{name}" for name in self.given()]


def _matching(wanted: LetterFilter, tenant: str | None) -> tuple[str, dict[str, Any]]:
    where, values = ["state = 'open'", *wanted.where()], wanted.given()
    if tenant is not None:
        where.append("tenant = :tenant")
        values["tenant"] = tenant
    return " AND ".join(where), values


def count(session: Session, wanted: LetterFilter, tenant: str | None) -> int:
    """Open letters that match."""
    where, values = _matching(wanted, tenant)
    return int(session.value(f"SELECT count(*) FROM dead_letters WHERE {where}", values))


def groups(
    session: Session, wanted: LetterFilter, tenant: str | None, limit: int = MOST_GROUPS
) -> list[dict[str, Any]]:
    """Open letters that match, by fingerprint, the largest group first; ``message`` and ``letter`` are the newest's."""
    where, values = _matching(wanted, tenant)
    names = "json_agg(DISTINCT workflow)::text" if session.postgres else "json_group_array(DISTINCT workflow)"
    rows = session.rows(
        "SELECT g.fingerprint, g.count, g.first_seen_at, g.last_seen_at, g.workflows, d.reason, d.message, d.path,"
        " d.id AS letter, d.job_id FROM (SELECT fingerprint, count(*) AS count, min(created_at) AS first_seen_at,"
        f" max(created_at) AS last_seen_at, {names} AS workflows, max(id) AS newest FROM dead_letters WHERE {where}"
        " GROUP BY fingerprint ORDER BY count(*) DESC, max(id) DESC LIMIT :limit) g"
        " JOIN dead_letters d ON d.id = g.newest ORDER BY g.count DESC, g.newest DESC",
        {**values, "limit": limit},
    )
    return [{**row, "workflows": sorted(json.loads(row["workflows"]))} for row in rows]


# ---------------------------------------------------------------------------------------------------------------
# operations


@dataclass(frozen=True, slots=True)
class Operation:
    """A bulk replay as its row has it. ``tenant`` None: all tenants. ``rate``: letters a second."""

    id: str
    tenant: str | None
    state: str
    filter: LetterFilter
    rate: float
    stop_on_same_error: bool
    total: int
    replayed: int
    skipped: int
    tokens: float
    refilled_at: float
    note: str | None
    created_by: str
    created_at: float
    finished_at: float | None = None
    finished_by: str | None = None
    because: str | None = None

    def allowance(self, now: float) -> float:
        """Tokens at ``now``: one is one letter."""
        most = max(1.0, self.rate * BURST_SECONDS)
        return min(most, self.tokens + max(0.0, now - self.refilled_at) * self.rate)


def _operation(row: dict[str, Any]) -> Operation:
    names = set(Operation.__dataclass_fields__)
    values = {name: value for name, value in row.items() if name in names}
    return Operation(
        **{
            **values,
            "tenant": None if row["tenant"] == EVERYONE else row["tenant"],
            "filter": LetterFilter(**json.loads(row["filter"])),
            "stop_on_same_error": bool(row["stop_on_same_error"]),
        }
    )


def insert(
    session: Session,
    row_id: str,
    wanted: LetterFilter,
    *,
    tenant: str | None,
    rate: float,
    stop_on_same_error: bool,
    total: int,
    by: str,
    note: str | None,
) -> bool:
    """Begins a replay; False when one runs in the tenant. Its first letter is due at once."""
    return (
        session.execute(
            "INSERT INTO operations (id, kind, tenant, state, filter, rate, stop_on_same_error, total, replayed,"
            " skipped, tokens, refilled_at, note, created_by, created_at) VALUES (:id, 'replay', :tenant, 'running',"
            " :filter, :rate, :stop, :total, 0, 0, 1, {now}, :note, :by, {now})"
            " ON CONFLICT (tenant) WHERE state = 'running' DO NOTHING",
            {
                "id": row_id,
                "tenant": tenant or EVERYONE,
                "filter": json.dumps(wanted.given()),
                "rate": rate,
                "stop": stop_on_same_error,
                "total": total,
                "note": note,
                "by": by,
            },
        ).rowcount
        == 1
    )


def get(session: Session, row_id: str) -> Operation | None:
    row = session.one("SELECT * FROM operations WHERE id = :id", {"id": row_id})
    return None if row is None else _operation(row)


def listing(session: Session, tenant: str | None, before: str | None = None, limit: int = 50) -> list[Operation]:
    """Newest first. One over all tenants is only seen by who sees all."""
    wanted = {"tenant = :tenant": tenant, "id < :before": before}
    where = " AND ".join(clause for clause, value in wanted.items() if value is not None)
    values = {clause.rpartition(":")[2]: value for clause, value in wanted.items() if value is not None}
    rows = session.rows(
        f"SELECT * FROM operations {'WHERE ' + where if where else ''} ORDER BY id DESC LIMIT :limit",
        {**values, "limit": limit},
    )
    return [_operation(row) for row in rows]


def running(session: Session, tenant: str | None = None) -> list[Operation]:
    """Replays at work, oldest first; those that may touch ``tenant``'s letters, when given."""
    where = "" if tenant is None else f" AND tenant IN (:tenant, '{EVERYONE}')"
    rows = session.rows(
        f"SELECT * FROM operations WHERE state = 'running'{where} ORDER BY id",
        {} if tenant is None else {"tenant": tenant},
    )
    return [_operation(row) for row in rows]


def hold(session: Session, row_id: str) -> Operation | None:
    """Locks a running operation for this transaction; None when it has ended, or another scheduler is at it."""
    row = session.one("SELECT * FROM operations WHERE id = :id AND state = 'running' {skip_locked}", {"id": row_id})
    return None if row is None else _operation(row)


def candidates(session: Session, operation: Operation, limit: int) -> dict[str, tuple[JobId, StepPath]]:
    """The oldest letters that are still its to replay, each with its job and where it stands."""
    where, values = _matching(operation.filter, operation.tenant)
    rows = session.rows(
        f"SELECT id, job_id, path FROM dead_letters WHERE {where} AND created_at <= :began"
        " AND (operation IS NULL OR operation <> :operation) ORDER BY id LIMIT :limit",
        {**values, "began": operation.created_at, "operation": operation.id, "limit": limit},
    )
    return {str(row["id"]): (JobId(row["job_id"]), StepPath(row["path"])) for row in rows}


def take_letters(session: Session, ids: Iterable[str], operation: Operation) -> set[str]:
    """open → replayed, by ``operation``; answers those that were still open."""
    rows = session.rows(
        "UPDATE dead_letters SET state = 'replayed', closed_at = {now}, closed_by = :by, note = :note,"
        f" operation = :operation WHERE {session.dialect.any_of('id', 'ids')} AND state = 'open' RETURNING id",
        {
            "ids": json.dumps(sorted(ids)),
            "by": operation.created_by,
            "note": operation.note,
            "operation": operation.id,
        },
    )
    return {str(row["id"]) for row in rows}


def pass_over(session: Session, letter_id: str, operation: Operation) -> None:
    """The letter stays as it is; ``operation`` does not look at it again."""
    session.execute(
        "UPDATE dead_letters SET operation = :operation WHERE id = :id", {"id": letter_id, "operation": operation.id}
    )


def progress(session: Session, row_id: str, *, replayed: int, skipped: int, tokens: float, now: float) -> None:
    session.execute(
        "UPDATE operations SET replayed = replayed + :replayed, skipped = skipped + :skipped, tokens = :tokens,"
        " refilled_at = :now WHERE id = :id AND state = 'running'",
        {"id": row_id, "replayed": replayed, "skipped": skipped, "tokens": tokens, "now": now},
    )


def end(session: Session, row_id: str, state: str, *, by: str | None = None, because: str | None = None) -> bool:
    """running → done, stopped or cancelled; False when it has ended before."""
    return (
        session.execute(
            "UPDATE operations SET state = :state, finished_at = {now}, finished_by = :by, because = :because"
            " WHERE id = :id AND state = 'running'",
            {"id": row_id, "state": state, "by": by, "because": because},
        ).rowcount
        == 1
    )


_AGAIN = (
    "FROM dead_letters o JOIN dead_letters n ON n.job_id = o.job_id AND n.run > o.run"
    " WHERE o.operation = :id AND o.state = 'replayed'"
)


def failed_again(session: Session, row_id: str) -> int:
    """How many of the jobs it replayed have failed since."""
    return int(session.value(f"SELECT count(DISTINCT n.job_id) {_AGAIN}", {"id": row_id}))


def same_error(session: Session, operation: Operation) -> dict[str, Any] | None:
    """A job it replayed that failed again of the same thing: the new letter (id, fingerprint, message)."""
    return session.one(
        f"SELECT n.id, n.job_id, n.fingerprint, n.message {_AGAIN} AND n.fingerprint = o.fingerprint"
        " AND n.created_at >= :began ORDER BY n.id LIMIT 1",
        {"id": operation.id, "began": operation.created_at},
    )


@contextmanager
def apart(session: Session) -> Iterator[None]:
    """A part of the transaction that may fail alone: what it wrote is undone, the rest goes on."""
    session.execute("SAVEPOINT apart")
    try:
        yield
    except BaseException:
        session.execute("ROLLBACK TO SAVEPOINT apart")
        raise
    finally:
        session.execute("RELEASE SAVEPOINT apart")
