"""Submitting on the caller's own SQL connection: the job is a few rows of the caller's transaction, no more.

No message is sent: once the caller has committed, the safety net sees the ready step within about a second.
"""

from __future__ import annotations

from typing import Any

from orchestrator.client.words import Job, NewJob
from orchestrator.clock import Clock
from orchestrator.domain.errors import InvalidInput


class Enlister:
    """Keeps compiled workflows between submits; safe from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._plans: Any = None

    def submit(self, connection: Any, job: NewJob, tenant: str) -> Job:
        """Writes ``job`` in ``connection``'s open transaction and commits nothing.

        Waits only for a twin with the same key, at most 2 s (``SubmitInProgress``). After any error what stood in the
        transaction before stands still, and it can go on. Raises what ``Client.submit`` raises, ``SchemaOutdated``
        when this is no orchestrator database of this version, ``ConfigError`` for a connection that commits by itself.
        """
        # Loaded here: a client over HTTP needs neither SQL nor the engine.
        from orchestrator.domain.webhook import Webhook
        from orchestrator.engine.context import Engine, Plans
        from orchestrator.engine.queries import accepted_view
        from orchestrator.engine.submit import Submission, enlist
        from orchestrator.store.bound import bind

        if not isinstance(job.workflow, str):
            raise InvalidInput(
                "in a transaction of your own a job names a registered workflow.",
                mend="Register the definition first: client.register(name, definition).",
            )
        if self._plans is None:
            self._plans = Plans()
        db = bind(connection)
        engine = Engine(db, self._clock, db.writer(), sizes=db.sizes, plans=self._plans)
        webhook = Webhook.read(job.webhook) if job.webhook is not None else None
        submission = Submission(
            job.workflow, job.input, tenant, job.key, job.priority, dict(job.tags), job.deadline, webhook
        )
        return Job.read(accepted_view(enlist(engine, submission)))
