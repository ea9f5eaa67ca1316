"""The desk without a server: the engine's own use cases on the database of ``ORCHESTRATOR_DATABASE_URL``."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator import bootstrap
from orchestrator.cli.desk import Row
from orchestrator.domain.errors import NotFound, SchemaOutdated
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from orchestrator.domain.json_values import loads
from orchestrator.domain.states import JobState
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import (
    audit,
    breakers,
    cancel,
    dead_letters,
    decisions,
    explain,
    fork,
    invalidate,
    queries,
    replays,
    submit,
    undoing,
    webhooks,
)
from orchestrator.engine.context import Engine
from orchestrator.settings import Settings
from orchestrator.store import desk, workflows
from orchestrator.store.operations import LetterFilter
from orchestrator.store.session import Session

#: Whoever reaches the database owns it: the shell sees every tenant, and submits as this one.
TENANT = "default"
#: Rows read at once.
PAGE = 200


@contextmanager
def engine_for_shell(settings: Settings | None = None) -> Iterator[Engine]:
    """An engine that only asks and writes; it publishes nothing."""
    engine = silent_engine(settings or Settings.load())
    try:
        yield engine
    finally:
        engine.db.close()


def silent_engine(settings: Settings, role: str = "shell", *, check_schema: bool = True) -> Engine:
    """Its feed is closed: a shell is gone before a broker would answer, and memory:// would answer nobody."""
    require_file(settings)
    engine = bootstrap.build_engine(settings, role, dispatcher=Silence, check_schema=check_schema)
    engine.feed.close()
    return engine


