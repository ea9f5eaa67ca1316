"""What follows from a settled attempt: the one place that moves steps. Pure.

The caller holds the job's lock and has loaded the rows a settle may touch (``Plan.touched``, and the held members it
may release). ``Advance`` changes those rows in memory and collects what is to be written; the store writes it in the
same transaction. Cancelling a subtree needs all its rows: ``stops`` names them, the caller loads them and calls
``stop``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

from orchestrator.domain.complaint import carried, input_change
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import ROOT, StepPath, parent_of
from orchestrator.domain.joins import Decision, decide
from orchestrator.domain.outcome import NULL, Failure, FailureClass, Stored, Usage
from orchestrator.domain.plan import STOP_CANCELLED, STOP_FAILED, UNDO, Kind, StepRow
from orchestrator.domain.result import (
    AttemptRecord,
    Cancelled,
    Defaulted,
    Doubted,
    Escalated,
    FellBack,
    GaveUp,
    NotHappened,
    Opened,
    Released,
    Result,
    Retrying,
    Skipped,
    Succeeded,
    Unreconciled,
)
from orchestrator.domain.saga import carry_doubt, is_undoing
from orchestrator.domain.setbacks import Setbacks
from orchestrator.domain.states import JOB_CLAIMABLE, STEP_DONE, STEP_NOT_BEGUN, JobState, StepState
from orchestrator.domain.waits import Reason


class Advance(Setbacks):
    """One job's changes in one transaction."""

    # -- entry points

    def settle(self, row: StepRow, result: Result, usage: Usage = Usage(), worker: str | None = None) -> None:
        """Applies the result of the attempt that holds ``row``. The fence has been checked."""
        started, attempt, agent, generation = row.started_at, row.attempt, row.agent, row.generation
        self._settled = (row.path, row.begun, result)
        changed = input_change(self.plan.agents.get(row.agent or ""), row)
        record = self._settle(row, result)
        if row.kind is Kind.AGENT and record is not None:
            outcome, failure = record
            call = AttemptRecord(row.path, row.epoch, attempt, outcome, agent, generation, worker, started, failure)
            self.attempts.append(replace(call, usage=usage, changed=changed))
            self._count("attempts_total", agent=agent or "", failure=failure.kind.value if failure else "")
            self._spend(agent or "", usage)
        if (isinstance(result, Retrying) and result.new_key) or isinstance(result, (FellBack, NotHappened)):
            row.generation += 1

    def _settle(self, row: StepRow, result: Result) -> tuple[str, Failure | None] | None:  # noqa: C901 - an arm a member
        """Moves the row; answers how the attempt is recorded."""
        begun = row.begun
        row.lease_owner, row.lease_until, row.begun = None, None, False
        stopping = self._stopping(row)
        match result:
            case Succeeded(output, data):
                self._reconciled(row, happened=True)
                row.doubt = None
                self.finish(row, StepState.SUCCEEDED, output=output, data=data)
                return "succeeded", None
            case Skipped():
                self.finish(row, StepState.SKIPPED, output=NULL)
                return None
            case GaveUp(failure):
                self.finish(row, StepState.FAILED, failure=failure)
                return "failed", failure
            case Retrying(failure):
                row.tries += 1 if result.charged else 0
                if stopping:
                    self.finish(row, StepState.CANCELLED, failure=failure)
                else:
                    row.not_before = self.now + result.delay
                    row.failure = carry_doubt(carried(failure, row.failure), row.failure)
                    self._move(row, StepState.RETRYING)
                    data = {"failure": failure.as_dict(), "attempt": row.attempt, "delay": round(result.delay, 3)}
                    self._event(EventType.STEP_RETRYING, row.path, data)
                return "failed", failure
            case FellBack(failure):
                self._fall_back(row, result, stopping=stopping)
                return "failed", failure
            case Defaulted(failure, state, output):
                row.degraded = True
                self.finish(row, state, output=output, data={"degraded": True, "failure": failure.as_dict()})
                return "failed", failure
            case Escalated(failure):
                row.fallback = result.number
                self._ask(row, failure, Reason.ESCALATE, (result.group,), stopping=stopping)
                return "failed", failure
            case Doubted():
                return self._doubt(row, result, stopping=stopping)
            case Unreconciled(failure):
                self._reconciled(row, happened=None, failure=failure)
                self._ask_about_doubt(row, failure, stopping=stopping)
                return "reconciled", failure
            case NotHappened(then):
                assert row.doubt is not None
                self._reconciled(row, happened=False)
                self._nothing_happened(row)
                row.tries, row.doubt, row.first_started_at = row.doubt.tries, None, None
                self._settle(row, then)
                return "reconciled", None
            case Cancelled():
                if begun:
                    self._doubt_if_unrepeatable(row)
                self.finish(row, StepState.CANCELLED)
                return "cancelled", None
            case Opened():
                if stopping:
                    self.finish(row, StepState.CANCELLED)
                else:
                    self._open(row, result)
                return None
            case Released(lost, alone):
                return self._release(row, lost=lost, alone=alone, stopping=stopping)
            case _:
                assert_never(result)

    def cancel_job(self) -> None:
        """Asks the whole job to stop; live calls are asked too."""
        root = self.rows[ROOT]
        self.job.state = JobState.CANCELLING
        self._event(EventType.JOB_CANCELLING, None, {})
        root.stopping = STOP_CANCELLED
        self._touch(root)
        self.stops.append((ROOT, True))

    def expire_job(self, failure: Failure) -> None:
        """Fails the whole job, as at its deadline; live calls are asked to stop."""
        root = self.rows[ROOT]
        root.stopping, root.failure, root.failed_at = STOP_FAILED, failure, ROOT
        self._touch(root)
        self.stops.append((ROOT, True))

    def stop(self, top: StepPath, live_too: bool, rows: Mapping[StepPath, StepRow]) -> None:
        """Cancels what has not begun below ``top``; ``rows`` holds every stored row below it that has not ended."""
        self.add(rows.values())
        prefix = f"{top}/" if top else ""
        inside = (
            row
            for row in self.rows.values()
            if row.path.startswith(prefix) and row.path != top and not is_undoing(row.path)
        )
        below = sorted((row for row in inside if not row.terminal), key=lambda r: (-r.path.count("/"), r.seq))
        for row in below:
            if (row.state is StepState.WAITING and row.stopping is None and not row.asks_a_person) or (
                row.state is StepState.RUNNING and live_too and row.stopping is None
            ):
                row.stopping = STOP_CANCELLED
                self._touch(row)
        for row in below:
            if row.state in STEP_NOT_BEGUN or row.asks_a_person:
                self.finish(row, StepState.CANCELLED)
        for row in below:  # a composite whose children had all ended (its body was still to come) ends here
            if row.state is StepState.WAITING and row.live == 0:
                self.finish(row, StepState.CANCELLED)
        first = self.rows[top]
        if first.live == 0 and (first.state is StepState.WAITING or first.state in STEP_NOT_BEGUN):
            self._close(first)

    # -- moving

    def finish(
        self,
        row: StepRow,
        state: StepState,
        *,
        output: Stored | None = None,
        failure: Failure | None = None,
        failed_at: StepPath | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends a step, then moves whatever waited for it."""
        self._move(row, state)
        row.finished_at = self.now
        row.held = False
        row.not_before = None
        if output is not None:
            row.output = output
        before = row.failure
        row.failure = failure if state is StepState.FAILED else row.failure
        row.failed_at = (failed_at or row.path) if state is StepState.FAILED else None
        self._record_end(row, state, failure, data or {})
        self._note_debt(row, before)
        if row.undoes is not None:
            self._undone(row, state)
        if row.parent is not None:
            self._tell_parent(row, self.rows[row.parent])
        elif row.ref == UNDO:
            self._finish_undoing(row)
        else:
            self._finish_job(row)

    def _record_end(self, row: StepRow, state: StepState, failure: Failure | None, data: Mapping[str, Any]) -> None:
        if row.parent is None:
            return
        if row.kind is Kind.AGENT:
            self._count("steps_finished_total", agent=row.agent or "", outcome=state.value)
        seconds = self.now - row.first_started_at if row.first_started_at is not None else None
        body: dict[str, Any] = {"attempt": row.attempt, "seconds": round(seconds, 6) if seconds else seconds, **data}
        if failure is not None:
            body["failure"] = failure.as_dict()
        self._event(EventType(f"step.{state.value}"), row.path, body)

    def _tell_parent(self, row: StepRow, parent: StepRow) -> None:
        if parent.width is None:  # cancelled while its fan-out was still being written
            return
        self._touch(parent)
        if row.state in STEP_DONE:
            parent.succeeded += 1
        elif row.state is StepState.FAILED:
            parent.failed += 1
        else:
            parent.cancelled += 1
        if parent.stopping is None:
            self._decide(row, parent)
        if parent.live == 0 and parent.state is StepState.WAITING:
            self._close(parent)

    def _decide(self, row: StepRow, parent: StepRow) -> None:
        node = self.plan.nodes[parent.ref]
        width = parent.width or 0
        match decide(width, parent.succeeded, parent.failed, node.tolerate):
            case Decision.PENDING:
                if row.state in STEP_DONE:
                    self._release_successors(row)
                self._release_held(parent)
            case Decision.FAIL:
                parent.stopping = STOP_FAILED
                parent.failure, parent.failed_at = row.failure, row.failed_at or row.path
                self.stops.append((parent.path, node.stop_branches))
                self._decided(parent, node.kind, "failed")
            case Decision.SUCCEED:
                self._decided(parent, node.kind, "succeeded")
            case never:
                assert_never(never)

    def _decided(self, parent: StepRow, kind: Kind, verdict: str) -> None:
        if kind in (Kind.FOR_EACH, Kind.PARALLEL, Kind.DELEGATE):
            numbers = {"width": parent.width, "succeeded": parent.succeeded, "failed": parent.failed}
            self._event(EventType.JOIN_DECIDED, parent.path, {"decision": verdict, **numbers})

    def _release_successors(self, row: StepRow) -> None:
        for path in self.plan.successor_paths(row.path, row.ref):
            successor = self.rows[path]
            successor.deps_left -= 1
            self._touch(successor)
            if successor.deps_left == 0 and successor.state is StepState.PENDING and not successor.held:
                self._ready(successor)

    def _release_held(self, parent: StepRow) -> None:
        """The next member in line takes the place of the one that ended."""
        if self.plan.nodes[parent.ref].max_concurrency is None:
            return
        waiting = [row for row in self.rows.values() if row.parent == parent.path and row.held]
        if waiting:
            row = min(waiting, key=lambda r: r.seq)
            row.held = False
            self._ready(row)

    def _close(self, parent: StepRow) -> None:
        """All children have ended: the composite fails, is cancelled, gets its body, or ends with its last output."""
        match parent.stopping:
            case "failed":
                self.finish(parent, StepState.FAILED, failure=parent.failure, failed_at=parent.failed_at)
            case "cancelled":
                self.finish(parent, StepState.CANCELLED)
            case _:
                node = self.plan.nodes[parent.ref]
                if node.has_body:
                    self._ready(parent)
                elif parent.kind is Kind.UNDO:
                    self.finish(parent, StepState.SUCCEEDED, output=NULL)
                else:
                    last = self.rows.get(self._last_child(parent))
                    self.finish(parent, StepState.SUCCEEDED, output=last.output if last else NULL)

    def _last_child(self, parent: StepRow) -> StepPath:
        name = self.plan.nodes[parent.ref].names[-1]
        return StepPath(f"{parent.path}/{name}" if parent.path else name)

    def _open(self, row: StepRow, result: Opened) -> None:
        row.width, row.round = result.row.width, result.row.round
        self._move(row, StepState.WAITING)
        self.job.steps += len(result.children) + result.prepared
        self._event(result.event, row.path, {"width": row.width, **result.data})
        if row.kind is Kind.UNDO:
            self.undoing.append(row.path)
        elif self.job.steps > self.max_steps:
            message = f"the job would have {self.job.steps} steps; the limit is {self.max_steps}"
            row.width = None
            self.finish(row, StepState.FAILED, failure=Failure(FailureClass.PERMANENT, message))
            return
        if result.prepared:
            self.prepared.append((row.path, result.let_go))
        for kid in result.children:
            self.rows[kid.path] = kid
            self.created.append(kid)
            if kid.state is StepState.READY:
                kid.ready_at = self.now
                self.ready.append(kid)
        if row.live == 0:  # width 0 is decided when the fan-out is made
            self._decided(row, row.kind, "succeeded")
            self._close(row)

    # -- the job

    def _finish_job(self, root: StepRow) -> None:
        cancelled = self.job.state is JobState.CANCELLING or root.state is StepState.CANCELLED
        undo = self.plan.undo_on_cancel if cancelled else root.state is not StepState.SUCCEEDED
        if undo and (self.owing or self.owed):
            self._begin_undoing(root)
        elif cancelled:
            self._end_job(JobState.CANCELLED, EventType.JOB_CANCELLED)
        elif root.state is StepState.SUCCEEDED:
            self._succeed(root)
        else:
            self._fail_job(root)

    # -- small things

    def _stopping(self, row: StepRow) -> bool:
        if self.job.state not in JOB_CLAIMABLE or row.stopping is not None:
            return True
        at: StepPath | None = row.parent
        while at is not None:
            enclosing = self.rows.get(at)
            if enclosing is not None and enclosing.stopping is not None:
                return True
            at = enclosing.parent if enclosing is not None else parent_of(at)
        return False
