"""How far a job is: calls done, the critical path, what waits for what, and the call that holds the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from orchestrator.domain.plan import JobRow, Kind, Plan
from orchestrator.domain.progress import Timed, behind, blocked_by, critical_path
from orchestrator.domain.states import STEP_TERMINAL, StepState
from orchestrator.store import progress as sql
from orchestrator.store.session import Session

#: Blocked steps that are named, at most.
NAMED: Final = 50
#: Moving by itself, or by somebody: what others wait for.
_MOVING: Final = frozenset({StepState.READY, StepState.RUNNING, StepState.RETRYING, StepState.IN_DOUBT})


def progress_of(session: Session, job: JobRow, plan: Plan, now: float) -> dict[str, Any]:
    """Two statements; ``total`` grows while fan-outs open and rounds follow each other."""
    states = sql.calls(session, job.id)
    rows = sql.timed(session, job.id)
    path = critical_path(plan, rows, now)
    return {
        "age": max(0.0, (job.finished_at or now) - (job.created_at or now)),
        "progress": {
            "done": sum(count for state, count in states.items() if state in STEP_TERMINAL),
            "total": sum(states.values()),
            "states": {state.value: count for state, count in states.items()},
        },
        "critical_path": {"seconds": sum(link.seconds for link in path), "steps": [asdict(link) for link in path]},
        "holds_most": _holds_most(plan, rows, now),
        "blocked": [{"path": path, "by": by} for path, by in list(blocked_by(plan, rows).items())[:NAMED]],
    }


def _holds_most(plan: Plan, rows: Sequence[Timed], now: float) -> dict[str, Any] | None:
    """The call under way behind which the most others wait; of equal ones the longest. None: nobody waits for one."""
    moving = [row for row in rows if row.kind is Kind.AGENT and row.state in _MOVING]
    counted = [(behind(plan, row.path, row.ref), row.seconds(now), row) for row in moving]
    most = max(counted, key=lambda found: found[:2], default=None)
    if most is None or not most[0]:
        return None
    return {"path": most[2].path, "state": most[2].state.value, "calls": most[0]}
