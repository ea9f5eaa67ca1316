"""How far a job is: two statements, whose answers do not grow with the width of a fan-out of calls."""

from __future__ import annotations

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import Kind
from orchestrator.domain.progress import Timed
from orchestrator.domain.states import STEP_TERMINAL, StepState
from orchestrator.store.session import Session

_ENDED = ",".join(f"'{state.value}'" for state in sorted(STEP_TERMINAL))
_TOOK = "coalesce(finished_at, {now}) - first_started_at"
#: Members of a fan-out that are calls have one ref; the longest of them stands for those that have ended, the longest
#: of the others for those.
_ALIKE = f"parent, ref, kind, held, CASE WHEN state IN ({_ENDED}) THEN 1 ELSE 0 END"


def calls(session: Session, job_id: JobId) -> dict[StepState, int]:
    """How many of the job's calls are in which state, of those known so far."""
    rows = session.rows(
        "SELECT state, count(*) AS n FROM steps WHERE job_id = :job AND kind = 'agent' GROUP BY state ORDER BY state",
        {"job": job_id},
    )
    return {StepState(row["state"]): row["n"] for row in rows}


def timed(session: Session, job_id: JobId) -> list[Timed]:
    """The job's steps in their order, without the shorter members of a fan-out of calls."""
    rows = session.rows(
        "SELECT * FROM (SELECT path, ref, kind, parent, seq, state, held, first_started_at, finished_at, row_number()"
        f" OVER (PARTITION BY {_ALIKE} ORDER BY coalesce({_TOOK}, -1) DESC, seq) AS nth FROM steps"
        " WHERE job_id = :job) s WHERE nth = 1 OR kind <> 'agent' ORDER BY seq, path",
        {"job": job_id},
    )
    return [
        Timed(
            StepPath(row["path"]),
            row["ref"],
            Kind(row["kind"]),
            None if row["parent"] is None else StepPath(row["parent"]),
            StepState(row["state"]),
            bool(row["held"]),
            row["first_started_at"],
            row["finished_at"],
        )
        for row in rows
    ]