class Silence:
    """A ``ports.Dispatcher`` without a broker: what it is to publish is lost at once, and back in the backlog."""

    def __init__(self, on_lost: bootstrap.OnLost) -> None:
        self._on_lost = on_lost

    def publish(self, refs: Sequence[StepRef]) -> None:
        self._on_lost(refs)

    def publish_marker(self, queue: QueueName, number: int) -> None:
        """A marker that is not sent says nothing."""

    def broker_epoch(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing to let go of."""


def require_file(settings: Settings) -> None:
    """Raises ``SchemaOutdated`` when there is no SQLite file where the settings say."""
    scheme, _, file = settings.database_url.get_secret_value().partition(":///")
    if scheme == "sqlite" and not Path(file.partition("?")[0]).exists():  # asking must not make one
        raise SchemaOutdated(
            f"there is no database at {file}.",
            mend="Run: orchestrator migrate. Or set ORCHESTRATOR_DATABASE_URL (or _URL) to where the jobs are.",
        )


class DirectDesk:
    """Rings no bell: what it makes ready is found by the scheduler's safety net, within a second."""

    def __init__(self, settings: Settings) -> None:
        self._engine = silent_engine(settings)

    def close(self) -> None:
        self._engine.db.close()

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
        hook = Webhook.read(webhook) if webhook is not None else None
        wanted = submit.Submission(workflow, input, TENANT, key, priority, dict(tags), deadline, hook)
        return queries.accepted_view(submit.submit(self._engine, wanted))

    def job(self, job_id: str) -> Row:
        return queries.show_job(self._engine, JobId(job_id))

    def jobs(self, *, state: str | None, workflow: str | None, tag: tuple[str, str] | None) -> Iterator[Row]:
        states = [JobState(state)] if state is not None else []
        return read_pages(
            lambda cursor: queries.list_jobs(
                self._engine, tenant=None, states=states, workflow=workflow, tag=tag, cursor=cursor, limit=PAGE
            )
        )

    def steps(self, job_id: str) -> Iterator[Row]:
        return read_pages(lambda cursor: queries.list_steps(self._engine, JobId(job_id), cursor=cursor, limit=PAGE))

    def events(self, job_id: str, after: int) -> tuple[list[Row], bool]:
        return queries.list_events(self._engine, JobId(job_id), after=after, limit=PAGE)

    def cancel(self, job_id: str) -> Row:
        return queries.job_view(cancel.cancel(self._engine, JobId(job_id), by=who()))

    def resume_webhook(self, job_id: str) -> Row:
        webhooks.resume(self._engine, JobId(job_id), by=who())
        return self.job(job_id)

    def fork(self, job_id: str, from_step: str, *, dry_run: bool, key: str | None, **how: Any) -> Row:
        wanted = fork.Wanted(JobId(job_id), StepPath(from_step), key=key, by=who(), **how)
        if dry_run:
            return fork.preview(self._engine, wanted)
        return queries.job_view(fork.fork(self._engine, wanted).job)

    def invalidate(self, job_id: str, step: str, *, note: str | None, repeat_effects: bool) -> Row:
        return queries.job_view(
            invalidate.invalidate(
                self._engine, JobId(job_id), StepPath(step), by=who(), note=note, repeat_effects=repeat_effects
            )
        )

    def stale(self, job_id: str, step: str) -> Row:
        return invalidate.preview(self._engine, JobId(job_id), StepPath(step))

    def dead_letters(
        self, *, state: str, workflow: str | None, reason: str | None, job: str | None, fingerprint: str | None = None
    ) -> Iterator[Row]:
        def page(cursor: str | None) -> tuple[list[Row], str | None]:
            found = self._engine.db.run(lambda session: letters(session, cursor), readonly=True)
            return found, found[-1]["id"] if len(found) == PAGE else None

        def letters(session: Session, cursor: str | None) -> list[Row]:
            return desk.letters(
                session,
                tenant=None,
                state=None if state == "all" else state,
                workflow=workflow,
                reason=reason,
                fingerprint=fingerprint,
                job_id=JobId(job) if job is not None else None,
                before=cursor,
                limit=PAGE,
            )

        return read_pages(page)

    def dead_letter(self, letter_id: str) -> Row:
        return dead_letters.get(self._engine, letter_id)

    def replay(self, letter_id: str, *, note: str | None, changes: Mapping[str, Any] | None = None) -> Row:
        return queries.job_view(dead_letters.replay(self._engine, letter_id, by=who(), note=note, changes=changes))

    def discard(self, letter_id: str, *, note: str | None) -> Row:
        return dead_letters.discard(self._engine, letter_id, by=who(), note=note)

    def undiscard(self, letter_id: str, *, note: str | None) -> Row:
        return dead_letters.undiscard(self._engine, letter_id, by=who(), note=note)

    def decisions(self, *, state: str, job: str | None) -> Iterator[Row]:
        return read_pages(
            lambda cursor: decisions.listing(self._engine, tenant=None, state=state, job=job, cursor=cursor, limit=PAGE)
        )

    def decision(self, wait_id: str) -> Row:
        return decisions.get(self._engine, wait_id)

    def decide(self, wait_id: str, decision: str, *, output: Any, note: str | None) -> Row:
        return decisions.decide(self._engine, wait_id, decision, by=who(), output=output, note=note)

    def explain(self, job_id: str) -> Row:
        return explain.explain(self._engine, JobId(job_id))

    def compensations(self, job_id: str) -> list[Row]:
        return undoing.ledger(self._engine, JobId(job_id))

    def groups(self, wanted: LetterFilter) -> list[Row]:
        return replays.groups(self._engine, wanted, None)

    def replay_all(self, wanted: LetterFilter, *, everything: bool, dry_run: bool, **how: Any) -> Row:
        if dry_run:
            return replays.preview(self._engine, wanted, None, everything=everything)
        return replays.start(self._engine, wanted, None, everything=everything, by=who(), **how)

    def operations(self) -> list[Row]:
        return replays.listing(self._engine, None)[0]

    def operation(self, operation_id: str) -> Row:
        return replays.show(self._engine, operation_id)

    def cancel_operation(self, operation_id: str, *, note: str | None) -> Row:
        return replays.cancel(self._engine, operation_id, by=who(), note=note)

    def open_breaker(self, name: str, seconds: float, *, note: str | None) -> list[Row]:
        return breakers.open_(self._engine, name, seconds, by=who(), note=note)

    def breakers(self) -> list[Row]:
        return breakers.listing(self._engine, None)

    def reset_breaker(self, name: str, *, note: str | None) -> list[Row]:
        return breakers.reset(self._engine, name, by=who(), note=note)

    def audit(self, subject: str | None) -> list[Row]:
        return audit.trail(self._engine, tenant=None, subject=subject)[0]

    def apply(self, workflow: Workflow, *, strict: bool = False) -> Row:
        return {"name": workflow.name, "version": submit.register(self._engine, workflow, strict=strict)}

    def workflows(self) -> list[Row]:
        names: dict[str, list[Row]] = {}
        for row in self._engine.db.run(workflows.names, readonly=True):
            names.setdefault(str(row["name"]), []).append(row)
        return [{"name": name, "version": rows[0]["version"], "versions": len(rows)} for name, rows in names.items()]

    def workflow(self, name: str) -> Row:
        bare, _, wanted = name.partition("@")

        def work(session: Session) -> Row | None:
            found = workflows.newest(session, bare, wanted or None)
            if found is None:
                return None
            rows = [row for row in workflows.names(session) if row["name"] == bare]
            versions = [{key: row[key] for key in ("version", "listed_at", "created_at")} for row in rows]
            definition = workflows.definition(session, found)
            return {"name": bare, "version": found, "definition": loads(definition or "{}"), "versions": versions}

        shown = self._engine.db.run(work, readonly=True)
        if shown is None:
            raise NotFound(f"no workflow {name!r} is registered.", mend="List them: orchestrator workflows list.")
        return shown


def read_pages(page: Callable[[str | None], tuple[list[Row], str | None]]) -> Iterator[Row]:
    """All rows; ``page(cursor)`` answers some and the next cursor."""
    cursor: str | None = None
    while True:
        rows, cursor = page(cursor)
        yield from rows
        if cursor is None:
            return


def who() -> str:
    """The person at this shell, for the record."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "shell"
