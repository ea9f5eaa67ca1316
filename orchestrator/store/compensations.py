"""The ledger of what is owed: a row for each call that is to be undone should its job fail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.saga import Debt
from orchestrator.store import changes, tables
from orchestrator.store.rows import inline, ref, stored
from orchestrator.store.session import Session, Statement

_SELECT = (
    "SELECT job_id, number, path, ref, epoch, generation, input, input_ref, known, state, paid FROM compensations c"
)


def _debt(row: Mapping[str, Any]) -> Debt:
    return Debt(
        row["number"],
        StepPath(row["path"]),
        row["ref"],
        row["epoch"],
        row["generation"],
        stored(row["input"], row["input_ref"]),
        known=bool(row["known"]),
    )


def note(session: Session, job_id: JobId, debts: Iterable[Debt]) -> None:
    """Writes what a settle leaves to be undone."""
    rows = [
        {
            "job_id": job_id,
            "number": debt.number,
            "path": debt.path,
            "ref": debt.ref,
            "epoch": debt.epoch,
            "generation": debt.generation,
            "input": inline(debt.input),
            "input_ref": ref(debt.input),
            "known": debt.known,
            "state": "owed",
            "paid": None,
        }
        for debt in debts
    ]
    changes.insert(session, tables.compensations, rows)


#: The debts of steps that failed, or lie in something that did.
_IN_FAILED = (
    "EXISTS (SELECT 1 FROM steps f WHERE f.job_id = c.job_id AND f.state = 'failed'"
    " AND (f.path = c.path OR f.path || '/' = substr(c.path, 1, length(f.path) + 1)))"
)


def owed(session: Session, job_id: JobId, *, only_branches: bool = False) -> list[Debt]:
    """What is still to be undone, in the order of completion. ``only_branches``: of branches that failed."""
    where = f"AND {_IN_FAILED}" if only_branches else ""
    rows = session.rows(f"{_SELECT} WHERE job_id = :job AND state = 'owed' {where} ORDER BY number", {"job": job_id})
    return [_debt(row) for row in rows]


def branches_owe(session: Session, job_id: JobId) -> bool:
    """Whether a branch that failed owes anything; asked when all else has succeeded."""
    sql = f"SELECT 1 FROM compensations c WHERE job_id = :job AND state = 'owed' AND {_IN_FAILED} LIMIT 1"
    return session.value(sql, {"job": job_id}) is not None


def owing(session: Session, jobs: Iterable[JobId]) -> set[JobId]:
    """Those of ``jobs`` that owe anything."""
    [rows] = session.together(asking_who_owes(session, jobs))
    return {JobId(row["id"]) for row in rows}


def asking_who_owes(session: Session, jobs: Iterable[JobId]) -> Statement:
    """What ``owing`` asks."""
    sql = (
        f"SELECT id FROM jobs j WHERE {session.dialect.any_of('id', 'jobs')}"
        " AND EXISTS (SELECT 1 FROM compensations c WHERE c.job_id = j.id AND c.state = 'owed')"
    )
    return sql, {"jobs": json.dumps(sorted(set(jobs)))}


def by_number(session: Session, job_id: JobId, numbers: Sequence[int]) -> dict[int, Debt]:
    rows = session.rows(
        f"{_SELECT} WHERE job_id = :job AND {session.dialect.any_of('CAST(number AS text)', 'numbers')}",
        {"job": job_id, "numbers": json.dumps([str(number) for number in numbers])},
    )
    return {row["number"]: _debt(row) for row in rows}


def pay(session: Session, job_id: JobId, paid: Mapping[int, tuple[str, int]]) -> None:
    """Notes what became of debts: (undone or stuck, the number of the event that says so)."""
    session.many(
        "UPDATE compensations SET state = :state, paid = :paid WHERE job_id = :job AND number = :number",
        [{"job": job_id, "number": number, "state": state, "paid": at} for number, (state, at) in paid.items()],
    )


def begin(session: Session, job_id: JobId, opened: StepPath) -> None:
    """The steps that the members of ``opened`` undo are compensating from here on."""
    session.execute(
        "UPDATE steps SET state = 'compensating' WHERE job_id = :job AND state = 'succeeded' AND path IN"
        " (SELECT c.path FROM compensations c JOIN steps u ON u.job_id = c.job_id AND u.undoes = c.number"
        " WHERE u.job_id = :job AND u.parent = :opened)",
        {"job": job_id, "opened": opened},
    )


def owe_again(session: Session, job_id: JobId) -> int:
    """Stuck debts are owed again; answers how many."""
    return session.execute(
        "UPDATE compensations SET state = 'owed', paid = NULL WHERE job_id = :job AND state = 'stuck'", {"job": job_id}
    ).rowcount


def begin_again(session: Session, job_id: JobId, number: int) -> None:
    """A stuck debt is being paid once more."""
    session.execute(
        "UPDATE compensations SET state = 'owed', paid = NULL WHERE job_id = :job AND number = :number",
        {"job": job_id, "number": number},
    )
    session.execute(
        "UPDATE steps SET state = 'compensating' WHERE job_id = :job AND state = 'succeeded' AND path ="
        " (SELECT path FROM compensations WHERE job_id = :job AND number = :number)",
        {"job": job_id, "number": number},
    )


def ledger(session: Session, job_id: JobId) -> list[dict[str, Any]]:
    """Every debt of a job with what became of it, and the step that undoes it, if there is one yet."""
    return session.rows(
        "SELECT c.number, c.path, c.epoch, c.known, c.state, u.path AS by, u.agent, u.state AS by_state, u.attempt"
        " FROM compensations c LEFT JOIN steps u ON u.job_id = c.job_id AND u.undoes = c.number"
        " WHERE c.job_id = :job ORDER BY c.number",
        {"job": job_id},
    )
