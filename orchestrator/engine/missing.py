"""What a caller is told of a job that is not there."""

from __future__ import annotations

from orchestrator.domain.errors import Gone, NotFound, UsageError
from orchestrator.store import retention
from orchestrator.store.session import Session


def no_job(session: Session, job_id: str) -> UsageError:
    """``Gone`` for an id that retention may have removed, else ``NotFound``. Another tenant's job is told apart by
    neither."""
    if retention.may_be_removed(session, job_id):
        return Gone(
            f"job {job_id} is not kept any more.", mend="Look in the export, if ORCHESTRATOR_RETENTION_EXPORT is set."
        )
    return NotFound(f"no job {job_id}.")
