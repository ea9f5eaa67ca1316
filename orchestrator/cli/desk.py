"""What the data commands ask for. Two can answer: the API (``remote.py``), or the database itself (``direct.py``).

Both give the same values: those of ``engine/queries.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from orchestrator.domain.workflow import Workflow
    from orchestrator.store.operations import LetterFilter

Row = dict[str, Any]


class Desk(Protocol):
    """Raises the errors of ``domain/errors.py``: ``NotFound``, ``Conflict``, ``Unavailable`` and so on.

    Lists are read as they are iterated, newest first, to their end.
    """

    def submit(
        self,
        workflow: str | Workflow,
        input: Any,
        *,
        key: str | None,
        priority: int,
        tags: Mapping[str, str],
        deadline: float | None,
        webhook: Row | None = None,
    ) -> Row:
        """The job; again with the same key and body, the same job. ``deadline`` in seconds."""

    def job(self, job_id: str) -> Row:
        """With input and output."""

    def jobs(self, *, state: str | None, workflow: str | None, tag: tuple[str, str] | None) -> Iterator[Row]: ...

    def steps(self, job_id: str) -> Iterator[Row]: ...

    def events(self, job_id: str, after: int) -> tuple[list[Row], bool]:
        """A page of the events after number ``after``, and whether the job has ended and nothing follows."""

    def cancel(self, job_id: str) -> Row: ...

    def resume_webhook(self, job_id: str) -> Row: ...
    def fork(self, job_id: str, from_step: str, *, dry_run: bool, key: str | None, **how: Any) -> Row:
        """The new job, or with ``dry_run`` what it would be. ``how``: changes, reuse, note."""

    def invalidate(self, job_id: str, step: str, *, note: str | None, repeat_effects: bool) -> Row:
        """The job, running again."""

    def stale(self, job_id: str, step: str) -> Row:
        """What ``invalidate`` would do."""

    def dead_letters(
        self, *, state: str, workflow: str | None, reason: str | None, job: str | None, fingerprint: str | None = None
    ) -> Iterator[Row]:
        """``state``: open, replayed, discarded or all."""

    def dead_letter(self, letter_id: str) -> Row: ...

    def replay(self, letter_id: str, *, note: str | None, changes: Mapping[str, Any] | None = None) -> Row:
        """The job, running again. ``changes`` to the failed step: input, agent or output."""

    def discard(self, letter_id: str, *, note: str | None) -> Row: ...

    def undiscard(self, letter_id: str, *, note: str | None) -> Row: ...

    def decisions(self, *, state: str, job: str | None) -> Iterator[Row]:
        """``state``: open, decided, cancelled or all."""

    def decision(self, wait_id: str) -> Row: ...

    def decide(self, wait_id: str, decision: str, *, output: Any, note: str | None) -> Row:
        """The question, closed."""

    def explain(self, job_id: str) -> Row:
        """What the job waits for."""

    def compensations(self, job_id: str) -> list[Row]:
        """What the job owes or owed, in the order it was done."""

    def groups(self, wanted: LetterFilter) -> list[Row]: ...

    def replay_all(self, wanted: LetterFilter, *, everything: bool, dry_run: bool, **how: Any) -> Row:
        """The operation, begun, or with ``dry_run`` what it would do. ``how``: rate, stop_on_same_error, note."""

    def operations(self) -> list[Row]:
        """The newest 50."""

    def operation(self, operation_id: str) -> Row: ...

    def cancel_operation(self, operation_id: str, *, note: str | None) -> Row: ...

    def breakers(self) -> list[Row]: ...

    def open_breaker(self, name: str, seconds: float, *, note: str | None) -> list[Row]: ...

    def reset_breaker(self, name: str, *, note: str | None) -> list[Row]:
        """Those of that name, closed: one, unless several tenants' are in reach."""

    def audit(self, subject: str | None) -> list[Row]:
        """The newest 50 entries."""

    def apply(self, workflow: Workflow, *, strict: bool = False) -> Row:
        """``{"name", "version"}``"""

    def workflows(self) -> list[Row]: ...

    def workflow(self, name: str) -> Row:
        """``name`` may be ``name@version``."""

    def close(self) -> None: ...
