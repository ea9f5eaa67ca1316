"""A job's webhook: made with the job, looked at, and resumed after it was stopped. ``deliver.py`` sends."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import urlsplit

from orchestrator.domain.errors import NotFound
from orchestrator.domain.ids import JobId
from orchestrator.domain.plan import JobRow
from orchestrator.domain.states import JOB_TERMINAL
from orchestrator.domain.webhook import KEY_MARK, Webhook
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.engine.policy import Policy, enforce_address
from orchestrator.store import jobs
from orchestrator.store import webhooks as sql
from orchestrator.store.session import Session

_ANYWHERE = Policy(egress=None)


def wanted(webhook: Webhook | None) -> str | None:
    """As the job's row has it: the types of events it is told. Raises ``RefusedByPolicy`` for what is no address."""
    if webhook is None:
        return None
    enforce_address(webhook.url, _ANYWHERE, "webhook.url")
    return " ".join(kind.value for kind in webhook.events)


def add(engine: Engine, session: Session, job: JobRow, webhook: Webhook | None) -> str | None:
    """Writes the webhook of a job that is being submitted; answers its secret if it was made here."""
    if webhook is None:
        return None
    made = None if webhook.secret is not None else new_secret(engine)
    parts = urlsplit(webhook.url)
    host = f"{parts.hostname}:{parts.port or parts.scheme}"
    sql.insert(session, job, webhook, host, webhook.secret or made or "")
    return made


def new_secret(engine: Engine) -> str:
    """As Standard Webhooks writes it; 32 bytes of text that hold 192 random bits."""
    return KEY_MARK + base64.b64encode(engine.clock.new_secret().encode()).decode()


def view(session: Session, job: JobRow) -> dict[str, Any] | None:
    """What people see of a job's webhook: neither its secret nor its URL's query, where others live.

    ``state``: stopped (resume it), active, or done (the job has ended and nothing is owed).
    """
    row = sql.get(session, job.id)
    if row is None:
        return None
    idle = row["due_at"] is None and row["state"] == "active"
    return {
        "url": row["url"].partition("?")[0].partition("#")[0],
        "events": (job.webhook or "").split(),
        "state": "done" if idle and job.state in JOB_TERMINAL else row["state"],
        "delivered": row["position"],
        "owed": row["upto"],
        "failures": row["failures"],
        "error": row["error"],
        "next_at": row["due_at"],
        "delivered_at": row["delivered_at"],
    }


def resume(engine: Engine, job_id: JobId, tenant: str | None = None, *, by: str, note: str | None = None) -> JobRow:
    """Sends again, at once, what a stopped webhook is owed, or one that waits for its next try. Again is no error.

    Raises ``NotFound`` when there is no such job, or it has no webhook.
    """

    def work(session: Session) -> JobRow:
        job = jobs.get(session, job_id)
        if job is None or (tenant is not None and job.tenant != tenant):
            raise NotFound(f"no job {job_id}.")
        if job.webhook is None:
            raise NotFound(f"job {job_id} has no webhook.", mend="It is given when a job is submitted.")
        if sql.resume(session, job_id):
            audit.note(engine, session, "webhook.resumed", job_id, tenant=job.tenant, by=by, why=note)
        return job

    return engine.db.run(work)
