"""The audit trail: who did what to which thing, when and why. Each use case writes it in its own transaction."""

from __future__ import annotations

from typing import Any

from orchestrator.engine.context import Engine
from orchestrator.store import audit
from orchestrator.store.session import Session


def note(
    engine: Engine,
    session: Session,
    what: str,
    subject: str,
    *,
    tenant: str,
    by: str,
    why: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Adds to the trail in the caller's transaction: it is true exactly if that commits."""
    audit.record(session, engine.clock.new_id(), tenant=tenant, who=by, what=what, subject=subject, why=why, data=data)


def trail(
    engine: Engine, *, tenant: str | None, subject: str | None = None, cursor: str | None = None, limit: int = 50
) -> tuple[list[dict[str, Any]], str | None]:
    """A page, newest first, and the next page's cursor. ``subject``: a job's, letter's, decision's, operation's id."""

    def work(session: Session) -> list[dict[str, Any]]:
        return audit.entries(session, tenant=tenant, subject=subject, before=cursor, limit=limit + 1)

    found = engine.db.run(work, readonly=True)
    return found[:limit], str(found[limit - 1]["id"]) if len(found) > limit else None
