"""The part of ``Advance`` about attempts without an answer: lost, in doubt, handed to another agent or to people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

from orchestrator.domain.complaint import carried
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import QueueName, StepPath
from orchestrator.domain.outcome import NULL, Doubt, Failure, FailureClass, Stored
from orchestrator.domain.plan import StepRow, idempotency_key
from orchestrator.domain.repaying import Repaying
from orchestrator.domain.result import Doubted, FellBack
from orchestrator.domain.retry import in_doubt
from orchestrator.domain.saga import carry_doubt, doubtful
from orchestrator.domain.states import StepState
from orchestrator.domain.waits import Decision, Reason, Wait, WaitKind, wait_id


class Setbacks(Repaying, ABC):
    """Lost, in doubt, handed to another agent or to people."""

    @abstractmethod
    def finish(
        self,
        row: StepRow,
        state: StepState,
        *,
        output: Stored | None = None,
        failure: Failure | None = None,
        failed_at: StepPath | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None: ...

    def _fall_back(self, row: StepRow, result: FellBack, *, stopping: bool) -> None:
        if stopping:
            self.finish(row, StepState.CANCELLED, failure=result.failure)
            return
        agent = self.plan.agents[result.agent]
        data = {"from": row.agent, "to": result.agent, "failure": result.failure.as_dict()}
        if "reason" in result.failure.detail:
            data["reason"] = result.failure.detail["reason"]
        self._event(EventType.STEP_FELL_BACK, row.path, data)
        failure = result.failure
        if doubtful(carry_doubt(failure, row.failure)):
            self._owe(row, known=False)
            failure = replace(failure, detail={**failure.detail, "owed": True})
        row.agent, row.queue, row.limited = result.agent, QueueName(agent.queue), agent.metered
        row.fallback, row.tries, row.failure = result.number, 0, failure
        self._ready(row)

    def _release(self, row: StepRow, *, lost: bool, alone: bool, stopping: bool) -> tuple[str, Failure | None] | None:
        begun = self._settled is not None and self._settled[1]
        row.fence += 1
        row.losses += 1 if lost else 0
        row.losses_alone += 1 if lost and alone else 0
        failure = Failure(FailureClass.WORKER_LOST, "its worker was lost", outcome_known=False) if lost else None
        if lost:
            self._event(EventType.STEP_LOST, row.path, {"attempt": row.attempt, "losses": row.losses})
            if begun and failure is not None:
                row.failure = carry_doubt(carried(failure, row.failure), row.failure)
        if stopping:
            self.finish(row, StepState.CANCELLED)
        else:
            row.dispatched_at = row.mark = None
            self._ready(row)
        return ("lost", failure) if lost else None

    def _doubt(self, row: StepRow, result: Doubted, *, stopping: bool) -> tuple[str, Failure | None]:
        """The agent's reconciler is asked by the next claim; without one, a person is."""
        row.fence += 1
        row.losses += 1 if result.lost else 0
        row.losses_alone += 1 if result.lost and result.alone else 0
        if result.lost:
            self._event(EventType.STEP_LOST, row.path, {"attempt": row.attempt, "losses": row.losses})
        row.doubt = Doubt(row.agent or "", result.was, row.tries + (0 if result.lost else 1))
        row.failure = result.failure
        row.tries, row.first_started_at = 0, None
        asks = self.plan.agents[row.agent or ""].reconciler() is not None
        data = {"failure": result.failure.as_dict(), "attempt": row.attempt, "key": self._key(row), "reconcile": asks}
        self._event(EventType.STEP_IN_DOUBT, row.path, data)
        if asks and not stopping:
            self._ready(row)
        else:
            self._ask_about_doubt(row, stopping=stopping)
        return ("lost" if result.lost else "failed"), result.failure

    def _reconciled(self, row: StepRow, *, happened: bool | None, failure: Failure | None = None) -> None:
        if row.doubt is not None:
            data = {"happened": happened, "key": self._key(row), "failure": failure.as_dict() if failure else None}
            self._event(EventType.STEP_RECONCILED, row.path, data)

    def _ask_about_doubt(self, row: StepRow, tried: Failure | None = None, *, stopping: bool) -> None:
        """``tried``: why its reconciler did not tell."""
        assert row.doubt is not None
        step = self.plan.nodes[row.ref].step
        groups = [entry.escalate for entry in (step.on_failure if step else ()) if entry.escalate is not None]
        failure = in_doubt(row.doubt.failure).failure
        more = {"reconcile": tried.as_dict()} if tried is not None else {}
        self._ask(row, failure, Reason.IN_DOUBT, tuple(groups[:1]), more, stopping=stopping)

    def _ask(
        self,
        row: StepRow,
        failure: Failure,
        reason: Reason,
        groups: tuple[str, ...],
        more: Mapping[str, Any] | None = None,
        *,
        stopping: bool,
    ) -> None:
        """Opens a wait for a person's decision; where everything stops nobody is asked, and the step fails."""
        row.failure = carry_doubt(failure, row.failure)
        if stopping:
            self.finish(row, StepState.FAILED, failure=failure)
            return
        self._move(row, StepState.IN_DOUBT if reason is Reason.IN_DOUBT else StepState.WAITING)
        job = self.job
        job.waiting_since = self.now if job.waits == 0 else job.waiting_since
        job.waits += 1
        facts = {"agent": row.doubt.agent if row.doubt else row.agent, "attempts": row.attempt, "key": self._key(row)}
        question = {"failure": failure.as_dict(), **facts, **(more or {})}
        wait = Wait(
            wait_id(job.id, job.events + 1),
            job.id,
            job.tenant,
            job.workflow,
            row.path,
            WaitKind.DECISION,
            reason,
            self.now,
            groups,
            question,
        )
        self.asked.append(wait)
        data = {"wait": wait.id, "kind": wait.kind.value, "reason": reason.value, "assignees": list(groups)}
        self._event(EventType.WAIT_OPENED, row.path, {**data, "failure": failure.as_dict()})

    def decide(self, row: StepRow, word: Decision, data: dict[str, Any], output: Stored | None = None) -> None:
        """Does what a person said of a step that asked; ``data`` goes into the history."""
        assert row.asks_a_person
        self._event(EventType.WAIT_DECIDED, row.path, data)
        match word:
            case Decision.HAPPENED | Decision.ANSWER:
                row.doubt = None
                self.finish(row, StepState.SUCCEEDED, output=output or NULL, data={"decided": data["wait"]})
            case Decision.NOT_HAPPENED | Decision.RETRY:
                self._run_again(row, from_the_start=word is Decision.RETRY)
            case Decision.FAIL:
                self.finish(row, StepState.FAILED, failure=row.failure, data={"decided": data["wait"]})
            case _:
                assert_never(word)

    def _run_again(self, row: StepRow, *, from_the_start: bool) -> None:
        own, last = self.plan.nodes[row.ref].agent, row.agent
        if from_the_start and own is not None:
            agent = self.plan.agents[own]
            row.agent, row.queue, row.limited, row.fallback = own, QueueName(agent.queue), agent.metered, 0
        if row.doubt is not None or row.agent != last or row.failure is None or row.failure.outcome_known:
            row.generation += 1  # another agent, or it is known what became of the last call: the next one acts anew
        self._nothing_happened(row)
        row.doubt = row.first_started_at = None
        row.tries = row.losses = row.losses_alone = 0
        self._ready(row)

    def _doubt_if_unrepeatable(self, row: StepRow) -> None:
        """A call that was cut off: nobody is asked now, but it is not made again before somebody was."""
        agent = self.plan.agents[row.agent or ""]
        effect = self.plan.nodes[row.ref].effect_of(agent)
        if row.doubt is None and effect != "read" and not agent.honours_key:
            cut = Failure(FailureClass.TIMEOUT, "the call was cut off", outcome_known=False)
            row.doubt = Doubt(row.agent or "", cut, row.tries)

    def _key(self, row: StepRow) -> str:
        return idempotency_key(row, self.job.version)

    def _nothing_happened(self, row: StepRow) -> None:
        """It is known now that the call in doubt had no effect: it leaves nothing to undo."""
        if row.doubt is not None and row.failure is not None:
            detail = {name: value for name, value in row.failure.detail.items() if name != "may_have_acted"}
            row.failure = replace(row.failure, outcome_known=True, answered=False, detail=detail)
