"""Messages that no worker could take, as the bytes they were: look at them, and throw them away.

They belong to no tenant: nobody could read whose they are.
"""

from __future__ import annotations

import base64
from typing import Any

from orchestrator.domain.errors import NotFound
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.store import desk
from orchestrator.store.operations import EVERYONE
from orchestrator.store.session import Session


def listing(engine: Engine, *, cursor: str | None = None, limit: int = 50) -> tuple[list[dict[str, Any]], str | None]:
    """A page, newest first, without the bytes; and the next page's cursor."""
    found = engine.db.run(lambda session: desk.quarantined(session, limit + 1, cursor), readonly=True)
    return found[:limit], str(found[limit - 1]["id"]) if len(found) > limit else None


def show(engine: Engine, message_id: str) -> dict[str, Any]:
    """One message: ``raw`` in base64, and ``text`` if it is UTF-8. Raises ``NotFound``."""
    return engine.db.run(lambda session: _view(session, message_id), readonly=True)


def discard(engine: Engine, message_id: str, *, by: str, note: str | None = None) -> dict[str, Any]:
    """Removes it; the audit trail keeps who, why, and what it was. Raises ``NotFound``."""

    def work(session: Session) -> dict[str, Any]:
        view = _view(session, message_id)
        if not desk.drop_quarantined(session, message_id):
            raise NotFound(f"no message {message_id} is in quarantine.")
        data = {name: view[name] for name in ("queue", "reason", "size", "at")}
        audit.note(engine, session, "quarantine.discarded", message_id, tenant=EVERYONE, by=by, why=note, data=data)
        return view

    return engine.db.run(work)


def _view(session: Session, message_id: str) -> dict[str, Any]:
    row = desk.quarantined_message(session, message_id)
    if row is None:
        raise NotFound(f"no message {message_id} is in quarantine.")
    raw = bytes(row["raw"])
    try:
        text: str | None = raw.decode()
    except UnicodeDecodeError:
        text = None
    return {**row, "size": len(raw), "raw": base64.b64encode(raw).decode(), "text": text}
