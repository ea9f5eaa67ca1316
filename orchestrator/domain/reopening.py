"""A job that had ended goes on: what a replay or an invalidation moves. Pure.

The caller loads every row of the job and sets those that are done again to where they begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.domain.advance import Advance
from orchestrator.domain.events import EventType
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import StepRow
from orchestrator.domain.result import AttemptRecord
from orchestrator.domain.states import JobState, StepState


class Reopening(Advance):
    """The changes of one transaction that reopens a job."""

    def give(self, row: StepRow, output: Stored, by: str) -> None:
        """Ends a reopened step with the result that a person gave in its agent's place."""
        row.attempt += 1
        row.held = False
        changed = {"output": "given", "by": by}
        self.attempts.append(
            AttemptRecord(row.path, row.epoch, row.attempt, "succeeded", generation=row.generation, changed=changed)
        )
        self._count("attempts_total", agent="", failure="")
        self.finish(row, StepState.SUCCEEDED, output=output, data={"given_by": by})

    def reopen_job(self, rows: Iterable[StepRow], data: dict[str, Any], since: float | None) -> None:
        """Takes up a job that had ended, in a new run; ``rows`` are the caller's, set to where they begin again.

        ``since``: when its last run began. The new run has as long as that one had.
        """
        job = self.job
        job.state, job.run, job.failure, job.output, job.finished_at = JobState.RUNNING, job.run + 1, None, None, None
        if job.deadline_at is not None and since is not None:
            job.deadline_at = self.now + (job.deadline_at - since)
        for row in rows:
            self._touch(row)
        self._event(EventType.JOB_REOPENED, None, data)
