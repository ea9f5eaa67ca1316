"""Which jobs are old and needed by nobody, and their removal: guarded, whole, waiting for no lock.

Candidates are found by state. Between looking and removing a job may be replayed, or forked: the removal locks the jobs
and asks once more, in a new snapshot, and takes only those whose history is as long as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.domain.ids import JobId
from orchestrator.store import payloads
from orchestrator.store.changes import STATE
from orchestrator.store.session import Session

#: Ended, and nothing still reads its checkpoints: no open letter to replay it by, no fork, and no debt of a job that
#: failed. (What a job that succeeded or kept its work would have owed is no debt.) Whoever copies from an ended job
#: locks its row.
_UNNEEDED: Final = (
    f"j.{STATE} IN ('succeeded','failed','cancelled')"
    " AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.job_id = j.id AND d.state = 'open')"
    " AND NOT EXISTS (SELECT 1 FROM jobs f WHERE f.origin = j.id)"
    " AND NOT (j.state = 'failed'"
    " AND EXISTS (SELECT 1 FROM compensations c WHERE c.job_id = j.id AND c.state = 'owed'))"
)
_NOTE: Final = "newest_removed"
_ID: Final = re.compile(r"[0-9a-f]{32}")

#: Where a pass over the ended jobs stands: the end of the last one looked at, and its id.
Place = tuple[float, str]
BEGINNING: Final[Place] = (0.0, "")


def unneeded(session: Session, before: float, after: Place, limit: int) -> list[dict[str, Any]]:
    """Jobs that ended before ``before`` and may go, longest ended first: (id, workflow, finished_at, events, steps)."""
    return session.rows(
        "SELECT j.id, j.workflow, j.finished_at, j.events, j.steps FROM jobs j WHERE j.finished_at < :before"
        f" AND (j.finished_at, j.id) > (:at, :id) AND {_UNNEEDED} ORDER BY j.finished_at, j.id LIMIT :limit",
        {"before": before, "at": after[0], "id": after[1], "limit": limit},
    )


def remove(session: Session, seen: Mapping[JobId, int], before: float, old: float) -> list[str]:
    """Removes those of ``seen`` (each with its number of events) that are as they were, with all that hangs on them.

    Answers their workflows. Payloads that nothing else refers to go with them (``payloads.drop_unread``).
    """
    ids = session.dialect.any_of("j.id", "ids")
    wanted = json.dumps(sorted(seen))
    locked = session.rows(f"SELECT j.id FROM jobs j WHERE {ids} ORDER BY j.id {{skip_locked}}", {"ids": wanted})
    rows = session.rows(
        f"SELECT j.id, j.workflow, j.events FROM jobs j WHERE {ids} AND j.finished_at < :before AND {_UNNEEDED}",
        {"ids": json.dumps([row["id"] for row in locked]), "before": before},
    )
    going = [row for row in rows if row["events"] == seen[row["id"]]]
    if not going:
        return []
    gone = sorted(row["id"] for row in going)
    hashes = payloads.referred_by(session, gone)
    session.execute(f"DELETE FROM jobs WHERE {session.dialect.any_of('id', 'ids')}", {"ids": json.dumps(gone)})
    payloads.drop_unread(session, hashes, old)
    session.execute(
        "INSERT INTO duties (name, until, value) VALUES (:name, 0, :value)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE duties.value < excluded.value",
        {"name": _NOTE, "value": gone[-1]},
    )
    return [row["workflow"] for row in going]


def may_be_removed(session: Session, job_id: str) -> bool:
    """Whether a job of this id that is not there may once have been. Ids sort by time, and old jobs go first: what is
    newer than the newest that was removed never was."""
    if _ID.fullmatch(job_id) is None:
        return False
    newest = session.value("SELECT value FROM duties WHERE name = :name", {"name": _NOTE})
    return newest is not None and job_id <= newest
