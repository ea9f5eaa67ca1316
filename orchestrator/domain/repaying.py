"""Making debts as steps end, and paying them once the job has failed: the saga's part of ``Advance``. Pure."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.domain.events import EventType
from orchestrator.domain.ids import ROOT
from orchestrator.domain.moves import Moves
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.plan import UNDO, Kind, StepRow
from orchestrator.domain.result import Cancelled, Defaulted, FellBack, GaveUp, Released, Retrying, Succeeded
from orchestrator.domain.saga import Debt, container, doubtful
from orchestrator.domain.states import JobState, StepState

#: Variables of the undoing of a job that succeeded: it pays only for the branches that did not.
ONLY_BRANCHES = Stored('{"branches":true}')
#: How a job ends whose root did.
_ENDS = {
    StepState.SUCCEEDED: (JobState.SUCCEEDED, EventType.JOB_SUCCEEDED),
    StepState.FAILED: (JobState.FAILED, EventType.JOB_FAILED),
    StepState.CANCELLED: (JobState.CANCELLED, EventType.JOB_CANCELLED),
}


class Repaying(Moves):
    """What a job owes for the steps it has done (``domain/saga.py``)."""

    def _note_debt(self, row: StepRow, before: Failure | None) -> None:
        """Notes what a step that has ended leaves to be undone, should the job fail."""
        if self.plan.nodes[row.ref].owes is None:
            return
        path, begun, result = self._settled or (None, False, None)
        mine = result if path == row.path else None
        if isinstance(mine, Succeeded):
            self._owe(row, known=True, owes=mine.owes)
            return
        failed = mine.failure if isinstance(mine, GaveUp | Retrying | FellBack | Defaulted) else None
        asked_to_stop = begun and isinstance(mine, Cancelled | Released)
        if asked_to_stop or doubtful(failed) or doubtful(before):
            self._owe(row, known=False)

    def _owe(self, row: StepRow, *, known: bool, owes: Stored | None = None) -> None:
        """The event just written ended the call."""
        if self.plan.nodes[row.ref].owes is not None:
            debt = Debt(self.job.events, row.path, row.ref, row.epoch, row.generation, owes, known=known)
            self.owed.append(debt)

    def _succeed(self, root: StepRow) -> None:
        """Branches that failed and were tolerated leave nothing behind: what they had done is undone first."""
        if self.owing and self.plan.tolerates and self.branches_owe():
            self._begin_undoing(root, ONLY_BRANCHES)
        else:
            self.job.output = root.output
            self._end_job(JobState.SUCCEEDED, EventType.JOB_SUCCEEDED)

    def _begin_undoing(self, root: StepRow, which: Stored | None = None) -> None:
        """The job's work has ended, no call of it is live, and there is something to undo."""
        self.job.state, self.job.failure = JobState.COMPENSATING, root.failure
        data = {"failure": root.failure.as_dict()} if root.failure is not None else {}
        self._event(EventType.JOB_COMPENSATING, root.failed_at or None, data)
        row = StepRow(self.job.id, container(self.job.run), UNDO, Kind.UNDO, None)
        row.tenant, row.priority, row.queue = self.job.tenant, self.job.priority, self.plan.queue_of(UNDO)
        row.state, row.ready_at, row.vars = StepState.READY, self.now, which
        self.job.steps += 1
        self.rows[row.path] = row
        self.created.append(row)
        self.ready.append(row)

    def _undone(self, row: StepRow, state: StepState) -> None:
        """An undoing step has ended: what it undid is undone, or stands as it was and goes to the desk."""
        assert row.undoes is not None
        debt = self.debts[row.undoes]
        done = state is StepState.SUCCEEDED
        origin = self.rows.get(debt.path)  # gone, if what had opened it was done again since
        if origin is not None and origin.state is StepState.COMPENSATING:
            self._move(origin, StepState.COMPENSATED if done else StepState.SUCCEEDED)
        elif origin is not None and done:
            self._settle_doubt(origin)
        verdict = "undone" if done else "stuck"
        self.paid[row.undoes] = (verdict, self.job.events + 1)
        self._count("compensations_total", outcome=verdict)
        data = {"by": row.path, "outcome": debt.outcome}
        if done:
            self._event(EventType.STEP_COMPENSATED, debt.path, data)
            return
        failure = row.failure or Failure(FailureClass.BUG, "stuck without a reason")
        self._event(EventType.COMPENSATION_STUCK, debt.path, {**data, "failure": failure.as_dict()})
        self._park(row.path, failure)

    def _settle_doubt(self, origin: StepRow) -> None:
        """A call that may have taken effect has none now: a replay makes it anew."""
        origin.doubt = None
        if origin.failure is not None:
            origin.failure = replace(origin.failure, outcome_known=True)
        self._touch(origin)

    def _finish_undoing(self, row: StepRow) -> None:
        """All is undone or parked. When a parked one was replayed, the job ends as it had ended before."""
        root = self.rows[ROOT]
        if row.state is StepState.FAILED and row.failure is not None:
            self._park(row.path, row.failure)
        if row.epoch > 1:
            self.job.state, event = _ENDS[root.state]
            self.job.finished_at = self.now
            self._event(event, None, {} if self.job.failure is None else {"failure": self.job.failure.as_dict()})
        elif root.state is StepState.FAILED:
            self._fail_job(root)
        else:
            self.job.output = root.output
            self._end_job(*_ENDS[root.state])
