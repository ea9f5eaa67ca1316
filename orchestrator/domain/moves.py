"""One job's rows in memory, and what of them is to be written: the ground ``Advance`` stands on. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import ROOT, StepPath
from orchestrator.domain.outcome import Failure, FailureClass, Usage
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.result import AttemptRecord, Result
from orchestrator.domain.saga import Debt
from orchestrator.domain.states import JobState, StepState
from orchestrator.domain.waits import Wait


class Moves:
    """``now`` is the database's clock, in seconds."""

    def __init__(self, plan: Plan, job: JobRow, rows: Iterable[StepRow], now: float, max_steps: int = 50_000) -> None:
        self.plan = plan
        self.job = job
        self.now = now
        self.max_steps = max_steps
        self.rows: dict[StepPath, StepRow] = {row.path: row for row in rows}
        self.before: dict[StepPath, tuple[StepState, int]] = {
            path: (row.state, row.fence) for path, row in self.rows.items()
        }
        self.changed: dict[StepPath, StepRow] = {}
        self.created: list[StepRow] = []
        self.events: list[Event] = []
        self.attempts: list[AttemptRecord] = []
        #: Rows that became ready, in order: to be claimed in place, marked and published, or left to the feed.
        self.ready: list[StepRow] = []
        #: Subtrees to stop: (path, whether live calls are asked to stop too).
        self.stops: list[tuple[StepPath, bool]] = []
        #: Composites whose prepared children are to be made ready.
        self.prepared: list[tuple[StepPath, int]] = []
        #: Questions to people that are asked now, and the steps whose question is over.
        self.asked: list[Wait] = []
        self.answered: list[StepPath] = []
        #: What goes to the desk: the job's failure, and undoings that are stuck.
        self.letters: list[tuple[StepPath, Failure]] = []
        #: Debts that this transaction makes; those it may pay, by number; and what became of them.
        self.owed: list[Debt] = []
        self.debts: dict[int, Debt] = {}
        self.paid: dict[int, tuple[str, int]] = {}
        #: Whether the job owed anything when this transaction began.
        self.owing = False
        #: Asks whether a branch that failed, and was tolerated, owes anything: looked up only where it matters.
        self.branches_owe: Callable[[], bool] = lambda: False
        #: Undoing composites that opened.
        self.undoing: list[StepPath] = []
        #: How many events the job had; and whether it was recalled, not read under its lock.
        self.had_events = job.events
        self.recalled = False
        #: The attempt being settled: its step, whether its call had begun, and its result.
        self._settled: tuple[StepPath, bool, Result] | None = None
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, rows: Iterable[StepRow]) -> None:
        """More rows it may move; those it has are kept as they are."""
        for row in rows:
            if row.path not in self.rows:
                self.rows[row.path] = row
                self.before[row.path] = (row.state, row.fence)

    @property
    def more_to_write(self) -> bool:
        """Whether something stands in other tables than those of steps, jobs and their history."""
        return bool(
            self.prepared or self.owed or self.paid or self.undoing or self.asked or self.answered or self.letters
        )

    # -- the job

    def _fail_job(self, root: StepRow) -> None:
        failure = root.failure or Failure(FailureClass.BUG, "failed without a reason")
        at = root.failed_at or ROOT
        self.job.failure = failure
        self._end_job(JobState.FAILED, EventType.JOB_FAILED, at, {"failure": failure.as_dict()})
        self._park(at, failure)

    def _end_job(
        self, state: JobState, event: EventType, at: StepPath | None = None, data: dict[str, Any] | None = None
    ) -> None:
        self.job.state, self.job.finished_at = state, self.now
        self._event(event, at or None, data or {})
        self._count("jobs_finished_total", workflow=self.job.workflow, state=state.value)

    def _park(self, path: StepPath, failure: Failure) -> None:
        self.letters.append((path, failure))
        self._event(EventType.DEAD_LETTER_CREATED, path or None, {"reason": failure.kind.value})
        self._count("dead_letters_total", workflow=self.job.workflow, reason=failure.kind.value)

    # -- small things

    def _spend(self, agent: str, usage: Usage) -> None:
        self.job.cost_usd += usage.cost_usd
        self.job.input_tokens += usage.input_tokens
        self.job.output_tokens += usage.output_tokens
        labels = {"agent": agent, "model": usage.model or ""}
        if usage.input_tokens or usage.output_tokens:
            self._count("agent_tokens_total", usage.input_tokens, **labels, direction="input")
            self._count("agent_tokens_total", usage.output_tokens, **labels, direction="output")
        if usage.cost_usd:
            self._count("agent_cost_usd_total", usage.cost_usd, **labels)

    def _count(self, series: str, amount: float = 1, /, **labels: str) -> None:
        self.counts[(series, tuple(sorted(labels.items())))] += amount  # type: ignore[assignment]

    def _ready(self, row: StepRow) -> None:
        self._move(row, StepState.READY)
        row.ready_at = self.now
        row.dispatched_at = row.mark = None
        self.ready.append(row)

    def _move(self, row: StepRow, state: StepState) -> None:
        if row.asks_a_person:
            self._no_longer_asks(row)
        row.state = state
        self._touch(row)

    def _touch(self, row: StepRow) -> None:
        if row.path in self.before:
            self.changed[row.path] = row

    def _event(self, kind: EventType, path: StepPath | None, data: dict[str, Any]) -> None:
        self.job.events += 1
        self.events.append(Event(self.job.id, self.job.events, kind, path, data, self.job.run, self.now))

    def _no_longer_asks(self, row: StepRow) -> None:
        """While a question was open the job's deadline did not run."""
        job = self.job
        job.waits -= 1
        self.answered.append(row.path)
        if job.waits == 0 and job.waiting_since is not None:
            job.deadline_at = None if job.deadline_at is None else job.deadline_at + self.now - job.waiting_since
            job.waiting_since = None
